"""Client of a PCCS or Intel's PCS, which have the same paths.

Paths and headers are those of version 4 of "Intel SGX and Intel TDX Provisioning Certification
Service API". The service is untrusted: responses are limited in size, and their syntax and dates
are checked here; a Verifier checks their signatures. Signed bodies are returned byte for byte.
"""

from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import quote as percent_encode
from urllib.parse import unquote, urlencode, urlsplit, urlunsplit

from attestkit._argument_checks import wrong_type
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit._crypto.x509.pem_chain import split_chain
from attestkit._crypto.x509.sgx_extension import read_sgx_extension
from attestkit._outcomes.reasons import CollateralReason
from attestkit.collateral.intel_collateral import Collateral, part_window, split_signed
from attestkit.collateral.responses import Getter, Response, read_body
from attestkit.errors import AttestKitError, CollateralError, FormatError, UsageError
from attestkit.quote import Quote

INTEL_URL: Final = "https://api.trustedservices.intel.com"
"""Intel's own service."""

# Not in the API: the CRL distribution point of Intel's certificates.
_INTEL_ROOT_CRL: Final = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
_SUFFIXES: Final = ("/sgx/certification/v4", "/tdx/certification/v4")
_TCB_CHAIN: Final = ("TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain")
_QE_CHAIN: Final = ("SGX-Enclave-Identity-Issuer-Chain",)
_CRL_CHAIN: Final = ("SGX-PCK-CRL-Issuer-Chain",)
_PCK_CHAIN: Final = ("SGX-PCK-Certificate-Issuer-Chain",)
_ENCRYPTED_PPID: Final = {2: 256, 3: 384}  # bytes, by the type of certification data
_DER_SEQUENCE: Final = b"\x30"
_ADVICE: Final = {
    400: "check that the service supports version 4 of the PCCS API",
    401: "the service requires credentials: pass a getter that sends them",
    403: "the service requires credentials: pass a getter that sends them",
    404: "check the URL, and that the platform is registered with the PCCS",
}


def base_url(text: str) -> str:
    """Return the base URL of a service, without a final `/` and the paths of version 4.

    Raises:
        UsageError: If `text` is not an http or https URL, or has a user name, query or fragment.
    """
    if not _is_plain(text):
        raise _url_error("not a valid URL")
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port  # an invalid port raises ValueError
    except ValueError:
        raise _url_error("not a valid URL") from None  # its text may have a part of the URL
    if "@" in parts.netloc or "\\" in text:
        raise _url_error("contains a user name or a backslash")
    if parts.scheme not in {"http", "https"} or not host or parts.query or parts.fragment:
        raise _url_error("unsupported scheme, no host, or a query or fragment")
    path = parts.path.rstrip("/")
    for suffix in _SUFFIXES:
        path = path.removesuffix(suffix).rstrip("/")
    return urlunsplit((parts.scheme, parts.netloc.lower(), path, "", ""))


def _url_error(problem: str) -> UsageError:
    # Without the URL, which may have a password or a subscription key.
    message = f"PCCS URL: {problem}; must be http(s)://HOST:PORT with an optional path"
    return UsageError(message, reason="wrong_value")


def _is_plain(text: object) -> bool:
    """Return whether `text` is printable ASCII without spaces; urlsplit would drop line breaks."""
    return isinstance(text, str) and text.isascii() and text.isprintable() and " " not in text


class Platform(NamedTuple):
    """FMSPC and CA of an unverified PCK certificate, which select the platform's collateral."""

    fmspc: str  # 12 upper-case hex digits
    ca: str  # "platform" or "processor"


@lru_cache(maxsize=64)  # with cached collateral, reading the certificate dominates
def _read_platform(der: bytes) -> Platform:
    """Return the platform of a PCK certificate; FormatError if `der` is not one."""
    fmspc = read_sgx_extension(der).fmspc.hex().upper()
    issuer = read_certificate(der).issuer
    for ca in ("Platform", "Processor"):
        if f"CN=Intel SGX PCK {ca} CA" in issuer:
            return Platform(fmspc, ca.lower())
    message = f"PCK certificate: issuer must be a PCK CA of Intel, not {ascii(issuer)[:160]}"
    raise FormatError(message, reason="wrong_value")


