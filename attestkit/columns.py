"""The fields of many quotes as columns, for NumPy and similar libraries.

A column is a contiguous read-only buffer with one row per quote, which `numpy.asarray` uses without
a copy. Every quote is checked as by `Quote.parse`. Quotes of SGX enclaves, which do not have these
fields, are rejected.
"""

from array import array
from typing import TYPE_CHECKING, ClassVar, Final, NoReturn, SupportsIndex, cast

from attestkit._argument_checks import wrong_type
from attestkit._native import Column, quote_rows
from attestkit.errors import FormatError, UsageError
from attestkit.quote import TdQuoteBody

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from _typeshed import ReadableBuffer

    from attestkit._native import QuoteRows

    _Four = tuple[memoryview, memoryview, memoryview, memoryview]

__all__ = ["QuoteColumns", "quote_columns"]

_OFFSET_FORMATS: Final = tuple("QqLlIi")  # integers of 4 or 8 bytes, in native byte order

_new = object.__new__


class QuoteColumns:
    """The fields of N quotes, each a `memoryview` of shape (N, size of the field). Immutable.

    Fields of one byte, and all fields if N is 0, have one dimension. `names` lists the fields:
    version, tee_type, body_type, and those of `TdQuoteBody`. A column is created on first use.
    Before that, an object takes 11 bytes per quote; it also keeps a reference to the buffer.

    Objects are equal if their buffers, including padding, and offsets are equal. Pickling stores
    the buffer and the offsets; unpickling checks the quotes again.
    """

    version: memoryview  # 4 or 5
    tee_type: memoryview  # 0x81 (TDX)
    body_type: memoryview  # 2: TDX 1.0; 3: TDX 1.5, with the last two fields
    tee_tcb_svn: "Column[memoryview]" = Column(0, 16)
    mr_seam: "Column[memoryview]" = Column(16, 48)
    mr_signer_seam: "Column[memoryview]" = Column(64, 48)
    seam_attributes: "Column[memoryview]" = Column(112, 8)
    td_attributes: "Column[memoryview]" = Column(120, 8)
    xfam: "Column[memoryview]" = Column(128, 8)
    mrtd: "Column[memoryview]" = Column(136, 48)
    mr_config_id: "Column[memoryview]" = Column(184, 48)
    mr_owner: "Column[memoryview]" = Column(232, 48)
    mr_owner_config: "Column[memoryview]" = Column(280, 48)
    rtmrs: "Column[_Four]" = Column(328, 48, 4)  # a tuple of four columns, created together
    report_data: "Column[memoryview]" = Column(520, 64)
    tee_tcb_svn2: "Column[memoryview]" = Column(584, 16)  # zeros for body type 2
    mr_service_td: "Column[memoryview]" = Column(600, 48)  # zeros for body type 2

    names: ClassVar[tuple[str, ...]] = ("version", "tee_type", "body_type", *TdQuoteBody._fields)
    """Names of the columns, which are attributes, in the order of the fields in a quote."""

    _rows: "QuoteRows"

    def __init__(self) -> None:
        message = "QuoteColumns: cannot be constructed; use quote_columns"
        raise UsageError(message, reason="wrong_type")

    def __len__(self) -> int:
        return len(self.version)

    @property
    def offsets(self) -> memoryview:
        """Offset of each quote in the buffer, in bytes: N unsigned integers of 64 bits."""
        return memoryview(self._rows[1]).cast("Q")

    @property
    def rtmr0(self) -> memoryview:
        """The column `rtmrs[0]`, N x 48 bytes."""
        return self.rtmrs[0]

    @property
    def rtmr1(self) -> memoryview:
        """The column `rtmrs[1]`, N x 48 bytes."""
        return self.rtmrs[1]

    @property
    def rtmr2(self) -> memoryview:
        """The column `rtmrs[2]`, N x 48 bytes."""
        return self.rtmrs[2]

    @property
    def rtmr3(self) -> memoryview:
        """The column `rtmrs[3]`, N x 48 bytes."""
        return self.rtmrs[3]

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("QuoteColumns: immutable")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("QuoteColumns: immutable")

    def __eq__(self, other: object) -> bool:
        return self._rows == other._rows if isinstance(other, QuoteColumns) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._rows)

    def __reduce__(self) -> "tuple[Callable[..., QuoteColumns], tuple[bytes, array[int]]]":
        # An array, whose pickle is portable between byte orders.
        return quote_columns, (self._rows[0], array("Q", self._rows[1]))

    def __copy__(self) -> "QuoteColumns":
        return self

    def __deepcopy__(self, memo: object) -> "QuoteColumns":
        return self

    def __repr__(self) -> str:
        return f"<QuoteColumns of {len(self)} quotes>"


def quote_columns(
    buffer: bytes, offsets: "Sequence[SupportsIndex] | memoryview | None" = None
) -> QuoteColumns:
    """Check all quotes in `buffer` and return their fields as columns.

    Args:
        buffer: Quotes of TDs, each at most 128 KiB with its zero padding. Empty: no quotes.
        offsets: Offsets of the quotes in bytes, in increasing order: integers, or a buffer of
            integers of 4 or 8 bytes. A quote ends at the next offset or at the end of the buffer;
            bytes before the first offset are ignored. None: the quotes are contiguous, without
            padding between them, from the start of the buffer.

    Raises:
        FormatError: If a quote is malformed or of an SGX enclave, or the offsets do not increase
            or exceed the buffer. The message gives the index of the quote, from 0; `offset`
            counts from the start of `buffer`.
        UsageError: If `buffer` is not `bytes`, or `offsets` are not integers.
    """
    if type(buffer) is not bytes:
        raise wrong_type("buffer", "bytes", buffer)
    starts = None if offsets is None else _packed(offsets)
    columns = _new(QuoteColumns)
    attributes = columns.__dict__  # not through __setattr__, which raises
    _, _, versions, body_types = attributes["_rows"] = quote_rows(buffer, starts)
    attributes["version"] = memoryview(versions)
    attributes["tee_type"] = memoryview(b"\x81" * len(versions))
    attributes["body_type"] = memoryview(body_types)
    return columns


def _packed(offsets: "Sequence[SupportsIndex] | memoryview") -> bytes:
    """Return a copy of the offsets for the native core: 64-bit integers in native byte order."""
    try:
        view = memoryview(cast("ReadableBuffer", offsets))
    except TypeError:
        pass  # a sequence
    else:
        if view.ndim != 1 or view.format not in _OFFSET_FORMATS:
            message = "offsets: a buffer must have integers of 4 or 8 bytes in one dimension"
            raise UsageError(message, reason="wrong_type")
        if view.itemsize == 8:
            return view.tobytes()
        offsets = view.tolist()
    try:
        return array("Q", cast("Sequence[int]", offsets)).tobytes()
    except TypeError as error:
        raise UsageError("offsets: must be integers", reason="wrong_type") from error
    except OverflowError as error:
        raise FormatError("offsets: each must be 0 to 2^64-1", reason="offsets") from error
