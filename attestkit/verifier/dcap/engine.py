"""DCAP verification of SGX and TDX quotes, which accepts none that Intel's library (QVL) rejects.

Collateral, PCK certificate chains and QE reports are verified once; then a quote of a known
platform needs one P-256 verification. Validity periods, revocation, and whether collateral and
platform belong together are checked for each quote.
"""

from datetime import datetime, timezone
from functools import lru_cache
from typing import Final, NamedTuple

from attestkit._crypto.ecdsa import P256PublicKey
from attestkit._crypto.hashes import sha256, sha384
from attestkit._crypto.x509.sgx_extension import PckExtension
from attestkit._crypto.x509.vendor_roots import INTEL_ROOT, INTEL_ROOT_DER
from attestkit._outcomes.steps import VerificationStep, passed
from attestkit._system.bounded_cache import BoundedCache
from attestkit.collateral import Collateral
from attestkit.errors import SignatureError, UsageError
from attestkit.quote import Certification, Quote, SignedParts, TdQuoteBody, signed_parts
from attestkit.verifier.claims import Authenticated, CollateralFacts, IntelPlatform, Tcb, TcbStatus
from attestkit.verifier.dcap.certificate_chains import CertificateChains, PckPlatform
from attestkit.verifier.dcap.reasons import LATEST, DcapReason, moment, refuse
from attestkit.verifier.dcap.tcb_levels import evaluate_tcb, explain_status, shown_advisories
from attestkit.verifier.dcap.td_attributes import check_attributes
from attestkit.verifier.dcap.verified_collateral import (
    CollateralVerifier,
    VerifiedCollateral,
    certificate_validity,
)

PEM_CHAIN: Final = 5
"""Type of certification data with a PCK certificate chain."""
_ENTRIES: Final = 1024  # QE reports, evaluations
_LARGE_AUTH_DATA: Final = 1024  # bytes to cache at most; Intel's has 32 bytes
_QE_IDENTITY: Final = slice(320)  # in a QE report: all but its report data
_REPORT_DATA: Final = slice(320, 384)
_UPPER_HALF: Final = bytes(32)  # of the QE report's report data
_SGX_NAMES: Final = tuple(f"SGX {n}" for n in range(1, 17))
_TDX_NAMES: Final = tuple(f"TDX {n}" for n in range(1, 17))


class _Evaluation(NamedTuple):
    """TCB of a platform by its collateral, QE report and SVNs; does not depend on the time."""

    advisory_ids: tuple[str, ...]  # Intel's advisories for the levels of platform and QE
    tcb: Tcb  # status and dates of these levels
    steps: tuple[VerificationStep, ...]  # the checks that were passed, and cautions


