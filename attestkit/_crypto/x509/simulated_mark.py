"""The marks of simulated TPMs, which a verifier recognises whatever root it was told to trust."""

from typing import Final

SIMULATED_MARK: Final = "attestkit-simulated"
"""Part of the subject of each certificate that a simulated cloud or TPM issues for its keys."""

SIMULATED_FIRMWARE: Final = int.from_bytes(b"SIMULATE", "big")
"""Firmware version in the quotes of a simulated TPM; swtpm behind a simulated guest has its own."""


def is_simulated_certificate(certificate: bytes) -> bool:
    """Return whether a certificate (DER) has the mark, in its subject or its issuer."""
    return SIMULATED_MARK.encode() in certificate
