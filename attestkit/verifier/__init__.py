"""Verifier: authenticate evidence, replay its event log, and appraise it by a policy."""

from attestkit._verification_steps import StepCheck, StepOutcome, VerificationStep
from attestkit.verifier.batch.task import VerificationItem
from attestkit.verifier.evidence.bundle import EvidenceBundle
from attestkit.verifier.pipeline import Evidence, Examination, Verifier
from attestkit.verifier.policy.appraisal_policy import (
    AppraisalPolicy,
    BitMask,
    KeyProvider,
    ReferenceValues,
    RequiredEvent,
)
from attestkit.verifier.result import (
    AttestationResult,
    Authenticated,
    BoundTo,
    Claims,
    CollateralFacts,
    IntelPlatform,
    Tcb,
    TcbStatus,
)
from attestkit.verifier.verify_function import verify
from attestkit.verifier.vtpm_facts import VtpmFacts

__all__ = [
    "AppraisalPolicy",
    "AttestationResult",
    "Authenticated",
    "BitMask",
    "BoundTo",
    "Claims",
    "CollateralFacts",
    "Evidence",
    "EvidenceBundle",
    "Examination",
    "IntelPlatform",
    "KeyProvider",
    "ReferenceValues",
    "RequiredEvent",
    "StepCheck",
    "StepOutcome",
    "Tcb",
    "TcbStatus",
    "VerificationItem",
    "VerificationStep",
    "Verifier",
    "VtpmFacts",
    "verify",
]
