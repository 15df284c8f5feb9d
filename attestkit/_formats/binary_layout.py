"""Binary structures of fixed size: checks of their input, and their fields as JSON values."""

from collections.abc import Iterable
from typing import NamedTuple

from attestkit._argument_checks import wrong_type
from attestkit.errors import FormatError


def check_size(subject: str, data: bytes, *sizes: int) -> None:
    """Check the type and the size of a structure.

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
    """Raise FormatError if a byte in one of the ranges, given by start and end, is not zero."""
    for start, end in ranges:
        if rest := data[start:end].lstrip(b"\0"):
            message = f"{subject}: reserved byte must be zero"
            raise FormatError(message, reason="wrong_value", offset=end - len(rest))


def fields_to_dict(structure: NamedTuple) -> dict[str, object]:
    """Return the fields of a structure, except `raw`, as JSON values: bytes in hex."""
    return {
        name: value.hex() if isinstance(value, bytes) else value
        for name, value in structure._asdict().items()
        if name != "raw"
    }
