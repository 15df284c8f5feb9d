"""Evidence judged: authenticate what the maker signed, replay the log, appraise by a policy."""

from attestkit.verifier.bundle import EvidenceBundle
from attestkit.verifier.many import Item
from attestkit.verifier.pipeline import Evidence, Examination, Verifier, verify
from attestkit.verifier.policy import (
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
