"""The function `verify`: verification in one call, with a Verifier for this call only."""

from datetime import datetime
from types import EllipsisType
from typing import TYPE_CHECKING, overload

from attestkit.verifier.evidence.formats import Evidence
from attestkit.verifier.result import AttestationResult
from attestkit.verifier.verifier import Verifier

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from attestkit.verifier.gpu_join import GpuInput
    from attestkit.verifier.verifier_options import VerifierOptions


@overload
def verify(
    evidence: Evidence,
    *,
    nonce: bytes,
    now: datetime | float | None = None,
    gpu: "GpuInput" = None,
    **options: "Unpack[VerifierOptions]",
) -> AttestationResult: ...


@overload
def verify(
    evidence: Evidence,
    *,
    nonce: bytes | None = None,
    report_data: bytes | EllipsisType | None,
    now: datetime | float | None = None,
    gpu: "GpuInput" = None,
    **options: "Unpack[VerifierOptions]",
) -> AttestationResult: ...


def verify(
    evidence: Evidence,
    *,
    nonce: bytes | None = None,
    report_data: bytes | EllipsisType | None = ...,
    now: datetime | float | None = None,
    gpu: "GpuInput" = None,
    **options: "Unpack[VerifierOptions]",
) -> AttestationResult:
    """Verify evidence; see `Verifier` and `Verifier.verify` for arguments and errors."""
    verifier = Verifier(**options)
    return verifier.verify(evidence, nonce=nonce, report_data=report_data, now=now, gpu=gpu)
