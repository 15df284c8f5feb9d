"""The functions of quote.c and quote_object.c in pure Python: check quotes and create objects.

The checks have the order of quote.c, and the same status and offset.
"""

import re
from hashlib import sha256
from struct import Struct
from typing import TYPE_CHECKING, Any

from attestkit._native._status import Status, refuse
from attestkit.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Callable

_INTEL = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_SGX, _TDX = 0x00, 0x81
_MAX_SIZE = 131072
_BODY_SIZES = {1: 384, 2: 584, 3: 648}

_HEADER = Struct("<HHI4x16s20x")
_TYPE_AND_SIZE = Struct("<HI")
_ZEROS = re.compile(rb"\0+")
# The most frequently used fields of a TD quote body, unpacked together.
_TD_FIELDS = Struct("<136x48s144x48s48s48s48s64s")
_TD_10 = Struct("<16s48s48s8s8s8s48s48s48s48s48s48s48s48s64s")
_TD_15 = Struct("<16s48s48s8s8s8s48s48s48s48s48s48s48s48s64s16s48s")


Layout = tuple[int, int, int, int, int, int, int, int, int]


class _Cursor:
    """A read position `at` in the data, which are read up to `end`."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data = data
        self.at = at
        self.end = len(data)

    def take(self, size: int, status: int) -> int:
        """Skip `size` bytes and return their offset; raise the error of `status` if truncated."""
        if size > self.end - self.at:
            raise refuse(status, self.end)
        start = self.at
        self.at += size
        return start

    def integer(self, size: int, status: int) -> int:
        """Read a little-endian integer of `size` bytes."""
        start = self.take(size, status)
        return int.from_bytes(self.data[start : self.at], "little")

    def type_and_size(self, status: int) -> tuple[int, int, int]:
        """Read a type of 2 bytes and a size of 4 bytes; return their offset, type and size."""
        start = self.take(6, status)
        kind, size = _TYPE_AND_SIZE.unpack_from(self.data, start)
        return start, kind, size


def _header(c: _Cursor) -> tuple[int, int]:
    start = c.take(48, Status.SHORT_HEADER)
    version, key_type, tee_type, vendor = _HEADER.unpack_from(c.data, start)
    if version not in (3, 4, 5):
        raise refuse(Status.VERSION, start)
    if key_type != 2:
        raise refuse(Status.ATT_KEY_TYPE, start + 2)
    if vendor != _INTEL:
        raise refuse(Status.QE_VENDOR_ID, start + 12)
    if tee_type != _SGX and (tee_type != _TDX or version == 3):
        raise refuse(Status.TEE_TYPE, start + 4)
    return version, tee_type


def _body(c: _Cursor, version: int, tee_type: int) -> tuple[int, int]:
    size = 384 if tee_type == _SGX else 584
    if version == 5:
        start, kind, size = c.type_and_size(Status.SHORT_BODY_DESCRIPTOR)
        if kind not in _BODY_SIZES:
            raise refuse(Status.BODY_TYPE, start)
        if size != _BODY_SIZES[kind]:
            raise refuse(Status.BODY_SIZE, start + 2)
        if (kind == 1) != (tee_type == _SGX):
            raise refuse(Status.BODY_TEE_MISMATCH, start)
    return c.take(size, Status.SHORT_BODY), size


def _extent(c: _Cursor) -> tuple[int, int, int, int]:
    """Skip the quote; return version, offset and size of the body, offset of signature data."""
    version, tee_type = _header(c)
    body, body_size = _body(c, version, tee_type)
    size = c.integer(4, Status.SHORT_SIG_LEN)
    return version, body, body_size, c.take(size, Status.SIG_DATA_TRUNCATED)


def _signature(c: _Cursor, version: int) -> None:
    c.take(64, Status.SIG)
    c.take(64, Status.ATTESTATION_KEY)
    if version > 3:
        start, kind, size = c.type_and_size(Status.CERT_DATA_HEADER)
        if kind != 6:
            raise refuse(Status.OUTER_CERT_TYPE, start)
        if size != c.end - c.at:
            raise refuse(Status.OUTER_CERT_SIZE, start + 2)


def _certification(c: _Cursor) -> int:
    start, kind, size = c.type_and_size(Status.INNER_CERT_HEADER)
    if not 1 <= kind <= 5:
        raise refuse(Status.INNER_CERT_TYPE, start)
    if size != c.end - c.at:
        raise refuse(Status.INNER_CERT_SIZE, start + 2)
    return kind


def _inside(c: _Cursor, extent: tuple[int, int, int, int]) -> Layout:
    """Check the signature data, which end at the cursor."""
    data = c.data
    version, body, body_size, signature = extent
    c.at, c.end = signature, c.at
    _signature(c, version)
    report = c.take(384, Status.QE_REPORT)
    c.take(64, Status.QE_REPORT_SIG)
    auth_size = c.integer(2, Status.QE_AUTH_LEN)
    auth = c.take(auth_size, Status.QE_AUTH_DATA)
    kind = _certification(c)
    key = data[signature + 64 : signature + 128]
    report_data = data[report + 320 : report + 384]
    if report_data != sha256(key + data[auth : auth + auth_size]).digest() + bytes(32):
        raise refuse(Status.QE_BINDING, report + 320)
    return body, body_size, signature, report, auth, auth_size, kind, c.at, c.end


def quote_layout(data: bytes) -> Layout:
    """Check a quote; return offsets and sizes of its parts: `QuoteLayout` of `_native`.

    Raises:
        FormatError: For the first violated rule.
    """
    if len(data) > _MAX_SIZE:
        raise refuse(Status.TOO_LONG, _MAX_SIZE)
    c = _Cursor(data)
    extent = _extent(c)
    if len(rest := data[c.at :].lstrip(b"\0")) != 0:
        raise refuse(Status.TRAILING_BYTES, c.end - len(rest))
    return _inside(c, extent)


def quote_layout_among(data: bytes, start: int) -> tuple[Layout, int]:
    """Check one of several contiguous quotes; return the offsets of its parts in `data`.

    Returns:
        The result of `quote_layout`, and the end of the quote's zero padding.

    Raises:
        FormatError: For the first violated rule, with an offset in `data`.
    """
    c = _Cursor(data, start)
    extent = _extent(c)
    zeros = _ZEROS.match(data, c.at)
    end = c.at if zeros is None else zeros.end()
    if end - start > _MAX_SIZE:
        raise refuse(Status.TOO_LONG, start + _MAX_SIZE)
    return _inside(c, extent), end


def _padding(data: bytes) -> int:
    """Check a quote and return the size of its zero padding; -1 if it is malformed."""
    try:
        return len(data) - quote_layout(data)[-1]
    except FormatError:
        return -1


class QuoteBase:
    """Fields of a quote; writable, unlike those of the compiled core."""

    __slots__ = (
        "_body",
        "_data",
        "_made",
        "mrtd",
        "padding",
        "report_data",
        "rtmrs",
        "tee_type",
        "version",
    )

    _data: bytes
    _made: dict[str, Any] | None
    _body: Any
    version: int
    tee_type: int
    padding: int
    mrtd: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes

    def hold(self, data: bytes) -> None:
        """Store `data`, the encoded quote; drop the body and fields made from an earlier one."""
        self._data, self._made, self._body = data, None, None

    def find_body(self, body: type[tuple[Any, ...]], make: "Callable[[Any], Any]") -> object:
        """Return the report body of the TD or enclave; it is created on first use and kept.

        Args:
            body: Class of the body of a TD, a named tuple with the fields of TDX 1.5.
            make: Called with this quote if it is of an enclave; returns its body.
        """
        if self._body is None:
            made = self._make_td_body(body) if self.tee_type == _TDX else make(self)
            object.__setattr__(self, "_body", made)  # a Quote is immutable
        return self._body

    def _make_td_body(self, body: type[tuple[Any, ...]]) -> tuple[Any, ...]:
        start = 48 if self.version == 4 else 54
        if self.version == 5 and self._data[48] == 3:
            return tuple.__new__(body, _TD_15.unpack_from(self._data, start))
        return tuple.__new__(body, (*_TD_10.unpack_from(self._data, start), None, None))


def body_getter(
    body: type[tuple[Any, ...]], make: "Callable[[Any], Any]"
) -> "Callable[[QuoteBase], Any]":
    """Return a function that returns the body of a quote, which is created on first use.

    The function raises TypeError for an object that is not a quote.

    Args:
        body: Class of the body of a TD, a named tuple with the fields of TDX 1.5.
        make: Creates the body of an enclave's quote.
    """

    def get(quote: QuoteBase) -> object:
        if not isinstance(quote, QuoteBase):
            raise TypeError("not a quote")
        return quote.find_body(body, make)

    get.__doc__ = make.__doc__
    return get


def quote_parsers(
    quote: type[QuoteBase], enclave: type[QuoteBase]
) -> "tuple[Callable[[object], QuoteBase | None], Callable[[tuple[object, ...]], list[QuoteBase]]]":
    """Return two functions that parse quotes into objects of these classes: one quote, and many.

    The first returns None if its argument is malformed or not `bytes`; the second returns the
    quotes before the first such item.
    """

    def parse(data: object) -> QuoteBase | None:
        if type(data) is not bytes:
            return None
        padding = _padding(data)
        if padding < 0:
            return None
        made = QuoteBase()
        made.hold(data)
        made.padding, made.version, made.tee_type = padding, data[0], data[4]
        body = 54 if made.version == 5 else 48
        if made.tee_type == _TDX:
            made.mrtd, *registers, made.report_data = _TD_FIELDS.unpack_from(data, body)
            made.rtmrs = tuple(registers)
        else:
            made.report_data = data[body + 320 : body + 384]
        made.__class__ = quote if made.tee_type == _TDX else enclave
        return made

    def parse_many(quotes: tuple[object, ...]) -> list[QuoteBase]:
        parsed = []
        for data in quotes:
            if (made := parse(data)) is None:
                break
            parsed.append(made)
        return parsed

    return parse, parse_many
