"""Attestation results and their parts, in the terms of RFC 9334.

Claims are authenticated fields of the evidence. Results exist for accepted evidence only; rejected
evidence raises an exception.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, NoReturn

from attestkit._verification_steps import StepCheck, StepOutcome, VerificationStep
from attestkit.attestation import AppInfo
from attestkit.event_log import Rtmrs
from attestkit.event_log.event import Event
from attestkit.verifier.tcb import CollateralFacts, IntelPlatform, Tcb, TcbStatus
from attestkit.verifier.value_mapping import ValueMapping
from attestkit.verifier.vtpm_facts import Join, KeyTrust, VtpmFacts

if TYPE_CHECKING:
    from attestkit.gpu.result import GpuResult
    from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy

__all__ = [
    "ANOTHER_ROOT",
    "NO_REVOCATION",
    "AttestationResult",
    "Authenticated",
    "BoundTo",
    "Claims",
    "CollateralFacts",
    "IntelPlatform",
    "Join",
    "KeyTrust",
    "ResultContent",
    "Tcb",
    "TcbStatus",
    "VtpmFacts",
    "add_step",
    "caution",
    "create_result",
    "passed",
    "skipped",
    "verified_evidence",
    "without_evidence",
]


def passed(check: StepCheck, text: str) -> VerificationStep:
    """Return the step of a check that passed."""
    return VerificationStep(check, "passed", text)


def skipped(check: StepCheck, text: str) -> VerificationStep:
    """Return the step of a check that was skipped."""
    return VerificationStep(check, "skipped", text)


def caution(check: StepCheck, text: str) -> VerificationStep:
    """Return the step of a check that passed with a caution."""
    return VerificationStep(check, "caution", text)


BoundTo = Literal["nonce", "report_data"]
"""Value that the evidence's report data was compared with: a nonce, or expected report data.

