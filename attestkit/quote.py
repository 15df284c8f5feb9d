"""Quotes of Intel SGX and TDX: versions 3, 4 and 5 (Intel SGX and TDX DCAP Quoting Library APIs).

Parsing says what the bytes look like, not who signed them. It is strict: the first broken rule is
refused with its name and its byte, and a parsed quote has one canonical form, `raw`. Of the quote's
cryptography one rule belongs to its form and is checked here: the QE report must contain the hash
of the attestation key. All integers are little-endian.
"""

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple, NoReturn, TypeVar

from attestkit._native import QuoteBase, quote_layout, quote_parsers
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
_ENCLAVE = Struct("<16sI12x16s16s32s32x32s32x64sHHH42x16s64s")

# What namedtuples are made with, without the Python function around it.
_new_tuple = tuple.__new__


class QuoteHeader(NamedTuple):
    """First 48 bytes of a quote (Intel TDX DCAP Quoting Library API, A.3.1)."""

    version: int  # 2 bytes: 3, 4 or 5
    attestation_key_type: int  # 2 bytes: 2 is ECDSA P-256 with SHA-256
    tee_type: int  # 4 bytes: 0x00 is SGX, 0x81 is TDX
    qe_svn: int | None  # 2 bytes; version 3 only, reserved later
    pce_svn: int | None  # 2 bytes; version 3 only, reserved later
    qe_vendor_id: bytes  # 16 bytes
    user_data: bytes  # 20 bytes of the quoting enclave; the first 16 name the platform

    @classmethod
    def parse(cls, data: bytes) -> "QuoteHeader":
        """Read 48 bytes; no values are checked.

        Raises:
            FormatError: there are not 48 bytes.
            UsageError: `data` is not bytes.
        """
        _want_size("a quote header", data, _HEADER.size)
        version, key_type, tee_type, qe_svn, pce_svn, vendor, user_data = _HEADER.unpack(data)
        if version != 3:
            qe_svn = pce_svn = None
        return cls(version, key_type, tee_type, qe_svn, pce_svn, vendor, user_data)


class TdQuoteBody(NamedTuple):
    """What a quote says of a TD: 584 bytes for TDX 1.0, 648 for TDX 1.5 (A.3.2, A.3.3)."""

    tee_tcb_svn: bytes  # 16 bytes, a vector: compare byte by byte
    mr_seam: bytes  # 48 bytes: measurement of the TDX module
    mr_signer_seam: bytes  # 48 bytes: zero for Intel's module
    seam_attributes: bytes  # 8 bytes
    td_attributes: bytes  # 8 bytes; bit 0 is DEBUG
    xfam: bytes  # 8 bytes: extended features the TD may use
    mr_td: bytes  # 48 bytes: initial contents of the TD
    mr_config_id: bytes  # 48 bytes, set by the owner at launch
    mr_owner: bytes  # 48 bytes, the same
    mr_owner_config: bytes  # 48 bytes, the same
    rtmr0: bytes  # 48 bytes
    rtmr1: bytes  # 48 bytes
    rtmr2: bytes  # 48 bytes
    rtmr3: bytes  # 48 bytes
    report_data: bytes  # 64 bytes of the caller
    tee_tcb_svn2: bytes | None = None  # 16 bytes, TDX 1.5: the SVNs after a module update
    mr_service_td: bytes | None = None  # 48 bytes, TDX 1.5: hash of the bound service TDs

    @classmethod
    def parse(cls, data: bytes) -> "TdQuoteBody":
        """Read 584 or 648 bytes.

        Raises:
            FormatError: there are neither 584 nor 648 bytes.
            UsageError: `data` is not bytes.
        """
        _want_size("a TD quote body", data, _TD_10.size, _TD_15.size)
        if len(data) == _TD_15.size:
            return cls._make(_TD_15.unpack(data))
        return cls(*_TD_10.unpack(data))

    def to_bytes(self) -> bytes:
        """Return the 584 or 648 bytes again."""
        if self.tee_tcb_svn2 is None:
            return _TD_10.pack(*self[:15])
        return _TD_15.pack(*self)


