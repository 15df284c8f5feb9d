"""Binary structures: checks of those of fixed size, and a cursor over untrusted bytes."""

from collections.abc import Iterable
from typing import ClassVar, Final, NamedTuple

from attestkit._argument_checks import wrong_type
from attestkit._outcomes.reasons import FormatReason
from attestkit.errors import FormatError

_MAX_SKIPPED: Final = 1 << 20  # skipped values create no objects, so many are allowed


def check_size(subject: str, data: bytes, *sizes: int) -> None:
    """Check the type and the size of a structure; `subject` is its name in errors.

    Raises:
        FormatError: If `data` has none of `sizes`.
        UsageError: If `data` is not exactly of type `bytes`.
    """
    if type(data) is not bytes:  # the `__len__` of a subclass may be overridden
        raise wrong_type(f"{subject}", "bytes", data)
    if len(data) not in sizes:
        allowed = " or ".join(map(str, sizes))
        message = f"{subject}: must have {allowed} bytes, not {len(data)}"
        raise FormatError(message, reason="wrong_size", offset=min(len(data), max(sizes)))


def check_reserved(subject: str, data: bytes, ranges: Iterable[tuple[int, int]]) -> None:
    """Raise FormatError if a reserved byte of `data` is not zero.

    Args:
        subject: Name of the structure, with which the error begins.
        data: The structure.
        ranges: Offsets of reserved ranges: start, and end (exclusive).
    """
    for start, end in ranges:
        if rest := data[start:end].lstrip(b"\0"):
            message = f"{subject}: reserved byte must be zero"
            raise FormatError(message, reason="wrong_value", offset=end - len(rest))


def fields_to_dict(structure: NamedTuple) -> dict[str, object]:
    """Return the fields of a structure by name, except `raw`, as JSON values: bytes in hex."""
    return {
        name: value.hex() if isinstance(value, bytes) else value
        for name, value in structure._asdict().items()
        if name != "raw"
    }


class Cursor:
    """Cursor over `data`, from offset `at` on; every method reads one value and advances past it.

    It is the base of the readers of CBOR, msgpack, SCALE, protobuf and structures of a TPM. All
    methods raise FormatError, with the offset of the invalid value.
    """

    __slots__ = ("_skipped", "at", "data")

    CODEC: ClassVar[str]  # name in errors
    NIL: ClassVar[bytes] = b""
    WHOLE: ClassVar[frozenset[int]] = frozenset()
    """Initial bytes that are a complete value, for `skip`."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data: bytes = data
        self.at: int = at
        self._skipped = 0

    @property
    def remaining(self) -> int:
        """Number of bytes that are not read yet."""
        return len(self.data) - self.at

    def error(self, problem: str, reason: FormatReason, offset: int) -> FormatError:
        """Return a FormatError with text `problem` about the value at `offset` in the data."""
        return FormatError(f"{self.CODEC}: {problem}", reason=reason, offset=offset)

    def wrong_type(self, expected: str, offset: int) -> FormatError:
        """Return the error for a value at `offset` that does not have the `expected` type."""
        return self.error(f"expected {expected}", "wrong_type", offset)

    def take(self, size: int) -> bytes:
        """Read exactly `size` bytes; FormatError (`truncated`) if fewer are left."""
        end = self.at + size
        if end > len(self.data):
            problem = f"truncated: {size} bytes expected, {self.remaining} left"
            raise self.error(problem, "truncated", self.at)
        found = self.data[self.at : end]
        self.at = end
        return found

    def take_text(self, size: int, start: int) -> str:
        """Read `size` bytes of UTF-8; errors have the offset `start`, where the value begins."""
        try:
            return self.take(size).decode()
        except UnicodeDecodeError as error:
            raise self.error("text is not UTF-8", "encoding", start) from error

    def truncated(self, count: int, start: int) -> FormatError:
        """Return the error for an array or map at `start` with more items (`count`) than data."""
        problem = f"truncated: {count} items, {self.remaining} bytes left"
        return self.error(problem, "truncated", start)

    def finish(self, subject: str) -> None:
        """Raise FormatError unless all bytes were read; `subject` names the data in the error."""
        if left := self.remaining:
            message = f"{subject}: {left} bytes after its end"
            raise FormatError(message, reason="trailing_data", offset=self.at)

    def header(self) -> tuple[bool, int]:
        """Read the head of a map or array; return whether it is a map, and its number of entries.

        An array with more items than bytes left is an error.
        """
        raise NotImplementedError  # each format has its own

    def count(self) -> int:
        """Read the head of an array; return its number of items.

        FormatError if it is not an array, or has more items than bytes are left.
        """
        start = self.at
        is_map, count = self.header()
        if is_map:
            raise self.wrong_type("an array", start)
        return count

    def nil(self) -> bool:
        """Return whether the next value is nil, and read it if so."""
        found = self.data[self.at : self.at + 1] == self.NIL
        self.at += found
        return found

    def skip(self) -> None:
        """Skip one value of any depth; FormatError if this reader skips over 1,048,576 in all."""
        data, whole, left = self.data, self.WHOLE, 1
        while left:
            self._skipped += 1
            if self._skipped > _MAX_SKIPPED:
                raise self.error(f"more than {_MAX_SKIPPED} unknown values", "too_many", self.at)
            if self.at < len(data) and data[self.at] in whole:
                self.at += 1
                left -= 1
            else:
                left += self.skip_head() - 1

    def check_depth(self, limit: int) -> None:
        """Skip one value; raise FormatError if it contains more than `limit` levels of items."""
        left = [1]  # items that follow, by level
        while left:
            if not left[-1]:
                left.pop()
                continue
            left[-1] -= 1
            start = self.at
            if count := self.skip_head():
                if len(left) > limit:
                    raise self.error(f"nested deeper than {limit} levels", "too_deep", start)
                left.append(count)

    def skip_head(self) -> int:
        """Skip a value without the items that it contains; return the number of these items."""
        raise NotImplementedError  # each format has its own
