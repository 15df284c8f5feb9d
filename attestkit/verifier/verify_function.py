"""The function `verify`: verification in one call, with a Verifier for this call only."""

import os
from collections.abc import Sequence
from datetime import datetime
from types import EllipsisType
from typing import TYPE_CHECKING, overload

from attestkit.collateral import Collateral
from attestkit.verifier.evidence.formats import Evidence
from attestkit.verifier.pipeline import Verifier
from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
from attestkit.verifier.result import AttestationResult

if TYPE_CHECKING:
    from attestkit.gpu.endorsements import GpuEndorsements
    from attestkit.gpu.roots import GpuRoots
    from attestkit.verifier.gpu_join import GpuInput
    from attestkit.verifier.images import Images

__all__ = ["verify"]

_Path = str | os.PathLike[str]


@overload
def verify(
    evidence: Evidence,
    *,
    nonce: bytes,
    collateral: Collateral | _Path | None = None,
    trust_anchor: bytes | str | None = None,
    policy: AppraisalPolicy | _Path | None = None,
    pccs_url: str | None = None,
    now: datetime | float | None = None,
    snp_certificates: Sequence[bytes] = (),
    amd_crls: Sequence[bytes] = (),
    images: "Images | None" = None,
    ak_roots: Sequence[bytes] = (),
    ak_certificates: Sequence[bytes] = (),
    fetch_ak_certificates: bool = False,
    gpu: "GpuInput" = None,
    gpu_roots: "GpuRoots | None" = None,
    gpu_endorsements: "GpuEndorsements | _Path | None" = None,
) -> AttestationResult: ...


@overload
def verify(
    evidence: Evidence,
    *,
    nonce: bytes | None = None,
    report_data: bytes | EllipsisType | None,
    collateral: Collateral | _Path | None = None,
    trust_anchor: bytes | str | None = None,
    policy: AppraisalPolicy | _Path | None = None,
    pccs_url: str | None = None,
    now: datetime | float | None = None,
    snp_certificates: Sequence[bytes] = (),
    amd_crls: Sequence[bytes] = (),
    images: "Images | None" = None,
    ak_roots: Sequence[bytes] = (),
    ak_certificates: Sequence[bytes] = (),
    fetch_ak_certificates: bool = False,
    gpu: "GpuInput" = None,
    gpu_roots: "GpuRoots | None" = None,
    gpu_endorsements: "GpuEndorsements | _Path | None" = None,
) -> AttestationResult: ...


def verify(
    evidence: Evidence,
    *,
    nonce: bytes | None = None,
    report_data: bytes | EllipsisType | None = ...,
    collateral: Collateral | _Path | None = None,
    trust_anchor: bytes | str | None = None,
    policy: AppraisalPolicy | _Path | None = None,
    pccs_url: str | None = None,
    now: datetime | float | None = None,
    snp_certificates: Sequence[bytes] = (),
    amd_crls: Sequence[bytes] = (),
    images: "Images | None" = None,
    ak_roots: Sequence[bytes] = (),
    ak_certificates: Sequence[bytes] = (),
    fetch_ak_certificates: bool = False,
    gpu: "GpuInput" = None,
    gpu_roots: "GpuRoots | None" = None,
    gpu_endorsements: "GpuEndorsements | _Path | None" = None,
) -> AttestationResult:
    """Verify evidence; see `Verifier` and `Verifier.verify` for arguments and errors."""
    verifier = Verifier(
        trust_anchor=trust_anchor,
        collateral=collateral,
        pccs_url=pccs_url,
        policy=policy,
        snp_certificates=snp_certificates,
        amd_crls=amd_crls,
        images=images,
        ak_roots=ak_roots,
        ak_certificates=ak_certificates,
        fetch_ak_certificates=fetch_ak_certificates,
        gpu_roots=gpu_roots,
        gpu_endorsements=gpu_endorsements,
    )
    return verifier.verify(evidence, nonce=nonce, report_data=report_data, now=now, gpu=gpu)
