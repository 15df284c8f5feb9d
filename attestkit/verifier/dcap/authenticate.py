"""Authentication of SGX and TDX quotes; the only module that imports dcap_qvl.

dcap-qvl 0.7 verifies signatures, certificates, CRLs and TCB levels. `collateral_checks` and
`pck_chain` add the checks that it lacks (simulated-pki.md, section 12). `error_mapping` translates
its errors to exceptions with a reason.
"""

from dataclasses import fields, replace
from datetime import datetime
from functools import lru_cache, partial
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Final, Literal, NamedTuple

import msgspec

from attestkit._crypto.hashes import sha256
from attestkit._crypto.x509.app_certificates import Certificate, read_certificate
from attestkit._crypto.x509.vendor_roots import INTEL_ROOT, INTEL_ROOT_DER
from attestkit._reasons import VerificationStep
from attestkit.collateral import Collateral
from attestkit.errors import FormatError, UsageError
from attestkit.quote import Quote, TdQuoteBody
from attestkit.verifier.dcap.checks_before_fetch import check_chain, check_quote
from attestkit.verifier.dcap.collateral_checks import (
    Endorsements,
    find_mismatch,
    not_valid,
    read_endorsements,
)
from attestkit.verifier.dcap.diagnostics import QvlInput
from attestkit.verifier.dcap.error_mapping import refusal
from attestkit.verifier.dcap.pck_chain import (
    IN_QUOTE,
    PEM_CHAIN,
    ChainReason,
    PckChain,
    read_pck_chain,
    select_chain,
)
from attestkit.verifier.dcap.reasons import DcapReason, refuse
from attestkit.verifier.result import Authenticated, Tcb, TcbStatus, passed

if TYPE_CHECKING:
    from dcap_qvl import QuoteCollateralV3