class Dcap:
    """Authenticator of quotes under one root. Thread-safe; it pickles without its caches."""

    def __init__(self, trust_anchor: bytes | None = None) -> None:
        """Set the trust anchor.

        Args:
            trust_anchor: Self-signed certificate in DER; None is Intel's SGX Root CA.

        Raises:
            UsageError: If `trust_anchor` is not such a certificate.
            SignatureError: If the certificate is not a root as in Intel's SGX PKI
                (`untrusted_root`).
        """
        self._given = trust_anchor
        self._chains = CertificateChains(INTEL_ROOT_DER if trust_anchor is None else trust_anchor)
        anchor = self._chains.anchor
        # Whether the trust anchor has the key of Intel's root.
        self.genuine: bool = sha256(anchor.key.spki_der) == INTEL_ROOT
        self._root_key_id = sha384(b"\4" + anchor.key.point)
        self._collateral = CollateralVerifier(self._chains)
        # Attestation keys by PCK key, QE report, its signature, attestation key, and QE auth data.
        self._enclaves = BoundedCache[tuple[bytes, ...], P256PublicKey](_ENTRIES)
        self._evaluations = BoundedCache[tuple[object, ...], _Evaluation](_ENTRIES)

    def authenticate(
        self, quote: Quote, collateral: Collateral, now: int, *, behind_paravisor: bool = False
    ) -> Authenticated:
        """Verify a quote, and return its signed content.

        Args:
            quote: Quote of a TD or an SGX enclave.
            collateral: Collateral for the quote's platform.
            now: Time of the verification, Unix seconds.
            behind_paravisor: Whether a paravisor runs in the TD, so that SEPT_VE_DISABLE is not
                required.

        Raises:
            VerificationError: If the quote is not valid, with a reason of `dcap.reasons`:
                SignatureError for a signature or certificate chain, CollateralExpiredError for
                collateral that is not valid at `now`.
            CollateralError: If collateral is malformed, or the PCK certificate is missing.
            FormatError: If the PCK certificate chain is malformed.
            UsageError: If `now` is outside the years 1970 to 9999.
        """
        _check_time(now)
        verified, parts = self._collateral.verify(collateral), signed_parts(quote)
        chain, malformed = _select_chain(parts.certification, collateral.pck_certificate_chain)
        platform = self._chains.platform(chain, malformed)
        verified.check_time(now)
        _check_platform_time(platform, now)
        verified.check_platform(platform, quote.tee_type)
        self._check_signatures(parts, platform)
        body = quote.body
        evaluation = self._find_evaluation(quote, platform, verified, parts)
        check_attributes(body, behind_paravisor=behind_paravisor)
        return Authenticated(
            body.report_data,
            evaluation.steps,
            evaluation.tcb,
            (platform.leaf.der, platform.authority.der, self._chains.anchor.der),
            evaluation.advisory_ids,
            platform.extension.ppid,
        )

    def precheck(self, quote: Quote, pck_certificate_chain: str | None, now: int) -> None:
        """Run the checks that need no collateral, so that none is fetched for a forged quote.

        Forged quotes with arbitrary FMSPCs could otherwise trigger PCCS requests.

        Args:
            quote: Quote of a TD or an SGX enclave.
            pck_certificate_chain: PCK certificate chain in PEM for a quote that contains none. If
                both are missing, only the quote's signature is verified.
            now: Time of the verification, Unix seconds.

        Raises:
            AttestKitError: As for `authenticate`, which rejects a quote that is rejected here with
                any collateral, possibly with a different reason.
        """
        _check_time(now)
        parts = signed_parts(quote)
        if parts.certification.type != PEM_CHAIN and pck_certificate_chain is None:
            _check_quote_signature(parts, _attestation_key(parts))
            return
        chain, malformed = _select_chain(parts.certification, pck_certificate_chain)
        platform = self._chains.platform(chain, malformed)
        _check_platform_time(platform, now)
        self._check_signatures(parts, platform)

    def explain(self, quote: Quote, collateral: Collateral) -> str:
        """Return a sentence on the outdated component of a quote's platform; see `explain_status`.

        Quote and collateral must have been accepted by `authenticate`.
        """
        verified = self._collateral.verify(collateral)
        chain = _select_chain(quote.certification, collateral.pck_certificate_chain)
        platform = self._chains.platform(*chain)
        body = quote.body
        svns = (body.tee_tcb_svn, body.tee_tcb_svn2) if isinstance(body, TdQuoteBody) else ()
        return explain_status(
            verified.tcb_info,
            verified.qe_identity.levels,
            platform.extension,
            tuple(svn for svn in svns if svn is not None),
            quote.qe_report.isv_svn,
        )

    def _check_signatures(self, parts: SignedParts, platform: PckPlatform) -> None:
        """Verify the signatures of QE report (cached if valid) and quote."""
        key = platform.leaf.key
        attestation_key = self._enclaves.get(
            (
                key.point,
                parts.qe_report,
                parts.qe_report_signature,
                parts.attestation_key,
                parts.qe_auth_data,
            ),
            lambda: _certified_key(parts, key),
            store=len(parts.qe_auth_data) <= _LARGE_AUTH_DATA,
        )
        _check_quote_signature(parts, attestation_key)

    def _find_evaluation(
        self,
        quote: Quote,
        platform: PckPlatform,
        verified: VerifiedCollateral,
        parts: SignedParts,
    ) -> _Evaluation:
        """Return the TCB evaluation of a quote; cached if platform and collateral are cached."""
        body = quote.body
        svns: tuple[bytes | None, ...] = ()
        if isinstance(body, TdQuoteBody):  # what the evaluation depends on
            svns = body.tee_tcb_svn, body.tee_tcb_svn2, body.mr_signer_seam, body.seam_attributes
        return self._evaluations.get(
            (platform.handle, verified.handle, parts.qe_report[_QE_IDENTITY], svns),
            lambda: self._evaluate(quote, platform, verified),
            store=platform.is_cached and verified.is_cached,
        )

    def _evaluate(
        self, quote: Quote, platform: PckPlatform, verified: VerifiedCollateral
    ) -> _Evaluation:
        body = quote.body
        td = body if isinstance(body, TdQuoteBody) else None
        info, identity = verified.tcb_info, verified.qe_identity
        found = evaluate_tcb(info, identity, platform.extension, quote.qe_report, td)
        svns = b"" if td is None else td.tee_tcb_svn
        extension = platform.extension
        tcb = Tcb(
            date=_datetime(found.date),
            qe_date=_datetime(found.qe_date),
            evaluation_data_number=min(
                info.evaluation_data_number, identity.evaluation_data_number
            ),
            fmspc=extension.fmspc,
            components=_components(platform, verified, svns),
            qe_status=found.qe_status,
            status=found.status,
            dynamic_platform=extension.dynamic_platform,
            cached_keys=extension.cached_keys,
            smt_enabled=extension.smt_enabled,
            platform=_platform_facts(extension),
            collateral=_collateral_facts(platform, verified, self._root_key_id),
        )
        steps = _steps(verified.end, found.status, found.advisory_ids, genuine=self.genuine)
        return _Evaluation(found.advisory_ids, tcb, steps)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the trust anchor only."""
        return Dcap, (self._given,)


def _check_time(now: int) -> None:
    if not 0 <= now <= LATEST:
        raise UsageError(
            f"now: must be in the years 1970 to 9999, not {now} (Unix seconds)",
            reason="out_of_range",
        )


def _select_chain(
    certification: Certification, pck_certificate_chain: str | None
) -> tuple[bytes, DcapReason]:
    """Return the PCK certificate chain of a quote in PEM, and the reason to use if it is malformed.

    Args:
        certification: Type and content of the quote's certification data.
        pck_certificate_chain: Chain in PEM, which is used if the quote has none; None without one.

    Raises:
        CollateralError: If neither quote nor collateral has the chain.
    """
    kind, data = certification
    if kind == PEM_CHAIN:
        return data, "quote_format"
    if pck_certificate_chain is None:
        raise refuse(
            "pck_chain_missing",
            f"quote: has no certificate chain (its certification data are of type {kind}, not "
            f"{PEM_CHAIN}), and the collateral has no pck_certificate_chain; get it from a PCCS",
        )
    return pck_certificate_chain.encode("utf-8", "replace"), "cert_malformed"


def _check_platform_time(platform: PckPlatform, now: int) -> None:
    if platform.start <= now < platform.end:
        return
    for certificate in (platform.leaf, platform.authority, platform.root):
        validity = certificate_validity(certificate)
        if not validity.start <= now < validity.end:
            raise validity.refuse(now, "; get the platform's current PCK certificate from a PCCS")


def _certified_key(parts: SignedParts, pck_key: P256PublicKey) -> P256PublicKey:
    """Return the attestation key, after a check that the PCK's QE report certifies it."""
    report = parts.qe_report
    try:
        pck_key.verify(parts.qe_report_signature, report)
    except SignatureError as error:
        message = "the QE report is not signed by the PCK certificate's key"
        raise refuse("qe_report_bad_signature", message) from error
    digest = sha256(parts.attestation_key + parts.qe_auth_data)
    if report[_REPORT_DATA] != digest + _UPPER_HALF:
        message = "the QE report does not certify the key that signed the quote"
        raise refuse("attestation_key_unbound", message)
    return _attestation_key(parts)


