"""Evidence of GPUs beside that of a CPU: its binding to the CPU's, and its verification.

The binding shows that both are of one machine. The strongest one that holds counts: report data
that contain a hash of the GPU evidence, its hash in the measured event log if the policy accepts
evidence of the boot, or a shared nonce.
"""

import hmac
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from attestkit._argument_checks import wrong_type
from attestkit._crypto.hashes import sha256
from attestkit._formats import strict_json
from attestkit._outcomes.steps import VerificationStep, caution, passed, skipped
from attestkit.attestation import Attestation
from attestkit.errors import FormatError, GpuEvidenceError, UsageError
from attestkit.event_log.event import Event
from attestkit.event_log.runtime_events import GPU_ATTESTATION
from attestkit.gpu.rules import BINDINGS, GpuRules
from attestkit.report_data import ReportData, gpu_nonce
from attestkit.verifier.evidence.checks import ExpectedReportData
from attestkit.verifier.policy.rules import BOOT_END

if TYPE_CHECKING:
    from attestkit.gpu.endorsements import GpuEndorsements
    from attestkit.gpu.evidence import GpuBinding, GpuEvidence
    from attestkit.gpu.nras.nvattest_output import NvattestOutput
    from attestkit.gpu.result import GpuBindingKind, GpuResult
    from attestkit.gpu.roots import GpuRoots

    # As passed to a verifier; None: enclosed in the evidence, False: not verified.
    GpuInput = GpuEvidence | GpuBinding | bytes | Literal[False] | None

_BOOT_OUTPUT: Final = b'"detached_eat"'  # a member of nvattest's output
_NOT_VERIFIED: Final = skipped("gpu_report", "evidence of GPUs was not verified")
_AS_OF_BOOT: Final = (
    "GPU evidence: only its hash in the measured event log binds it, so it is as old as the boot; "
    "request evidence with a nonce, or set the policy's gpu.allow_runtime_event"
)
_STEPS: Final[dict[str, VerificationStep]] = {
    "report_data": passed(
        "gpu_binding", "the report data of the CPU's evidence commit to that of the GPUs"
    ),
    "runtime_event": caution(
        "gpu_binding",
        "the CPU's event log has the hash of the GPUs' evidence, which is as of boot and not fresh",
    ),
    "nonce": caution(
        "gpu_binding",
        "CPU and GPUs have only a nonce in common: the GPUs could be those of another machine, "
        "whose evidence is relayed",
    ),
}


class GpuTrust(NamedTuple):
    """Trust anchors and endorsements for GPUs; by default NVIDIA's roots, and no endorsements."""

    roots: "GpuRoots | None" = None
    endorsements: "GpuEndorsements | None" = None

    @classmethod
    def of(cls, roots: object, endorsements: object) -> "GpuTrust":
        """Create it from the arguments `gpu_roots` and `gpu_endorsements` of a verifier.

        Args:
            roots: GpuRoots or None.
            endorsements: GpuEndorsements, the path of their file, or None.

        Raises:
            UsageError: If an argument has the wrong type.
            CollateralError: If the file cannot be read or is malformed.
        """
        if roots is None and endorsements is None:
            return cls()
        # lazy: only with GPUs
        from attestkit.gpu.endorsements import GpuEndorsements
        from attestkit.gpu.roots import GpuRoots

        if isinstance(endorsements, (str, os.PathLike)):
            endorsements = GpuEndorsements.load(endorsements)
        if not isinstance(roots, GpuRoots | None):
            raise wrong_type("gpu_roots", "GpuRoots", roots)
        if not isinstance(endorsements, GpuEndorsements | None):
            raise wrong_type("gpu_endorsements", "GpuEndorsements or a path", endorsements)
        return cls(roots, endorsements)

    def with_unauthenticated(self, given: "GpuEndorsements | None") -> "GpuTrust":
        """Return a copy with `given`, endorsements of a bundle or request, in place of its own.

        Manifests and OCSP answers are signed. The keys of NVIDIA's attestation service are not, so
        the verifier's own are kept. None gives a copy without endorsements.
        """
        if given is None:
            return GpuTrust(self.roots)
        own = self.endorsements
        return GpuTrust(self.roots, replace(given, jwks=None if own is None else own.jwks))


class GpuSettings(NamedTuple):
    """Trust anchors, rules and time of a verification of GPU evidence."""

    trust: GpuTrust  # roots and endorsements
    rules: GpuRules  # of the policy
    now: datetime  # time of the verification, with a time zone


class GpuCandidate(NamedTuple):
    """One possible value of the report data of CPU evidence that comes with GPU evidence."""

    expected: ExpectedReportData
    kind: "GpuBindingKind | None"  # binding that this value proves; None: it proves none


