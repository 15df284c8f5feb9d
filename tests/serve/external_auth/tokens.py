"""Access tokens, valid and malformed, for tests."""

import json
from collections.abc import Mapping
from typing import Any, Final

from attestkit._crypto.ed25519 import Ed25519Key
from attestkit._formats.compact_jws import to_base64url

KEY: Final = Ed25519Key(b"\x07" * 32)
OTHER_KEY: Final = Ed25519Key(b"\x08" * 32)
HEADER: Final = {"alg": "EdDSA", "typ": "JWT"}


def sign_parts(header: bytes, payload: bytes, key: Ed25519Key = KEY) -> bytes:
    """Return a token of these bytes."""
    signed = f"{to_base64url(header)}.{to_base64url(payload)}".encode()
    return signed + b"." + to_base64url(key.sign(signed)).encode()


def make_token(
    claims: Mapping[str, Any], header: Mapping[str, Any] = HEADER, key: Ed25519Key = KEY
) -> bytes:
    """Return a signed token."""
    return sign_parts(json.dumps(header).encode(), json.dumps(claims).encode(), key)