class EnclaveReport(NamedTuple):
    """An SGX enclave's report, 384 bytes (Intel SGX ECDSA Quote Library API, A.4).

    It is the body of an SGX quote, and in any quote what the quoting enclave says of itself.
    """

    cpu_svn: bytes  # 16 bytes
    misc_select: int  # 4 bytes
    isv_ext_prod_id: bytes  # 16 bytes, with key separation
    attributes: bytes  # 16 bytes: flags (bit 1 is DEBUG), then xfrm
    mr_enclave: bytes  # 32 bytes
    mr_signer: bytes  # 32 bytes
    config_id: bytes  # 64 bytes, with key separation
    isv_prod_id: int  # 2 bytes
    isv_svn: int  # 2 bytes
    config_svn: int  # 2 bytes, with key separation
    isv_family_id: bytes  # 16 bytes, with key separation
    report_data: bytes  # 64 bytes
    raw: bytes  # all 384 bytes, which a signature covers

    @classmethod
    def parse(cls, data: bytes) -> "EnclaveReport":
        """Read 384 bytes; reserved ones may have any value.

        Raises:
            FormatError: there are not 384 bytes.
            UsageError: `data` is not bytes.
        """
        _want_size("an enclave report", data, _ENCLAVE.size)
        return cls._make((*_ENCLAVE.unpack(data), data))


QeReport = EnclaveReport


class Certification(NamedTuple):
    """How to find who certified the quoting enclave's key (Intel DCAP, certification data).

    Types: 1 PPID in clear, 2 and 3 PPID encrypted with RSA-2048 or RSA-3072, 4 PCK certificate,
    5 PCK certificate chain. Nothing signs these bytes, and parsing does not look into them.
    """

    type: int  # 1 to 5
    data: bytes


def _late(make: "Callable[[Quote], _T]") -> "Callable[[Quote], _T]":
    """Make a field when it is first asked for, and keep it."""
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


