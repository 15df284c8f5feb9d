"""The mark in certificates of simulated clouds and TPMs, whose roots a verifier may trust."""

from typing import Final

SIMULATED_MARK: Final = "attestkit-simulated"
"""Part of the subject of each certificate that a simulated cloud or TPM issues for its keys."""


def names_simulator(certificate: bytes) -> bool:
    """Return whether a certificate (DER) has a name of attestkit's simulated authorities."""
    return SIMULATED_MARK.encode() in certificate
