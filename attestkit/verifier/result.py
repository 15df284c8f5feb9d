"""Attestation results (RFC 9334): the claims of accepted evidence, and what was verified.

Results exist for accepted evidence only; rejected evidence raises an exception.
"""

from dataclasses import InitVar, dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

from attestkit._outcomes.steps import StepCheck, StepOutcome, VerificationStep
from attestkit.attestation import AppInfo
from attestkit.event_log import Rtmrs
from attestkit.verifier.claims import Claims, Tcb, values_of

if TYPE_CHECKING:
    from attestkit.gpu.result import GpuResult
    from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy

BoundTo = Literal["nonce", "report_data"]
"""Value that the evidence's report data was compared with: a nonce, or expected report data.

Expected report data may be a constant, such as the hash of a key. Empty report data binds the
evidence to nothing.
"""


_STATUS_CHECKS: Final = frozenset({"tcb", "tcb_status", "advisory"})
_PROOF: Final = object()


@dataclass(frozen=True, slots=True, repr=False)
class AttestationResult:
    """Result for accepted evidence. Immutable; only a Verifier creates results.

    A result of `Verifier.verify` refers to its evidence, for `sign_ear`.

    Attributes:
        claims: Authenticated fields of the evidence.
        advisory_ids: Security advisories of the vendor that apply to the platform.
        tcb: TCB status, dates, evaluation number and component SVNs.
        simulated: Whether the trust anchor of the platform, or of its GPUs, is not the vendor's
            root.
        bound_to: What the evidence's report data was compared with: `nonce`, or `report_data` that
            the caller expected. None if any report data was accepted, or empty report data was
            expected.
        nonce: The nonce that the evidence is bound to; None unless a nonce was compared.
        app_info: Identity of the app; unauthenticated fields are empty. None if it is not known.
        verified_at: Time of the verification, with a time zone.
        certificate_chain: Certificate chain of the signing key: DER, leaf first, trust anchor last.
        policy: The policy that accepted the evidence.
        steps: Checks that passed, checks that were skipped, and cautions.
        gpu: Result for the GPUs, with what binds them to this evidence; None without GPUs.
    """

    proof: InitVar[object]
    claims: Claims
    advisory_ids: tuple[str, ...]
    tcb: Tcb
    simulated: bool
    bound_to: BoundTo | None
    nonce: bytes | None
    app_info: AppInfo | None
    verified_at: datetime
    certificate_chain: tuple[bytes, ...]
    policy: "AppraisalPolicy"
    steps: tuple[VerificationStep, ...]
    gpu: "GpuResult | None" = None
    # As given to the verifier; None after pickling, and in a batch.
    _evidence: object = field(default=None, compare=False)

    def __post_init__(self, proof: object) -> None:
        if proof is not _PROOF:
            raise TypeError("AttestationResult: can only be created by a Verifier")

    @property
    def fresh(self) -> bool:
        """Whether the evidence is bound to the nonce that the caller passed.

        Report data alone is not evidence of freshness: it may be a constant.
        """
        return self.bound_to == "nonce"

    @property
    def registers(self) -> Rtmrs | None:
        """RTMR0 to RTMR3, 48 bytes each. None on other platforms: see `claims` for registers."""
        named = dict(self.claims.registers)
        if "rtmr0" not in named:
            return None
        return named["rtmr0"], named["rtmr1"], named["rtmr2"], named["rtmr3"]

    @property
    def not_proven(self) -> tuple[StepCheck, ...]:
        """Checks that were skipped, or passed with a caution; each once, in order.

        The TCB status and its advisories are not among them: they are authentic, good or bad.
        """
        found: dict[StepCheck, StepOutcome] = {
            step.check: step.outcome for step in self.steps if step.outcome != "passed"
        }
        return tuple(check for check in found if check not in _STATUS_CHECKS)

    def to_dict(self) -> dict[str, object]:
        """Return values for JSON, with bytes in hex and times in ISO 8601."""
        info, status = self.app_info, self.tcb.status
        return {
            "platform": self.claims.platform,
            "tcb_status": None if status is None else status.value,
            "advisory_ids": list(self.advisory_ids),
            "simulated": self.simulated,
            "bound_to": self.bound_to,
            "fresh": self.fresh,
            "verified_at": self.verified_at.isoformat(),
            **self.claims.to_dict(),
            "app_info": None if info is None else info.to_dict(),
            "gpu": None if self.gpu is None else self.gpu.claims,
            "tcb": self.tcb.to_dict(),
            "steps": [step._asdict() for step in self.steps],
        }

    def __hash__(self) -> int:
        return hash((self.claims, self.verified_at))

    def __reduce__(self) -> tuple[object, ...]:
        return _restore_result, values_of(AttestationResult)(self)[:-1]

    def __repr__(self) -> str:
        simulated = ", simulated" if self.simulated else ""
        return f"<AttestationResult {self.claims.platform}, {self.tcb.status}{simulated}>"


create_result: Final = partial(AttestationResult, _PROOF)
"""Return the result for accepted evidence; for `examination` only."""


def _restore_result(*content: Any) -> AttestationResult:
    """Return a result from the values that `AttestationResult.__reduce__` pickles."""
    return AttestationResult(_PROOF, *content)


def verified_evidence(result: AttestationResult) -> object:
    """Return the evidence of a result, as given to the verifier; None if the result has none."""
    return result._evidence  # noqa: SLF001 - of this module's class


def without_evidence(result: AttestationResult) -> AttestationResult:
    """Return a copy of a result that does not refer to its evidence, so as to free that."""
    return replace(result, proof=_PROOF, _evidence=None)


def add_step(result: AttestationResult, step: VerificationStep) -> AttestationResult:
    """Return a result with the step of a further check, such as of an RA-TLS certificate.

    It does not refer to the evidence.
    """
    return replace(result, proof=_PROOF, steps=(*result.steps, step), _evidence=None)