class Quote(QuoteBase):
    """A signed statement of a quoting enclave about a TD or an SGX enclave. Immutable.

    Two quotes are equal if their `raw` bytes are.

    Attributes:
        version: 3, 4 or 5.
        tee_type: 0x00 SGX, 0x81 TDX.
        padding: how many zero bytes followed the quote.
        mrtd: 48 bytes, measured at launch. A quote of an SGX enclave has none: UsageError.
        rtmrs: 4 times 48 bytes, extended at run time. The same.
        report_data: the caller's 64 bytes.
    """

    __slots__ = ()

    def __init__(self) -> None:
        raise UsageError("a Quote is made by Quote.parse")

    @staticmethod
    def parse(data: bytes) -> "Quote":
        """Return the quote in `data`, which may have zero bytes after it: 128 KiB in all.

        Raises:
            FormatError: the quote breaks its format; `reason` names the rule, `offset` the byte.
            UsageError: `data` is not bytes.
        """
        quote = _parse(data)
        return _plain_or_refused(data) if quote is None else quote

    @staticmethod
    def parse_many(quotes: "Iterable[bytes]") -> "list[Quote]":
        """Return the parsed `quotes` in their order.

        Raises:
            FormatError: one of them breaks its format; the text tells which, counted from 0.
            UsageError: one of them is not bytes.
        """
        several = tuple(quotes)
        parsed = _parse_many(several)
        try:
            for data in several[len(parsed) :]:
                parsed.append(Quote.parse(data))
        except FormatError as error:
            message = f"quote {len(parsed)}: {error.message}"
            raise FormatError(message, offset=error.offset, reason=error.reason) from error
        return parsed

    @property
    @_late
    def raw(self) -> bytes:
        """The quote without padding: hash and verify these bytes."""
        return self._data[: len(self._data) - self.padding]

    @property
    def header(self) -> QuoteHeader:
        """The first 48 bytes."""
        return QuoteHeader.parse(self._data[: _HEADER.size])

    @property
    @_late
    def body(self) -> TdQuoteBody | EnclaveReport:
        """What the quote says, of a TD or of an SGX enclave."""
        start = 48 if self.version < 5 else 54
        if self.tee_type == TEE_SGX:
            return EnclaveReport.parse(self._cut(start, _ENCLAVE.size))
        # As TdQuoteBody.parse, in a quarter of the time.
        if self.version == 4 or self._data[48] == 2:
            fields = (*_TD_10.unpack_from(self._data, start), None, None)
        else:
            fields = _TD_15.unpack_from(self._data, start)
        return _new_tuple(TdQuoteBody, fields)

    @property
    def signed_region(self) -> bytes:
        """Header and body, which `signature` covers."""
        start, size = self._layout[:2]
        return self._data[: start + size]

    @property
    def signature(self) -> bytes:
        """ECDSA P-256 with SHA-256: r and s, 32 bytes each, big-endian."""
        return self._cut(self._layout[2], 64)

    @property
    def attestation_key(self) -> bytes:
        """P-256 point: x and y, 32 bytes each, big-endian. Its key made `signature`."""
        return self._cut(self._layout[2] + 64, 64)

    @property
    @_late
    def qe_report(self) -> EnclaveReport:
        """What the quoting enclave says of itself; it vouches for `attestation_key`."""
        return EnclaveReport.parse(self._cut(self._layout[3], 384))

    @property
    def qe_report_signature(self) -> bytes:
        """ECDSA P-256 over `qe_report.raw` by the PCK key: r and s, 32 bytes each, big-endian."""
        return self._cut(self._layout[3] + 384, 64)

    @property
    def qe_auth_data(self) -> bytes:
        """Bytes hashed with the attestation key into the QE report; 32 from hardware."""
        return self._cut(*self._layout[4:6])

    @property
    @_late
    def certification(self) -> Certification:
        """Where the PCK certificate is to be had from."""
        kind, start, end = self._layout[6:]
        return Certification(kind, self._data[start:end])

    @property
    @_late
    def pck_chain(self) -> tuple[bytes, ...]:
        """DER certificates in the order found, which nothing vouches for.

        Empty unless the certification data are of type 5.

        Raises:
            FormatError: the certification data are of type 5, and not certificates.
        """
        if self.certification.type != 5:
            return ()
        # Late: few look into the chain, and base64 need not be loaded for the others.
        from attestkit._crypto.x509.pem_chain import split_chain

        return split_chain(self.certification.data, self._layout[7])

    def to_dict(self) -> dict[str, object]:
        """Return the fields for JSON: bytes in hex, nested values as dictionaries."""
        return {
            "version": self.version,
            "tee_type": self.tee_type,
            "padding": self.padding,
            "header": _plain(self.header),
            "body": _plain(self.body),
            "signature": self.signature.hex(),
            "attestation_key": self.attestation_key.hex(),
            "qe_report": _plain(self.qe_report),
            "qe_report_signature": self.qe_report_signature.hex(),
            "qe_auth_data": self.qe_auth_data.hex(),
            "certification": _plain(self.certification),
        }

    @property
    @_late
    def _layout(self) -> "QuoteLayout":
        return quote_layout(self._data)

    def _cut(self, start: int, size: int) -> bytes:
        return self._data[start : start + size]

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a Quote cannot be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("a Quote cannot be changed")

    def __eq__(self, other: object) -> bool:
        return self.raw == other.raw if isinstance(other, Quote) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.raw)

    def __reduce__(self) -> "tuple[Callable[[bytes], Quote], tuple[bytes]]":
        return Quote.parse, (self._data,)

    def __repr__(self) -> str:
        tee = "TDX" if self.tee_type == TEE_TDX else "SGX"
        said = self.report_data[:8].hex()
        return f"<Quote v{self.version} {tee}, {len(self.raw)} bytes, report_data {said}...>"


_NO_REGISTERS = "this is the quote of an SGX enclave: it has no MRTD and no RTMRs"


class _EnclaveQuote(Quote):
    """A quote of an SGX enclave, which has no registers of a TD."""

    __slots__ = ()

    @property
    def mrtd(self) -> NoReturn:
        raise UsageError(_NO_REGISTERS)

    @property
    def rtmrs(self) -> NoReturn:
        raise UsageError(_NO_REGISTERS)


_parse, _parse_many = quote_parsers(Quote, _EnclaveQuote)


def _plain_or_refused(data: object) -> Quote:
    if type(data) is bytes:
        quote_layout(data)
        raise AssertionError("one walk over the quote refuses it, the other does not")
    if isinstance(data, bytes):  # a subclass, which may lie about its length
        return Quote.parse(bytes(memoryview(data)))
    raise UsageError(f"a quote is bytes, not {type(data).__name__}")


def _want_size(what: str, data: bytes, *sizes: int) -> None:
    if type(data) is not bytes:
        raise UsageError(f"{what} is bytes, not {type(data).__name__}")
    if len(data) not in sizes:
        wanted = " or ".join(map(str, sizes))
        raise FormatError(f"{what} has {wanted} bytes, not {len(data)}", reason="size")


def _plain(value: NamedTuple) -> dict[str, object]:
    return {
        name: item.hex() if isinstance(item, bytes) else item
        for name, item in zip(value._fields, value, strict=True)
        if name != "raw"
    }
