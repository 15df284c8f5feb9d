"""A wallet for each user of an app in a TEE: derived when it is needed, the same at any restart.

The app's root key and the user's name give the key; nothing is stored, and only signatures leave.
The root key signs each public key together with its purpose, which names the user here: whoever
trusts the root key can tell whose wallet it is. Fresh evidence ties the root key to this very app.
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
USER = re.compile(r"[a-z0-9-]{1,32}")  # so that no user can be another one's path or purpose


def sign(tee: Attester, user: str, message: str, nonce: bytes) -> dict[str, str]:
    """Sign a message with a user's wallet; return it with all that shows whose wallet it is."""
    if not USER.fullmatch(user):
        sys.exit("a user is called by 1 to 32 of a-z, 0-9 and -")
    purpose = f"wallet/eth/{user}"
    # The algorithm in the path keeps these bytes from ever being a key of another kind as well.
    key = tee.keys.derive(separated_path(purpose, "secp256k1"), purpose)
    account = Account.from_key(key.key)
    text = f"{message}\n\nwallet of {user}, once: {nonce.hex()}"
    app_key = recover_root(key.public_key, purpose, key.signature_chain[0])
    evidence = tee.attest(ReportData.bind(TAG, nonce + app_key))
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
    """Read the command line, and print what was signed as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("user", help="whom the app has authenticated; here: whoever you say")
    parser.add_argument("message")
    parser.add_argument("--nonce", required=True, type=bytes.fromhex, help="the relying party's")
    parser.add_argument("--backend", help="default: $ATTESTKIT_BACKEND, else the hardware found")
    parser.add_argument("--seed-file", type=Path, help="simulator only: its seed")
    args = parser.parse_args()
    options = {"seed": args.seed_file.read_bytes()} if args.seed_file else {}
    with attestkit.open(args.backend, **options) as tee:
        print(json.dumps(sign(tee, args.user, args.message, args.nonce)))


if __name__ == "__main__":
    main()