def _attestation_key(parts: SignedParts) -> P256PublicKey:
    try:
        return P256PublicKey(parts.attestation_key)
    except SignatureError as error:
        message = "the quote's signature is not valid: the attestation key is not on P-256"
        raise refuse("quote_bad_signature", message) from error


def _check_quote_signature(parts: SignedParts, key: P256PublicKey) -> None:
    try:
        key.verify(parts.signature, parts.signed_region)
    except SignatureError as error:
        message = "the quote's signature is not valid: quote or signature were altered"
        raise refuse("quote_bad_signature", message) from error


@lru_cache(256)  # shared by the evaluations of many platforms, as are the dates
def _steps(
    end: int, status: TcbStatus, advisory_ids: tuple[str, ...], *, genuine: bool
) -> tuple[VerificationStep, ...]:
    anchor = "Intel's SGX Root CA" if genuine else "the given trust anchor"
    advisories = f", with {shown_advisories(advisory_ids)}" if advisory_ids else ""
    return (
        passed(
            "certificates",
            f"the PCK certificate chain leads to {anchor}, and is not revoked",
        ),
        passed(
            "collateral",
            f"TCB info, QE identity and CRLs are signed and valid, until {moment(end)}",
        ),
        passed(
            "quoting_enclave",
            "the quoting enclave matches the QE identity, and certifies the quote's key",
        ),
        passed("signature", "the quote's signature is valid"),
        VerificationStep(
            "tcb",
            "passed" if status is TcbStatus.UP_TO_DATE else "caution",
            f"debug mode is off, and the platform's TCB is {status.value}{advisories}",
        ),
    )


