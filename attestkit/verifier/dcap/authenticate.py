"""Quotes of Intel's TEEs authenticated: the only importer of dcap_qvl, which verifies.

dcap-qvl 0.7 judges signatures, certificates, CRLs and TCB levels; around it stand the checks that
it leaves out (`collateral_checks`, `pck_chain`; simulated-pki.md, section 12, lists what has to be
refused). Its refusals come out as our exceptions with a stable `reason` (`error_mapping`).
"""

from dataclasses import replace
from datetime import datetime
from functools import lru_cache, partial
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Final, Literal, NamedTuple

import msgspec

from attestkit._crypto.hashes import sha256
from attestkit._crypto.x509.app_certificates import Certificate, read_certificate
from attestkit._crypto.x509.vendor_roots import INTEL_ROOT, INTEL_ROOT_DER
from attestkit.collateral import Collateral
from attestkit.errors import FormatError, UsageError
from attestkit.quote import Quote, TdQuoteBody
from attestkit.verifier.dcap.checks_before_fetch import check_chain, check_quote
from attestkit.verifier.dcap.collateral_checks import (
    Endorsements,
    not_valid,
    objection,
    read_endorsements,
)
from attestkit.verifier.dcap.diagnostics import Judged
from attestkit.verifier.dcap.error_mapping import refusal
from attestkit.verifier.dcap.pck_chain import (
    IN_QUOTE,
    PEM_CHAIN,
    PckChain,
    chain_of,
    read_pck_chain,
)
from attestkit.verifier.dcap.reasons import refuse
from attestkit.verifier.result import Authenticated, Tcb, TcbStatus

if TYPE_CHECKING:
    from dcap_qvl import QuoteCollateralV3

__all__ = ["Dcap"]

