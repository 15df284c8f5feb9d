"""Source of evidence for other modules: `EvidenceMaker`."""

from typing import Protocol

from attestkit.attestation import Attestation


class EvidenceMaker(Protocol):
    """Source of this guest's evidence, such as an `Attester` or a `SimulatedTee`."""

    def attest(self, *, report_data: bytes) -> Attestation:
        """Return evidence over 64 bytes of report data."""
        ...
