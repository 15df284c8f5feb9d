"""Simulated paravisor of Azure: runtime data and HCL reports (vtpm.md, sections 6.2 and 6.3)."""

import json
import struct
from base64 import urlsafe_b64encode
from typing import Final, NamedTuple

from attestkit._crypto.hashes import sha256

SNP_REPORT: Final = 2
"""Report type of a hardware report of SEV-SNP."""

TDX_REPORT: Final = 4
"""Report type of a hardware report of TDX, a TDREPORT."""

_HEADER: Final = struct.Struct("<4sIIII12x")
_RUNTIME: Final = struct.Struct("<IIIII")
_HARDWARE_SIZE: Final = 1184
_REQUEST_TYPE: Final = 2
_SHA256: Final = 1
_USER_DATA_SIZE: Final = 64


class ParavisorConfig(NamedTuple):
    """The VM configuration that the paravisor claims."""

    vm_unique_id: str = "00000000-0000-4000-8000-000000000001"
    secure_boot: bool = True
    console_enabled: bool = False
    tpm_enabled: bool = True
    tpm_persisted: bool = True


class RsaNumbers(NamedTuple):
    """Modulus and exponent of a public key."""

    modulus: int
    exponent: int


def make_runtime_data(
    ak: RsaNumbers, ek: RsaNumbers, config: ParavisorConfig, user_data: bytes
) -> bytes:
    """Return the runtime data: JSON with both keys, the configuration and the user data.

    Args:
        ak: Attestation key.
        ek: Endorsement key.
        config: Configuration of the VM.
        user_data: Content of NV index 0x01400002, at most 64 bytes.
    """
    fields = {
        "keys": [
            _encode_key("HCLAkPub", "sign", ak),
            _encode_key("HCLEkPub", "encrypt", ek),
        ],
        "vm-configuration": {
            "root-cert-thumbprint": "",
            "console-enabled": config.console_enabled,
            "secure-boot": config.secure_boot,
            "tpm-enabled": config.tpm_enabled,
            "tpm-persisted": config.tpm_persisted,
            "vmUniqueId": config.vm_unique_id,
        },
        "user-data": user_data.ljust(_USER_DATA_SIZE, b"\0").hex().upper(),
    }
    return json.dumps(fields, separators=(",", ":")).encode()


def bound_report_data(runtime_data: bytes) -> bytes:
    """Return the report data of the hardware report, 64 bytes."""
    return sha256(runtime_data) + bytes(32)


def make_hcl_report(report_type: int, hardware_report: bytes, runtime_data: bytes) -> bytes:
    """Return an HCL report without padding.

    Args:
        report_type: `SNP_REPORT` or `TDX_REPORT`.
        hardware_report: SEV-SNP report (1184 bytes) or TDREPORT (1024 bytes).
        runtime_data: JSON of `make_runtime_data`, over which the hardware report is.
    """
    size = len(runtime_data)
    header = _HEADER.pack(b"HCLA", 2, 1236 + size, _REQUEST_TYPE, 0)
    runtime = _RUNTIME.pack(20 + size, 1, report_type, _SHA256, size)
    return header + hardware_report.ljust(_HARDWARE_SIZE, b"\0") + runtime + runtime_data


def _encode_key(kid: str, operation: str, key: RsaNumbers) -> dict[str, object]:
    return {
        "kid": kid,
        "key_ops": [operation],
        "kty": "RSA",
        "e": _base64url(key.exponent),
        "n": _base64url(key.modulus),
    }


def _base64url(number: int) -> str:
    data = number.to_bytes(-(-number.bit_length() // 8), "big")
    return urlsafe_b64encode(data).rstrip(b"=").decode()
