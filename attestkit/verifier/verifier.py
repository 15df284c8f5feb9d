"""The Verifier: settings, collateral (fetched only if a PCCS is configured), and batches."""

import os
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from types import EllipsisType
from typing import TYPE_CHECKING, Any, overload

from attestkit._argument_checks import require_time_zone, wrong_type
from attestkit.collateral import Collateral
from attestkit.errors import AttestKitError, CollateralError, UsageError
from attestkit.simulated_roots import SimulatedRoots
from attestkit.verifier.authenticators import AkSettings, Authenticators
from attestkit.verifier.batch.scheduler import WINDOW, verify_all, verify_each
from attestkit.verifier.batch.task import VerificationItem, run_step
from attestkit.verifier.evidence.checks import ExpectedReportData
from attestkit.verifier.evidence.formats import BUNDLE_TIME, Evidence, EvidenceBundle
from attestkit.verifier.examination import Examination, Settings
from attestkit.verifier.gpu_join import GpuTrust, expected_report_data
from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy, policy_name
from attestkit.verifier.result import AttestationResult
from attestkit.verifier.verifier_options import (
    check_collateral,
    open_images,
    open_policy,
    simulated_gpu_roots,
)

if TYPE_CHECKING:
    from collections.abc import Generator
    from concurrent.futures import Executor

    from attestkit.collateral.cache import CollateralCache
    from attestkit.collateral.caching_source import CollateralSource
    from attestkit.collateral.responses import Getter
    from attestkit.gpu.endorsements import GpuEndorsements
    from attestkit.gpu.evidence import GpuBinding
    from attestkit.gpu.roots import GpuRoots
    from attestkit.verifier.gpu_join import GpuInput
    from attestkit.verifier.images.image_store import Images, ImageStore

__all__ = ["Evidence", "Examination", "Verifier"]

_Path = str | os.PathLike[str]


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


