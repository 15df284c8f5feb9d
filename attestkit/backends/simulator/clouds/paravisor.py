"""Runtime data of a simulated paravisor of Azure (vtpm.md, section 6.3)."""

import json
from typing import NamedTuple

from attestkit._formats.compact_jws import to_base64url
from attestkit.attestation.azure import USER_DATA_SIZE
from attestkit.tpm import TpmtPublic


class ParavisorConfig(NamedTuple):
    """The VM configuration that the paravisor claims."""

    vm_unique_id: str = "00000000-0000-4000-8000-000000000001"
    secure_boot: bool = True
    console_enabled: bool = False
    tpm_enabled: bool = True
    tpm_persisted: bool = True


def make_runtime_data(
    ak: TpmtPublic, ek: TpmtPublic, config: ParavisorConfig, user_data: bytes
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
        "user-data": user_data.ljust(USER_DATA_SIZE, b"\0").hex().upper(),
    }
    return json.dumps(fields, separators=(",", ":")).encode()


def _encode_key(kid: str, operation: str, key: TpmtPublic) -> dict[str, object]:
    exponent = key.exponent or 65537
    return {
        "kid": kid,
        "key_ops": [operation],
        "kty": "RSA",
        "e": to_base64url(exponent.to_bytes(-(-exponent.bit_length() // 8), "big")),
        "n": to_base64url(key.modulus),
    }
