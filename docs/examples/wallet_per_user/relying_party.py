"""Tell whether a message was signed by the wallet that an attested app keeps for a user.

Four links, each of which must hold: evidence, fresh by our nonce and accepted by our policy, names
the app's root key; the root key has signed the wallet's public key as this user's; the address is
that key's; and the address has signed the message, for this nonce.
"""

import argparse
import json
import sys
from pathlib import Path

from eth_account import Account
from eth_account.messages import encode_defunct
from eth_keys.datatypes import PublicKey
from eth_keys.exceptions import BadSignature
from eth_utils.exceptions import ValidationError

from attestkit import AppraisalPolicy, AttestationResult, Collateral, ReportData, Verifier
from attestkit.errors import AttestKitError, VerificationError
from attestkit.keys import recover_root

TAG = "example-wallet-app-key"
# What JSON of another shape, hex that is none and the eth packages raise. Whatever else may come is
# a traceback and exit code 1 as well: nothing is accepted but by the last line.
MALFORMED = (AttributeError, LookupError, TypeError, ValueError, BadSignature, ValidationError)


def attested(signed: dict[str, str], nonce: bytes, verifier: Verifier) -> AttestationResult:
    """Check that the app's root key is the one that fresh evidence of the app names."""
    app_key = bytes.fromhex(signed["app_key"])
    if len(app_key) != 33 or len(nonce) != 32:  # or the border between them could be shifted
        raise VerificationError("the nonce is 32 bytes and the app's key 33")
    report_data = ReportData.bind(TAG, nonce + app_key)
    return verifier.verify(bytes.fromhex(signed["evidence"]), report_data=report_data)


def check_wallet(signed: dict[str, str], user: str) -> None:
    """Check that the app's key vouches for the wallet as this user's, and for its address."""
    public_key = bytes.fromhex(signed["public_key"])
    signature = bytes.fromhex(signed["signed_by_app_key"])
    root = recover_root(public_key, f"wallet/eth/{user}", signature)
    if root.hex() != signed["app_key"]:
        raise VerificationError(f"the app's key does not vouch for this wallet as {user}'s")
    if PublicKey.from_compressed_bytes(public_key).to_checksum_address() != signed["address"]:
        raise VerificationError("the address is another key's")


def message_in(signed: dict[str, str], user: str, nonce: bytes) -> str:
    """Return the message, if the wallet has signed it for this nonce."""
    text, signature = signed["text"], bytes.fromhex(signed["signature"])
    message, _, tail = text.rpartition("\n\n")
    if tail != f"wallet of {user}, once: {nonce.hex()}":
        raise VerificationError("the signed text is for another user or nonce")
    if Account.recover_message(encode_defunct(text=text), signature=signature) != signed["address"]:
        raise VerificationError("the wallet has not signed this text")
    return message


def main() -> None:
    """Read the command line and what was signed; exit 1 unless all of it holds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path, help="what wallet.py printed")
    parser.add_argument("user", help="whose wallet it must be")
    parser.add_argument("--nonce", required=True, type=bytes.fromhex, help="32 bytes of our own")
    parser.add_argument("--policy", type=Path, required=True, help="which app on which image")
    parser.add_argument("--trust-anchor", type=Path, help="one root in place of the makers'")
    parser.add_argument("--collateral", type=Path, help="a file, or:")
    parser.add_argument("--pccs", metavar="URL", help="where collateral is fetched")
    args = parser.parse_args()
    verifier = Verifier(
        trust_anchor=args.trust_anchor and args.trust_anchor.read_bytes(),
        collateral=args.collateral and Collateral.load(args.collateral),
        pccs_url=args.pccs,
        policy=AppraisalPolicy.load(args.policy),
    )
    signed = json.loads(args.file.read_bytes())
    try:
        result = attested(signed, args.nonce, verifier)
        check_wallet(signed, args.user)
        message = message_in(signed, args.user, args.nonce)
    except AttestKitError as error:
        sys.exit(f"refused: {error}")
    except MALFORMED as error:
        sys.exit(f"refused: malformed: {error!r}")
    print(f"{args.user}'s wallet {signed['address']} says {message!r}", end="")
    print(" (SIMULATED)" if result.simulated else "")


if __name__ == "__main__":
    main()
