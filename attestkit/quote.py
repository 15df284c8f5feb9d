"""Quotes of Intel SGX and TDX: versions 3, 4 and 5 (Intel SGX and TDX DCAP Quoting Library APIs).

Parsing does not verify signatures. It is strict: an error has the first violated rule and its
offset, and a parsed quote has one canonical form, `raw`. Parsing also checks that the report data
of the QE report is the hash of the attestation key and the QE authentication data. All integers
are little-endian.
"""

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple, NoReturn, TypeVar

from attestkit._argument_checks import wrong_type
from attestkit._formats.binary_layout import check_size, fields_to_dict
from attestkit._native import QuoteBase, body_getter, quote_layout, quote_parsers
from attestkit._native._status import numbered
from attestkit.errors import FormatError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from attestkit._native import QuoteLayout

__all__ = [
    "TEE_SGX",
    "TEE_TDX",
    "Certification",
    "EnclaveReport",
    "QeReport",
    "Quote",
    "QuoteHeader",
    "TdQuoteBody",
]

_T = TypeVar("_T")

TEE_SGX = 0x00
TEE_TDX = 0x81

_HEADER = Struct("<HHIHH16s20s")
_TD_10 = Struct("<16s48s48s8s8s8s48s48s48s48s48s48s48s48s64s")
_TD_15 = Struct("<16s48s48s8s8s8s48s48s48s48s48s48s48s48s64s16s48s")
_ISV_SVN = 258  # offset in the report of an enclave
_ENCLAVE = Struct("<16sI12x16s16s32s32x32s32x64sHHH42x16s64s")


class QuoteHeader(NamedTuple):
    """Quote header, 48 bytes (Intel TDX DCAP Quoting Library API, A.3.1)."""

    version: int  # 2 bytes: 3, 4 or 5
    attestation_key_type: int  # 2 bytes: 2 is ECDSA P-256 with SHA-256
    tee_type: int  # 4 bytes: 0x00 is SGX, 0x81 is TDX
    qe_svn: int | None  # 2 bytes; version 3 only, reserved later
    pce_svn: int | None  # 2 bytes; version 3 only, reserved later
    qe_vendor_id: bytes  # 16 bytes
    user_data: bytes  # 20 bytes of the quoting enclave; the first 16 identify the platform

    @classmethod
    def parse(cls, data: bytes) -> "QuoteHeader":
        """Parse 48 bytes; values are not checked.

        Raises:
            FormatError: If `data` does not have 48 bytes.
            UsageError: If `data` is not `bytes`.
        """
        check_size("quote header", data, _HEADER.size)
        version, key_type, tee_type, qe_svn, pce_svn, vendor, user_data = _HEADER.unpack(data)
        if version != 3:
            qe_svn = pce_svn = None
        return cls(version, key_type, tee_type, qe_svn, pce_svn, vendor, user_data)


class TdQuoteBody(NamedTuple):
    """TD quote body: 584 bytes for TDX 1.0, 648 for TDX 1.5 (A.3.2, A.3.3)."""

    tee_tcb_svn: bytes  # 16 bytes, an SVN each
    mr_seam: bytes  # 48 bytes: measurement of the TDX module
    mr_signer_seam: bytes  # 48 bytes: zero for Intel's module
    seam_attributes: bytes  # 8 bytes
    td_attributes: bytes  # 8 bytes; bit 0 is DEBUG
    xfam: bytes  # 8 bytes: extended features that the TD may use
    mrtd: bytes  # 48 bytes: measurement of the initial contents of the TD
    mr_config_id: bytes  # 48 bytes, set at launch
    mr_owner: bytes  # 48 bytes, set at launch
    mr_owner_config: bytes  # 48 bytes, set at launch
    rtmr0: bytes  # 48 bytes
    rtmr1: bytes  # 48 bytes
    rtmr2: bytes  # 48 bytes
    rtmr3: bytes  # 48 bytes
    report_data: bytes  # 64 bytes, chosen by the caller
    tee_tcb_svn2: bytes | None = None  # 16 bytes, TDX 1.5: the SVNs after a module update
    mr_service_td: bytes | None = None  # 48 bytes, TDX 1.5: hash of the bound service TDs

    @classmethod
    def parse(cls, data: bytes) -> "TdQuoteBody":
        """Parse 584 or 648 bytes.

        Raises:
            FormatError: If `data` has neither 584 nor 648 bytes.
            UsageError: If `data` is not `bytes`.
        """
        check_size("TD quote body", data, _TD_10.size, _TD_15.size)
        if len(data) == _TD_15.size:
            return cls._make(_TD_15.unpack(data))
        return cls(*_TD_10.unpack(data))

    @property
    def rtmrs(self) -> tuple[bytes, bytes, bytes, bytes]:
        """RTMR0 to RTMR3, 48 bytes each."""
        return self.rtmr0, self.rtmr1, self.rtmr2, self.rtmr3

    def to_bytes(self) -> bytes:
        """Return the encoding: 584 bytes, or 648 with the last two fields (TDX 1.5)."""
        if self.tee_tcb_svn2 is None:
            return _TD_10.pack(*self[:15])
        return _TD_15.pack(*self)


