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
    """Verify evidence, and return the result. Pass either `nonce` or `report_data`.

    Args:
        evidence: Evidence of at most 10 MiB, in any form of `Evidence`.
        nonce: The nonce that the attester was sent, 8 to 64 bytes.
        report_data: Expected report data, up to 64 bytes, zero-padded. None, which must be passed
            explicitly, accepts any.
        now: Time of the verification: an aware datetime, or seconds since 1970; None: now.
        gpu: Evidence of the machine's GPUs, see `Verifier.verify`; None uses that enclosed in the
            evidence, if any.
        options: Arguments of `Verifier`, such as `policy` or `collateral`.

    Raises:
        AttestKitError: As for `Verifier` and `Verifier.verify`.
    """
    verifier = Verifier(**options)
    return verifier.verify(evidence, nonce=nonce, report_data=report_data, now=now, gpu=gpu)