Expected report data may be a constant, such as the hash of a key. Empty report data binds the
evidence to nothing.
"""


class Authenticated(NamedTuple):
    """Vendor-signed content of evidence, before appraisal by a policy."""

    status: TcbStatus | None  # None on AWS Nitro, which has none
    advisory_ids: tuple[str, ...]
    report_data: bytes  # as signed: 64 bytes; a Nitro document's user data has up to 512
    device: bytes  # device identifier: PPID, or Nitro's module id; empty on SEV-SNP
    tcb: Tcb
    chain: tuple[bytes, ...]  # DER of the certificates, leaf first, the anchor last
    steps: tuple[VerificationStep, ...]
    vtpm: VtpmFacts | None = None  # None on platforms without a TPM
    # Attributes of the claims that certificates prove, beside those of quote or report.
    attributes: tuple[tuple[str, bytes], ...] = ()
    simulated: bool = False  # a certificate names attestkit's simulator


_PLAIN_CLAIMS: Final = (
    "platform",
    "report_data",
    "os_image_hash",
    "measurement_version",
    "events",
)


@dataclass(frozen=True, slots=True)
class Claims(ValueMapping):
    """Authenticated fields of evidence.

    As a mapping, it has `platform`, `report_data`, `os_image_hash`, `measurement_version`,
    `events`, and each register and attribute by the name that its platform uses: `claims["rtmr3"]`.
    """

    platform: str  # dstack-tdx, hcl-snp, tpm ...; sgx for a bare SGX quote
    report_data: bytes  # as signed, 64 bytes; user data of a Nitro document
    registers: tuple[tuple[str, bytes], ...]  # mrtd, rtmr0 ...; measurement, ...; pcr0, ...
    # td_attributes, xfam, ...; as in the evidence. Of SEV-SNP: see docs/policy.md.
    attributes: tuple[tuple[str, bytes], ...]
    events: tuple[Event, ...]  # runtime events that replay; empty if the platform measures none
    event_registers: tuple[int, ...]  # RTMRs that the log replays to
    os_image_hash: bytes  # 32 bytes if the registers are those of the image, else empty
    has_mr_config: bool = False  # the evidence has the document of MR_CONFIG_ID version 3
    # Version of the measurement document of a TD's verified image, 3 or 4; None without one.
    measurement_version: int | None = None
    # The ACPI tables of a TD are those that QEMU makes for the VM's shape; see `Verifier`.
    acpi_tables_verified: bool = False
    # Metadata of the verified image, if its files are at hand.
    os_image_version: str | None = None
    os_image_is_dev: bool | None = None
    vtpm: VtpmFacts | None = None  # None on platforms without a TPM

    def _values(self) -> dict[str, Any]:
        named = {name: getattr(self, name) for name in _PLAIN_CLAIMS}
        return dict((*self.registers, *self.attributes), **named)

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - values of several types
        # Without a dictionary of all values, which takes longer than a look-up.
        for one, value in self.attributes:
            if one == name:
                return value
        for one, value in self.registers:
            if one == name:
                return value
        if name in _PLAIN_CLAIMS:
            return getattr(self, name)
        raise KeyError(name)

    def __reduce__(self) -> tuple[object, ...]:
        return _restore_claims, (
            self.platform,
            self.report_data,
            self.registers,
            self.attributes,
            tuple(map(tuple, self.events)),
            self.event_registers,
            self.os_image_hash,
            self.has_mr_config,
            self.measurement_version,
            self.acpi_tables_verified,
            self.os_image_version,
            self.os_image_is_dev,
            self.vtpm,
        )


def _restore_claims(
    platform: str,
    report_data: bytes,
    registers: tuple[tuple[str, bytes], ...],
    attributes: tuple[tuple[str, bytes], ...],
    events: tuple[tuple[Any, ...], ...],
    *rest: Any,
) -> Claims:
    """Return pickled claims."""
    restored = tuple([tuple.__new__(Event, event) for event in events])
    return Claims(platform, report_data, registers, attributes, restored, *rest)


class ResultContent(NamedTuple):
    """Content of an attestation result; not proof of a verification by itself."""

    claims: Claims
    advisory_ids: tuple[str, ...]
    tcb: Tcb
    simulated: bool
    bound_to: BoundTo | None
    nonce: bytes | None  # that the evidence is bound to
    app_info: AppInfo | None
    verified_at: datetime
    certificate_chain: tuple[bytes, ...]
    policy: "AppraisalPolicy"  # that accepted the evidence
    steps: tuple[VerificationStep, ...]
    gpu: "GpuResult | None" = None


NO_REVOCATION: Final = skipped("revocation", "revocation was not checked: no CRL was consulted")

_STATUS_CHECKS: Final = frozenset({"tcb", "tcb_status", "advisory"})
_PROOF: Final = object()


class AttestationResult:
    """Result for accepted evidence. Immutable; only a Verifier creates results.

    A result of `Verifier.verify` refers to its evidence, for `sign_ear`.
    """

    __slots__ = ("_content", "_evidence")
    _content: ResultContent
    _evidence: object  # as given to the verifier; None after pickling, and in a batch

    def __init__(self, proof: object, content: ResultContent, evidence: object = None) -> None:
        if proof is not _PROOF:
            raise TypeError("AttestationResult: can only be created by a Verifier")
        object.__setattr__(self, "_content", content)
        object.__setattr__(self, "_evidence", evidence)

    @property
    def claims(self) -> Claims:
        """Authenticated fields of the evidence."""
        return self._content.claims

    @property
    def advisory_ids(self) -> tuple[str, ...]:
        """Security advisories of the vendor that apply to the platform."""
        return self._content.advisory_ids

    @property
    def tcb(self) -> Tcb:
        """TCB status, dates, evaluation number and component SVNs."""
        return self._content.tcb

    @property
    def simulated(self) -> bool:
        """Whether the trust anchor is not the root of the platform's vendor, or of the GPUs'."""
        return self._content.simulated

    @property
    def bound_to(self) -> BoundTo | None:
        """Whether report data was compared with a nonce or with expected report data.

        None if any report data was accepted, or empty report data was expected.
        """
        return self._content.bound_to

    @property
    def nonce(self) -> bytes | None:
        """The nonce that the evidence is bound to; None unless a nonce was compared."""
        return self._content.nonce

    @property
    def fresh(self) -> bool:
        """Whether the evidence is bound to the nonce that the caller passed.

        Report data alone is not evidence of freshness: it may be a constant.
        """
        return self.bound_to == "nonce"

    @property
    def app_info(self) -> AppInfo | None:
        """Identity of the app; unauthenticated fields are empty. None if it is not known."""
        return self._content.app_info

    @property
    def registers(self) -> Rtmrs | None:
        """RTMR0 to RTMR3, 48 bytes each. None on other platforms: see `claims` for registers."""
        named = dict(self.claims.registers)
        if "rtmr0" not in named:
            return None
        return named["rtmr0"], named["rtmr1"], named["rtmr2"], named["rtmr3"]

    @property
    def verified_at(self) -> datetime:
        """Time of the verification, with a time zone."""
        return self._content.verified_at

    @property
    def certificate_chain(self) -> tuple[bytes, ...]:
        """Certificate chain of the signing key: DER, leaf first, trust anchor last."""
        return self._content.certificate_chain

    @property
    def policy(self) -> "AppraisalPolicy":
        """The policy that accepted the evidence."""
        return self._content.policy

    @property
    def gpu(self) -> "GpuResult | None":
        """Result for the GPUs, with what binds them to this evidence; None without GPUs."""
        return self._content.gpu

    @property
    def steps(self) -> tuple[VerificationStep, ...]:
        """Checks that passed, checks that were skipped, and cautions."""
        return self._content.steps

    @property
    def not_proven(self) -> tuple[StepCheck, ...]:
        """Checks that left something unproven: skipped, or with a caution; each once, in order.

        The TCB status and its advisories are not among them: whatever they are, they are proven.
        """
        found: dict[StepCheck, StepOutcome] = {
            step.check: step.outcome for step in self.steps if step.outcome != "passed"
        }
        return tuple(check for check in found if check not in _STATUS_CHECKS)

    def to_dict(self) -> dict[str, object]:
        """Return values for JSON, with bytes in hex and times in ISO 8601."""
        claims, tcb, info = self.claims, self.tcb, self.app_info
        return {
            "platform": claims.platform,
            "tcb_status": None if tcb.status is None else tcb.status.value,
            "advisory_ids": list(self.advisory_ids),
            "simulated": self.simulated,
            "bound_to": self.bound_to,
            "fresh": self.fresh,
            "verified_at": self.verified_at.isoformat(),
            "report_data": claims.report_data.hex(),
            "registers": {name: value.hex() for name, value in claims.registers},
            "attributes": {name: value.hex() for name, value in claims.attributes},
            "events": [
                {"name": event.name, "payload": event.payload.hex(), "digest": event.digest.hex()}
                for event in claims.events
            ],
            "os_image_hash": claims.os_image_hash.hex() or None,
            "os_image_version": claims.os_image_version,
            "os_image_is_dev": claims.os_image_is_dev,
            "acpi_tables_verified": claims.acpi_tables_verified,
            "measurement_version": claims.measurement_version,
            "app_info": None if info is None else info.to_dict(),
            "vtpm": None if claims.vtpm is None else claims.vtpm.to_dict(),
            "gpu": None if self.gpu is None else self.gpu.claims,
            "tcb": _tcb_values(tcb),
            "steps": [step._asdict() for step in self.steps],
        }

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("AttestationResult: immutable")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AttestationResult):
            return NotImplemented
        return self._content == other._content

    def __hash__(self) -> int:
        return hash((self.claims, self.verified_at))

    def __reduce__(self) -> tuple[object, ...]:
        return _restore_result, tuple(self._content)

    def __repr__(self) -> str:
        simulated = ", simulated" if self.simulated else ""
        return f"<AttestationResult {self.claims.platform}, {self.tcb.status}{simulated}>"


def create_result(content: ResultContent, evidence: object = None) -> AttestationResult:
    """Return the result for accepted evidence; for the pipeline only."""
    return AttestationResult(_PROOF, content, evidence)


def verified_evidence(result: AttestationResult) -> object:
    """Return the evidence of a result, as given to the verifier; None if the result has none."""
    return result._evidence  # noqa: SLF001 - of this module's class


def without_evidence(result: AttestationResult) -> AttestationResult:
    """Return a result that does not refer to its evidence, for results that live long."""
    return create_result(result._content)  # noqa: SLF001 - of this module's class


def _restore_result(*content: Any) -> AttestationResult:
    """Return a pickled result."""
    return create_result(ResultContent(*content))


def add_step(result: AttestationResult, step: VerificationStep) -> AttestationResult:
    """Return a result with the step of a further check, such as of an RA-TLS certificate.

    It does not refer to the evidence.
    """
    content = result._content  # noqa: SLF001 - of this module's class
    return create_result(content._replace(steps=(*result.steps, step)))


# Remedy for evidence that leads to another root than the trust anchor, on any platform.

ANOTHER_ROOT: Final = (
    "for simulated evidence pass the simulator's root as trust anchor, for evidence of hardware "
    "pass none"
)
"""Remedy in the error messages for the reason `untrusted_root`."""


def _tcb_values(tcb: Tcb) -> dict[str, object]:
    """Return the items of a TCB for JSON."""
    return {
        "date": None if tcb.date is None else tcb.date.isoformat(),
        "qe_date": None if tcb.qe_date is None else tcb.qe_date.isoformat(),
        "qe_status": None if tcb.qe_status is None else tcb.qe_status.value,
        "evaluation_data_number": tcb.evaluation_data_number,
        "fmspc": tcb.fmspc.hex() or None,
        "dynamic_platform": tcb.dynamic_platform,
        "cached_keys": tcb.cached_keys,
        "smt_enabled": tcb.smt_enabled,
        "platform": None if tcb.platform is None else tcb.platform.to_dict(),
        "collateral": None if tcb.collateral is None else tcb.collateral.to_dict(),
        "components": dict(tcb.components),
        "current": dict(tcb.current),
        "committed": dict(tcb.committed),
        "launch": dict(tcb.launch),
        "product": tcb.product or None,
    }