class EnclaveReport(NamedTuple):
    """Report body of an SGX enclave, 384 bytes (Intel SGX ECDSA Quote Library API, A.4).

    It is the body of an SGX quote, and the report of the quoting enclave (QE) in every quote.
    """

    cpu_svn: bytes  # 16 bytes
    misc_select: int  # 4 bytes
    isv_ext_prod_id: bytes  # 16 bytes, with key separation and sharing (KSS)
    attributes: bytes  # 16 bytes: flags (bit 1 is DEBUG), then XFRM
    mr_enclave: bytes  # 32 bytes
    mr_signer: bytes  # 32 bytes
    config_id: bytes  # 64 bytes, with KSS
    isv_prod_id: int  # 2 bytes
    isv_svn: int  # 2 bytes
    config_svn: int  # 2 bytes, with KSS
    isv_family_id: bytes  # 16 bytes, with KSS
    report_data: bytes  # 64 bytes
    raw: bytes  # all 384 bytes, which the signature covers

    @classmethod
    def parse(cls, data: bytes) -> "EnclaveReport":
        """Parse 384 bytes; reserved bytes may have any value.

        Raises:
            FormatError: If `data` does not have 384 bytes.
            UsageError: If `data` is not `bytes`.
        """
        check_size("enclave report", data, _ENCLAVE.size)
        return cls._make((*_ENCLAVE.unpack(data), data))


QeReport = EnclaveReport


class Certification(NamedTuple):
    """QE certification data: identification of the PCK certificate (Intel DCAP).

    Types: 1 PPID in plain text, 2 and 3 PPID encrypted with RSA-2048 or RSA-3072, 4 PCK leaf
    certificate, 5 PCK certificate chain. The data (of type 5 normally PEM) are not signed, and not
    parsed here.
    """

    type: int  # 1 to 5
    data: bytes


class SignedParts(NamedTuple):
    """The parts of a quote that the verification of its signatures needs.

    They are the properties of `Quote` with these names; `qe_report` is its 384 bytes, not parsed.
    """

    signed_region: bytes
    signature: bytes
    attestation_key: bytes
    qe_report: bytes
    qe_report_signature: bytes
    qe_auth_data: bytes
    certification: Certification


def _lazy(make: "Callable[[Quote], _T]") -> "Callable[[Quote], _T]":
    """Return a getter for a property that computes a field with `make` once, and caches it."""
    name = make.__name__

    def get(self: "Quote") -> "_T":
        made = self._made
        if made is None:
            made = {}
            object.__setattr__(self, "_made", made)
        value: _T | None = made.get(name)
        if value is None:
            value = made[name] = make(self)
        return value

    get.__doc__ = make.__doc__
    return get


def _cached_body(make: "Callable[[Quote], _T]") -> "Callable[[Quote], _T]":
    """Return a getter that creates the body on first use: an enclave's with `make`, else a TD's."""
    return body_getter(TdQuoteBody, make)


