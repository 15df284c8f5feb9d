"""Verify that a message was signed by the wallet that an attested app derives for a user.

Checks four links: evidence with our nonce, accepted by our policy, contains the app's root key; the
root key has signed the wallet's public key for this user; the address is that key's; and the
address has signed the message for this nonce.
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

from attestkit import AttestationResult, ReportData, Verifier
from attestkit.errors import AttestKitError, VerificationError
from attestkit.keys import recover_root

TAG = "example-wallet-app-key"
# Errors of unexpected JSON, invalid hex and the eth packages. Other exceptions end in a traceback
# and exit code 1: only the last line accepts.
MALFORMED = (AttributeError, LookupError, TypeError, ValueError, BadSignature, ValidationError)


def attested(signed: dict[str, str], nonce: bytes, verifier: Verifier) -> AttestationResult:
    """Check that fresh evidence of the app contains its root key."""
    app_key = bytes.fromhex(signed["app_key"])
    if len(app_key) != 33 or len(nonce) != 32:  # fixed sizes
        raise VerificationError("the nonce is 32 bytes and the app's key 33", reason="no_evidence")
    report_data = ReportData.bind(TAG, nonce + app_key)
    return verifier.verify(bytes.fromhex(signed["evidence"]), report_data=report_data)


def check_wallet(signed: dict[str, str], user: str) -> None:
    """Check that the app's key certifies the wallet for this user, and its address."""
    public_key = bytes.fromhex(signed["public_key"])
    signature = bytes.fromhex(signed["signed_by_app_key"])
    root = recover_root(public_key, f"wallet/eth/{user}", signature)
    if root.hex() != signed["app_key"]:
        raise VerificationError(
            f"the app's key does not certify this wallet for {user}", reason="no_evidence"
        )
    if PublicKey.from_compressed_bytes(public_key).to_checksum_address() != signed["address"]:
        raise VerificationError("the address is another key's", reason="no_evidence")


def message_in(signed: dict[str, str], user: str, nonce: bytes) -> str:
    """Return the message, if the wallet has signed it for this nonce."""
    text, signature = signed["text"], bytes.fromhex(signed["signature"])
    message, _, tail = text.rpartition("\n\n")
    if tail != f"wallet of {user}, once: {nonce.hex()}":
        raise VerificationError(
            "the signed text is for another user or nonce", reason="no_evidence"
        )
    if Account.recover_message(encode_defunct(text=text), signature=signature) != signed["address"]:
        raise VerificationError("the wallet has not signed this text", reason="no_evidence")
    return message


def main() -> None:
    """Parse the command line and the file; exit 1 unless all links are valid."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path, help="output of wallet.py")
    parser.add_argument("user", help="the expected user of the wallet")
    parser.add_argument("--nonce", required=True, type=bytes.fromhex, help="our nonce, 32 bytes")
    parser.add_argument("--policy", type=Path, required=True, help="policy that pins app and image")
    parser.add_argument("--trust-anchor", type=Path, help="one root instead of the vendors'")
    parser.add_argument("--collateral", type=Path, help="collateral file; or use --pccs")
    parser.add_argument("--pccs", metavar="URL", help="service for collateral")
    args = parser.parse_args()
    verifier = Verifier(
        trust_anchor=args.trust_anchor and args.trust_anchor.read_bytes(),
        collateral=args.collateral,
        pccs_url=args.pccs,
        policy=args.policy,
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
