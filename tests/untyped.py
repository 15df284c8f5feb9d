"""Values hidden from type checkers, and values that misreport themselves."""

from typing import Any


def untyped(value: object) -> Any:
    """Return the value with the type Any.

    For calls that are wrong on purpose: arguments of a wrong type, assignments to read-only
    attributes, and stand-ins that implement a part of a type.
    """
    return value


def with_false_length(data: bytes, length: int) -> bytes:
    """Return `data` as an instance of a bytes subclass that reports another length."""

    class BytesWithFalseLength(bytes):
        def __len__(self) -> int:
            return length

    return BytesWithFalseLength(data)
