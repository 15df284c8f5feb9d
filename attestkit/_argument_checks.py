"""Checks of arguments: type, size and encoding."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from attestkit.errors import FormatError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime


def wrong_type(argument: str, expected: str, value: object) -> UsageError:
    """Return the error for an argument whose type is not `expected`."""
    message = f"{argument}: must be {expected}, not {type(value).__name__}"
    return UsageError(message, reason="wrong_type")


def unsupported_algorithm(name: object, known: "Iterable[str]") -> UsageError:
    """Return the error for a name of an algorithm that is not one of `known`."""
    message = f"algorithm: unsupported: {ascii(name)[:40]}; use {' or '.join(known)}"
    return UsageError(message, reason="unsupported_algorithm")


def require_bytes(argument: str, value: object) -> None:
    """Raise UsageError if an argument is not `bytes`."""
    if not isinstance(value, bytes):
        raise wrong_type(argument, "bytes", value)


def require_size(argument: str, value: bytes, size: int) -> None:
    """Raise UsageError if an argument does not have `size` bytes."""
    if len(value) != size:
        message = f"{argument}: must have {size} bytes, not {len(value)}"
        raise UsageError(message, reason="wrong_size")


def require_time_zone(argument: str, moment: "datetime") -> None:
    """Raise UsageError if a datetime has no time zone."""
    if moment.utcoffset() is None:
        raise UsageError(f"{argument}: datetime without time zone", reason="wrong_value")


def utf8(text: str, subject: str, kind: type[FormatError | UsageError] = FormatError) -> bytes:
    """Return text in UTF-8; raise an error of `kind` if it has an unpaired surrogate."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise kind(f"{subject}: unpaired surrogate in text", reason="encoding") from error


def import_package(module: str, message: str) -> Any:  # noqa: ANN401 - a module
    """Return a module of a package that need not be installed.

    Raises:
        UsageError: With this message, if it is not.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise UsageError(message, reason="missing_dependency") from error
