"""Many quotes at once: each field of theirs as one column, for NumPy and its like.

A column is one contiguous read-only buffer with a row for each quote, which `numpy.asarray` takes
without a copy. Every quote is checked as `Quote.parse` checks it. All are of TDs: those of SGX
enclaves have none of these fields and are refused, rather than given zeros to be taken for values.
"""

from array import array
from typing import TYPE_CHECKING, Any, ClassVar, Final, SupportsIndex

from attestkit._native import quote_columns as _columns
from attestkit.errors import FormatError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["QuoteColumns", "quote_columns"]

_OFFSET_FORMATS: Final = tuple("QqLlIi")  # integers of 4 or 8 bytes, in the order of this machine


class _Column:
    """A field of all quotes, cut out of the block they share: its place and width in a row."""

    __slots__ = ("_before", "_width")

    def __init__(self, before: int, width: int) -> None:
        self._before = before
        self._width = width

    def __get__(self, columns: "QuoteColumns | None", _: object = None) -> memoryview:
        if columns is None:
            raise AttributeError("a column is one of certain quotes")
        count, start = len(columns), self._before * columns._room  # noqa: SLF001 - our own
        flat = columns._block[start : start + self._width * count]  # noqa: SLF001 - the same
        # Python has no views of no rows with a width.
        return flat.cast("B", (count, self._width)) if self._width > 1 and count else flat

    def __set__(self, _: object, __: object) -> None:
        raise AttributeError("columns cannot be changed")


class QuoteColumns:
    """The fields of N quotes, each a `memoryview` of N rows of so many bytes. Immutable.

    Fields of one byte are flat, and so are all where N is 0. Names are those of `TdQuoteBody`,
    which says what the fields mean, and `names` lists them.
    """

    __slots__ = ("_block", "_room", "_starts")

    version = _Column(0, 1)  # 4 or 5
    tee_type = _Column(1, 1)  # 0x81, TDX
    body_type = _Column(2, 1)  # 2: TDX 1.0; 3: TDX 1.5, only these have the last two fields
    tee_tcb_svn = _Column(3, 16)
    mr_seam = _Column(19, 48)
    mr_signer_seam = _Column(67, 48)
    seam_attributes = _Column(115, 8)
    td_attributes = _Column(123, 8)
    xfam = _Column(131, 8)
    mr_td = _Column(139, 48)
    mr_config_id = _Column(187, 48)
    mr_owner = _Column(235, 48)
    mr_owner_config = _Column(283, 48)
    rtmr0 = _Column(331, 48)
    rtmr1 = _Column(379, 48)
    rtmr2 = _Column(427, 48)
    rtmr3 = _Column(475, 48)
    report_data = _Column(523, 64)
    tee_tcb_svn2 = _Column(587, 16)  # zeros where the body type is 2
    mr_service_td = _Column(603, 48)  # the same

    names: ClassVar[tuple[str, ...]] = tuple(
        name for name, value in locals().items() if isinstance(value, _Column)
    )
    """The columns, in the order of the fields in a quote."""

    _block: memoryview  # all columns
    _room: int  # rows from one column to the next, of which N are used
    _starts: bytes

    def __init__(self) -> None:
        raise UsageError("QuoteColumns are made by quote_columns")

    @classmethod
    def _of(cls, block: memoryview, room: int, starts: bytes) -> "QuoteColumns":
        self = cls.__new__(cls)
        self._block = block
        self._room = room
        self._starts = starts
        return self

    def __len__(self) -> int:
        return len(self._starts) // 8

    @property
    def offsets(self) -> memoryview:
        """Where each quote starts in the buffer: N integers of 64 bits."""
        return memoryview(self._starts).cast("Q")

    @property
    def mrtd(self) -> memoryview:
        """What a `Quote` has under this name: `mr_td`, N times 48 bytes."""
        return self.mr_td

    @property
    def rtmrs(self) -> tuple[memoryview, memoryview, memoryview, memoryview]:
        """The columns `rtmr0` to `rtmr3`, N times 48 bytes each."""
        return self.rtmr0, self.rtmr1, self.rtmr2, self.rtmr3

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
    return QuoteColumns._of(*_columns(buffer, starts))  # noqa: SLF001 - our own


def _packed(offsets: Any) -> bytes:  # noqa: ANN401 - what they are is to be seen
    """Return offsets as the native core takes them: integers of 64 bits that nobody can change."""
    try:
        view = memoryview(offsets)
    except TypeError:
        pass  # no buffer: a sequence
    else:
        if view.ndim != 1 or view.format not in _OFFSET_FORMATS:
            raise UsageError("a buffer of offsets has integers of 4 or 8 bytes, in one dimension")
        if view.itemsize == 8:
            return view.tobytes()
        offsets = view.tolist()
    try:
        return array("Q", offsets).tobytes()
    except TypeError as error:
        raise UsageError("offsets are integers") from error
    except OverflowError as error:
        message = "an offset is negative, or has more than 64 bits"
        raise FormatError(message, reason="offsets") from error