_REMEMBERED: Final = 64  # collaterals and PCK chains
_LARGE: Final = 256 << 10  # bytes of collateral to cache at most; Intel's has 20 KiB
_LATEST: Final = 253402300799  # end of the year 9999
_STATUSES: Final = {status.value: status for status in TcbStatus}
_Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class Dcap:
    """Authenticator of quotes under one root. Thread-safe; it pickles without its caches.

    Decoded collateral and certificate chains are cached, 64 of each.
    """

    def __init__(self, trust_anchor: bytes | None = None) -> None:
        """Set the trust anchor.

        Args:
            trust_anchor: Self-signed certificate in DER; None is Intel's SGX Root CA.

        Raises:
            UsageError: If `trust_anchor` is not such a certificate, or dcap-qvl is not installed.
        """
        self._qvl = _load_dcap_qvl()
        self._given = trust_anchor
        self._root = _root(INTEL_ROOT_DER if trust_anchor is None else trust_anchor)
        # Whether the trust anchor has the key of Intel's root.
        self.genuine: bool = sha256(self._root.spki_der) == INTEL_ROOT
        self._verify = self._qvl.verify_with_root_ca
        self._verifier = self._qvl.QuoteVerifier(self._root.der)
        # Platforms share PCK CAs, and collaterals the TCB signer.
        read = lru_cache(_REMEMBERED)(read_certificate)
        self._endorsed = lru_cache(_REMEMBERED)(partial(read_endorsements, read=read))
        self._pck_chain = lru_cache(_REMEMBERED)(partial(read_pck_chain, read=read))
        self._prepare_cached = lru_cache(_REMEMBERED)(self._prepare)

    def authenticate(
        self, quote: Quote, collateral: Collateral, now: int, *, details: bool = False
    ) -> Authenticated:
        """Verify a quote, and return its signed content.

        Args:
            quote: Quote of a TD or an SGX enclave.
            collateral: Collateral for the quote's platform.
            now: Time of the verification, Unix seconds.
            details: Whether to return dates and evaluation data number of the TCB levels, which
                takes about 12 % more time.

        Raises:
            VerificationError: If the quote is not valid, with a reason of dcap-verification.md,
                section 13: SignatureError for a signature or certificate chain,
                CollateralExpiredError for collateral that is not valid at `now`.
            CollateralError: If collateral is malformed, or the PCK certificate is missing.
            FormatError: If dcap-qvl does not support the quote, or the PCK chain is malformed.
            UsageError: If `now` is outside the years 1970 to 9999.
        """
        _check_time(now)
        settle = self._prepare_cached if collateral.size <= _LARGE else self._prepare
        prepared = settle(*select_chain(quote, collateral.pck_certificate_chain), collateral)
        result = self._verify_with_qvl(quote, prepared, now, details=details)
        if prepared.mismatch is not None:
            raise refuse(*prepared.mismatch)
        if not prepared.start <= now < prepared.end:
            raise not_valid(prepared.endorsed, self._root, now)
        if result.ppid != prepared.chain.platform.ppid:
            raise refuse(
                "rejected", "dcap-qvl and attestkit read different PCK certificates from the quote"
            )
        return _authenticated(quote, prepared, result)

    def precheck(self, quote: Quote, pck_certificate_chain: str | None, now: int) -> None:
        """Run the checks that need no collateral, so that none is fetched for a forged quote.

        Args:
            quote: Quote of a TD or an SGX enclave.
            pck_certificate_chain: PCK certificate chain for a quote that contains none. If both
                are missing, the checks of the chain are skipped.
            now: As for `authenticate`.

        Raises:
            AttestKitError: As `authenticate`. A quote that is rejected here is also rejected by
                `authenticate` with any collateral, possibly with another reason.
        """
        _check_time(now)
        chain = None
        if quote.certification.type == PEM_CHAIN or pck_certificate_chain is not None:
            chain = self._pck_chain(*select_chain(quote, pck_certificate_chain))
            check_chain(chain, self._root, now)
        check_quote(quote, chain)

    def _prepare(self, reason: ChainReason, chain: bytes, collateral: Collateral) -> "_Prepared":
        """Decode collateral and chain, and run the checks that need neither quote nor time."""
        read = self._endorsed if collateral.size <= _LARGE else read_endorsements
        endorsed, pck = read(collateral), self._pck_chain(reason, chain)
        root, platform = self._root, pck.platform
        anchor = "Intel's SGX Root CA" if self.genuine else "the given trust anchor"
        return _Prepared(
            endorsed=endorsed,
            chain=pck,
            mismatch=find_mismatch(endorsed, pck, root),
            qvl_collateral=self._to_qvl(endorsed.collateral, None if reason == IN_QUOTE else pck),
            start=max(endorsed.start, root.valid_from.timestamp()),
            end=min(endorsed.end, root.valid_until.timestamp() + 1),
            components=(
                *((f"SGX {n + 1}", platform.cpusvn[n]) for n in endorsed.sgx),
                ("PCESVN", platform.pcesvn),
            ),
            tdx=tuple((f"TDX {n + 1}", n) for n in endorsed.tdx),
            certificates=(pck.leaf.der, pck.authority.der, root.der),
            steps=(
                passed(
                    "certificates",
                    f"the PCK certificate chain leads to {anchor}, and is not revoked",
                ),
                passed(
                    "collateral",
                    f"TCB info, QE identity and CRLs are signed and valid, until {endorsed.until}",
                ),
                passed(
                    "quoting_enclave",
                    "the quoting enclave matches the QE identity, and certifies the quote's key",
                ),
                passed("signature", "the quote's signature is valid"),
            ),
        )

    def _to_qvl(self, given: Collateral, chain: PckChain | None) -> "QuoteCollateralV3":
        """Return collateral for dcap-qvl, with the PCK chain if the quote has none."""
        qvl_collateral: QuoteCollateralV3
        try:
            if chain is not None:
                # The constructor has no parameter for the chain.
                pem = "".join(one.pem for one in chain.certificates)
                text = replace(given, pck_certificate_chain=pem).to_json()
                qvl_collateral = self._qvl.QuoteCollateralV3.from_json(text)
            else:
                # Its parameters are the fields of Collateral, in the same order.
                values = [getattr(given, field.name) for field in fields(given)]
                qvl_collateral = self._qvl.QuoteCollateralV3(*values[:-1])
        except ValueError as error:  # only pck_crl_issuer_chain has not been decoded yet
            message = "pck_crl_issuer_chain: not a PEM certificate chain; fetch fresh collateral"
            raise refuse("cert_malformed", message) from error
        return qvl_collateral

    def _verify_with_qvl(
        self, quote: Quote, prepared: "_Prepared", now: int, *, details: bool
    ) -> "_QvlResult":
        """Verify with dcap-qvl; every error is a rejection."""
        raw, qvl_collateral = quote.raw, prepared.qvl_collateral
        try:
            if details:
                policy = self._qvl.QuotePolicy.claims_only(now)
                claims = self._verifier.verify_with_policy(raw, qvl_collateral, now, policy)
                return _from_claims(claims.to_json())
            report = self._verify(raw, qvl_collateral, self._root.der, now)
            return _QvlResult(_STATUSES[report.status], tuple(report.advisory_ids), report.ppid)
        except ValueError as error:
            text = self._full_error(raw, qvl_collateral, now) if details else str(error)
            given = QvlInput(quote, prepared.endorsed, prepared.chain, self._root, now)
            raise refusal(text, given) from error
        except Exception as error:
            raise refuse("rejected", "dcap-qvl failed on the quote") from error
        except BaseException as error:
            # A panic in Rust code is raised as a BaseException.
            if type(error).__name__ != "PanicException":
                raise
            raise refuse("rejected", "dcap-qvl failed on the quote") from error

    def _full_error(self, quote: bytes, qvl_collateral: object, now: int) -> str:
        """Return the full error text; with a policy, dcap-qvl returns its first line only."""
        try:
            self._verify(quote, qvl_collateral, self._root.der, now)
        except ValueError as error:
            return str(error)
        return ""

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the trust anchor only."""
        return Dcap, (self._given,)


class _Prepared(NamedTuple):
    """Decoded collateral and PCK chain: common to all quotes of a platform."""

    endorsed: Endorsements
    chain: PckChain
    mismatch: tuple[DcapReason, str] | None  # error that dcap-qvl does not detect
    qvl_collateral: object  # dcap-qvl's collateral object
    start: float  # Unix seconds, half-open: validity of CRLs, bodies and root
    end: float
    components: tuple[tuple[str, int], ...]  # of the PCK certificate
    tdx: tuple[tuple[str, int], ...]  # name and index in TEE_TCB_SVN
    certificates: tuple[bytes, bytes, bytes]  # DER: leaf, CA, trust anchor
    steps: tuple[VerificationStep, ...]  # all but the last


class _QvlResult(NamedTuple):
    """Result of dcap-qvl for an accepted quote."""

    status: TcbStatus
    advisory_ids: tuple[str, ...]
    ppid: bytes
    date: datetime | None = None
    qe_date: datetime | None = None
    evaluation_data_number: int | None = None
    qe_status: TcbStatus | None = None


def _authenticated(quote: Quote, prepared: _Prepared, result: _QvlResult) -> Authenticated:
    components = prepared.components
    body = quote.body
    if isinstance(body, TdQuoteBody):
        svns = body.tee_tcb_svn
        components += tuple([(name, svns[n]) for name, n in prepared.tdx])
    tcb = Tcb(
        result.date,
        result.qe_date,
        result.evaluation_data_number,
        prepared.chain.platform.fmspc,
        components,
        result.qe_status,
    )
    advisories = f", with {', '.join(result.advisory_ids)}" if result.advisory_ids else ""
    last = VerificationStep(
        "tcb",
        "passed" if result.status is TcbStatus.UP_TO_DATE else "caution",
        f"debug mode is off, and the platform's TCB is {result.status.value}{advisories}",
    )
    return Authenticated(
        result.status,
        result.advisory_ids,
        quote.report_data,
        result.ppid,
        tcb,
        prepared.certificates,
        (*prepared.steps, last),
    )


class _Level(msgspec.Struct):
    date: _Moment = msgspec.field(name="tcbDate")
    status: TcbStatus = msgspec.field(name="tcbStatus")


class _Pck(msgspec.Struct):
    ppid: list[int]


class _Platform(msgspec.Struct):
    tcb_level: _Level
    pck: _Pck


class _Enclave(msgspec.Struct):
    tcb_level: _Level


class _Overall(msgspec.Struct):
    status: TcbStatus
    advisory_ids: list[str]
    eval_data_number: int


class _Claims(msgspec.Struct):
    """Claims of dcap-qvl that are used; claims of another version are rejected."""

    claims_version: Literal[1]
    tcb: _Overall
    platform: _Platform
    qe: _Enclave


_claims: Final = msgspec.json.Decoder(_Claims)


def _from_claims(text: str) -> _QvlResult:
    claims = _claims.decode(text)
    return _QvlResult(
        claims.tcb.status,
        tuple(claims.tcb.advisory_ids),
        bytes(claims.platform.pck.ppid),
        claims.platform.tcb_level.date,
        claims.qe.tcb_level.date,
        claims.tcb.eval_data_number,
        claims.qe.tcb_level.status,
    )


def _check_time(now: int) -> None:
    if not 0 <= now <= _LATEST:
        raise UsageError(f"now: {now}, must be in the years 1970 to 9999", reason="out_of_range")


def _root(der: bytes) -> Certificate:
    """Decode the trust anchor."""
    try:
        root = read_certificate(der)
        if root.der != der or root.subject != root.issuer:
            message = "trust anchor: must be one self-signed certificate"
            raise UsageError(message, reason="wrong_value")
    except FormatError as error:
        message = "trust anchor: must be a certificate in DER"
        raise UsageError(message, reason="wrong_value") from error
    return root


def _load_dcap_qvl() -> ModuleType:
    """Import dcap-qvl, an optional dependency; UsageError if it is not installed."""
    try:
        import dcap_qvl
    except ImportError as error:
        raise UsageError(
            "dcap-qvl: not installed, and required to verify SGX and TDX quotes; "
            "pip install 'attestkit[verify]'",
            reason="missing_dependency",
        ) from error
    return dcap_qvl