def expected_report_data(
    nonce: bytes | None, report_data: bytes | EllipsisType | None, gpu: "GpuInput"
) -> ExpectedReportData:
    """Return the report data that arguments of `Verifier.verify` expect.

    Args:
        nonce: Nonce, 8 to 64 bytes, or None.
        report_data: Report data, up to 64 bytes; None accepts any; `...` means that it was not
            given.
        gpu: Evidence of GPUs, None or False; a GpuBinding has the report data and the nonce, too.

    Raises:
        UsageError: If arguments are missing or exclude each other.
    """
    if gpu is None or gpu is False or isinstance(gpu, bytes):
        return ExpectedReportData.of(nonce, report_data)
    from attestkit.gpu.evidence import GpuBinding  # lazy: only with GPUs

    if not isinstance(gpu, GpuBinding):
        return ExpectedReportData.of(nonce, report_data)
    if nonce is not None or report_data is not ...:
        message = "gpu: a GpuBinding has the report data; pass neither nonce nor report_data"
        raise UsageError(message, reason="conflict")
    return ExpectedReportData(gpu.report_data, "nonce", gpu.nonce)


class GpuJoin:
    """GPU evidence of one verification, and its binding to the CPU's evidence."""

    def __init__(self, given: "GpuInput", attestation: Attestation | None) -> None:
        """Read the GPU evidence that was passed, or that is enclosed in `attestation`.

        Raises:
            FormatError: If the GPU evidence is malformed.
            GpuEvidenceError: As for `read_gpu_input`.
            UsageError: If `given` is not a `GpuInput`.
        """
        enclosed = None if attestation is None else attestation.gpu_evidence
        self._skipped = given is False and enclosed is not None
        self._binding: GpuBinding | None = None
        self._boot: NvattestOutput | None = None
        self.evidence: GpuEvidence | None = enclosed
        if isinstance(given, bytes) and _BOOT_OUTPUT in given:
            self._boot, self.evidence = _read_boot_output(given), None
        elif given is not False and given is not None:
            self._binding, self.evidence = _read(given)

    def is_simulated(self, trust: GpuTrust) -> bool:
        """Return whether GPU evidence is verified under other roots than NVIDIA's.

        Raises:
            FormatError: If a root is malformed.
        """
        roots = trust.roots
        has_gpus = self.evidence is not None and not self._skipped
        return has_gpus and roots is not None and not roots.is_nvidia

    def candidates(self, expected: ExpectedReportData) -> tuple[GpuCandidate, ...]:
        """Return the possible values of the CPU's report data, the strongest binding first."""
        if (binding := self._binding) is not None:
            # Without the nonce: a TPM's key beside it would replace what is committed to.
            return (GpuCandidate(expected._replace(nonce=None), binding.kind),)
        plain = GpuCandidate(expected, None)
        if self.evidence is None or expected.nonce is None:
            return (plain,)
        bound = ReportData.for_nonce_and_gpu(expected.nonce, self.evidence.raw)
        both = expected._replace(value=bound, commits_to_gpus=True)
        return GpuCandidate(both, "report_data"), plain

    def verify(
        self,
        chosen: GpuCandidate,
        nonce: bytes | None,
        events: Sequence[Event],
        settings: GpuSettings,
    ) -> "GpuResult | None":
        """Verify the GPU evidence, and return the result with the binding; None without GPUs.

        Args:
            chosen: The candidate whose report data the CPU's evidence has.
            nonce: Nonce of the verifier; None if it expects report data without a nonce.
            events: Measured runtime events.
            settings: Trust anchors, endorsements, rules and time.

        Raises:
            GpuEvidenceError: If the evidence is not valid, not accepted, or missing.
            CollateralError: If endorsements are missing.
            UsageError: If the nonce of the GPU reports is not known.
        """
        trust, rules, now = settings
        if self._boot is not None:
            return _verify_boot_output(self._boot, events, settings)
        if self.evidence is None or self._skipped:
            if rules.needs_gpus:
                message = "GPU evidence: missing, but the policy has rules about GPUs; request it"
                raise GpuEvidenceError(message, reason="device_count", by_policy=True)
            return None
        from attestkit.gpu.verification import verify  # lazy: only with GPUs

        kind, expected = self._find_binding(chosen, nonce, events, rules)
        found = verify(
            self.evidence,
            nonce=expected,
            now=now,
            endorsements=trust.endorsements,
            roots=trust.roots,
            rules=rules,
        )
        # After the devices: a forged report is refused as such.
        return _with_binding(found, kind, events, rules)

    def skipped_steps(self) -> tuple[VerificationStep, ...]:
        """Return a skipped step if the evidence encloses GPU evidence, and `gpu` was False."""
        return (_NOT_VERIFIED,) if self._skipped else ()

    def _find_binding(
        self, chosen: GpuCandidate, nonce: bytes | None, events: Sequence[Event], rules: GpuRules
    ) -> "tuple[GpuBindingKind, bytes]":
        """Return the kind of the binding to the CPU, and the nonce that GPU reports must have.

        Args:
            chosen: The candidate whose report data the CPU's evidence has.
            nonce: Nonce of the verifier; None if it expects report data without a nonce.
            events: Measured runtime events, which may have a hash of the GPU evidence.
            rules: Rules of the policy about GPUs.

        Raises:
            GpuEvidenceError: If the only binding is one that `rules` do not accept.
            UsageError: If the nonce is needed, and is None.
        """
        assert self.evidence is not None
        if (binding := self._binding) is not None:
            return binding.kind, binding.gpu_nonce
        from attestkit.gpu.device.report import stated_nonce  # lazy: only with GPUs

        if chosen.kind == "report_data" and nonce is not None:
            return "report_data", gpu_nonce(nonce)
        stated = stated_nonce(self.evidence.devices[0].report)
        hashed = _gpu_event(events).get("evidence_sha256")
        measured = hashed == sha256(self.evidence.raw).hex()
        if measured and rules.allow_runtime_event:
            return "runtime_event", stated
        if nonce is None and measured:
            raise GpuEvidenceError(_AS_OF_BOOT, reason="binding", by_policy=True)
        if nonce is None:
            raise UsageError(
                "GPU evidence: the nonce of the request is needed to verify it; pass nonce "
                "(--nonce, POST /verify?nonce=), or a GpuBinding of attestkit.gpu.bindings",
                reason="missing",
            )
        shared = len(nonce) == len(stated) and hmac.compare_digest(nonce, stated)
        return "nonce", nonce if shared else gpu_nonce(nonce)


