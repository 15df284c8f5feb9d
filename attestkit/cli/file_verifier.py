"""One file judged, and what came out of it.

An outcome exists for every file, whatever is in it, and knows the exit code that it stands for.
"""

import hmac
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import Evidence, SevSnp, Stack
from attestkit.cli.exit_codes import (
    NETWORK,
    POLICY,
    REJECTED,
    UNREADABLE,
    USAGE,
    exit_code,
    one_line,
)
from attestkit.cli.input.detect_format import Recognised, recognise
from attestkit.cli.input.read_input import read_file
from attestkit.cli.options.verification import Asked
from attestkit.collateral import Collateral
from attestkit.errors import (
    AttestKitError,
    CollateralError,
    CollateralExpiredError,
    FormatError,
    PolicyError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from attestkit.quote import Quote
from attestkit.report_data import ReportData
from attestkit.snp_report import SnpReport

if TYPE_CHECKING:
    from attestkit.collateral.cache import CollateralCache
    from attestkit.verifier.evidence_bundle import EvidenceBundle
    from attestkit.verifier.result import AttestationResult

__all__ = ["VERDICTS", "Judge", "Outcome", "code_of", "evidence_in"]

_Got = TypeVar("_Got")

VERDICTS: Final = {
    0: "accepted",
    USAGE: "not verified",
    REJECTED: "rejected",
    NETWORK: "not verified",
    POLICY: "refused by policy",
    UNREADABLE: "unreadable",
}
_IMAGE_LEFT_OUT: Final = "the OS image was left out: "
_OF_KEY: Final = (
    "the evidence is about the certificate's key; whether who sent it holds that key, and when the "
    "evidence was made, was not checked"
)
_NAMED: Final = "the report data is the one that the bundle names, which by itself shows nothing"


class Outcome(NamedTuple):
    """What came out for one file: a result or an error, never both."""

    path: Path
    found: Recognised | None  # None: it could not be read
    evidence: Attestation | Quote | None  # in it, as it was judged
    result: "AttestationResult | None"
    error: AttestKitError | None
    code: int
    at: datetime  # the instant of the verification, aware
    policy: str  # name of the preset, or of the file, by which it was judged
    collateral: Collateral | None = None  # that was used
    report_data: bytes | None = None  # that the caller held it to
    fresh: bool = False  # whether there is such
    of_key: bool = False  # whether it is about the key of the certificate that it stands in
    own_instant: bool = False  # whether `at` is a bundle's word
    own_collateral: bool = False  # whether that came in the bundle
    named: bytes | None = None  # report data that a bundle names and nobody asked for
    certificates: tuple[bytes, ...] = ()  # AMD's, of options

    @property
    def verdict(self) -> str:
        """The verdict in a word or three."""
        return VERDICTS[self.code]

    @property
    def reason(self) -> str:
        """The stable word for what is wrong; empty if nothing is, or it has none."""
        return str(getattr(self.error, "reason", ""))

    @property
    def steps(self) -> tuple[str, ...]:
        """What was checked; of a refused file as far as it got."""
        if self.result is None:
            return self.error.steps if isinstance(self.error, VerificationError) else ()
        named = () if self.named is None else (_NAMED,)
        return (*self.result.steps, *named, *((_OF_KEY,) if self.of_key else ()))

    @property
    def os_image(self) -> str:
        """The hash of the verified OS image, else why there is none; empty without a result."""
        if self.result is None:
            return ""
        if image := self.result.claims.os_image_hash:
            return image.hex()
        why = (s for s in self.result.steps if s.startswith(_IMAGE_LEFT_OUT))
        return f"not verified: {next(why, '').removeprefix(_IMAGE_LEFT_OUT)}".rstrip(": ")

    @property
    def problem(self) -> str:
        """What is wrong, without the file's name."""
        return str(self.error).removeprefix(f"{self.path}: ")

    def complaint(self) -> str:
        """Return what is wrong, with the file's name in front."""
        return f"{self.path}: {self.problem}"

    def bundle(self) -> "EvidenceBundle":
        """Return what it takes to verify this again without a network: evidence and collateral."""
        from attestkit.verifier.evidence_bundle import EvidenceBundle  # late: few are saved

        evidence = self.evidence
        assert evidence is not None
        evidence = _with_certificates(evidence, self.certificates)
        raw = evidence.raw if isinstance(evidence, Quote) else evidence.to_bytes()
        return EvidenceBundle(raw, self.collateral, self.at, self.report_data or self.named)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values ready for JSON."""
        told = {
            "file": str(self.path),
            "kind": None if self.found is None else self.found.kind,
            "verdict": self.verdict,
            "exit_code": self.code,
            "at": self.at.isoformat(),
            "own_instant": self.own_instant,
            "own_collateral": self.own_collateral,
            "policy": self.policy,
            "freshness_checked": self.fresh,
            "bound_to": "certificate key" if self.of_key else None,
        }
        if self.result is not None:
            return {**told, **self.result.to_dict(), "steps": list(self.steps)}
        return {
            **told,
            "error": one_line(str(self.error)),
            "error_type": type(self.error).__name__,
            "reason": self.reason or None,
            "steps": list(self.steps),
        }


def _now() -> datetime:
    return datetime.now(timezone.utc)


class Judge:
    """Verifies file after file at one instant; what they share is read and checked once."""

    def __init__(self, asked: Asked, *, clock: Callable[[], datetime] = _now) -> None:
        from attestkit.verifier.pipeline import Verifier  # late: other commands do not verify

        self.asked = asked
        self._now = asked.at or clock()
        self._verifier = Verifier(
            asked.trust_anchor,
            policy=asked.policy,
            snp_certificates=asked.certificates,
            tcb_details=True,
        )
        self._cache: CollateralCache | None = None

    def outcome(self, path: Path) -> Outcome:
        """Judge a file; whatever is in it, the answer is an outcome."""
        asked = self.asked
        out = Outcome(
            path=path,
            found=None,
            evidence=None,
            result=None,
            error=None,
            code=0,
            at=self._now,
            policy=asked.policy_name,
            report_data=asked.report_data,
            fresh=asked.report_data is not None,
            certificates=asked.certificates,
        )
        try:
            data = read_file(path)
            found = _about_evidence(lambda: recognise(data))
            out = out._replace(found=found)
            evidence = _about_evidence(lambda: evidence_in(found))
            out = self._prepared(out._replace(evidence=evidence), found, evidence)
            result = self._judged(out, found, evidence)
            return out._replace(result=result, of_key=found.in_certificate)
        except AttestKitError as error:
            return out._replace(error=error, code=code_of(error), fresh=False)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no acceptance
            return out._replace(error=_no_end(error), code=REJECTED, fresh=False)

    def _prepared(self, out: Outcome, found: Recognised, evidence: Attestation | Quote) -> Outcome:
        """Settle by what this file is judged: our instant and collateral, or a bundle's."""
        asked = self.asked
        bundle = _bundle(found) if found.kind == "evidence bundle" else None
        if asked.own_instant and bundle is None:
            raise UsageError(f"--at bundle: this is no evidence bundle, but {found.kind}")
        if found.in_certificate and asked.report_data is not None:
            raise UsageError(
                "the report data of a certificate is the hash of its key: leave --report-data, "
                "--text and --file out"
            )
        if bundle is not None and asked.report_data is None:
            out = out._replace(named=bundle.report_data)
        if bundle is not None and asked.own_instant:
            out = out._replace(at=bundle.at, own_instant=True)
        quote = evidence if isinstance(evidence, Quote) else evidence.quote
        if quote is None:
            return out
        _need_dcap_qvl()
        brought = None if bundle is None else bundle.collateral
        collateral = self._collateral(quote, brought)
        return out._replace(
            collateral=collateral, own_collateral=brought is not None and collateral is brought
        )

    def _collateral(self, quote: Quote, brought: Collateral | None) -> Collateral:
        """Return the collateral that was handed in, else fetched if that was asked for.

        What a bundle brought gives way to options, and not to the environment.
        """
        asked = self.asked
        if asked.collateral is not None:
            return asked.collateral
        if brought is not None and not asked.pccs_named:
            return brought
        if asked.pccs_url is None:
            raise CollateralError(
                "no collateral, which the platform's verdict rests on: hand it in with "
                "--collateral FILE, or name a service to fetch it from with --pccs URL"
            )
        if self._cache is None:
            from attestkit.collateral.cache import CollateralCache  # late: only who fetches pays

            # By the clock of the verification, so that many files at one instant ask once.
            self._cache = CollateralCache(None, clock=lambda: self._now)
        return Collateral.fetch(quote, asked.pccs_url, cache=self._cache)

    def _judged(
        self, out: Outcome, found: Recognised, evidence: Attestation | Quote
    ) -> "AttestationResult":
        """Return the result for evidence that is accepted, and is what its bundle says it is."""
        try:
            result = _about_evidence(lambda: self._verify(out, found, evidence))
        except CollateralExpiredError as error:
            if found.kind != "evidence bundle" or out.own_instant:
                raise
            text = f"{error}; the bundle can be judged at its own instant, with --at bundle"
            raise CollateralExpiredError(text, steps=error.steps, reason=error.reason) from error
        if out.named is not None:
            _check_named(result, out.named)
        return result

    def _verify(
        self, out: Outcome, found: Recognised, evidence: Attestation | Quote
    ) -> "AttestationResult":
        if not found.in_certificate:
            return self._verifier.verify(
                evidence,
                report_data=out.report_data,
                now=out.at,
                collateral=out.collateral,
            )
        from attestkit import ra_tls  # late: loads X.509
        from attestkit.verifier.pipeline import Verifier

        verifier = self._verifier
        if out.collateral is not None:  # which a certificate's verification takes from it alone
            asked = self.asked
            verifier = Verifier(
                asked.trust_anchor,
                out.collateral,
                policy=asked.policy,
                snp_certificates=asked.certificates,
                tcb_details=True,
            )
        return ra_tls.verify(found.raw, verifier, now=out.at)


def _need_dcap_qvl() -> None:
    """Say that it is not installed before evidence takes the blame."""
    from attestkit.verifier.dcap.authenticate import Dcap  # late: it is slow to import

    Dcap()


def _about_evidence(step: Callable[[], _Got]) -> _Got:
    """Take a step that options have no part in: who complains of its use means the evidence."""
    try:
        return step()
    except UsageError as error:
        raise VerificationError(str(error), reason="unusable") from error


def _check_named(result: "AttestationResult", named: bytes) -> None:
    """Refuse evidence that is about something else than its bundle says.

    It is no sign of freshness: whoever made the bundle wrote both.
    """
    signed, wanted = result.claims.report_data, ReportData.pad(named)
    if not hmac.compare_digest(signed.ljust(len(wanted), b"\0"), wanted):
        raise PolicyError(
            f"the report data is {signed.hex()}, and the bundle says that it is {wanted.hex()}: "
            "its evidence was made for another request",
            steps=result.steps,
            reason="report_data",
        )


def _no_end(error: Exception) -> VerificationError:
    """Return the refusal of what nobody expected, from here: no frame of `error` is to hold it."""
    text = f"the verification came to no end ({type(error).__name__}): refused"
    refused = VerificationError(text, reason="internal")
    refused.__cause__ = error
    return refused


def code_of(error: AttestKitError) -> int:
    """Return the exit code for evidence that is not accepted."""
    # A platform that nobody verified has not been accepted.
    return REJECTED if isinstance(error, UnsupportedError) else exit_code(error)


def _bundle(found: Recognised) -> "EvidenceBundle":
    from attestkit.verifier.evidence_bundle import EvidenceBundle

    assert isinstance(found.value, EvidenceBundle)
    return found.value


def evidence_in(found: Recognised) -> Attestation | Quote:
    """Return the evidence that a file holds.

    Raises:
        FormatError: It holds something else; the text says what to do with that.
        VerificationError: It is a certificate, and there is no evidence in it.
    """
    if isinstance(found.value, Attestation | Quote):
        return found.value
    if isinstance(found.value, SnpReport):  # bare, as a guest's firmware gives it
        stack = Stack(found.value.report_data, (), "")
        return Attestation(Evidence(SevSnp(found.value.raw, (), ""), stack))
    if found.kind == "evidence bundle":
        inner = recognise(_bundle(found).evidence)
        if inner.kind not in {"evidence", "quote"}:
            raise FormatError(f"the evidence in the bundle is none: {inner.kind}")
        return evidence_in(inner)
    if found.kind == "certificate without evidence":
        raise VerificationError(
            "this certificate carries no evidence: nothing about its key is attested",
            reason="no_evidence",
        )
    raise FormatError(f"{found.kind}: {_ADVICE.get(found.kind, _ADVICE_ON_LOGS)}")


def _with_certificates(
    evidence: Attestation | Quote, certificates: tuple[bytes, ...]
) -> Attestation | Quote:
    """Put certificates into evidence of SEV-SNP that has none; other evidence stays."""
    if isinstance(evidence, Quote) or not certificates:
        return evidence
    platform, stack = evidence.evidence
    if not isinstance(platform, SevSnp) or platform.cert_chain:
        return evidence
    platform = platform._replace(cert_chain=certificates)
    return Attestation(Evidence(platform, stack), evidence.encoding)


_ADVICE_ON_LOGS: Final = "a log vouches for nothing by itself; attestkit replay holds it to a quote"
_ADVICE: Final = {
    "collateral": "no evidence; hand it in with --collateral beside the evidence",
    "recording": "no evidence; attestkit attest --backend recording --option path=FILE gives it",
    "TD report": "good on the machine that made it only; a quote says the same to others",
}
