"""Verification of one piece of evidence in single steps.

Steps: format, signatures, report data, event log, OS image, app identity, policy. A step that
passes adds a VerificationStep to the result; otherwise it raises an exception. An unexpected
exception rejects the evidence.
"""

from dataclasses import replace
from datetime import datetime
from functools import partial
from types import EllipsisType
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from attestkit._outcomes.steps import VerificationStep, passed
from attestkit.attestation.tpm import find_pcr_logs
from attestkit.attestation.wire.evidence_parts import GoTpmTools, Platform, Tpm
from attestkit.collateral import Collateral
from attestkit.errors import UsageError
from attestkit.quote import Quote
from attestkit.verifier.authenticators import Authenticators
from attestkit.verifier.batch.task import run_step
from attestkit.verifier.claims import Authenticated, Claims
from attestkit.verifier.evidence.checks import (
    ExpectedReportData,
    HardwareJoin,
    KeyRequest,
    ParsedEvidence,
    app_info,
    check_quoted_report_data,
    check_report_data,
    has_report_data,
    join_hardware,
    key_time_app_info,
    replay_event_log,
)
from attestkit.verifier.evidence.formats import Evidence, parse_evidence
from attestkit.verifier.evidence.platform_claims import collect_claims, verified_launch
from attestkit.verifier.gpu_join import GpuCandidate, GpuJoin, GpuSettings, GpuTrust
from attestkit.verifier.os_image import VerifiedImage, check_os_image
from attestkit.verifier.platforms.tdx import authenticate_fetching
from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy, policy_name, require_policy
from attestkit.verifier.result import AttestationResult, create_result

if TYPE_CHECKING:
    from attestkit.attestation import AppInfo
    from attestkit.collateral.caching_source import CollateralSource
    from attestkit.gpu.endorsements import GpuEndorsements
    from attestkit.gpu.result import GpuResult
    from attestkit.verifier.gpu_join import GpuInput
    from attestkit.verifier.images.image_store import ImageStore

_Got = TypeVar("_Got")


class Settings(NamedTuple):
    """Configuration of a verification, from its Verifier."""

    authenticators: Authenticators
    policy: AppraisalPolicy
    policy_name: str
    collateral: Collateral | None  # for all evidence
    source: "CollateralSource | None"
    images: "ImageStore | None" = None  # files of OS images
    gpu_trust: GpuTrust = GpuTrust()