class Quote(QuoteBase):
    """A quote of a TD or of an SGX enclave, signed by a quoting enclave. Immutable.

    Quotes are equal if their `raw` bytes are equal.

    Attributes:
        version: 3, 4 or 5.
        tee_type: 0x00 (SGX) or 0x81 (TDX).
        padding: Number of zero bytes after the quote.
        mrtd: 48 bytes, measured at launch. UsageError for a quote of an SGX enclave.
        rtmrs: 4 x 48 bytes, extended at run time. UsageError for a quote of an SGX enclave.
        report_data: 64 bytes, chosen by the caller.
    """

    __slots__ = ()

    def __init__(self) -> None:
        raise UsageError("Quote: cannot be constructed; use Quote.parse", reason="wrong_type")

    @staticmethod
    def parse(data: bytes) -> "Quote":
        """Parse a quote, which may be zero-padded; at most 128 KiB in total.

        Raises:
            FormatError: If the quote is malformed or too large; `reason` names the violated rule.
            UsageError: If `data` is not `bytes`.
        """
        quote = _parse(data)
        return _parse_or_raise(data) if quote is None else quote

    @staticmethod
    def parse_many(quotes: "Iterable[bytes]") -> "list[Quote]":
        """Parse quotes, each as `parse`, and return them in their order; faster than one by one.

        Raises:
            FormatError: If a quote is malformed; the message gives its index, from 0, and `offset`
                counts from the start of that quote.
            UsageError: If an item is not `bytes`.
        """
        several = tuple(quotes)
        parsed = _parse_many(several)
        try:
            for data in several[len(parsed) :]:
                parsed.append(Quote.parse(data))
        except FormatError as error:
            raise numbered(error, len(parsed), error.offset) from error
        return parsed

    @property
    @_lazy
    def raw(self) -> bytes:
        """The quote without padding."""
        return self._data[: len(self._data) - self.padding]

    @property
    def header(self) -> QuoteHeader:
        """The header, parsed: version, key type, TEE type, vendor, user data, SVNs of version 3."""
        return QuoteHeader.parse(self._data[: _HEADER.size])

    @property
    @_cached_body
    def body(self) -> TdQuoteBody | EnclaveReport:
        """The body: of a TD, or of an SGX enclave."""
        start = 48 if self.version < 5 else 54
        return EnclaveReport.parse(self._cut(start, _ENCLAVE.size))

    @property
    def signed_region(self) -> bytes:
        """Header and body as bytes, covered by `signature`."""
        start, size = self._layout[:2]
        return self._data[: start + size]

    @property
    def signature(self) -> bytes:
        """ECDSA P-256 signature with SHA-256: r and s, 32 bytes each, big-endian."""
        return self._cut(self._layout[2], 64)

    @property
    def attestation_key(self) -> bytes:
        """Public key of `signature`, a P-256 point: x and y, 32 bytes each, big-endian."""
        return self._cut(self._layout[2] + 64, 64)

    @property
    @_lazy
    def qe_report(self) -> EnclaveReport:
        """Report of the quoting enclave, which certifies `attestation_key`."""
        return EnclaveReport.parse(self._cut(self._layout[3], 384))

    @property
    def qe_report_signature(self) -> bytes:
        """ECDSA P-256 signature over `qe_report.raw` with the PCK key, encoded as `signature`."""
        return self._cut(self._layout[3] + 384, 64)

    @property
    def qe_auth_data(self) -> bytes:
        """QE authentication data, hashed with the attestation key; 32 bytes from hardware."""
        return self._cut(*self._layout[4:6])

    @property
    @_lazy
    def certification(self) -> Certification:
        """QE certification data: type, 1 to 5, and bytes that identify the PCK certificate."""
        kind, start, end = self._layout[6:]
        return Certification(kind, self._data[start:end])

    @property
    @_lazy
    def pck_chain(self) -> tuple[bytes, ...]:
        """Certificates of the PCK certificate chain in DER, in the order of the quote, unverified.

        Empty if the certification data are not of type 5.

        Raises:
            FormatError: If certification data of type 5 are malformed.
        """
        if self.certification.type != 5:
            return ()
        # Lazy import: only few callers need the chain.
        from attestkit._crypto.x509.pem_chain import split_chain

        return split_chain(self.certification.data, self._layout[7])

    def to_dict(self) -> dict[str, object]:
        """Return the fields by name as JSON values: bytes in hex, structures as dictionaries."""
        return {
            "version": self.version,
            "tee_type": self.tee_type,
            "padding": self.padding,
            "header": fields_to_dict(self.header),
            "body": fields_to_dict(self.body),
            "signature": self.signature.hex(),
            "attestation_key": self.attestation_key.hex(),
            "qe_report": fields_to_dict(self.qe_report),
            "qe_report_signature": self.qe_report_signature.hex(),
            "qe_auth_data": self.qe_auth_data.hex(),
            "certification": fields_to_dict(self.certification),
        }

    @property
    @_lazy
    def _layout(self) -> "QuoteLayout":
        """Offsets and sizes of the parts of `_data`, in the order of `quote_layout`."""
        data, version = self._data, self.version
        body, size = 48, _TD_10.size if self.tee_type else _ENCLAVE.size
        if version == 5:
            body, size = 54, int.from_bytes(data[50:54], "little")
        signature = body + size + 4
        report = signature + 128 if version == 3 else signature + 134
        auth = report + 450
        auth_size = data[auth - 2] | data[auth - 1] << 8
        kind = auth + auth_size
        end = len(data) - self.padding
        return body, size, signature, report, auth, auth_size, data[kind], kind + 6, end

    def _cut(self, start: int, size: int) -> bytes:
        return self._data[start : start + size]

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("Quote: immutable")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("Quote: immutable")

    def __eq__(self, other: object) -> bool:
        return self.raw == other.raw if isinstance(other, Quote) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.raw)

    def __reduce__(self) -> "tuple[Callable[[bytes], Quote], tuple[bytes]]":
        return Quote.parse, (self._data,)

    def __repr__(self) -> str:
        tee = "TDX" if self.tee_type == TEE_TDX else "SGX"
        report_data = self.report_data[:8].hex()
        return f"<Quote v{self.version} {tee}, {len(self.raw)} bytes, report_data {report_data}...>"