class Verifier:
    """Verifier: appraises evidence under the vendors' roots or one trust anchor, by a policy.

    Args:
        trust_anchor: Certificate in DER or PEM that replaces the roots of Intel, AMD, AWS, Google
            and Azure on every platform. The result is `simulated` unless it has the vendor's key.
            `SimulatedRoots` are all trust anchors of a simulated machine, with those of its GPUs.
        collateral: Collateral for the platforms of the evidence, or the path of its file; required
            for TDX and SGX.
        pccs_url: PCCS or Intel's PCS, from which collateral is fetched instead.
        policy: Appraisal policy, the name of a preset, or the path of a policy's file; None is
            `AppraisalPolicy.default()`.
        getter: Function that gets a URL; None is an HTTP client of the standard library.
        cache: Cache of fetched collateral; None caches in this object.
        clock: Function that returns the current time, for calls without `now`.
        snp_certificates: Certificates for SEV-SNP evidence that contains none: of the signing key
            (VCEK or VLEK) and its issuer; in DER, PEM or the kernel's certificate table.
        amd_crls: Certificate revocation lists of AMD's roots, in DER or PEM. If there are any,
            SEV-SNP evidence is rejected without a current one of its product's root; without them
            revocation is not checked, as a step of the result says.
        images: OS images of dstack: a folder, in which the `os_image_hash` is the name of an
            image's folder or archive (`HASH.tar.gz`, `mr_HASH.tar.gz`); or paths by hash in hex.
            With them the OS image of TDs is verified whose evidence has no measurement document,
            and the ACPI tables of all TDs, as far as those of their shape ship with attestkit.
            Results have the image's metadata.
        ak_roots: Roots of attestation keys (AK) of TPMs, in DER or PEM. For evidence of platforms
            `tpm` and `go-tpm-tools` they replace those of Google and AWS, which count again only
            if they are among them; for optional AK certificates of Azure they are added to Azure's
            root. Other platforms do not use them.
        ak_certificates: Certificates of CAs, and CRLs, for AK certificates; in DER or PEM.
        fetch_ak_certificates: Whether missing ones are fetched from the addresses that Google's
            certificates name; then every CRL that they name must be available. A CRL in
            `ak_certificates` is fetched again only if it has expired.
        gpu_roots: Trust anchors of GPUs; None are NVIDIA's. Results are `simulated` with others.
        gpu_endorsements: Reference manifests, OCSP answers and tokens for GPUs, or the path of
            their file. Nothing is fetched: see `GpuEndorsements.fetch`.

    Thread-safe; it pickles without its caches.

    Raises:
        UsageError: If `trust_anchor` is not a certificate, if both collateral and `pccs_url`, or
            roots beside `SimulatedRoots` are given, or if an argument has the wrong type or value.
        CollateralError: If a file of collateral or endorsements cannot be read or is malformed.
        ConfigError: If the policy's file cannot be read or is malformed, or the folder of images
            cannot be read.
    """

    def __init__(
        self,
        *,
        trust_anchor: bytes | str | SimulatedRoots | None = None,
        collateral: Collateral | _Path | None = None,
        pccs_url: str | None = None,
        policy: AppraisalPolicy | _Path | None = None,
        getter: "Getter | None" = None,
        cache: "CollateralCache | None" = None,
        clock: Callable[[], datetime] = _utc_now,
        snp_certificates: Sequence[bytes] = (),
        amd_crls: Sequence[bytes] = (),
        images: "Images | ImageStore | None" = None,
        ak_roots: Sequence[bytes] = (),
        ak_certificates: Sequence[bytes] = (),
        fetch_ak_certificates: bool = False,
        gpu_roots: "GpuRoots | None" = None,
        gpu_endorsements: "GpuEndorsements | _Path | None" = None,
    ) -> None:
        if collateral is not None and pccs_url is not None:
            raise UsageError("collateral and pccs_url: pass only one of them", reason="conflict")
        if isinstance(collateral, str | os.PathLike):
            collateral = Collateral.load(collateral)
        check_collateral(collateral)
        self.policy: AppraisalPolicy = open_policy(policy)
        self._roots = trust_anchor if isinstance(trust_anchor, SimulatedRoots) else None
        if self._roots is not None:
            gpu_roots = simulated_gpu_roots(self._roots, ak_roots, gpu_roots)
        keys = AkSettings.of(ak_roots, ak_certificates)
        keys = keys._replace(fetch=fetch_ak_certificates, getter=getter)
        self._authenticators = Authenticators(trust_anchor, snp_certificates, keys, amd_crls)
        self._collateral = collateral
        self._pccs_url = pccs_url
        self._getter, self._cache = getter, cache
        self._clock = clock
        self._policy_name = self.policy, policy_name(self.policy)
        self._source = self._open_source()
        self._images = open_images(images)
        self._gpu_trust = GpuTrust.of(gpu_roots, gpu_endorsements)
        self._bundle: EvidenceBundle | None = None

    @overload
    def verify(
        self,
        evidence: Evidence,
        *,
        nonce: bytes,
        now: datetime | float | None = None,
        collateral: Collateral | None = None,
        gpu: "GpuInput" = None,
    ) -> AttestationResult: ...

    @overload
    def verify(
        self,
        evidence: Evidence,
        *,
        nonce: bytes | None = None,
        report_data: bytes | EllipsisType | None,
        now: datetime | float | None = None,
        collateral: Collateral | None = None,
        gpu: "GpuInput" = None,
    ) -> AttestationResult: ...

    @overload
    def verify(
        self,
        evidence: Evidence,
        *,
        now: datetime | float | None = None,
        collateral: Collateral | None = None,
        gpu: "GpuBinding",
    ) -> AttestationResult: ...

    def verify(
        self,
        evidence: Evidence,
        *,
        nonce: bytes | None = None,
        report_data: bytes | EllipsisType | None = ...,
        now: datetime | float | None = None,
        collateral: Collateral | None = None,
        gpu: "GpuInput" = None,
    ) -> AttestationResult:
        """Verify evidence, and return the result. Pass either `nonce` or `report_data`.

        A raw quote or SEV-SNP report has no event log: replay is skipped, and a policy with rules
        about events or the app rejects it.

        Args:
            evidence: Evidence of at most 10 MiB, in any form of `Evidence`. Certificates for a bare
                SEV-SNP report are the verifier's `snp_certificates`, or follow it as a table.
            nonce: The nonce that the attester was sent, 8 to 64 bytes; it makes the result `fresh`.
            report_data: Expected report data, up to 64 bytes, zero-padded; the result is not
                `fresh`, because report data may be a constant, and with empty report data it is
                bound to nothing. None, which must be passed explicitly, accepts any.
            now: Time of the verification: an aware datetime, or seconds since 1970; None: now.
            collateral: Collateral for this evidence; None: the verifier's.
            gpu: Evidence of the machine's GPUs, as JSON or parsed; None uses that enclosed in the
                evidence, if any, and False does not verify it. A `GpuBinding` has the report data,
                too, and replaces `nonce` and `report_data`. JSON may also be the output of nvattest
                that a dstack guest measured at boot.

        Raises:
            FormatError: If the evidence is malformed.
            VerificationError: If the evidence is not valid (SignatureError, ReplayError,
                CollateralExpiredError, GpuEvidenceError), or not accepted by the policy
                (PolicyError, GpuEvidenceError).
            CollateralError: If collateral is missing, malformed, or cannot be fetched.
            UnsupportedError: If an SEV-SNP processor, its root, or a hash of PCRs is not supported.
            UsageError: If an argument has the wrong type or value.
            ConfigError: If the OS image of the evidence is among `images`, but altered or
                incomplete; the text names the file.
        """

        def complete() -> AttestationResult:
            expected = expected_report_data(nonce, report_data, gpu)
            found = self.examine(evidence, now=now, collateral=collateral, gpu=gpu)
            return found.complete(expected)

        return run_step("verification", (), complete)

    @overload
    def verify_bundle(
        self,
        bundle: EvidenceBundle,
        *,
        nonce: bytes,
        now: datetime | float | None = None,
        use_bundle_time: bool = False,
    ) -> AttestationResult: ...

    @overload
    def verify_bundle(
        self,
        bundle: EvidenceBundle,
        *,
        nonce: bytes | None = None,
        report_data: bytes | EllipsisType | None,
        now: datetime | float | None = None,
        use_bundle_time: bool = False,
    ) -> AttestationResult: ...

    def verify_bundle(
        self,
        bundle: EvidenceBundle,
        *,
        nonce: bytes | None = None,
        report_data: bytes | EllipsisType | None = ...,
        now: datetime | float | None = None,
        use_bundle_time: bool = False,
    ) -> AttestationResult:
        """Verify the evidence of a bundle offline, with the collateral of the bundle.

        Args:
            bundle: Evidence bundle.
            nonce: As for `verify`.
            report_data: As for `verify`. The report data in the bundle are ignored, because they
                are not authenticated.
            now: As for `verify`. A time that is `bundle.at`, to the second, has the effect of
                `use_bundle_time`.
            use_bundle_time: Verify at `bundle.at`, which the bundle's creator chose: certificates
                and collateral that have expired or been revoked since are accepted. The result
                has a caution, and `sign_ear` refuses it.

        Raises:
            CollateralError: If the bundle lacks the collateral that its evidence needs; the
                verifier's collateral and PCCS are not used, and no certificates or CRLs of TPM
                keys are fetched. The bundle's CRLs are used for CAs of which the verifier's
                `amd_crls` and `ak_certificates` have none.
            CollateralExpiredError: If the bundle's collateral has expired.
            AttestKitError: As for `verify`.
        """

        def complete() -> AttestationResult:
            expected = ExpectedReportData.of(nonce, report_data)
            if use_bundle_time and now is not None:
                raise UsageError("now and use_bundle_time: give at most one", reason="conflict")
            return self._examine_bundle(bundle, now, own=use_bundle_time).complete(expected)

        return run_step("verification", (), complete)

    def _examine_bundle(
        self, bundle: EvidenceBundle, now: datetime | float | None, *, own: bool
    ) -> "Examination":
        if not isinstance(bundle, EvidenceBundle):
            raise wrong_type("bundle", "an EvidenceBundle", bundle)
        moment = self._verification_time(bundle.at if own else now)
        own = own or (now is not None and bundle.names_time(moment))
        settings = self._settings()._replace(
            authenticators=self._authenticators.for_bundle(bundle.amd_crls, bundle.ak_certificates),
            collateral=None,
            source=None,
            gpu_trust=self._gpu_trust.with_unauthenticated(bundle.gpu_endorsements),
        )
        steps = (BUNDLE_TIME,) if own else ()
        found = Examination(
            settings,
            bundle.evidence,
            moment,
            bundle.collateral,
            steps=steps,
            gpu=bundle.gpu_evidence,
        )
        if found.parsed.quote is not None and bundle.collateral is None:
            text = "evidence bundle: must have collateral for its SGX or TDX quote; add some"
            raise CollateralError(text, reason="missing")
        return found

    def for_bundle(self, bundle: EvidenceBundle) -> "Verifier":
        """Return a verifier that uses certificates and CRLs of a bundle, as `verify_bundle` does.

        Its endorsements of GPUs are used if the verifier has none. The new verifier shares the
        caches of this one, and fetches no certificates or CRLs of TPM keys.

        Raises:
            UsageError: If `bundle` is not an EvidenceBundle.
        """
        if not isinstance(bundle, EvidenceBundle):
            raise wrong_type("bundle", "an EvidenceBundle", bundle)
        authenticators = self._authenticators.for_bundle(bundle.amd_crls, bundle.ak_certificates)
        found = self._with(_authenticators=authenticators, _bundle=bundle)
        return found.with_gpu_endorsements(bundle.gpu_endorsements)

    def with_gpu_endorsements(self, endorsements: "GpuEndorsements | None") -> "Verifier":
        """Return a verifier with these endorsements of GPUs; itself for None, or if it has some.

        The endorsements may be untrusted: their keys of NVIDIA's attestation service are not used.
        Both verifiers share their caches.
        """
        own = self._gpu_trust.endorsements
        if endorsements is None or (own is not None and (own.rims or own.ocsp or own.nras)):
            return self
        trust = self._gpu_trust.with_unauthenticated(endorsements)
        return self._with(_gpu_trust=trust)

    def _with(self, **changes: object) -> "Verifier":
        """Return a copy of this verifier with changed attributes; it shares the caches."""
        found = object.__new__(type(self))  # `copy` would create new caches
        vars(found).update(vars(self), **changes)
        return found

    def fetched_ak_certificates(self) -> tuple[bytes, ...]:
        """Return certificates and CRLs of TPM keys that were fetched and verified in the last hour.

        Each is DER or PEM, for a bundle's `ak_certificates`; none without `fetch_ak_certificates`.
        """
        return self._authenticators.fetched_ak_certificates()

    def examine(
        self,
        evidence: Evidence,
        *,
        now: datetime | float | None = None,
        collateral: Collateral | None = None,
        fetch: bool = True,
        gpu: "GpuInput" = None,
    ) -> "Examination":
        """Parse evidence, and return an Examination, whose methods verify it step by step.

        Call them in the order in which `Examination` defines them; `verify` does the same, and
        describes the arguments. Malformed evidence raises FormatError here. If `fetch` is false, a
        step that needs a request raises FetchNeededError, a CollateralError.
        """
        check_collateral(collateral)

        def examine() -> "Examination":
            moment, settings = self._verification_time(now), self._settings()
            return Examination(settings, evidence, moment, collateral, fetch=fetch, gpu=gpu)

        return run_step("format", (), examine)

    def _settings(self) -> "Settings":
        policy = self.policy
        if self._policy_name[0] is not policy:
            self._policy_name = policy, policy_name(policy)
        return Settings(
            self._authenticators,
            policy,
            self._policy_name[1],
            self._collateral,
            self._source,
            self._images,
            self._gpu_trust,
        )

    def verify_many(
        self,
        items: Iterable[VerificationItem],
        executor: "Executor | None" = None,
        progress: Callable[[int, int], None] | None = None,
        now: datetime | float | None = None,
    ) -> "list[AttestationResult | AttestKitError]":
        """Verify many items at one time; return a result or an error for each, in order.

        A result is true in a condition, and a returned error is false. An argument that is not
        valid raises UsageError, as for `verify_stream`.

        Args:
            items: Evidence with its expected report data, and optionally its collateral or bundle.
            executor: Executor of `concurrent.futures`, or dask's `Client.get_executor()`; None
                verifies in this thread. Processes scale; threads less, because the GIL is held
                during most of a verification. Items of a dead worker are verified again in a
                process of attestkit's own, and rejected if that process dies, too. It runs the
                `initializer` of a `ProcessPoolExecutor`; with other executors the verifier must
                work without one.
            progress: Function that is called in this thread with the number of completed items and
                the total.
            now: Time of the verification, as for `verify`.
        """
        moment = run_step("time", (), self._verification_time, now)
        return verify_all(self, list(items), executor, progress, moment)

    def verify_stream(
        self,
        items: Iterable[VerificationItem],
        executor: "Executor | None" = None,
        *,
        window: int = WINDOW,
        ordered: bool = False,
        now: datetime | float | None = None,
    ) -> "Generator[tuple[int, AttestationResult | AttestKitError], None, None]":
        """Verify a stream of items at one time; yield each outcome with the index of its item.

        An outcome is a result, which is true in a condition, or an error, which is false.

        At most `window` items and about 64 MiB of evidence are in flight. Outcomes are yielded as
        soon as they are available, also while the iterator blocks. An item waits at most 10 ms for
        further items to be submitted in the same task.

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
        moment = run_step("time", (), self._verification_time, now)
        return verify_each(self, items, executor, window, moment, ordered=ordered)

    def _verification_time(self, now: datetime | float | None) -> datetime:
        what = "now"
        if now is None:
            what, now = "clock", run_step("clock", (), self._clock)
            if not isinstance(now, datetime):
                raise wrong_type(what, "a datetime", now)
        if isinstance(now, datetime):
            require_time_zone(what, now)
            return now
        try:
            return datetime.fromtimestamp(now, timezone.utc)
        except TypeError as error:
            raise wrong_type("now", "a datetime or seconds since 1970", now) from error
        except (ValueError, OverflowError, OSError) as error:
            raise UsageError(f"now: must be a valid time: {now}", reason="out_of_range") from error

    def _open_source(self) -> "CollateralSource | None":
        if self._pccs_url is None:
            return None
        from attestkit.collateral.cache import CollateralCache  # lazy: only for fetching
        from attestkit.collateral.caching_source import CollateralSource

        cache = CollateralCache(None, clock=self._clock) if self._cache is None else self._cache
        return CollateralSource(self._pccs_url, getter=self._getter, cache=cache)

    def __reduce__(self) -> tuple[object, ...]:
        options = {
            "trust_anchor": self._roots or self._authenticators.trust_anchor,
            "collateral": self._collateral,
            "pccs_url": self._pccs_url,
            "policy": self.policy,
            "getter": self._getter,
            "cache": self._cache,
            "clock": self._clock,
            "snp_certificates": self._authenticators.snp_certificates,
            "amd_crls": self._authenticators.amd_crls,
            "images": self._images,
            "ak_roots": self._authenticators.ak_settings.roots,
            "ak_certificates": self._authenticators.ak_settings.certificates,
            "fetch_ak_certificates": self._authenticators.ak_settings.fetch,
            "gpu_roots": None if self._roots else self._gpu_trust.roots,
            "gpu_endorsements": self._gpu_trust.endorsements,
        }
        return _create_verifier, (type(self), options, self._bundle)

    def __repr__(self) -> str:
        anchor = "vendor roots" if self._authenticators.trust_anchor is None else "trust anchor"
        return f"<Verifier, {anchor}, {self.policy!r}>"


def _create_verifier(
    cls: type[Verifier], options: dict[str, Any], bundle: EvidenceBundle | None
) -> Verifier:
    found = cls(**options)
    return found if bundle is None else found.for_bundle(bundle)
