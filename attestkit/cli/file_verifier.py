"""Verification of one file with the options of a command.

Each file has an outcome with an exit code, whatever the file contains.
"""

import hmac
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from attestkit import errors
from attestkit.attestation import Attestation
from attestkit.cli.exit_codes import REJECTED, exit_code
from attestkit.cli.file_outcome import FileOutcome
from attestkit.cli.input.detect_format import FileContent, identify
from attestkit.cli.input.read_input import read_file
from attestkit.cli.options.option_files import fetch_gpu_endorsements, parse_gpu_evidence
from attestkit.cli.options.report_data import require_expected
from attestkit.cli.options.verification import VerificationOptions
from attestkit.collateral import Collateral
from attestkit.quote import Quote
from attestkit.report_data import ReportData
from attestkit.snp_report import SnpReport

if TYPE_CHECKING:
    from attestkit.collateral.cache import CollateralCache
    from attestkit.verifier.evidence.formats import EvidenceBundle
    from attestkit.verifier.result import AttestationResult

_T = TypeVar("_T")


def _now() -> datetime:
    return datetime.now(timezone.utc)


class FileVerifier:
    """Verifier of files with the same options and time; files of options are read once."""

    def __init__(
        self,
        options: VerificationOptions,
        *,
        any_freshness: bool = True,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        """Set the options.

        Args:
            options: Options of the command.
            any_freshness: Accept evidence without a nonce or report data in `options`. An RA-TLS
                certificate needs none: its evidence must be bound to its key.
            clock: Returns the verification time, aware, unless `options` has one.
        """
        self.options = options
        self._any_freshness = any_freshness
        self._now = options.at or clock()
        self._verifier = options.verifier()
        self._cache: CollateralCache | None = None

    def verify(self, path: Path) -> FileOutcome:
        """Verify a file; all errors are part of the outcome."""
        options, nonce = self.options, self.options.nonce
        expected = options.report_data if nonce is None else ReportData.for_nonce(nonce)
        out = FileOutcome(
            path=path,
            at=self._now,
            policy=options.policy_name,
            report_data=expected,
            certificates=options.certificates,
            crls=options.crls,
            ak_certificates=options.ak_certificates,
            gpu_evidence=options.gpu_evidence,
            gpu_endorsements=options.gpu_endorsements,
        )
        try:
            data = read_file(path)
            content = _reject_usage_errors(lambda: identify(data))
            out = out._replace(content=content)
            evidence = _reject_usage_errors(lambda: extract_evidence(content))
            out = self._select_inputs(out._replace(evidence=evidence), content, evidence)
            out = self._fetch_for_gpus(out, evidence)
            result = self._verify_content(out, content, evidence)
            fetched = self._verifier.fetched_ak_certificates()
            return out._replace(
                result=result,
                bound_to_key=content.in_certificate,
                ak_certificates=(*out.ak_certificates, *fetched),
            )
        except errors.AttestKitError as error:
            return out._replace(error=error, code=evidence_exit_code(error))
        except Exception as error:  # noqa: BLE001 - any other error rejects the evidence
            return out._replace(error=_internal_error(error), code=REJECTED)

    def _select_inputs(
        self, out: FileOutcome, content: FileContent, evidence: Attestation | Quote
    ) -> FileOutcome:
        """Return `out` with time, collateral, CRLs, report data and certificates to verify with.

        What the options do not give is taken from the bundle, if `content` is one. Collateral that
        neither has is fetched for the quote in `evidence`.
        """
        options = self.options
        bundle = _bundle(content) if content.kind == "evidence bundle" else None
        check_applicable(options, content)
        if bundle is not None and not options.crls:
            out = out._replace(crls=bundle.amd_crls)
        if bundle is not None:
            out = out._replace(ak_certificates=(*out.ak_certificates, *bundle.ak_certificates))
            out = _with_gpus_of_bundle(out, bundle)
        expected = options.expects_report_data or content.in_certificate
        require_expected(expected=expected, any_freshness=self._any_freshness)
        if bundle is not None and not options.expects_report_data:
            out = out._replace(bundle_report_data=bundle.report_data)
        if bundle is not None and options.own_instant:
            out = out._replace(at=bundle.at, own_instant=True)
        elif bundle is not None and options.at is not None:
            out = out._replace(own_instant=bundle.names_time(options.at))
        quote = evidence if isinstance(evidence, Quote) else evidence.quote
        if quote is None:
            return out
        bundled = None if bundle is None else bundle.collateral
        collateral = self._find_collateral(quote, bundled)
        return out._replace(
            collateral=collateral, own_collateral=bundled is not None and collateral is bundled
        )

    def _find_collateral(self, quote: Quote, bundled: Collateral | None) -> Collateral:
        """Return the collateral of the options, else `bundled`, else fetch it for the quote.

        An option that names the PCCS takes precedence over `bundled`, the collateral of a bundle;
        None: the file has none.

        Raises:
            CollateralError: If there is none and no PCCS to request it from, or the request fails.
        """
        options = self.options
        if options.collateral is not None:
            return options.collateral
        if bundled is not None and not options.pccs_named:
            return bundled
        if options.pccs_url is None:
            raise errors.CollateralError(
                "collateral: missing, but required to verify the platform; use --collateral FILE, "
                "or --pccs URL to fetch it",
                reason="missing",
            )
        if self._cache is None:
            from attestkit.collateral.cache import CollateralCache  # lazy: for fetching only

            # The cache uses the verification time, so that many files share one request.
            self._cache = CollateralCache(None, clock=lambda: self._now)
        return Collateral.fetch(quote, options.pccs_url, cache=self._cache)

    def _fetch_for_gpus(self, out: FileOutcome, evidence: Attestation | Quote) -> FileOutcome:
        """Return `out` with endorsements of GPUs, fetched if options allow it.

        They are not fetched if an option or a bundle has them, or there are no GPUs. `evidence` is
        that of the CPU, which may enclose the GPUs' evidence.
        """
        if not self.options.fetch_gpu_endorsements or out.gpu_endorsements is not None:
            return out
        enclosed = evidence.gpu_evidence if isinstance(evidence, Attestation) else None
        gpus, options = out.gpu_evidence or enclosed, self.options
        if isinstance(gpus, bytes):  # of the boot: nothing in it is compared with endorsements
            return out
        fetched = fetch_gpu_endorsements(gpus, options.roots_of_gpus, out.at, options.gpu_services)
        return out._replace(gpu_endorsements=fetched)

    def _verify_content(
        self, out: FileOutcome, content: FileContent, evidence: Attestation | Quote
    ) -> "AttestationResult":
        """Verify evidence, and compare its report data with that of its bundle.

        Args:
            out: Time, collateral and other inputs of the verification.
            content: The file, which may be a bundle or a certificate with the evidence.
            evidence: The evidence in it.
        """
        from attestkit.verifier.evidence.formats import BUNDLE_TIME  # lazy: loads the verifier
        from attestkit.verifier.result import add_step

        try:
            result = _reject_usage_errors(lambda: self._verify(out, content, evidence))
        except errors.CollateralExpiredError as error:
            if content.kind != "evidence bundle" or out.own_instant:
                raise
            text = f"{error}; use --at bundle for the time of the bundle"
            raise errors.CollateralExpiredError(
                text, steps=error.steps, reason=error.reason
            ) from error
        if out.bundle_report_data is not None:
            check_bundle_report_data(result, out.bundle_report_data)
        return add_step(result, BUNDLE_TIME) if out.own_instant else result

    def _verify(
        self, out: FileOutcome, content: FileContent, evidence: Attestation | Quote
    ) -> "AttestationResult":
        if not content.in_certificate:
            nonce = self.options.nonce
            verifier = self._verifier.with_gpu_endorsements(out.gpu_endorsements)
            if content.kind == "evidence bundle":
                verifier = verifier.for_bundle(_bundle(content))
            return verifier.verify(
                evidence,
                nonce=nonce,
                report_data=self.options.report_data if nonce is None else ...,
                now=out.at,
                collateral=out.collateral,
                gpu=out.gpu_evidence,
            )
        from attestkit import ra_tls  # lazy: loads X.509

        # ra_tls.verify takes the collateral from the verifier. Without a handshake the lifetime of
        # the certificate says nothing, see the step `certificate_key`.
        verifier = self.options.verifier(out.collateral)
        return ra_tls.verify(content.raw, verifier, now=out.at, max_lifetime=None)


def check_applicable(options: VerificationOptions, content: FileContent) -> None:
    """Check that no option would be ignored for a file of this kind.

    Raises:
        UsageError: If an option would be ignored.
    """
    text = ""
    if options.own_instant and content.kind != "evidence bundle":
        kind = content.kind
        text = f"--at bundle: requires an evidence bundle, but the file is: {kind}; give a time"
    elif content.in_certificate and options.expects_report_data:
        text = (
            "report data: always the key's hash for an RA-TLS certificate; omit --nonce, "
            "--report-data, --text and --file"
        )
    elif content.in_certificate and options.gpu_evidence is not None:
        text = (
            "--gpu-evidence: not supported for an RA-TLS certificate; verify evidence of machine "
            "and GPUs over a nonce instead"
        )
    if text:
        raise errors.UsageError(text, reason="not_applicable")


def _with_gpus_of_bundle(out: FileOutcome, bundle: "EvidenceBundle") -> FileOutcome:
    """Return `out` with the bundle's evidence and endorsements of GPUs.

    Those that options give are kept.
    """
    if out.gpu_evidence is None and bundle.gpu_evidence is not None:
        out = out._replace(gpu_evidence=parse_gpu_evidence(bundle.gpu_evidence))
    if out.gpu_endorsements is None:
        out = out._replace(gpu_endorsements=bundle.gpu_endorsements)
    return out


def _reject_usage_errors(step: Callable[[], _T]) -> _T:
    """Call `step` and return its result; raise its UsageError as VerificationError.

    The step must not depend on options, so that only the evidence can be the cause of the error.
    """
    try:
        return step()
    except errors.UsageError as error:
        raise errors.VerificationError(str(error), reason="unusable") from error


def check_bundle_report_data(result: "AttestationResult", report_data: bytes) -> None:
    """Raise PolicyError if the report data of a result differs from that of its bundle.

    `report_data` is that of the bundle, up to 64 bytes. Equality does not show freshness, since the
    bundle's creator chose both.
    """
    signed, expected = result.claims.report_data, ReportData.pad(report_data)
    if not hmac.compare_digest(signed.ljust(len(expected), b"\0"), expected):
        raise errors.PolicyError(
            f"report data: {signed.hex()}, but the bundle names {expected.hex()}; the evidence was "
            "created for another request",
            steps=result.steps,
            reason="report_data",
        )


def _internal_error(error: Exception) -> errors.VerificationError:
    """Return a VerificationError for an unexpected error.

    It is created here and not in the caller's frame, which `error` refers to: a reference cycle.
    """
    text = f"verification failed with an internal error: {type(error).__name__}"
    rejection = errors.VerificationError(text, reason="internal")
    rejection.__cause__ = error
    return rejection


def evidence_exit_code(error: errors.AttestKitError) -> int:
    """Return the exit code for evidence that is not accepted; see `exit_codes.exit_code`.

    Evidence of an unsupported platform counts as rejected.
    """
    # Evidence of an unsupported platform is rejected.
    return REJECTED if isinstance(error, errors.UnsupportedError) else exit_code(error)


def _bundle(content: FileContent) -> "EvidenceBundle":
    from attestkit.verifier.evidence.formats import EvidenceBundle

    assert isinstance(content.value, EvidenceBundle)
    return content.value


def extract_evidence(content: FileContent) -> Attestation | Quote:
    """Return the evidence in a file.

    Raises:
        FormatError: If the file contains no evidence but, say, a log or collateral. The message
            names the command that uses such a file.
        VerificationError: If the file is a certificate without evidence.
    """
    if isinstance(content.value, Attestation | Quote):
        return content.value
    if isinstance(content.value, SnpReport):  # a bare report of the firmware
        from attestkit.verifier.evidence.formats import attest_snp_report  # lazy: slow to import

        return attest_snp_report(content.value)
    if content.kind == "evidence bundle":
        inner = identify(_bundle(content).evidence)
        if inner.kind not in {"evidence", "quote"}:
            raise errors.FormatError(
                f"evidence bundle: evidence: must be a quote or other evidence, not: {inner.kind}",
                reason="unrecognized",
            )
        return extract_evidence(inner)
    if content.kind == "certificate without evidence":
        raise errors.VerificationError(
            "certificate: contains no evidence, so its key is not attested", reason="no_evidence"
        )
    raise errors.FormatError(
        f"{content.kind}: {_REMEDIES.get(content.kind, _LOG_REMEDY)}", reason="unsupported"
    )


_LOG_REMEDY: Final = "not evidence; compare a log with a quote by attestkit replay"
_REMEDIES: Final = {
    "collateral": "not evidence; use it with --collateral",
    "recording": "not evidence; use attestkit attest --backend recording --option path=FILE",
    "TD report": "can be verified on the machine that created it only; use a quote",
}