def signed_parts(quote: Quote) -> SignedParts:
    """Return the signed parts of a quote as bytes; faster than its properties one by one."""
    data, layout = quote._data, quote._layout  # noqa: SLF001 - of this module's class
    body, body_size, key, report, auth, auth_size, kind, chain, end = layout
    return SignedParts(
        data[: body + body_size],
        data[key : key + 64],
        data[key + 64 : key + 128],
        data[report : report + 384],
        data[report + 384 : report + 448],
        data[auth : auth + auth_size],
        Certification(kind, data[chain:end]),
    )


def quoting_enclave_svn(quote: Quote) -> bytes:
    """Return ISV_SVN of the QE report, 2 bytes (little-endian), without parsing the rest of it."""
    at = quote._layout[3] + _ISV_SVN  # noqa: SLF001 - of this module's class
    return quote._data[at : at + 2]  # noqa: SLF001


_NO_REGISTERS = "quote: has no MRTD and no RTMRs: it is of an SGX enclave; use its `body`"


class _EnclaveQuote(Quote):
    """A quote of an SGX enclave, which has no MRTD and no RTMRs."""

    __slots__ = ()

    @property
    def mrtd(self) -> NoReturn:
        raise UsageError(_NO_REGISTERS, reason="not_applicable")

    @property
    def rtmrs(self) -> NoReturn:
        raise UsageError(_NO_REGISTERS, reason="not_applicable")


_parse, _parse_many = quote_parsers(Quote, _EnclaveQuote)


def _parse_or_raise(data: object) -> Quote:
    """Raise the error for data that the native parser rejected, or parse a subclass of `bytes`."""
    if type(data) is bytes:
        quote_layout(data)
        raise AssertionError("the two parsers of the native core disagree about a quote")
    if isinstance(data, bytes):  # a subclass, whose `__len__` may be overridden
        return Quote.parse(bytes(memoryview(data)))
    raise wrong_type("quote", "bytes", data)