def _components(
    platform: PckPlatform, verified: VerifiedCollateral, svns: bytes
) -> tuple[tuple[str, int], ...]:
    """Return names and SVNs: of PCESVN, and of each component that a TCB level requires above 0.

    Args:
        platform: Platform, whose PCK certificate has the SVNs of SGX.
        verified: Collateral with the TCB levels.
        svns: TEE_TCB_SVN of a TD, 16 bytes; empty for SGX.
    """
    extension, info = platform.extension, verified.tcb_info
    return (
        *[(_SGX_NAMES[n], extension.components[n]) for n in info.sgx_needed],
        ("PCESVN", extension.pcesvn),
        *[(_TDX_NAMES[n], svns[n]) for n in info.tdx_needed],
    )


def _platform_facts(extension: PckExtension) -> IntelPlatform:
    return IntelPlatform(
        ppid=extension.ppid,
        pceid=extension.pceid,
        pcesvn=extension.pcesvn,
        cpusvn=extension.cpusvn,
        component_svns=extension.components,
        sgx_type=extension.sgx_type,
        instance_id=extension.instance_id,
    )


def _collateral_facts(
    platform: PckPlatform, verified: VerifiedCollateral, root_key_id: bytes
) -> CollateralFacts:
    """Return CRL numbers, and dates over all verified parts of collateral and PCK chain.

    Args:
        platform: Platform with the PCK chain.
        verified: The collateral.
        root_key_id: SHA-384 of the trust anchor's key, 48 bytes.
    """
    certificates = (platform.leaf, platform.authority)
    starts = [certificate.start for certificate in certificates]
    last_seconds = [certificate.end - 1 for certificate in certificates]
    return CollateralFacts(
        earliest_issue=_datetime(min(verified.first_start, *starts)),
        latest_issue=_datetime(max(verified.start, *starts)),
        earliest_expiration=_datetime(min(verified.expiration, *last_seconds)),
        root_key_id=root_key_id,
        root_crl_number=verified.root_crl.number,
        pck_crl_number=verified.pck_crl.number,
    )


@lru_cache(256)
def _datetime(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)
