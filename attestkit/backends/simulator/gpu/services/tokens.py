"""Tokens of a simulated NRAS or nvattest: JWTs, with those of the devices in a detached EAT bundle.

The layout is that of nvidia-gpu.md, sections 5.1 and 5.4.
"""

import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from attestkit._crypto.hashes import sha256
from attestkit._formats.compact_jws import to_base64url


def compact_json(value: object) -> bytes:
    """Return JSON without spaces, with members in the order of their names."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def encode_token(
    header: Mapping[str, str],
    claims: Mapping[str, Any],
    sign: Callable[[bytes], bytes] = lambda _: b"",
) -> str:
    """Return a compact JWT, with an identifier (`jti`) that is a function of the claims."""
    content = dict(claims)
    content["jti"] = str(uuid.UUID(bytes=sha256(compact_json(content))[:16]))
    signed = f"{to_base64url(compact_json(header))}.{to_base64url(compact_json(content))}"
    return f"{signed}.{to_base64url(sign(signed.encode()))}"


def overall_claims(
    version: str, nonce: str, digests: Mapping[str, str], algorithm: str, *, accepted: bool
) -> dict[str, Any]:
    """Return the claims of the overall token.

    Args:
        version: Version of the claims: "3.0".
        nonce: Nonce of the evidence in hex.
        digests: Digest of each device's token in hex, by the name of the device.
        algorithm: Name of the digests' algorithm, which service and nvattest write differently.
        accepted: Whether all devices were accepted.
    """
    return {
        "sub": "NVIDIA-PLATFORM-ATTESTATION",
        "x-nvidia-ver": version,
        "x-nvidia-overall-att-result": accepted,
        "eat_nonce": nonce,
        "submods": {name: ["DIGEST", [algorithm, digest]] for name, digest in digests.items()},
    }


def token_digests(tokens: Mapping[str, str]) -> dict[str, str]:
    """Return the SHA-256 of each token in hex."""
    return {name: sha256(token.encode()).hex() for name, token in tokens.items()}
