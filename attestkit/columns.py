"""Many quotes at once: each field of theirs as one column, for NumPy and its like.

A column is one contiguous read-only buffer with a row for each quote, which `numpy.asarray` takes
without a copy. Every quote is checked as `Quote.parse` checks it. All are of TDs: those of SGX
enclaves have none of these fields and are refused, rather than given zeros to be taken for values.
"""

from array import array
from typing import TYPE_CHECKING, ClassVar, Final, NoReturn, SupportsIndex, cast

from attestkit._native import Column, quote_rows
from attestkit.errors import FormatError, UsageError
from attestkit.quote import TdQuoteBody

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from _typeshed import ReadableBuffer

    from attestkit._native import QuoteRows

    _Four = tuple[memoryview, memoryview, memoryview, memoryview]

__all__ = ["QuoteColumns", "quote_columns"]

_OFFSET_FORMATS: Final = tuple("QqLlIi")  # integers of 4 or 8 bytes, in the order of this machine

_new = object.__new__


class QuoteColumns:
    """The fields of N quotes, each a `memoryview` of N rows of so many bytes. Immutable.

    Fields of one byte are flat, and so are all where N is 0. Names are those of `TdQuoteBody`,
    which says what the fields mean, and `names` lists them. A column takes memory once it has been
    asked for; until then there are 10 bytes for each quote, and the buffer, which is kept.

    Equal are columns of equal buffers whose quotes start in the same places, zeros behind them
    included. What is pickled is the buffer and the offsets, and is checked once more.
    """

    version: memoryview  # 4 or 5
    tee_type: memoryview  # 0x81, TDX
    body_type: memoryview  # 2: TDX 1.0; 3: TDX 1.5, only these have the last two fields
    tee_tcb_svn: "Column[memoryview]" = Column(0, 16)
    mr_seam: "Column[memoryview]" = Column(16, 48)
    mr_signer_seam: "Column[memoryview]" = Column(64, 48)
    seam_attributes: "Column[memoryview]" = Column(112, 8)
    td_attributes: "Column[memoryview]" = Column(120, 8)
    xfam: "Column[memoryview]" = Column(128, 8)
    mr_td: "Column[memoryview]" = Column(136, 48)
    mr_config_id: "Column[memoryview]" = Column(184, 48)
    mr_owner: "Column[memoryview]" = Column(232, 48)
    mr_owner_config: "Column[memoryview]" = Column(280, 48)
    rtmrs: "Column[_Four]" = Column(
        328, 48, 4
    )  # a tuple: rtmr0 to rtmr3, which are gathered together
    report_data: "Column[memoryview]" = Column(520, 64)
    tee_tcb_svn2: "Column[memoryview]" = Column(584, 16)  # zeros where the body type is 2
    mr_service_td: "Column[memoryview]" = Column(600, 48)  # the same

    names: ClassVar[tuple[str, ...]] = ("version", "tee_type", "body_type", *TdQuoteBody._fields)
    """The columns, in the order of the fields in a quote."""

    _rows: "QuoteRows"

    def __init__(self) -> None:
        raise UsageError("QuoteColumns are made by quote_columns")

    def __len__(self) -> int:
        return len(self.version)

    @property
    def offsets(self) -> memoryview:
        """Where each quote starts in the buffer: N integers of 64 bits."""
        return memoryview(self._rows[1]).cast("Q")

    @property
    def mrtd(self) -> memoryview:
        """What a `Quote` has under this name: `mr_td`, N times 48 bytes."""
        return self.mr_td

    @property
    def rtmr0(self) -> memoryview:
        """The column `rtmrs[0]`, N times 48 bytes."""
        return self.rtmrs[0]

    @property
    def rtmr1(self) -> memoryview:
        """The column `rtmrs[1]`, N times 48 bytes."""
        return self.rtmrs[1]

    @property
    def rtmr2(self) -> memoryview:
        """The column `rtmrs[2]`, N times 48 bytes."""
        return self.rtmrs[2]

    @property
    def rtmr3(self) -> memoryview:
        """The column `rtmrs[3]`, N times 48 bytes."""
        return self.rtmrs[3]

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("columns cannot be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("columns cannot be changed")

    def __eq__(self, other: object) -> bool:
        return self._rows == other._rows if isinstance(other, QuoteColumns) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._rows)

    def __reduce__(self) -> "tuple[Callable[..., QuoteColumns], tuple[bytes, array[int]]]":
        # Of an array, which tells the machine that reads it how its integers are laid out.
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
        buffer: Quotes of TDs. Behind each may be zeros: 128 KiB with them.
        offsets: Where each of N quotes starts, rising: integers, or a buffer of integers of 4 or 8
            bytes. A quote ends where the next one starts, the last with the buffer; bytes before
            the first are not looked at. None: the quotes lie one behind the other from the start
            of the buffer, and their own lengths tell where they end.

    Raises:
        FormatError: A quote breaks its format, or is of an SGX enclave, or its offset is not behind
            the one before it and inside the buffer. The text tells the first such, counted from 0,
            `reason` the rule, `offset` the byte in `buffer`.
        UsageError: `buffer` is not bytes, or `offsets` are not integers.
    """
    if type(buffer) is not bytes:
        raise UsageError(f"quotes for columns are bytes, not {type(buffer).__name__}")
    starts = None if offsets is None else _packed(offsets)
    columns = _new(QuoteColumns)
    kept = columns.__dict__
    _, _, versions, body_types = kept["_rows"] = quote_rows(buffer, starts)
    kept["version"] = memoryview(versions)
    kept["tee_type"] = memoryview(b"\x81" * len(versions))
    kept["body_type"] = memoryview(body_types)
    return columns


def _packed(offsets: "Sequence[SupportsIndex] | memoryview") -> bytes:
    """Return offsets as the native core takes them: integers of 64 bits that nobody can change."""
    try:
        view = memoryview(cast("ReadableBuffer", offsets))
    except TypeError:
        pass  # no buffer: a sequence
    else:
        if view.ndim != 1 or view.format not in _OFFSET_FORMATS:
            raise UsageError("a buffer of offsets has integers of 4 or 8 bytes, in one dimension")
        if view.itemsize == 8:
            return view.tobytes()
        offsets = view.tolist()
    try:
        return array("Q", cast("Sequence[int]", offsets)).tobytes()
    except TypeError as error:
        raise UsageError("offsets are integers") from error
    except OverflowError as error:
        message = "an offset is negative, or has more than 64 bits"
        raise FormatError(message, reason="offsets") from error
