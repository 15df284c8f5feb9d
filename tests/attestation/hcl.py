"""HCL reports for tests: runtime data of any keys and claims."""

import json
from typing import Any, Final

from attestkit._formats.compact_jws import to_base64url
from attestkit.attestation.azure import HclReport

MODULUS: Final = b"\xc1" + bytes(range(1, 255)) + b"\x01"
"""An odd number of 2048 bits; nobody has its private key."""

CLAIMS: Final[dict[str, Any]] = {
    "console-enabled": False,
    "secure-boot": True,
    "tpm-enabled": True,
    "tpm-persisted": True,
    "vmUniqueId": "911B0EF8-9DBA-48B0-B275-4E4DF2D39252",
}


def jwk(
    kid: str = "HCLAkPub", modulus: bytes = MODULUS, exponent: bytes = b"\1\0\1"
) -> dict[str, Any]:
    """Return an RSA key as the paravisor writes it."""
    n, e = to_base64url(modulus), to_base64url(exponent)
    return {"kid": kid, "key_ops": ["sign"], "kty": "RSA", "e": e, "n": n}


def runtime_json(*keys: dict[str, Any], **members: object) -> bytes:
    """Return runtime data with these keys, or one AK, and with other members replaced."""
    content: dict[str, Any] = {
        "keys": list(keys or (jwk(),)),
        "vm-configuration": CLAIMS,
        "user-data": "AB" * 64,
    }
    content |= {name.replace("_", "-"): member for name, member in members.items()}
    return json.dumps(content, separators=(",", ":")).encode()  # compact, as Azure's


def hcl_bytes(runtime: bytes | None = None, kind: str = "snp", size: int = 2600) -> bytes:
    """Return an HCL report whose hardware report is a pattern of bytes."""
    hardware = bytes(range(256)) * 5
    hardware = hardware[: 1184 if kind == "snp" else 1024]
    runtime = runtime_json() if runtime is None else runtime
    made = HclReport.create("snp" if kind == "snp" else "tdx", hardware, runtime)
    return made.encode(size)
