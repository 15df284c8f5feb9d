"""Collateral from a PCCS, or from Intel's service: the same paths under another name.

The paths and headers are those of version 4 of "Intel SGX and Intel TDX Provisioning Certification
Service API"; simulated-pki.md, section 10, lists them. Whoever answers is a stranger: answers are
bounded and looked at for their shape and dates, and believed by nobody before a Verifier has
checked their signatures. Signed bodies are cut out of their answers byte for byte.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias
from urllib.parse import quote as percent_encode
from urllib.parse import unquote, urlencode, urlsplit, urlunsplit

from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit._crypto.x509.pem_chain import split_chain
from attestkit._crypto.x509.sgx_extension import read_sgx_extension
from attestkit.collateral.intel_collateral import Collateral
from attestkit.collateral.parts import part_window, split_signed
from attestkit.errors import AttestKitError, CollateralError, FormatError, UsageError
from attestkit.quote import Quote

__all__ = [
    "BODY_LIMIT",
    "INTEL_URL",
    "Getter",
    "HiddenPlatform",
    "Platform",
    "Response",
    "Service",
    "base_url",
    "platform_of",
]

BODY_LIMIT: Final = 1 << 20
"""The largest body of an answer in bytes; Intel's largest is below 50 kB."""

INTEL_URL: Final = "https://api.trustedservices.intel.com"
"""Intel's own service."""

# Intel's service has no path for it; the name is the one in Intel's certificates.
_INTEL_ROOT_CRL: Final = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
_SUFFIXES: Final = ("/sgx/certification/v4", "/tdx/certification/v4")
_TCB_CHAIN: Final = ("TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain")
_QE_CHAIN: Final = ("SGX-Enclave-Identity-Issuer-Chain",)
_CRL_CHAIN: Final = ("SGX-PCK-CRL-Issuer-Chain",)
_PCK_CHAIN: Final = ("SGX-PCK-Certificate-Issuer-Chain",)
_ENCRYPTED_PPID: Final = {2: 256, 3: 384}  # bytes, by the type of certification data
_DER_SEQUENCE: Final = b"\x30"
_ADVICE: Final = {
    400: "does it speak version 4 of the PCCS interface?",
    401: "it wants credentials: hand in a getter that sends them",
    403: "it wants credentials: hand in a getter that sends them",
    404: "it does not know this platform, or is no PCCS: check the URL, and what the PCCS has",
}


class Response(NamedTuple):
    """What came of getting a URL."""

    status: int
    headers: Mapping[str, str]  # names in any case; one that came twice has both values
    body: bytes


Getter: TypeAlias = Callable[[str], Response]
"""Gets a URL by HTTP, following no redirect; CollateralError when there is no answer."""


def base_url(text: str) -> str:
    """Return the base URL of a service without a final `/` and without the paths of version 4.

    Raises:
        UsageError: `text` is no http or https URL, or has a user name, a query or a fragment.
    """
    want = "want http://HOST:PORT or https://HOST:PORT, perhaps with a path behind it"
    if not _is_plain(text):
        raise UsageError(f"the PCCS URL is malformed: {want}")
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port  # the port raises if it is none
    except ValueError as error:
        raise UsageError(f"the PCCS URL is malformed: {want}") from error
    if "@" in parts.netloc or "\\" in text:  # said before the text, which may hold a password
        raise UsageError(f"the PCCS URL has a user name or a backslash in it: {want}")
    if parts.scheme not in {"http", "https"} or not host or parts.query or parts.fragment:
        raise UsageError(f"the PCCS URL is {text}: {want}")
    path = parts.path.rstrip("/")
    for suffix in _SUFFIXES:
        path = path.removesuffix(suffix).rstrip("/")
    return urlunsplit((parts.scheme, parts.netloc.lower(), path, "", ""))


def _is_plain(text: object) -> bool:
    """Tell whether `text` is text without line breaks, which urlsplit would silently drop."""
    return isinstance(text, str) and text.isascii() and text.isprintable() and " " not in text


class Platform(NamedTuple):
    """Whom collateral is about, as an unverified PCK certificate says."""

    fmspc: str  # 12 upper-case hex digits
    ca: str  # "platform" or "processor"


@lru_cache(
    maxsize=64
)  # with a warm cache, reading the certificate is nearly all that is left to do
def _read_platform(der: bytes) -> Platform:
    """Return the platform of a PCK certificate; FormatError if it is none."""
    fmspc = read_sgx_extension(der).fmspc.hex().upper()
    issuer = read_certificate(der).issuer
    for ca in ("Platform", "Processor"):
        if f"CN=Intel SGX PCK {ca} CA" in issuer:
            return Platform(fmspc, ca.lower())
    raise FormatError("the PCK certificate is issued neither by the Platform nor Processor CA")


class HiddenPlatform(NamedTuple):
    """A platform whose certificate only a service can find: its PPID is encrypted.

    Everything as hex of the bytes in the quote, two-byte numbers little-endian as there.
    """

    qeid: str  # 16 bytes
    encrypted_ppid: str  # 256 or 384 bytes
    cpusvn: str  # 16 bytes
    pcesvn: str  # 2 bytes
    pceid: str  # 2 bytes


def platform_of(quote: Quote) -> Platform | HiddenPlatform:
    """Return the platform that the certification data of `quote` name."""
    kind, data = quote.certification
    if kind == 5:
        return _read_platform(quote.pck_chain[0])
    size = _ENCRYPTED_PPID.get(kind)
    if size is None:
        raise CollateralError(
            f"the quote's certification data are of type {kind}, which does not lead to a PCK "
            "certificate; types 2, 3 and 5 do"
        )
    if len(data) != size + 20:
        raise FormatError(
            f"certification data of type {kind} have {size + 20} bytes, not {len(data)}"
        )
    cuts = (data[:size], data[size:-4], data[-4:-2], data[-2:])
    return HiddenPlatform(quote.header.user_data[:16].hex(), *(cut.hex() for cut in cuts))