class PckCertQuery(NamedTuple):
    """Query for the PCK certificate of a platform whose PPID is encrypted in the quote.

    Its fields are QE id, encrypted PPID, CPUSVN, PCESVN and PCE id: bytes of the quote in hex, with
    two-byte numbers in little-endian order.
    """

    qeid: str  # 16 bytes
    encrypted_ppid: str  # 256 or 384 bytes
    cpusvn: str  # 16 bytes
    pcesvn: str  # 2 bytes
    pceid: str  # 2 bytes


def platform_of(quote: Quote) -> Platform | PckCertQuery:
    """Return the platform of a quote, or the query for its PCK certificate if that is not in it.

    Raises:
        CollateralError: If the type of the quote's certification data is not 2, 3 or 5.
        FormatError: If the certification data or the PCK certificate is malformed.
    """
    kind, data = quote.certification
    if kind == 5:
        return _read_platform(quote.pck_chain[0])
    size = _ENCRYPTED_PPID.get(kind)
    if size is None:
        raise CollateralError(
            f"quote: type of certification data must be 2, 3 or 5, which lead to a PCK "
            f"certificate, not {kind}",
            reason="pck_chain_missing",
        )
    if len(data) != size + 20:
        message = f"quote: certification data must be {size + 20} bytes, not {len(data)}"
        raise FormatError(message, reason="wrong_size")
    cuts = (data[:size], data[size:-4], data[-4:-2], data[-2:])
    return PckCertQuery(quote.header.user_data[:16].hex(), *(cut.hex() for cut in cuts))


class Service:
    """Client of the PCCS or Intel's PCS with the base URL `base`, requested with `getter`."""

    def __init__(self, base: str, getter: Getter) -> None:
        self._base = base
        self._getter = getter

    def collateral(self, tee: str, platform: Platform) -> Collateral:
        """Fetch the collateral of `platform`; `tee` is "sgx" or "tdx".

        Raises:
            CollateralError: If a request fails, or a response is malformed; names the URL.
            UsageError: If the getter returns something other than a `Response`.
        """
        # TCB info first: an invented FMSPC then costs a single request.
        tcb = self._get(f"/{tee}/certification/v4/tcb", fmspc=platform.fmspc)
        tcb_info, tcb_signature = tcb.signed("tcbInfo")
        qe = self._get(f"/{tee}/certification/v4/qe/identity")
        qe_identity, qe_signature = qe.signed("enclaveIdentity")
        crl = self._get("/sgx/certification/v4/pckcrl", ca=platform.ca, encoding="der")
        root_crl = self._root_crl()
        return Collateral(
            pck_crl_issuer_chain=crl.chain(_CRL_CHAIN),
            root_ca_crl=root_crl.crl(),
            pck_crl=crl.crl(),
            tcb_info_issuer_chain=tcb.chain(_TCB_CHAIN),
            tcb_info=tcb_info,
            tcb_info_signature=tcb_signature,
            qe_identity_issuer_chain=qe.chain(_QE_CHAIN),
            qe_identity=qe_identity,
            qe_identity_signature=qe_signature,
        )

    def _root_crl(self) -> "_PccsResponse":
        if urlsplit(self._base).hostname == urlsplit(INTEL_URL).hostname:
            return self._get_url(_INTEL_ROOT_CRL)
        return self._get("/sgx/certification/v4/rootcacrl")

    def find(self, query: PckCertQuery) -> tuple[Platform, str]:
        """Fetch the PCK certificate of a query; return its platform, and the chain in PEM.

        Raises:
            CollateralError: As `collateral`, and if the certificate is for other SVNs.
            UsageError: As `collateral`.
        """
        checked = self._get("/sgx/certification/v4/pckcert", **query._asdict())
        # The certificate for other SVNs has another key, which would not verify the quote.
        if checked.header(("SGX-TCBm",)).lower() != query.cpusvn + query.pcesvn:
            problem = "certificate is not for the quote's SVNs (SGX-TCBm); register the current TCB"
            raise checked.error("malformed", problem)
        leaf = checked.pem_body()
        try:
            platform = _read_platform(split_chain(leaf.encode(), 0)[0])
        except FormatError as error:
            raise checked.error("malformed", f"not a PCK certificate: {error}") from error
        return platform, f"{leaf.rstrip()}\n{checked.chain(_PCK_CHAIN)}"

    def _get(self, path: str, **query: str) -> "_PccsResponse":
        url = f"{self._base}{path}"
        return self._get_url(
            f"{url}?{urlencode(query, quote_via=percent_encode)}" if query else url
        )

    def _get_url(self, url: str) -> "_PccsResponse":
        try:
            response = self._getter(url)
        except CollateralError:
            raise
        except Exception as error:  # the caller's getter may raise anything
            text = str(error) if isinstance(error, AttestKitError) else type(error).__name__
            raise CollateralError(f"{url}: fetch failed: {text}", reason="fetch_failed") from error
        if not isinstance(response, Response):
            raise wrong_type("result of the getter", "a Response", response)
        read_body(response, url, advice=_ADVICE)
        return _PccsResponse(url, response)


