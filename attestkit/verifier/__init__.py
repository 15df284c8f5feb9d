"""Verifier: authenticate evidence, replay its event log, and appraise it by a policy."""

from attestkit._outcomes.steps import StepCheck, StepOutcome, VerificationStep
from attestkit.verifier.batch.task import VerificationItem
from attestkit.verifier.claims import (
    Authenticated,
    Claims,
    CollateralFacts,
    IntelPlatform,
    Tcb,
    TcbStatus,
    VtpmFacts,
)
from attestkit.verifier.evidence.formats import EvidenceBundle
from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
from attestkit.verifier.policy.event_rules import RequiredEvent
from attestkit.verifier.policy.reference_values import ReferenceValues
from attestkit.verifier.policy.rules import BitMask, KeyProvider
from attestkit.verifier.result import AttestationResult, BoundTo
from attestkit.verifier.verifier import Evidence, Examination, Verifier
from attestkit.verifier.verify_function import verify

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