class Examination:
    """Verification in single steps: call each method once, in the order of their definition.

    Exceptions are `claims`, which may be called at any time after `app_info`, and `complete`, which
    runs all steps. Errors are those of `Verifier.verify`, and UsageError if an earlier step is
    missing.
    """

    def __init__(
        self,
        settings: Settings,
        evidence: Evidence,
        now: datetime,
        collateral: Collateral | None,
        *,
        fetch: bool = True,
        steps: tuple[VerificationStep, ...] = (),
        gpu: "GpuInput" = None,
    ) -> None:
        self._settings = settings
        self._evidence, self._now, self._fetch = evidence, now, fetch
        # For an Intel quote, once `authenticate` has found it.
        self.collateral: Collateral | None = (
            settings.collateral if collateral is None else collateral
        )
        self._steps = [*steps]
        self._authenticated: Authenticated | None = None
        self._replayed: tuple[int, ...] | None = None
        self._image: VerifiedImage | None = None
        self._app_info: AppInfo | None = None
        self._has_sealed = False  # a sealed configuration, which was compared at key time
        self.parsed: ParsedEvidence = run_step("format", self._steps, parse_evidence, evidence)
        attestation = self.parsed.attestation
        self._gpu = run_step("GPU format", self._steps, GpuJoin, gpu, attestation)

    @property
    def steps(self) -> tuple[VerificationStep, ...]:
        """Steps that passed so far, and steps that were skipped."""
        return tuple(self._steps)

    @property
    def gpu_endorsements(self) -> "GpuEndorsements | None":
        """Endorsements with which evidence of GPUs is verified; None without."""
        return self._settings.gpu_trust.endorsements

    def authenticate(self) -> Authenticated:
        """Verify signatures, certificates and collateral; return what they cover.

        The policy appraises the TCB status later. Report data that the evidence states beside the
        signed ones must equal them.
        """
        return run_step("signatures", self._steps, self._authenticate)

    def _authenticate(self) -> Authenticated:
        source, quote = self._settings.source, self.parsed.quote
        if source is None or quote is None or self.collateral is not None:
            found = self._authenticate_with(self.collateral)
        else:
            found = self._authenticate_fetching(source, quote)
        check_quoted_report_data(self.parsed, found.report_data)
        self._authenticated = found
        self._steps.extend(found.steps)
        return found

    def _authenticate_fetching(self, source: "CollateralSource", quote: Quote) -> Authenticated:
        """Authenticate with fetched collateral; an invalid TPM quote causes no second fetch."""
        chosen, parsed, now = self._settings.authenticators, self.parsed, self._now
        hardware, self.collateral = authenticate_fetching(
            source,
            quote,
            lambda collateral: chosen.authenticate_hardware(parsed, collateral, now),
            partial(chosen.precheck, quote, now=now),
            fetch=self._fetch,
        )
        return chosen.authenticate_tpm_quote(parsed, hardware, now, fetch=self._fetch)

    def _authenticate_with(self, collateral: Collateral | None) -> Authenticated:
        return self._settings.authenticators.authenticate(
            self.parsed,
            collateral,
            self._now,
            fetch=self._fetch,
            trusted_aks=self._settings.policy.trusted_aks or (),
        )

    def replay(self) -> None:
        """Replay the event log (with a vTPM, the logs of its PCRs); compare it with the registers.

        Raises:
            FormatError: If a log of a vTPM is malformed.
            ReplayError: If a register differs, or the list of runtime events from the log.
            UnsupportedError: If this Python's OpenSSL lacks the hash of a quoted bank.
            VerificationError: If an event's digest does not match its name and payload.
        """
        run_step("event log", self._steps, self._replay)

    def _replay(self) -> None:
        found = _require(self._authenticated)
        logs = None if found.vtpm is None else find_pcr_logs(self.parsed.wire_platform)
        if found.vtpm is not None and logs is not None:
            from attestkit.verifier.platforms.vtpm.pcr_logs import (
                with_replayed_logs,  # lazy: with a TPM
            )

            vtpm, steps = with_replayed_logs(found.vtpm, *logs)
            self._authenticated, self._replayed = found._replace(vtpm=vtpm), ()
            self._steps.extend(steps)
            return
        self._replayed, steps = replay_event_log(self.parsed)
        self._steps.extend(steps)

    def image_hash(self) -> bytes:
        """Verify the OS image, and return its hash; empty if the evidence does not suffice.

        Raises:
            PolicyError: If the policy does not accept the SEV_FEATURES of an SEV-SNP guest.
            VerificationError: If the registers do not match the image that the evidence names, the
                ACPI tables are not those of the VM's shape, or an enclave runs in debug mode.
            FormatError: If the VM configuration is malformed.
            ConfigError: If the verifier's files of the image are altered or cannot be read.
        """
        return run_step("OS image", self._steps, self._verify_image)

    def _verify_image(self) -> bytes:
        _require(self._replayed)
        attestation, quote = self.parsed
        image, steps = check_os_image(attestation, quote, self._settings.images)
        launch = verified_launch(self.parsed, image.hash)
        if features := dict(launch).get("sev_features"):
            self._settings.policy.check_sev_features(int.from_bytes(features, "little"))
        self._image = image
        self._steps.extend(steps)
        return image.hash

    @property
    def os_image(self) -> VerifiedImage:
        """The verified OS image, after `image_hash`; its hash is empty if it was not verified."""
        return _require(self._image)

    def app_info(self, request: KeyRequest | None = None) -> "AppInfo | None":
        """Return the identity of the app; unauthenticated fields are empty.

        None if the evidence names no app. With `request`, a request for keys of a KMS, it is the
        identity at the time of the request, and evidence that names no app is rejected.
        """
        return run_step("identity", self._steps, self._identify, request)

    def _identify(self, request: KeyRequest | None) -> "AppInfo | None":
        device, image = _require(self._authenticated).device, _require(self._image)
        if request is None:
            self._app_info, steps = app_info(self.parsed, device, image.hash)
        else:
            self._app_info, steps = key_time_app_info(self.parsed, device, image.hash, request)
            self._has_sealed = any(
                step.check == "mr_config" and step.outcome == "passed" for step in steps
            )
        self._steps.extend(steps)
        return self._app_info

    def appraise(
        self,
        *,
        nonce: bytes | None = None,
        report_data: bytes | EllipsisType | None = ...,
        policy: AppraisalPolicy | None = None,
    ) -> AttestationResult:
        """Appraise the claims by the policy, and return the result.

        Args:
            nonce: The nonce that the attester was sent, 8 to 64 bytes; pass it or `report_data`.
            report_data: Expected report data, up to 64 bytes, zero-padded. None, which must be
                passed explicitly, accepts any.
            policy: Policy instead of the verifier's, such as one for the app in the evidence; None:
                the verifier's.

        Raises:
            AttestKitError: As for `Verifier.verify`.
        """

        def appraise() -> AttestationResult:
            expected = ExpectedReportData.of(nonce, report_data)
            if policy is not None:
                name = policy_name(require_policy(policy))
                self._settings = self._settings._replace(policy=policy, policy_name=name)
            return self._appraise(expected)

        return run_step("policy", self._steps, appraise)

    def complete(self, expected: ExpectedReportData) -> AttestationResult:
        """Run all steps with this expected report data, and return the result."""
        self.authenticate()
        self.replay()
        self.image_hash()
        self.app_info()
        return run_step("policy", self._steps, self._appraise, expected)

    def _appraise(self, expected: ExpectedReportData) -> AttestationResult:
        chosen, join = self._choose_report_data(expected)
        authenticated = _require(self._authenticated)
        found = self._settings.policy.identify(self._claims())
        self._steps.append(check_report_data(authenticated.report_data, join.expected))
        self._steps.extend(join.steps)
        settings, simulated = self._settings, self._is_simulated(authenticated)
        self._steps.extend(
            settings.policy.appraise(
                found,
                authenticated,
                self._app_info,
                self._now,
                self._explain,
                simulated=simulated,
            )
        )
        gpu = self._verify_gpu(chosen, expected.nonce, found)
        accepted = f"accepted by {settings.policy_name}"
        self._steps.append(passed("policy", accepted))
        return create_result(
            claims=found,
            advisory_ids=authenticated.advisory_ids,
            tcb=authenticated.tcb,
            simulated=simulated,
            bound_to=expected.bound_to,
            nonce=expected.nonce,
            app_info=self._app_info,
            verified_at=self._now,
            certificate_chain=authenticated.chain,
            policy=settings.policy,
            steps=self.steps,
            gpu=gpu,
            _evidence=self._evidence,
        )

    def _is_simulated(self, authenticated: Authenticated) -> bool:
        settings = self._settings
        return (
            authenticated.simulated
            or not settings.authenticators.genuine(self.parsed)
            or self._gpu.is_simulated(settings.gpu_trust)
        )

    def _choose_report_data(
        self, expected: ExpectedReportData
    ) -> tuple[GpuCandidate, HardwareJoin]:
        """Return the first candidate whose report data the evidence has, and its join with the TPM.

        If the evidence has none of them, it is the last candidate, whose check then fails.
        """
        authenticated, candidates = _require(self._authenticated), self._gpu.candidates(expected)
        tries = (self._join_with(authenticated, candidate) for candidate in candidates)
        candidate, found, join = next(
            one
            for one in tries
            if one[0] is candidates[-1] or has_report_data(one[1].report_data, one[2].expected)
        )
        if join.vtpm is not found.vtpm:
            found = found._replace(vtpm=join.vtpm)
        self._authenticated = found
        return candidate, join

    def _join_with(
        self, authenticated: Authenticated, candidate: GpuCandidate
    ) -> tuple[GpuCandidate, Authenticated, HardwareJoin]:
        """Return the candidate, the authentic content, and its join with a TPM.

        If a TPM signed only a hash of the expected report data, the content has these instead.
        """
        wanted = candidate.expected
        found = _restore_report_data(self.parsed.wire_platform, authenticated, wanted)
        return candidate, found, join_hardware(wanted, found.report_data, found.vtpm)

    def _verify_gpu(
        self, chosen: GpuCandidate, nonce: bytes | None, claims: Claims
    ) -> "GpuResult | None":
        settings = self._settings
        appraisal = GpuSettings(settings.gpu_trust, settings.policy.gpu, self._now)
        found = self._gpu.verify(chosen, nonce, claims.events, appraisal)
        self._steps.extend(self._gpu.skipped_steps() if found is None else found.steps)
        return found

    def claims(self) -> Claims:
        """Return the authenticated fields, after the previous steps."""
        return run_step("claims", self._steps, self._claims)

    def _claims(self) -> Claims:
        authenticated = _require(self._authenticated)
        registers, image = _require(self._replayed), _require(self._image)
        found = collect_claims(self.parsed, authenticated, registers, image)
        return replace(found, has_mr_config=True) if self._has_sealed else found

    def _explain(self) -> str:
        """Return a sentence on the outdated component, for an error; empty if there is no quote."""
        authenticated, quote = _require(self._authenticated), self.parsed.quote
        if quote is None or self.collateral is None:
            return ""
        return self._settings.authenticators.explain(authenticated, quote, self.collateral)


def _restore_report_data(
    platform: Platform | None, found: Authenticated, expected: ExpectedReportData
) -> Authenticated:
    """Replace qualifying data of a TPM's quote by the report data of which they are the hash.

    Other content is returned unchanged.

    Args:
        platform: The platform's part of the evidence; None for a bare quote.
        found: Authenticated content of the evidence.
        expected: Report data that the caller expects.
    """
    if expected.value is None or not isinstance(platform, (Tpm, GoTpmTools)):
        return found
    from attestkit.verifier.platforms.tpm import restore_report_data  # lazy: only for this platform

    # Report data of a GpuBinding contain the nonce, in one half; they are not a hash of it.
    is_hash = expected.nonce is not None
    restored = restore_report_data(found.report_data, expected.value, is_hash=is_hash)
    return found._replace(report_data=restored)


def _require(value: _Got | None) -> _Got:
    if value is None:
        raise UsageError(
            "Examination: methods must be called once each, in the order of their definition",
            reason="conflict",
        )
    return value