class _PccsResponse(NamedTuple):
    """Response of status 200; errors name its URL."""

    url: str
    response: Response

    def error(self, reason: CollateralReason, text: str) -> CollateralError:
        """Return a CollateralError with this reason, and text after the URL."""
        return CollateralError(f"{self.url}: {text}", reason=reason)

    def header(self, names: tuple[str, ...]) -> str:
        """Return the value of the header field of the response that comes first in `names`."""
        lowered = {name.lower(): value for name, value in self.response.headers.items()}
        for name in names:
            if (value := lowered.get(name.lower())) is not None:
                return value
        problem = f"response header missing: {' or '.join(names)}; check that the URL is a PCCS's"
        raise self.error("malformed", problem)

    def chain(self, names: tuple[str, ...]) -> str:
        """Return the PEM certificate chain in a header field: the first of `names` there is."""
        value = self.header(names)
        try:
            text = unquote(value, errors="strict")
            split_chain(text.encode("ascii"), 0)
            self._dates(f"{names[0].lower()}_chain", text)
        except (FormatError, UnicodeError) as error:
            raise self.error("malformed", f"header {names[0]}: must be a PEM chain") from error
        return text

    def pem_body(self) -> str:
        """Return the body, which must be a single PEM certificate."""
        try:
            text = self.response.body.decode("ascii")
            count = len(split_chain(self.response.body, 0))
        except (FormatError, UnicodeError) as error:
            raise self.error("malformed", "response must be a PEM certificate") from error
        if count != 1:
            raise self.error("malformed", f"response has {count} certificates, must have 1")
        return text

    def crl(self) -> bytes:
        """Return the CRL in DER, from a body that is DER or hex of DER."""
        der = self.response.body
        if not der.startswith(_DER_SEQUENCE):  # ASCII "0"; hex of DER starts with "3"
            try:
                der = bytes.fromhex(der.decode("ascii"))
            except ValueError as error:
                raise self.error("malformed", "response must be DER or hex of DER") from error
        self._dates("CRL", der)
        return der

    def signed(self, name: str) -> tuple[str, bytes]:
        """Return the signed JSON member `name`, as received, and its signature (64 bytes)."""
        try:
            text, signature = split_signed(self.response.body, name)
        except FormatError as error:
            raise self.error("malformed", f"response is not the JSON of a PCCS: {error}") from error
        self._dates(name, text)
        return text, signature

    def _dates(self, name: str, value: str | bytes) -> None:
        """Check that `value`, the collateral's part `name`, has dates, which the cache needs."""
        try:
            part_window(name, value)
        except CollateralError as error:
            raise self.error(error.reason, str(error)) from error