_REMEMBERED: Final = 64  # collaterals and PCK chains
_LARGE: Final = 256 << 10  # bytes; Intel's collateral has 20 KiB, and 64 of these 16 MiB
_LATEST: Final = 253402300799  # the last second of the year 9999
_STATUSES: Final = {status.value: status for status in TcbStatus}
_Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class Dcap:
    """Authenticates quotes under one root. Threads may share it; it pickles without its caches.

    What was read out of collateral and certificate chains is kept, 64 of each at most.
    """

    def __init__(self, trust_anchor: bytes | None = None) -> None:
        """Set up for a root.

        Args:
            trust_anchor: A self-signed certificate in DER; None is Intel's SGX Root CA.

        Raises:
            UsageError: It is no such certificate, or dcap-qvl is not installed.
        """
        self._qvl = _load_dcap_qvl()
        self._given = trust_anchor
        self._root = _root(INTEL_ROOT_DER if trust_anchor is None else trust_anchor)
        # Whether the root in use has Intel's key.
        self.genuine: bool = sha256(self._root.spki_der) == INTEL_ROOT
        self._verify = self._qvl.verify_with_root_ca
        self._verifier = self._qvl.QuoteVerifier(self._root.der)
        # Platforms have authorities in common, collaterals the signer.
        read = lru_cache(_REMEMBERED)(read_certificate)
        self._endorsed = lru_cache(_REMEMBERED)(partial(read_endorsements, read=read))
        self._pck_chain = lru_cache(_REMEMBERED)(partial(read_pck_chain, read=read))
        self._settled = lru_cache(_REMEMBERED)(self._settle)

    def authenticate(
        self, quote: Quote, collateral: Collateral, now: int, *, details: bool = False
    ) -> Authenticated:
        """Return what Intel vouches for.

        Args:
            quote: Of a TD or an SGX enclave.
            collateral: For the quote's platform.
            now: The time of the verification, Unix seconds.
            details: Tell dates and evaluation data number of the TCB levels too, for an eighth of
                the time more.

        Raises:
            VerificationError: Intel does not vouch for it; `reason` is a class of
                simulated-pki.md, section 12. It is a SignatureError where a signature or a
                certificate chain does not hold, a CollateralExpiredError where endorsements are too
                old or too new for `now`.
            CollateralError: Endorsements are malformed, or the PCK certificate is missing.
            FormatError: dcap-qvl does not take such quotes, or the PCK chain is malformed.
            UsageError: `now` is outside the years 1970 to 9999.
        """
        _check_time(now)
        settle = self._settled if _size(collateral) <= _LARGE else self._settle
        setting = settle(*chain_of(quote, collateral.pck_certificate_chain), collateral)
        said = self._ask(quote, setting, now, details=details)
        if setting.objection is not None:
            raise refuse(*setting.objection)
        if not setting.start <= now < setting.end:
            raise not_valid(setting.endorsed, self._root, now)
        if said.ppid != setting.chain.platform.ppid:
            raise refuse("ppid_mismatch", "dcap-qvl read another PCK certificate than we did")
        return _authenticated(quote, setting, said)

    def vouch(self, quote: Quote, pck_certificate_chain: str | None, now: int) -> None:
        """Check what collateral is not needed for, so that none is fetched for a forged quote.

        Args:
            quote: Of a TD or an SGX enclave.
            pck_certificate_chain: For a quote that does not carry its chain; None is not known, and
                the part of the quote alone is checked.
            now: As for `authenticate`.

        Raises:
            AttestKitError: As `authenticate`, which refuses such a quote with any collateral, if
                perhaps for another thing that is wrong with it.
        """
        _check_time(now)
        chain = None
        if quote.certification.type == PEM_CHAIN or pck_certificate_chain is not None:
            chain = self._pck_chain(*chain_of(quote, pck_certificate_chain))
            check_chain(chain, self._root, now)
        check_quote(quote, chain)

    def _settle(self, reason: str, chain: bytes, collateral: Collateral) -> "_Setting":
        """Read collateral and chain, and do what needs neither quote nor time."""
        read = self._endorsed if _size(collateral) <= _LARGE else read_endorsements
        endorsed, pck = read(collateral), self._pck_chain(reason, chain)
        root, platform = self._root, pck.platform
        anchor = "Intel's SGX Root CA" if self.genuine else "the trust anchor handed in"
        return _Setting(
            endorsed=endorsed,
            chain=pck,
            objection=objection(endorsed, pck, root),
            theirs=self._theirs(endorsed.collateral, None if reason == IN_QUOTE else pck),
            start=max(endorsed.start, root.valid_from.timestamp()),
            end=min(endorsed.end, root.valid_until.timestamp() + 1),
            components=(
                *((f"SGX {n + 1}", platform.cpusvn[n]) for n in endorsed.sgx),
                ("PCESVN", platform.pcesvn),
            ),
            tdx=tuple((f"TDX {n + 1}", n) for n in endorsed.tdx),
            certificates=(pck.leaf.der, pck.authority.der, root.der),
            steps=(
                f"the PCK certificate chain leads to {anchor}, and none of it is revoked",
                f"TCB info, QE identity and CRLs are signed and valid, until {endorsed.until}",
                "the quoting enclave is that of the QE identity, and vouches for the quote's key",
                "the quote's signature holds",
            ),
        )

    def _theirs(self, given: Collateral, chain: PckChain | None) -> "QuoteCollateralV3":
        """Return collateral as dcap-qvl takes it, with the PCK chain where the quote has none."""
        theirs: QuoteCollateralV3
        try:
            if chain is not None:
                # Its constructor does not take the chain, and where it has one it takes no other.
                pem = "".join(one.pem for one in chain.certificates)
                text = replace(given, pck_certificate_chain=pem).to_json()
                theirs = self._qvl.QuoteCollateralV3.from_json(text)
            else:
                theirs = self._qvl.QuoteCollateralV3(
                    given.pck_crl_issuer_chain,
                    given.root_ca_crl,
                    given.pck_crl,
                    given.tcb_info_issuer_chain,
                    given.tcb_info,
                    given.tcb_info_signature,
                    given.qe_identity_issuer_chain,
                    given.qe_identity,
                    given.qe_identity_signature,
                )
        except ValueError as error:  # of all of it, the first chain alone has not been read yet
            message = "pck_crl_issuer_chain is no text: fetch fresh collateral"
            raise refuse("cert_malformed", message) from error
        return theirs

    def _ask(self, quote: Quote, setting: "_Setting", now: int, *, details: bool) -> "_Said":
        """Have dcap-qvl verify; whatever it does not accept is refused."""
        raw, theirs = quote.raw, setting.theirs
        try:
            if details:
                policy = self._qvl.QuotePolicy.claims_only(now)
                claims = self._verifier.verify_with_policy(raw, theirs, now, policy)
                return _from_claims(claims.to_json())
            report = self._verify(raw, theirs, self._root.der, now)
            return _Said(_STATUSES[report.status], tuple(report.advisory_ids), report.ppid)
        except ValueError as error:
            text = self._at_length(raw, theirs, now) if details else str(error)
            judged = Judged(quote, setting.endorsed, setting.chain, self._root, now)
            raise refusal(text, judged) from error
        except Exception as error:
            raise refuse("rejected", "dcap-qvl failed over the quote") from error
        except BaseException as error:
            # What Rust calls a panic comes out as an exception that Exception does not cover.
            if type(error).__name__ != "PanicException":
                raise
            raise refuse("rejected", "dcap-qvl failed over the quote") from error

    def _at_length(self, quote: bytes, theirs: object, now: int) -> str:
        """Return why a quote is refused: of that a policy has dcap-qvl tell the head alone."""
        try:
            self._verify(quote, theirs, self._root.der, now)
        except ValueError as error:
            return str(error)
        return ""

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the root alone."""
        return Dcap, (self._given,)


class _Setting(NamedTuple):
    """What is the same for all quotes of one platform under one collateral."""

    endorsed: Endorsements
    chain: PckChain
    objection: tuple[str, str] | None  # of ours, should dcap-qvl have none
    theirs: object  # the collateral as dcap-qvl takes it
    start: float  # Unix seconds at which CRLs, bodies and root are valid; half open
    end: float
    components: tuple[tuple[str, int], ...]  # those of the PCK certificate
    tdx: tuple[tuple[str, int], ...]  # name and index of those in a TD's quote
    certificates: tuple[bytes, bytes, bytes]  # DER: leaf, CA, trust anchor
    steps: tuple[str, ...]  # all but the last


class _Said(NamedTuple):
    """What dcap-qvl tells of a quote that it accepts."""

    status: TcbStatus
    advisory_ids: tuple[str, ...]
    ppid: bytes
    date: datetime | None = None
    qe_date: datetime | None = None
    evaluation_data_number: int | None = None
    qe_status: TcbStatus | None = None


def _authenticated(quote: Quote, setting: _Setting, said: _Said) -> Authenticated:
    components = setting.components
    body = quote.body
    if isinstance(body, TdQuoteBody):
        svns = body.tee_tcb_svn
        components += tuple([(name, svns[n]) for name, n in setting.tdx])
    tcb = Tcb(
        said.date,
        said.qe_date,
        said.evaluation_data_number,
        setting.chain.platform.fmspc,
        components,
        said.qe_status,
    )
    advisories = f", with {', '.join(said.advisory_ids)}" if said.advisory_ids else ""
    last = f"debug mode is off, and the platform's TCB is {said.status.value}{advisories}"
    return Authenticated(
        said.status,
        said.advisory_ids,
        quote.report_data,
        said.ppid,
        tcb,
        setting.certificates,
        (*setting.steps, last),
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
    """The few of dcap-qvl's claims that are used; a version it does not know is refused."""

    claims_version: Literal[1]
    tcb: _Overall
    platform: _Platform
    qe: _Enclave