def _read(given: object) -> "tuple[GpuBinding | None, GpuEvidence]":
    # lazy: only with GPUs
    from attestkit.gpu.evidence import GpuBinding, GpuEvidence

    if isinstance(given, GpuBinding):
        return given, given.evidence
    if isinstance(given, GpuEvidence):
        return None, given
    if isinstance(given, bytes):
        return None, GpuEvidence.from_json(given)
    raise wrong_type("gpu", "GpuEvidence, its JSON or a GpuBinding", given)


def read_gpu_input(data: bytes) -> "GpuEvidence | bytes":
    """Parse the argument `gpu` as bytes: return GPU evidence, or nvattest's output unchanged.

    Raises:
        FormatError: If `data` is neither JSON of GPU evidence nor output of nvattest at boot.
        GpuEvidenceError: If nvattest failed and wrote no tokens (`nras_result`), or tokens and
            their hashes differ (`nras_digest`).
    """
    if _BOOT_OUTPUT in data:
        _read_boot_output(data)
        return data
    from attestkit.gpu.evidence import GpuEvidence  # lazy: only with GPUs

    return GpuEvidence.from_json(data)


def _read_boot_output(data: bytes) -> "NvattestOutput":
    from attestkit.gpu.nras.nvattest_output import read_nvattest_output  # lazy: only with GPUs

    return read_nvattest_output(data)


def _verify_boot_output(
    output: "NvattestOutput", events: Sequence[Event], settings: GpuSettings
) -> "GpuResult":
    from attestkit.gpu.nras.nvattest_output import appraise_boot_result  # lazy: only with GPUs

    event, rules = _gpu_event(events), settings.rules
    if event.get("evidence_sha256") != output.sha256.hex():
        message = (
            "GPU evidence: the SHA-256 of nvattest's output must be in the measured event log; "
            "pass the output of this boot"
        )
        raise GpuEvidenceError(message, reason="binding")
    found = appraise_boot_result(output, event, rules, settings.now)
    return _with_binding(found, "runtime_event", events, rules)


def _gpu_event(events: Sequence[Event]) -> dict[str, Any]:
    """Return the decoded payload of dstack's event about GPUs; empty unless there is exactly one.

    Only events before the end of the boot count, because the app can emit later ones.
    """
    end = next((at for at, event in enumerate(events) if event.name == BOOT_END), 0)
    found = [event.payload for event in events[:end] if event.name == GPU_ATTESTATION]
    if len(found) != 1:
        return {}
    try:
        return strict_json.read_object(found[0], GPU_ATTESTATION)
    except FormatError:
        return {}


def _with_binding(
    found: "GpuResult", kind: "GpuBindingKind", events: Sequence[Event], rules: GpuRules
) -> "GpuResult":
    """Check binding and ready state by the rules; return the result with the binding.

    Args:
        found: Result for the GPUs.
        kind: Their binding to the CPU.
        events: Measured runtime events, which state whether the GPUs are ready.
        rules: Rules of the policy about GPUs.

    Raises:
        GpuEvidenceError: If a rule is not met.
    """
    _check_binding(kind, rules)
    _check_ready_state(events, rules)
    return replace(found, binding=kind, steps=(*found.steps, _STEPS[kind]))


def _check_binding(kind: "GpuBindingKind", rules: GpuRules) -> None:
    if BINDINGS.index(kind) < BINDINGS.index(rules.binding):
        message = (
            f"GPU evidence: binding to the CPU's must be {rules.binding}, not {kind}; request "
            "evidence with GPUs in one call, or change the policy's gpu.binding"
        )
        raise GpuEvidenceError(message, reason="binding", by_policy=True)


def _check_ready_state(events: Sequence[Event], rules: GpuRules) -> None:
    if not rules.ready_state:
        return
    stated = _gpu_event(events)
    if stated.get("cc_mode") != "on" or stated.get("devtools") is not False:
        message = (
            f"GPU ready state: the measured event log must have an event {GPU_ATTESTATION} with "
            "cc_mode on, without devtools; drop the policy's gpu.ready_state, or measure it at boot"
        )
        raise GpuEvidenceError(message, reason="modes", by_policy=True)