class Service:
    """A PCCS, or Intel's service, at `base`."""

    def __init__(self, base: str, getter: Getter) -> None:
        self._base = base
        self._getter = getter

    def collateral(self, tee: str, platform: Platform) -> Collateral:
        """Get the parts of collateral that platforms share; `tee` is "sgx" or "tdx"."""
        # First what depends on the platform: an invented one costs no more than one request.
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

    def _root_crl(self) -> "_Answer":
        if urlsplit(self._base).hostname == urlsplit(INTEL_URL).hostname:
            return self._get_url(_INTEL_ROOT_CRL)
        return self._get("/sgx/certification/v4/rootcacrl")

    def find(self, hidden: HiddenPlatform) -> tuple[Platform, str]:
        """Return the platform with an encrypted PPID, and its PCK certificate chain in PEM."""
        answer = self._get("/sgx/certification/v4/pckcert", **hidden._asdict())
        # A certificate for other SVNs has another key, with which the quote would not verify.
        if answer.header(("SGX-TCBm",)).lower() != hidden.cpusvn + hidden.pcesvn:
            raise answer.error("SGX-TCBm is not the CPUSVN and PCESVN that were asked for")
        leaf = answer.pem_body()
        try:
            platform = _read_platform(split_chain(leaf.encode(), 0)[0])
        except FormatError as error:
            raise answer.error(f"it is no PCK certificate: {error}") from error
        return platform, f"{leaf.rstrip()}\n{answer.chain(_PCK_CHAIN)}"

    def _get(self, path: str, **query: str) -> "_Answer":
        url = f"{self._base}{path}"
        return self._get_url(
            f"{url}?{urlencode(query, quote_via=percent_encode)}" if query else url
        )

    def _get_url(self, url: str) -> "_Answer":
        try:
            response = self._getter(url)
        except CollateralError:
            raise
        except Exception as error:  # a getter of the caller's may raise anything
            reason = str(error) if isinstance(error, AttestKitError) else type(error).__name__
            raise CollateralError(f"{url}: cannot be fetched: {reason}") from error
        if not isinstance(response, Response):
            raise UsageError(f"a getter returns a Response, not {type(response).__name__}")
        answer = _Answer(url, response)
        if response.status != 200:
            raise answer.error(f"answered {response.status}; {_advice(response.status)}")
        if len(response.body) > BODY_LIMIT:
            raise answer.error(f"the answer is over {BODY_LIMIT} bytes: is this a PCCS?")
        return answer


def _advice(status: int) -> str:
    if 300 <= status < 400:
        return "redirects are not followed: give the address that it leads to"
    if status == 429 or status >= 500:
        return "the service is in trouble or busy: try again later"
    return _ADVICE.get(status, "is this a PCCS?")


class _Answer(NamedTuple):
    """A response of status 200 to `url`; everything wrong in it is said with that URL."""

    url: str
    response: Response

    def error(self, text: str) -> CollateralError:
        """Return the error to raise."""
        return CollateralError(f"{self.url}: {text}")

    def header(self, names: tuple[str, ...]) -> str:
        """Return the value of the first of these headers that is there."""
        lowered = {name.lower(): value for name, value in self.response.headers.items()}
        for name in names:
            if (value := lowered.get(name.lower())) is not None:
                return value
        raise self.error(f"the answer lacks the header {' or '.join(names)}: is this a PCCS?")

    def chain(self, names: tuple[str, ...]) -> str:
        """Return the certificate chain in one of these headers, in PEM."""
        value = self.header(names)
        try:
            text = unquote(value, errors="strict")
            split_chain(text.encode("ascii"), 0)
            self._dates(f"{names[0].lower()}_chain", text)
        except (FormatError, UnicodeError) as error:
            raise self.error(f"{names[0]} is not a chain of certificates in PEM") from error
        return text

    def pem_body(self) -> str:
        """Return the one certificate in PEM that the body is."""
        try:
            text = self.response.body.decode("ascii")
            count = len(split_chain(self.response.body, 0))
        except (FormatError, UnicodeError) as error:
            raise self.error("the answer is not a certificate in PEM") from error
        if count != 1:
            raise self.error(f"the answer has {count} certificates, not 1")
        return text

    def crl(self) -> bytes:
        """Return the CRL in the body, which is DER or the hex of it."""
        der = self.response.body
        if not der.startswith(_DER_SEQUENCE):  # that is a 0 as text, and hex of DER starts with a 3
            try:
                der = bytes.fromhex(der.decode("ascii"))
            except ValueError as error:
                raise self.error("the answer is neither DER nor the hex of it") from error
        self._dates("the CRL", der)
        return der

    def signed(self, name: str) -> tuple[str, bytes]:
        """Return the JSON body called `name` as it was sent, and the signature beside it."""
        try:
            text, signature = split_signed(self.response.body, name)
        except FormatError as error:
            raise self.error(f"the answer is not the JSON of a PCCS: {error}") from error
        self._dates(name, text)
        return text, signature

    def _dates(self, name: str, value: str | bytes) -> None:
        """See that the part has dates, without which nobody could tell when it ends."""
        try:
            part_window(name, value)
        except CollateralError as error:
            raise self.error(str(error)) from error
