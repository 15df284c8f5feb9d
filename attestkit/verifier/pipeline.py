"""The Verifier and its pipeline of verification steps.

Steps: format, signatures, report data, event log, OS image, app identity, policy. Every step passes
and adds a sentence to the result, or raises; an unexpected exception is a rejection. Collateral is
fetched only if a PCCS is configured.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from attestkit.attestation import Attestation
from attestkit.collateral import Collateral
from attestkit.errors import AttestKitError, CollateralError, UsageError
from attestkit.quote import Quote
from attestkit.report_data import ReportData
from attestkit.verifier.authenticators import Authenticators
from attestkit.verifier.batch.scheduler import WINDOW, verify_all, verify_each
from attestkit.verifier.batch.task import Item, run_step
from attestkit.verifier.dcap.fetch_and_retry import authenticate_fetching
from attestkit.verifier.evidence_bundle import EvidenceBundle
from attestkit.verifier.evidence_checks import (
    ParsedEvidence,
    app_info,
    check_os_image,
    check_quoted_report_data,
    check_report_data,
    claims,
    replay_event_log,
)
from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy, policy_name, require_policy
from attestkit.verifier.result import (
    AttestationResult,
    Authenticated,
    Claims,
    ResultContent,
    create_result,
)

if TYPE_CHECKING:
    from collections.abc import Generator
    from concurrent.futures import Executor

    from attestkit.attestation import AppInfo
    from attestkit.collateral.cache import CollateralCache
    from attestkit.collateral.caching_source import CollateralSource
    from attestkit.collateral.pccs_client import Getter

__all__ = ["Evidence", "Examination", "Verifier", "verify"]

Evidence = bytes | Attestation | Quote
"""Encoded evidence or raw quote, or the parsed object of either."""

_Got = TypeVar("_Got")
_RAW_QUOTES: Final = (b"\3\0", b"\4\0", b"\5\0")  # quote versions; no evidence begins so


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


class Verifier:
    """Verifier: appraises evidence under the vendors' roots or one trust anchor, by a policy.

    Args:
        trust_anchor: Certificate in DER or PEM that replaces the roots of Intel, AMD and AWS on
            every platform. The result is `simulated` unless it has the vendor's key.
        collateral: Collateral for the platforms of the evidence; required for TDX and SGX.
        pccs_url: PCCS or Intel's PCS, from which collateral is fetched instead.
        policy: Appraisal policy; None is `AppraisalPolicy.default()`.
        getter: Function that gets a URL; None is an HTTP client of the standard library.
        cache: Cache of fetched collateral; None caches in this object.
        clock: Function that returns the current time, for calls without `now`.
        snp_certificates: Certificates for SEV-SNP reports without: of the key (VCEK or VLEK) and
            its issuer; in DER, PEM or the kernel's certificate table.
        tcb_details: Whether to set the dates of `AttestationResult.tcb` if no rule needs them.

    Thread-safe; it pickles without its caches.

    Raises:
        UsageError: If `trust_anchor` is not a certificate, if both collateral and `pccs_url` are
            given, or if an argument has the wrong type.
    """

    def __init__(
        self,
        trust_anchor: bytes | str | None = None,
        collateral: Collateral | None = None,
        pccs_url: str | None = None,
        policy: AppraisalPolicy | None = None,
        *,
        getter: "Getter | None" = None,
        cache: "CollateralCache | None" = None,
        clock: Callable[[], datetime] = _utc_now,
        snp_certificates: Sequence[bytes] = (),
        tcb_details: bool = False,
    ) -> None:
        _check_collateral(collateral)
        if collateral is not None and pccs_url is not None:
            raise UsageError(
                "collateral and pccs_url exclude each other; pass one of them", reason="conflict"
            )
        self.policy: AppraisalPolicy = (
            AppraisalPolicy.default() if policy is None else require_policy(policy)
        )
        self._authenticators = Authenticators(trust_anchor, snp_certificates)
        self._collateral = collateral
        self._pccs_url = pccs_url
        self._getter, self._cache = getter, cache
        self._clock = clock
        self._tcb_details = tcb_details
        self._policy_name = self.policy, policy_name(self.policy)
        self._source = self._open_source()

    def verify(
        self,
        evidence: Evidence,
        *,
        report_data: bytes | None,
        now: datetime | float | None = None,
        collateral: Collateral | None = None,
    ) -> AttestationResult:
        """Verify evidence, and return the result.

        A raw quote has no event log: replay is skipped, and a policy with rules about events or the
        app rejects it.

        Args:
            evidence: Evidence of at most 10 MiB.
            report_data: Expected report data, up to 64 bytes, zero-padded. None, which must be
                passed explicitly, accepts any: then freshness is not verified.
            now: Time of the verification: an aware datetime, or seconds since 1970.
            collateral: Collateral for this evidence, instead of the verifier's.

        Raises:
            FormatError: If the evidence is malformed.
            VerificationError: If the evidence is not valid (SignatureError, ReplayError,
                CollateralExpiredError), or not accepted by the policy (PolicyError).
            CollateralError: If collateral is missing, malformed, or cannot be fetched.
            UnsupportedError: If the platform is not supported (vTPMs of Google and AWS).
            UsageError: If an argument has the wrong type or value.
        """
        return run_step(
            "verification",
            (),
            lambda: self.examine(evidence, now=now, collateral=collateral).take(report_data),
        )

    def verify_bundle(
        self,
        bundle: EvidenceBundle,
        *,
        report_data: bytes | None,
        now: datetime | float | None = None,
    ) -> AttestationResult:
        """Verify the evidence of a bundle offline, with the collateral of the bundle.

        Args:
            bundle: Evidence bundle.
            report_data: As for `verify`. The bundle's own is ignored, because it is not
                authenticated.
            now: Time of the verification; None uses `bundle.at`, so that certificates revoked or
                expired since then are accepted.

        Raises:
            CollateralError: If the bundle lacks the collateral that its evidence needs; the
                verifier's collateral and PCCS are not used.
            AttestKitError: As `verify`.
        """
        return run_step(
            "verification", (), lambda: self._examine_bundle(bundle, now).take(report_data)
        )

    def _examine_bundle(
        self, bundle: EvidenceBundle, now: datetime | float | None
    ) -> "Examination":
        if not isinstance(bundle, EvidenceBundle):
            raise UsageError(
                f"bundle: wrong type: {type(bundle).__name__}, must be an EvidenceBundle",
                reason="wrong_type",
            )
        moment = self._verification_time(bundle.at if now is None else now)
        settings = self._settings()._replace(collateral=None, source=None)
        found = Examination(settings, bundle.evidence, moment, bundle.collateral)
        if found.parsed.quote is not None and bundle.collateral is None:
            raise CollateralError(
                "evidence bundle: no collateral for its SGX or TDX quote; create the bundle with "
                "collateral",
                reason="missing",
            )
        return found

    def examine(
        self,
        evidence: Evidence,
        *,
        now: datetime | float | None = None,
        collateral: Collateral | None = None,
        fetch: bool = True,
    ) -> "Examination":
        """Parse evidence for a verification in single steps, in the order of `verify`.

        If `fetch` is false, a step that needs a PCCS request raises FetchNeededError.
        """
        _check_collateral(collateral)

        def parse() -> Examination:
            return Examination(
                self._settings(), evidence, self._verification_time(now), collateral, fetch=fetch
            )

        return run_step("format", (), parse)

    def _settings(self) -> "_Settings":
        policy = self.policy
        if self._policy_name[0] is not policy:
            self._policy_name = policy, policy_name(policy)
        details = self._tcb_details or policy.needs_tcb_details
        return _Settings(
            self._authenticators,
            policy,
            self._policy_name[1],
            self._collateral,
            self._source,
            details,
        )

    def verify_many(
        self,
        items: Iterable[Item],
        executor: "Executor | None" = None,
        progress: Callable[[int, int], None] | None = None,
        now: datetime | float | None = None,
    ) -> "list[AttestationResult | AttestKitError]":
        """Verify many items at one time; return a result or an exception for each, in order.

        Args:
            items: Evidence with its expected report data, and optionally its collateral.
            executor: Executor of `concurrent.futures`, or dask's `Client.get_executor()`; None
                verifies in this thread. Processes scale; threads less, because the GIL is held
                during most of a verification. Items of a dead worker are verified again in a
                process of attestkit's own, and rejected if that dies as well. That process runs the
                `initializer` of a `ProcessPoolExecutor`; with other executors the verifier must
                work without one.
            progress: Function that is called in this thread with the number of completed items and
                the total.
            now: Time of the verification, as for `verify`.
        """
        moment = run_step("time", (), lambda: self._verification_time(now))
        return verify_all(self, list(items), executor, progress, moment)

    def verify_stream(
        self,
        items: Iterable[Item],
        executor: "Executor | None" = None,
        *,
        window: int = WINDOW,
        ordered: bool = False,
        now: datetime | float | None = None,
    ) -> "Generator[tuple[int, AttestationResult | AttestKitError], None, None]":
        """Verify a stream of items at one time; yield each outcome with the index of its item.

        At most `window` items and about 64 MiB of evidence are in flight. Outcomes are yielded as
        soon as they are available, also while the iterator blocks. An item waits at most 10 ms for
        others of its task.

        Args:
            items: As for `verify_many`. With an executor, an iterator runs in its own thread; its
                exception is raised after the outcomes of its items. Closing the stream ends the
                thread, after the next item if the iterator blocks. An iterator must open and close
                the file that it reads, for stdin with `open(0, "rb", closefd=False)`: closing a
                file that another thread reads blocks or aborts, as for `sys.stdin` at exit.
            executor: As for `verify_many`.
            window: Maximum number of items in flight, 1 to 1,000,000.
            ordered: Whether to yield outcomes in the order of the items, not of completion.
            now: Time of the verification, as for `verify`.

        Raises:
            UsageError: If `window` or `now` is not valid, the executor does not accept tasks, or it
                has processes and the verifier cannot be pickled.
        """
        moment = run_step("time", (), lambda: self._verification_time(now))
        return verify_each(self, items, executor, window, moment, ordered=ordered)

    def _verification_time(self, now: datetime | float | None) -> datetime:
        what = "now"
        if now is None:
            what, now = "clock", run_step("clock", (), self._clock)
            if not isinstance(now, datetime):
                raise UsageError(
                    f"{what}: wrong type: {type(now).__name__}, must be a datetime",
                    reason="wrong_type",
                )
        if isinstance(now, datetime):
            if now.utcoffset() is None:
                raise UsageError(f"{what}: datetime without time zone", reason="wrong_value")
            return now
        try:
            return datetime.fromtimestamp(now, timezone.utc)
        except TypeError as error:
            raise UsageError(
                f"now: wrong type: {type(now).__name__}, must be a datetime or seconds since 1970",
                reason="wrong_type",
            ) from error
        except (ValueError, OverflowError, OSError) as error:
            raise UsageError(f"now: out of range: {now!r}", reason="out_of_range") from error

    def _open_source(self) -> "CollateralSource | None":
        if self._pccs_url is None:
            return None
        from attestkit.collateral.cache import CollateralCache  # lazy: only for fetching
        from attestkit.collateral.caching_source import CollateralSource

        cache = CollateralCache(None, clock=self._clock) if self._cache is None else self._cache
        return CollateralSource(self._pccs_url, getter=self._getter, cache=cache)

    def __reduce__(self) -> tuple[object, ...]:
        return _create_verifier, (
            type(self),
            (self._authenticators.trust_anchor, self._collateral, self._pccs_url, self.policy),
            {
                "getter": self._getter,
                "cache": self._cache,
                "clock": self._clock,
                "snp_certificates": self._authenticators.snp_certificates,
                "tcb_details": self._tcb_details,
            },
        )

    def __repr__(self) -> str:
        anchor = "vendor roots" if self._authenticators.trust_anchor is None else "trust anchor"
        return f"<Verifier, {anchor}, {self.policy!r}>"


def _create_verifier(
    cls: type[Verifier], given: tuple[Any, ...], options: dict[str, Any]
) -> Verifier:
    return cls(*given, **options)


class _Settings(NamedTuple):
    """Configuration of a verification."""

    authenticators: Authenticators
    policy: AppraisalPolicy
    policy_name: str
    collateral: Collateral | None  # for all evidence
    source: "CollateralSource | None"
    details: bool  # of the TCB


class Examination:
    """Verification in single steps: call each once, in this order."""

    def __init__(
        self,
        settings: _Settings,
        evidence: Evidence,
        now: datetime,
        collateral: Collateral | None,
        *,
        fetch: bool = True,
    ) -> None:
        self._settings = settings
        self._now, self._fetch = now, fetch
        self._collateral = settings.collateral if collateral is None else collateral
        self._steps: list[str] = []
        self._authenticated: Authenticated | None = None
        self._replayed: tuple[int, ...] | None = None
        self._image_hash: bytes | None = None
        self._app_info: AppInfo | None = None
        self.parsed: ParsedEvidence = run_step("format", self._steps, lambda: _to_parsed(evidence))

    @property
    def steps(self) -> tuple[str, ...]:
        """Steps that passed so far, and steps that were skipped."""
        return tuple(self._steps)

    def authenticate(self) -> Authenticated:
        """Verify signatures and platform."""
        return run_step("signatures", self._steps, self._authenticate)

    def _authenticate(self) -> Authenticated:
        source, quote = self._settings.source, self.parsed.quote
        if source is None or quote is None or self._collateral is not None:
            found = self._authenticate_with(self._collateral)
        else:
            precheck = partial(self._settings.authenticators.precheck, quote, now=self._now)
            found, self._collateral = authenticate_fetching(
                source, quote, self._authenticate_with, precheck, fetch=self._fetch
            )
        check_quoted_report_data(self.parsed, found.report_data)
        self._authenticated = found
        self._steps.extend(found.steps)
        return found

    def _authenticate_with(self, collateral: Collateral | None) -> Authenticated:
        settings = self._settings
        return settings.authenticators.authenticate(
            self.parsed, collateral, self._now, details=settings.details
        )

    def replay(self) -> None:
        """Compare the event log with the registers."""
        run_step("event log", self._steps, self._replay)

    def _replay(self) -> None:
        _require(self._authenticated)
        self._replayed, step = replay_event_log(self.parsed)
        self._steps.append(step)

    def image_hash(self) -> bytes:
        """Return the hash of the running OS image; empty if not verifiable."""
        return run_step("OS image", self._steps, self._verify_image)

    def _verify_image(self) -> bytes:
        _require(self._replayed)
        self._image_hash, step = check_os_image(self.parsed)
        self._steps.append(step)
        return self._image_hash

    def app_info(self) -> "AppInfo | None":
        """Return the identity of the app, None without one; unauthenticated fields are empty."""
        return run_step("identity", self._steps, self._identify)

    def _identify(self) -> "AppInfo | None":
        authenticated, image = _require(self._authenticated), _require(self._image_hash)
        self._app_info, step = app_info(self.parsed, authenticated.device, image)
        self._steps.append(step)
        return self._app_info

    def appraise(self, report_data: bytes | None) -> AttestationResult:
        """Appraise the claims by the policy, and return the result."""
        return run_step("policy", self._steps, lambda: self._appraise(report_data))

    def take(self, report_data: bytes | None) -> AttestationResult:
        """Run all steps, and return the result."""
        self.authenticate()
        self.replay()
        self.image_hash()
        self.app_info()
        return self.appraise(report_data)

    def _appraise(self, report_data: bytes | None) -> AttestationResult:
        expected = None if report_data is None else ReportData.pad(report_data)
        authenticated = _require(self._authenticated)
        found = self._claims()
        self._steps.append(check_report_data(authenticated.report_data, expected))
        settings = self._settings
        simulated = not settings.authenticators.genuine(self.parsed)
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
        self._steps.append(f"accepted by {settings.policy_name}")
        return create_result(
            ResultContent(
                claims=found,
                tcb_status=authenticated.status,
                advisory_ids=authenticated.advisory_ids,
                tcb=authenticated.tcb,
                simulated=simulated,
                app_info=self._app_info,
                verified_at=self._now,
                certificate_chain=authenticated.chain,
                steps=self.steps,
            )
        )

    def claims(self) -> Claims:
        """Return the authenticated fields, after the previous steps."""
        return run_step("claims", self._steps, self._claims)

    def _claims(self) -> Claims:
        authenticated = _require(self._authenticated)
        registers, image = _require(self._replayed), _require(self._image_hash)
        return claims(self.parsed, authenticated.report_data, registers, image)

    def _explain(self) -> str:
        """Return a sentence on the outdated component; computed only for an error."""
        authenticated, quote = _require(self._authenticated), self.parsed.quote
        if quote is None or self._collateral is None:
            return ""
        return self._settings.authenticators.explain(authenticated, quote, self._collateral)


def _require(value: _Got | None) -> _Got:
    if value is None:
        raise UsageError("verification steps: called out of order", reason="conflict")
    return value


def _check_collateral(given: object) -> None:
    if given is not None and not isinstance(given, Collateral):
        raise UsageError(
            f"collateral: wrong type: {type(given).__name__}, must be a Collateral",
            reason="wrong_type",
        )


def _to_parsed(evidence: object) -> ParsedEvidence:
    """Parse evidence; a raw quote is recognised by its version."""
    if isinstance(evidence, Attestation):
        return ParsedEvidence.of(evidence)
    if isinstance(evidence, Quote):
        return ParsedEvidence(None, evidence)
    if isinstance(evidence, EvidenceBundle):
        raise UsageError(
            "evidence: wrong type: EvidenceBundle; use Verifier.verify_bundle", reason="wrong_type"
        )
    if not isinstance(evidence, bytes):
        raise UsageError(
            f"evidence: wrong type: {type(evidence).__name__}, must be bytes, Attestation or Quote",
            reason="wrong_type",
        )
    if evidence[:2] in _RAW_QUOTES:
        return ParsedEvidence(None, Quote.parse(evidence))
    return ParsedEvidence.of(Attestation.from_bytes(evidence))


def verify(
    evidence: Evidence,
    *,
    report_data: bytes | None,
    collateral: Collateral | None = None,
    trust_anchor: bytes | str | None = None,
    policy: AppraisalPolicy | None = None,
    pccs_url: str | None = None,
    now: datetime | float | None = None,
) -> AttestationResult:
    """Verify evidence; see `Verifier` and `Verifier.verify` for arguments and errors."""
    verifier = Verifier(trust_anchor, collateral, pccs_url, policy)
    return verifier.verify(evidence, report_data=report_data, now=now)
