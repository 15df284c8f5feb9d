"""Verifier: authenticate evidence, replay its event log, and appraise it by a policy."""

from attestkit.verifier.batch.task import Item
from attestkit.verifier.evidence_bundle import EvidenceBundle
from attestkit.verifier.pipeline import Evidence, Examination, Verifier, verify
from attestkit.verifier.policy.appraisal_policy import (
    AppraisalPolicy,
    BitMask,
    KeyProvider,
    ReferenceValues,
    RequiredEvent,
)
from attestkit.verifier.result import AttestationResult, Authenticated, Claims, Tcb, TcbStatus

__all__ = [
    "AppraisalPolicy",
    "AttestationResult",
    "Authenticated",
    "BitMask",
    "Claims",
    "Evidence",
    "EvidenceBundle",
    "Examination",
    "Item",
    "KeyProvider",
    "ReferenceValues",
    "RequiredEvent",
    "Tcb",
    "TcbStatus",
    "Verifier",
    "verify",
]
