"""The outcome of verifying one file: a result or an error, as commands print it."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from attestkit._outcomes.steps import VerificationStep
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import Evidence, SevSnp
from attestkit.cli.exit_codes import NETWORK, POLICY, REJECTED, UNREADABLE, USAGE, one_line
from attestkit.cli.input.detect_format import FileContent
from attestkit.collateral import Collateral
from attestkit.errors import AttestKitError, VerificationError
from attestkit.quote import Quote

if TYPE_CHECKING:
    from attestkit.gpu import GpuEndorsements, GpuEvidence
    from attestkit.verifier.evidence.formats import EvidenceBundle
    from attestkit.verifier.result import AttestationResult

VERDICTS: Final = {
    0: "accepted",
    USAGE: "not verified",
    REJECTED: "rejected",
    NETWORK: "not verified",
    POLICY: "refused by policy",
    UNREADABLE: "unreadable",
}
_BOUND_TO_KEY: Final = VerificationStep(
    "certificate_key",
    "skipped",
    "the evidence is bound to the certificate's key; possession of the key and freshness of the "
    "evidence were not checked",
)
NAMED: Final = VerificationStep(
    "report_data",
    "caution",
    "the report data is as the bundle names it, which alone does not show freshness",
)


class FileOutcome(NamedTuple):
    """The outcome for one file: either a result or an error.

    Attributes:
        path: The file.
        at: Verification time, aware.
        policy: Name of the preset, or of the file of the policy.
        content: Format and value of the file; None: unreadable.
        evidence: The verified evidence; None: not found.
        result: Result of accepted evidence; None with an error.
        error: Error; None with a result.
        code: Exit code for this file.
        collateral: Collateral of Intel that was used; None: none.
        report_data: Report data that the caller expects, also those of a nonce; None: any.
        bound_to_key: Whether the evidence is bound to the key of the certificate around it.
        own_instant: Whether `at` is from the bundle.
        own_collateral: Whether the collateral is from the bundle.
        bundle_report_data: Report data that the bundle names, if the caller expects none.
        certificates: AMD certificates of options.
        crls: AMD's CRLs: of options, else of the bundle.
        ak_certificates: Certificates and CRLs of TPM keys: of options and bundle, and fetched ones.
        gpu_evidence: Evidence of GPUs: of options, else of the bundle; bytes are the output of
            `nvattest attest` at boot.
        gpu_endorsements: Endorsements of GPUs: of options, else of the bundle, else fetched.
    """

    path: Path
    at: datetime  # verification time, aware
    policy: str  # name of the preset or of the file
    content: FileContent | None = None  # None: unreadable
    evidence: Attestation | Quote | None = None  # the verified evidence
    result: "AttestationResult | None" = None
    error: AttestKitError | None = None
    code: int = 0
    collateral: Collateral | None = None  # used for verification
    report_data: bytes | None = None  # expected by the caller, also for a nonce
    bound_to_key: bool = False  # to the key of the certificate that contains the evidence
    own_instant: bool = False  # whether `at` is from the bundle
    own_collateral: bool = False  # whether the collateral is from the bundle
    bundle_report_data: bytes | None = None  # of the bundle, if the caller expects none
    certificates: tuple[bytes, ...] = ()  # AMD certificates of options
    crls: tuple[bytes, ...] = ()  # AMD's, of options, else of the bundle
    ak_certificates: tuple[bytes, ...] = ()  # and CRLs: of options and bundle, and fetched ones
    # Of options, else of the bundle; bytes: output of nvattest of the boot.
    gpu_evidence: "GpuEvidence | bytes | None" = None
    gpu_endorsements: "GpuEndorsements | None" = None  # of options, else of the bundle

    @property
    def verdict(self) -> str:
        """The verdict in one to three words, such as accepted; see VERDICTS."""
        return VERDICTS[self.code]

    @property
    def fresh(self) -> bool:
        """Whether the evidence is accepted and bound to the nonce of the options."""
        return self.result is not None and self.result.fresh

    @property
    def reason(self) -> str:
        """The reason of the error; empty without an error."""
        return "" if self.error is None else self.error.reason

    @property
    def steps(self) -> tuple[VerificationStep, ...]:
        """The verification steps; on an error, those before it."""
        if self.result is None:
            return self.error.steps if isinstance(self.error, VerificationError) else ()
        more = {
            NAMED: self.bundle_report_data is not None,
            _BOUND_TO_KEY: self.bound_to_key,
        }
        return (*self.result.steps, *(step for step, applies in more.items() if applies))

    @property
    def os_image(self) -> str:
        """The hash of the verified OS image, else the reason why it is missing.

        Empty if the evidence was not accepted.
        """
        if self.result is None:
            return ""
        if image := self.result.claims.os_image_hash:
            return image.hex()
        [step] = [step for step in self.result.steps if step.check == "os_image"]
        return f"not verified: {step.text.partition(': ')[2]}"

    @property
    def problem(self) -> str:
        """The text of the error, without the file name."""
        return str(self.error).removeprefix(f"{self.path}: ")

    def error_line(self) -> str:
        """Return the path of the file, a colon, and the text of the error."""
        return f"{self.path}: {self.problem}"

    def bundle(self) -> "EvidenceBundle":
        """Return an evidence bundle, for later verification without network access.

        It has the evidence, the verification time, and the endorsements that were used. Only for a
        file in which evidence was found.
        """
        from attestkit.verifier.evidence.formats import EvidenceBundle  # lazy: rarely needed

        evidence = self.evidence
        assert evidence is not None
        evidence = _with_certificates(evidence, self.certificates)
        raw = evidence.raw if isinstance(evidence, Quote) else evidence.to_bytes()
        expected = self.report_data or self.bundle_report_data
        if expected is not None and self.result is not None:
            # A nonce may be bound together with the key of a TPM.
            signed = self.result.claims.report_data
            expected = signed if len(signed) == len(expected) else expected
        # Intel's collateral has its own lists.
        crls = () if self.collateral is not None else self.crls
        has_tpm = self.result is not None and self.result.claims.vtpm is not None
        of_ak = tuple(dict.fromkeys(self.ak_certificates)) if has_tpm else ()
        gpu = self.gpu_evidence
        raw_gpu = gpu if gpu is None or isinstance(gpu, bytes) else gpu.raw
        has_gpus = self.result is not None and self.result.gpu is not None
        return EvidenceBundle(
            raw,
            self.collateral,
            self.at,
            expected,
            crls,
            of_ak,
            gpu_evidence=raw_gpu if has_gpus else None,
            gpu_endorsements=self.gpu_endorsements if has_gpus else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return file, verdict, exit code and the result or error as plain values for JSON."""
        fields = {
            "file": str(self.path),
            "kind": None if self.content is None else self.content.kind,
            "verdict": self.verdict,
            "exit_code": self.code,
            "at": self.at.isoformat(),
            "own_instant": self.own_instant,
            "own_collateral": self.own_collateral,
            "policy": self.policy,
            "bound_to_key": self.bound_to_key,
        }
        if self.result is not None:
            return {**fields, **self.result.to_dict(), "steps": _plain_steps(self.steps)}
        assert self.error is not None
        return {**fields, **error_fields(self.error)}


def error_fields(error: AttestKitError) -> dict[str, Any]:
    """Return an error, ready for JSON.

    The members are `fresh` (false), `bound_to` (None), `error` (text), `error_type` (class),
    `reason` and `steps` (the verification steps before it).
    """
    return {
        "fresh": False,
        "bound_to": None,
        "error": one_line(str(error)),
        "error_type": type(error).__name__,
        "reason": error.reason,
        "steps": _plain_steps(error.steps) if isinstance(error, VerificationError) else [],
    }


def _plain_steps(steps: tuple[VerificationStep, ...]) -> list[dict[str, str]]:
    return [step._asdict() for step in steps]


def _with_certificates(
    evidence: Attestation | Quote, certificates: tuple[bytes, ...]
) -> Attestation | Quote:
    """Add certificates, as options give them, to SEV-SNP evidence without any.

    Other evidence is returned unchanged.
    """
    if isinstance(evidence, Quote) or not certificates:
        return evidence
    platform, stack = evidence.evidence
    if not isinstance(platform, SevSnp) or platform.cert_chain:
        return evidence
    platform = platform._replace(cert_chain=certificates)
    return Attestation(Evidence(platform, stack), evidence.encoding)
