"""The steps of a verification, one under another, and the Verifier who takes them.

shape, signatures and platform (the maker's word), history (the log explains the registers), OS
image, identity, policy. Every step either passes, and says so in a sentence, or ends it with an
exception; one that nobody expected is a rejection too. Nothing is fetched unless a PCCS is named.
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
from attestkit.verifier.authenticators import Makers
from attestkit.verifier.batch.scheduler import WINDOW, verify_all, verify_each
from attestkit.verifier.batch.task import Item, guarded
from attestkit.verifier.dcap.fetch_and_retry import authenticate_fetching
from attestkit.verifier.evidence_bundle import EvidenceBundle
from attestkit.verifier.evidence_checks import (
    Parcel,
    app_info,
    claims,
    fresh,
    history,
    os_image,
    reported_data,
)
from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy, checked_policy, name_of
from attestkit.verifier.result import AttestationResult, Authenticated, Claims, Verdict, accepted

if TYPE_CHECKING:
    from collections.abc import Generator
    from concurrent.futures import Executor

    from attestkit.attestation import AppInfo
    from attestkit.collateral.cache import CollateralCache
    from attestkit.collateral.caching_source import CollateralSource
    from attestkit.collateral.pccs_client import Getter

__all__ = ["Evidence", "Examination", "Verifier", "verify"]

Evidence = bytes | Attestation | Quote
"""Evidence of any encoding, a raw quote, or either as the object it parses to."""

_Got = TypeVar("_Got")
_RAW_QUOTES: Final = (b"\3\0", b"\4\0", b"\5\0")  # first bytes: the version; no evidence has them


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


class Verifier:
    """Judges evidence by the makers' roots, or by the one root it is given, and by a policy.

    Args:
        trust_anchor: One certificate, DER or PEM, in place of the roots of Intel, AMD and AWS, on
            every platform. Evidence that leads to it is `simulated` unless its key is the maker's.
        collateral: Intel's word about the platforms of the evidence; TDX and SGX need it.
        pccs_url: Where collateral is fetched if none is handed in: a PCCS, or Intel's service.
        policy: What is accepted; None is `AppraisalPolicy.default()`.
        getter: How `pccs_url` is asked; None is HTTP by the standard library.
        cache: Where fetched collateral is kept; None is this object's memory.
        clock: Tells the time where a call does not.
        snp_certificates: AMD's, for reports that come without: of the chip's key (VCEK, or the
            cloud's VLEK) and of its authority; DER, PEM or the kernel's table.
        tcb_details: Fill in the dates of `AttestationResult.tcb` also where no rule needs them.

    It is safe to use by several threads, and pickles without what it has in memory.

    Raises:
        UsageError: `trust_anchor` is no certificate, collateral and `pccs_url` are both given, or
            an argument is of another type. With evidence of SEV-SNP also a handed-in certificate
            that is none.
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
            raise UsageError("collateral is handed in or fetched from pccs_url, not both")
        self.policy: AppraisalPolicy = (
            AppraisalPolicy.default() if policy is None else checked_policy(policy)
        )
        self._makers = Makers(trust_anchor, snp_certificates)
        self._collateral = collateral
        self._pccs_url = pccs_url
        self._getter, self._cache = getter, cache
        self._clock = clock
        self._tcb_details = tcb_details
        self._named = self.policy, name_of(self.policy)
        self._source = self._open_source()

    def verify(
        self,
        evidence: Evidence,
        *,
        report_data: bytes | None,
        now: datetime | float | None = None,
        collateral: Collateral | None = None,
    ) -> AttestationResult:
        """Return the result for evidence that passes every step.

        A raw quote has no log: replay is left out, and a policy that asks for events or for who
        the app is refuses it.

        Args:
            evidence: What is judged, of at most 10 MiB.
            report_data: Up to 64 bytes that the evidence must be about, padded with zeros. None,
                which must be written out, accepts any: then nothing shows that it is fresh.
            now: The instant of the verification, aware, or in seconds since 1970.
            collateral: For this evidence, in place of the verifier's.

        Raises:
            FormatError: The evidence breaks its format.
            VerificationError: It must not be believed; also as SignatureError, ReplayError,
                CollateralExpiredError, and PolicyError where it is true but not accepted.
            CollateralError: Collateral is missing, malformed, or cannot be fetched.
            UnsupportedError: The platform is not verified here (Google's and AWS's vTPM halves).
            UsageError: An argument is of the wrong kind.
        """
        return guarded(
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
        """Return the result for a bundle's evidence, with the bundle's collateral and no network.

        Args:
            bundle: What was kept.
            report_data: As for `verify`. What the bundle says of it is not looked at: who can
                write the bundle wrote that too.
            now: The instant of the verification; None takes the bundle's word, `bundle.at`. What
                was revoked or has expired since then then counts as good.

        Raises:
            CollateralError: The evidence needs collateral, and the bundle has none; neither the
                verifier's nor that of its PCCS takes its place.
            AttestKitError: As `verify`.
        """
        return guarded("verification", (), lambda: self._open_bundle(bundle, now).take(report_data))

    def _open_bundle(self, bundle: EvidenceBundle, now: datetime | float | None) -> "Examination":
        if not isinstance(bundle, EvidenceBundle):
            raise UsageError(f"a bundle is an EvidenceBundle, not {type(bundle).__name__}")
        moment = self._moment(bundle.at if now is None else now)
        terms = self._terms()._replace(collateral=None, source=None)
        found = Examination(terms, bundle.evidence, moment, bundle.collateral)
        if found.parcel.quote is not None and bundle.collateral is None:
            raise CollateralError(
                "the bundle has a quote of Intel's and no collateral, and none is fetched for a "
                "bundle: make it again with its collateral"
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
        """Open evidence for a verification step by step, in the order of `verify`.

        Without `fetch`, a step that would ask the PCCS raises FetchNeededError in its place.
        """
        _check_collateral(collateral)

        def opened() -> Examination:
            return Examination(self._terms(), evidence, self._moment(now), collateral, fetch=fetch)

        return guarded("shape", (), opened)

    def _terms(self) -> "_Terms":
        policy = self.policy
        if self._named[0] is not policy:
            self._named = policy, name_of(policy)
        details = self._tcb_details or policy.needs_tcb_details
        return _Terms(self._makers, policy, self._named[1], self._collateral, self._source, details)

    def verify_many(
        self,
        items: Iterable[Item],
        executor: "Executor | None" = None,
        progress: Callable[[int, int], None] | None = None,
        now: datetime | float | None = None,
    ) -> "list[AttestationResult | AttestKitError]":
        """Judge many at one instant; return a result or an exception for each, in their order.

        Args:
            items: Evidence, the report data it must be about, and perhaps its own collateral.
            executor: Any of `concurrent.futures`, or dask's `Client.get_executor()`; None does it
                here. Processes scale, threads less, because the interpreter's lock is held while
                signatures are checked. What a worker had that dies is judged again in a process of
                ours; evidence that ends that, too, is refused by itself. Such a process runs the
                `initializer` of the `ProcessPoolExecutor` that was given; nobody can know another
                executor's, without which the verifier has to be whole.
            progress: Called with how many are done and how many there are, in this thread.
            now: The instant, as for `verify`.
        """
        moment = guarded("time", (), lambda: self._moment(now))
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
        """Judge any number at one instant; yield each outcome with the place of its item, from 0.

        An iterator of millions is taken bit by bit: at most `window` items are taken and not yet
        yielded, and from 64 MiB of evidence under way none is taken. An outcome is yielded once it
        is there, also while the iterator waits. An item waits 10 ms at most for others of its task.

        Args:
            items: As for `verify_many`. With an executor an iterator runs in a thread of its own;
                what it raises is raised after the outcomes of its items. To close the stream ends
                that thread; one that waits in the iterator ends when that has its next item. What
                it waits on is opened and closed in the iterator, stdin by `open(0, "rb",
                closefd=False)`: another thread that closes what this one reads, as Python does at
                its end with `sys.stdin`, waits for it, or aborts.
            executor: As for `verify_many`.
            window: How many items may be under way, 1 to 1,000,000.
            ordered: Yield in the order of the items, not as they are done.
            now: The instant, as for `verify`.

        Raises:
            UsageError: `window` or `now` is none, the executor takes no work, or it has processes
                and the verifier does not pickle.
        """
        moment = guarded("time", (), lambda: self._moment(now))
        return verify_each(self, items, executor, window, moment, ordered=ordered)

    def _moment(self, now: datetime | float | None) -> datetime:
        what = "now"
        if now is None:
            what, now = "the clock's time", guarded("clock", (), self._clock)
            if not isinstance(now, datetime):
                raise UsageError(f"{what} is a datetime, not {type(now).__name__}")
        if isinstance(now, datetime):
            if now.utcoffset() is None:
                raise UsageError(f"{what} is a datetime with a time zone, or seconds since 1970")
            return now
        try:
            return datetime.fromtimestamp(now, timezone.utc)
        except (TypeError, ValueError, OverflowError, OSError) as error:
            raise UsageError(f"now is no time: {now!r}") from error

    def _open_source(self) -> "CollateralSource | None":
        if self._pccs_url is None:
            return None
        from attestkit.collateral.cache import CollateralCache  # late: only who fetches pays
        from attestkit.collateral.caching_source import CollateralSource

        cache = CollateralCache(None, clock=self._clock) if self._cache is None else self._cache
        return CollateralSource(self._pccs_url, getter=self._getter, cache=cache)

    def __reduce__(self) -> tuple[object, ...]:
        return _verifier, (
            type(self),
            (self._makers.trust_anchor, self._collateral, self._pccs_url, self.policy),
            {
                "getter": self._getter,
                "cache": self._cache,
                "clock": self._clock,
                "snp_certificates": self._makers.snp_certificates,
                "tcb_details": self._tcb_details,
            },
        )

    def __repr__(self) -> str:
        anchor = "the makers' roots" if self._makers.trust_anchor is None else "one root"
        return f"<Verifier, {anchor}, {self.policy!r}>"


def _verifier(cls: type[Verifier], given: tuple[Any, ...], options: dict[str, Any]) -> Verifier:
    return cls(*given, **options)


class _Terms(NamedTuple):
    """What a verifier judges by."""

    makers: Makers
    policy: AppraisalPolicy
    policy_name: str
    collateral: Collateral | None  # handed in for all
    source: "CollateralSource | None"
    details: bool  # of the TCB


class Examination:
    """One parcel of evidence on its way through the steps: call each once, in this order."""

    def __init__(
        self,
        terms: _Terms,
        evidence: Evidence,
        now: datetime,
        collateral: Collateral | None,
        *,
        fetch: bool = True,
    ) -> None:
        self._terms = terms
        self._now, self._fetch = now, fetch
        self._collateral = terms.collateral if collateral is None else collateral
        self._steps: list[str] = []
        self._authenticated: Authenticated | None = None
        self._history: tuple[int, ...] | None = None
        self._image_hash: bytes | None = None
        self._app_info: AppInfo | None = None
        self.parcel: Parcel = guarded("shape", self._steps, lambda: _opened(evidence))

    @property
    def steps(self) -> tuple[str, ...]:
        """What has passed so far, and what was left out."""
        return tuple(self._steps)

    def authenticate(self) -> Authenticated:
        """Check signatures and platform: the maker vouches for these bytes."""
        return guarded("signatures", self._steps, self._authenticate)

    def _authenticate(self) -> Authenticated:
        source, quote = self._terms.source, self.parcel.quote
        if source is None or quote is None or self._collateral is not None:
            found = self._ask_maker(self._collateral)
        else:
            vouch = partial(self._terms.makers.vouch, quote, now=self._now)
            found, self._collateral = authenticate_fetching(
                source, quote, self._ask_maker, vouch, fetch=self._fetch
            )
        reported_data(self.parcel, found.report_data)
        self._authenticated = found
        self._steps.extend(found.steps)
        return found

    def _ask_maker(self, collateral: Collateral | None) -> Authenticated:
        terms = self._terms
        return terms.makers.authenticate(self.parcel, collateral, self._now, details=terms.details)

    def replay(self) -> None:
        """Hold the log to the registers."""
        guarded("history", self._steps, self._replay)

    def _replay(self) -> None:
        _must_be(self._authenticated)
        self._history, step = history(self.parcel)
        self._steps.append(step)

    def image_hash(self) -> bytes:
        """Return the hash of the OS image that runs; empty where that cannot be told."""
        return guarded("OS image", self._steps, self._hash_image)

    def _hash_image(self) -> bytes:
        _must_be(self._history)
        self._image_hash, step = os_image(self.parcel)
        self._steps.append(step)
        return self._image_hash

    def app_info(self) -> "AppInfo | None":
        """Return who the app is; None where evidence does not tell. Unvouched fields are empty."""
        return guarded("identity", self._steps, self._identify)

    def _identify(self) -> "AppInfo | None":
        authenticated, image = _must_be(self._authenticated), _must_be(self._image_hash)
        self._app_info, step = app_info(self.parcel, authenticated.device, image)
        self._steps.append(step)
        return self._app_info

    def appraise(self, report_data: bytes | None) -> AttestationResult:
        """Hold everything to the relying party's rules, and return the result."""
        return guarded("policy", self._steps, lambda: self._appraise(report_data))

    def take(self, report_data: bytes | None) -> AttestationResult:
        """Take all of the steps."""
        self.authenticate()
        self.replay()
        self.image_hash()
        self.app_info()
        return self.appraise(report_data)

    def _appraise(self, report_data: bytes | None) -> AttestationResult:
        wanted = None if report_data is None else ReportData.pad(report_data)
        authenticated = _must_be(self._authenticated)
        found = self._claims()
        self._steps.append(fresh(authenticated.report_data, wanted))
        terms = self._terms
        simulated = not terms.makers.genuine(self.parcel)
        self._steps.extend(
            terms.policy.appraise(
                found,
                authenticated,
                self._app_info,
                self._now,
                self._explanation,
                simulated=simulated,
            )
        )
        self._steps.append(f"accepted by {terms.policy_name}")
        return accepted(
            Verdict(
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
        """Return the fields that may be believed, once the steps before have passed."""
        return guarded("claims", self._steps, self._claims)

    def _claims(self) -> Claims:
        authenticated = _must_be(self._authenticated)
        registers, image = _must_be(self._history), _must_be(self._image_hash)
        return claims(self.parcel, authenticated.report_data, registers, image)

    def _explanation(self) -> str:
        """Return what an outdated platform lacks; nothing costs anything on one up to date."""
        authenticated, quote = _must_be(self._authenticated), self.parcel.quote
        if quote is None or self._collateral is None:
            return ""
        return self._terms.makers.explain(authenticated, quote, self._collateral)


def _must_be(value: _Got | None) -> _Got:
    if value is None:
        raise UsageError("the steps of a verification are taken in their order")
    return value


def _check_collateral(given: object) -> None:
    if given is not None and not isinstance(given, Collateral):
        raise UsageError(f"collateral is a Collateral, not {type(given).__name__}")


def _opened(evidence: object) -> Parcel:
    """Return evidence of either kind; a quote is told from other bytes by its version."""
    if isinstance(evidence, Attestation):
        return Parcel.of(evidence)
    if isinstance(evidence, Quote):
        return Parcel(None, evidence)
    if isinstance(evidence, EvidenceBundle):
        raise UsageError("a bundle is verified by Verifier.verify_bundle, not as evidence")
    if not isinstance(evidence, bytes):
        raise UsageError(f"evidence is bytes, not {type(evidence).__name__}")
    if evidence[:2] in _RAW_QUOTES:
        return Parcel(None, Quote.parse(evidence))
    return Parcel.of(Attestation.from_bytes(evidence))


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
    """Judge one parcel of evidence; see `Verifier` and its `verify` for arguments and errors."""
    verifier = Verifier(trust_anchor, collateral, pccs_url, policy)
    return verifier.verify(evidence, report_data=report_data, now=now)
