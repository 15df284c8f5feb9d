"""A wallet for each user of an app in a TEE: derived on demand, the same after a restart.

The key is derived from the app's root key and the user's name; it is not stored or sent. The root
key signs each public key with its purpose, here the user's name, which proves the wallet's user to
a party that trusts the root key. Fresh evidence binds the root key to this app.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from eth_account import Account
from eth_account.messages import encode_defunct

import attestkit
from attestkit import Attester, ReportData
from attestkit.keys import recover_root, separated_path

TAG = "example-wallet-app-key"
USER = re.compile(r"[a-z0-9-]{1,32}")  # unambiguous in path and purpose


def sign(tee: Attester, user: str, message: str, nonce: bytes) -> dict[str, str]:
    """Sign a message with a user's wallet; return it with the proof of the wallet's user."""
    if not USER.fullmatch(user):
        sys.exit("a user is called by 1 to 32 of a-z, 0-9 and -")
    if len(nonce) != 32:  # fixed size, so the boundary between nonce and key is unambiguous
        sys.exit("the nonce is 32 bytes")
    purpose = f"wallet/eth/{user}"
    # The path contains the algorithm, so keys of other algorithms differ.
    key = tee.keys.derive_compat(separated_path(purpose, "secp256k1"), purpose)
    account = Account.from_key(key.key)
    text = f"{message}\n\nwallet of {user}, once: {nonce.hex()}"
    app_key = recover_root(key.public_key, purpose, key.signature_chain[0])
    evidence = tee.attest(report_data=ReportData.bind(TAG, nonce + app_key))
    return {
        "address": account.address,
        "text": text,
        "signature": account.sign_message(encode_defunct(text=text)).signature.hex(),
        "public_key": key.public_key.hex(),
        "signed_by_app_key": key.signature_chain[0].hex(),
        "app_key": app_key.hex(),
        "evidence": evidence.to_bytes().hex(),
    }


def main() -> None:
    """Parse the command line, and print the signed message as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("user", help="the authenticated user; any name in this example")
    parser.add_argument("message")
    parser.add_argument(
        "--nonce", required=True, type=bytes.fromhex, help="nonce of the relying party"
    )
    parser.add_argument("--backend", help="default: $ATTESTKIT_BACKEND, else the detected hardware")
    parser.add_argument("--seed-file", type=Path, help="simulator only: its seed")
    args = parser.parse_args()
    options = {"seed": args.seed_file.read_bytes()} if args.seed_file else {}
    with attestkit.open(args.backend, **options) as tee:
        print(json.dumps(sign(tee, args.user, args.message, args.nonce)))


if __name__ == "__main__":
    main()
