"""Key configuration for Oblivious HTTP of NEAR AI, signed by a signing key of a report.

It counts only if the report attests that signing key (attested-client.md, 2.3).
"""

import hmac
from collections.abc import Mapping
from typing import Any, Final

from attestkit._crypto.ed25519 import ed25519_verify_strict
from attestkit.client.services.strict_answer import constant_member, object_member
from attestkit.client.services.vllm.vllm_report import VllmReport
from attestkit.errors import FormatError, ServiceError
from attestkit.gpu.bindings.answer_fields import hex_member

MAX_SUITES: Final = 8
"""Maximum number of pairs of KDF and AEAD in a key configuration."""

_X25519: Final = 0x0020  # DHKEM(X25519, HKDF-SHA256), RFC 9180
_KEY_SIZE: Final = 32
_HEAD: Final = 1 + 2 + _KEY_SIZE + 2  # key id, KEM, public key, bytes of the suites
_SIZES: Final = tuple(_HEAD + 4 * count for count in range(1, MAX_SUITES + 1))


def read_ohttp_key(members: Mapping[str, Any], report: VllmReport, what: str) -> bytes | None:
    """Return the key configuration (RFC 9458, section 3) that a report attests; None without one.

    Args:
        members: Members with `ohttp_attestation` and `ohttp_key_config`, both optional.
        report: The report whose signing key must have signed it. Of an ECDSA report the key of the
            signature, which is an Ed25519 key, is not attested, and the result is None.
        what: Name of the report, with which errors begin.

    Raises:
        FormatError: If it is malformed, or the two configurations differ (`inconsistent`).
        ServiceError: If its signature is not valid (`signature`).
    """
    if members.get("ohttp_attestation") is None:
        return None
    subject = f"{what}: ohttp_attestation"
    found = object_member(members, "ohttp_attestation", what)
    constant_member(found, "signing_algo", subject, "ed25519")
    key = hex_member(found, "signing_key", subject, _KEY_SIZE)
    config = hex_member(found, "key_config", subject, *_SIZES)
    _check_config(config, f"{subject}: key_config")
    if not ed25519_verify_strict(key, hex_member(found, "signature", subject, 64), config):
        message = f"{subject}: signature: not valid for key_config and signing_key"
        raise ServiceError(message, reason="signature")
    if members.get("ohttp_key_config") is not None:
        stated = hex_member(members, "ohttp_key_config", what, *_SIZES)
        if not hmac.compare_digest(stated, config):
            message = f"{what}: ohttp_key_config: differs from the signed one"
            raise FormatError(message, reason="inconsistent")
    attested = report.algorithm == "ed25519" and hmac.compare_digest(key, report.address)
    return config if attested else None


def _check_config(config: bytes, what: str) -> None:
    """Check a configuration whose size is one of `_SIZES`."""
    kem = int.from_bytes(config[1:3], "big")
    if kem != _X25519:
        message = f"{what}: KEM {kem:#06x}, must be {_X25519:#06x} (X25519)"
        raise FormatError(message, reason="unsupported_algorithm")
    if int.from_bytes(config[_HEAD - 2 : _HEAD], "big") != len(config) - _HEAD:
        message = f"{what}: the stated size of the algorithms is not that of the rest"
        raise FormatError(message, reason="wrong_size")