_claims: Final = msgspec.json.Decoder(_Claims)


def _from_claims(text: str) -> _Said:
    claims = _claims.decode(text)
    return _Said(
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
        raise UsageError(f"the time of a verification is in 1970 to 9999, not {now}")


def _size(collateral: Collateral) -> int:
    """Return how much there is to keep of a collateral, in bytes."""
    return (
        len(collateral.pck_crl_issuer_chain)
        + len(collateral.root_ca_crl)
        + len(collateral.pck_crl)
        + len(collateral.tcb_info_issuer_chain)
        + len(collateral.tcb_info)
        + len(collateral.qe_identity_issuer_chain)
        + len(collateral.qe_identity)
        + len(collateral.pck_certificate_chain or "")
    )


def _root(der: bytes) -> Certificate:
    """Read the trust anchor."""
    try:
        root = read_certificate(der)
        if root.der != der or root.subject != root.issuer:
            raise UsageError("the trust anchor is not one self-signed certificate in DER")
    except FormatError as error:
        raise UsageError("the trust anchor is not a certificate in DER") from error
    return root


def _load_dcap_qvl() -> ModuleType:
    """Return dcap-qvl, loaded late because it is an extra; or say what to install."""
    try:
        import dcap_qvl
    except ImportError as error:
        raise UsageError(
            "verifying quotes of Intel's TEEs needs dcap-qvl: pip install 'attestkit[verify]'"
        ) from error
    return dcap_qvl
