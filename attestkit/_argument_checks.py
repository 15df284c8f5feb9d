"""Checks of arguments: type, size and encoding."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from attestkit._sanitize import shown
from attestkit.errors import AttestKitError, FormatError, UsageError

if TYPE_CHECKING:
    from datetime import datetime

_T = TypeVar("_T")


def wrong_type(argument: str, expected: str, value: object) -> UsageError:
    """Return the UsageError for the value of an argument whose type is not `expected`."""
    message = f"{argument}: must be {expected}, not {type(value).__name__}"
    return UsageError(message, reason="wrong_type")


def unsupported_algorithm(name: object, known: Iterable[str]) -> UsageError:
    """Return the UsageError for a name of an algorithm that is not one of `known`."""
    message = f"algorithm: unsupported: {ascii(name)[:40]}; use {' or '.join(known)}"
    return UsageError(message, reason="unsupported_algorithm")


def require_bytes(argument: str, value: object, size: int | None = None) -> None:
    """Raise UsageError if an argument's value is not `bytes`, or not `size` many; None: any number.

    `argument` is its name, with which the error begins.
    """
    if not isinstance(value, bytes):
        raise wrong_type(argument, "bytes", value)
    if size is not None:
        require_size(argument, value, size)


def require_size(argument: str, value: bytes, size: int) -> None:
    """Raise UsageError if the value of an argument does not have `size` bytes.

    `argument` is its name, with which the error begins.
    """
    if len(value) != size:
        message = f"{argument}: must have {size} bytes, not {len(value)}"
        raise UsageError(message, reason="wrong_size")


def require_time_zone(argument: str, moment: "datetime") -> None:
    """Raise UsageError unless the value of the named argument is a datetime with a time zone."""
    if not hasattr(moment, "utcoffset"):
        raise wrong_type(argument, "a datetime", moment)
    if moment.utcoffset() is None:
        message = f"{argument}: must have a time zone; pass a datetime with tzinfo, such as UTC"
        raise UsageError(message, reason="wrong_value")


def utf8(text: str, subject: str, kind: type[FormatError | UsageError] = FormatError) -> bytes:
    """Return text in UTF-8; raise `kind`, about `subject`, if it has an unpaired surrogate."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise kind(f"{subject}: must not have an unpaired surrogate", reason="encoding") from error


def require_members(name: str, members: Collection[object]) -> None:
    """Raise UsageError if the rule `name` has no members, because it would accept nothing."""
    if not members:
        message = f"{name}: accepts nothing; add a value, or leave the rule out"
        raise UsageError(message, reason="missing")


def normalize_members(name: str, given: object, kind: type[_T]) -> frozenset[_T]:
    """Return the members of `given`, the value of argument `name`, as a frozenset.

    Raises:
        UsageError: If `given` is not a collection of hashable `kind`, or is text or bytes.
    """
    wanted = UsageError(f"{name}: must be a collection of {kind.__name__}", reason="wrong_type")
    if not isinstance(given, Collection) or isinstance(given, (str, bytes)):
        raise wanted
    found = [one for one in given if isinstance(one, kind)]
    if len(found) != len(given):
        raise wanted
    try:
        return frozenset(found)
    except TypeError as error:  # a tuple with a list in it
        raise wanted from error


def normalize_blobs(name: str, given: object) -> tuple[bytes, ...]:
    """Return the items of `given`, the value of argument `name`, as a tuple.

    Raises:
        UsageError: If `given` is not a collection of bytes, or is itself text or bytes.
    """
    wanted = UsageError(f"{name}: must be a collection of bytes", reason="wrong_type")
    if not isinstance(given, Iterable) or isinstance(given, (str, bytes)):
        raise wanted
    found = tuple(given)
    if not all(isinstance(one, bytes) for one in found):
        raise wanted
    return found


def name_argument(name: str, read: Callable[[], _T]) -> _T:
    """Return `read()`; a FormatError becomes a UsageError about the argument `name`."""
    try:
        return read()
    except FormatError as error:
        raise UsageError(f"{name}: {error}", reason="wrong_value") from error


def check_number(name: str, number: object, largest: int, least: int = 0) -> int:
    """Return `number`, the value of argument `name`.

    Raises:
        UsageError: If `number` is not an integer from `least` to `largest`, or is a boolean.
    """
    if type(number) is not int or not least <= number <= largest:
        message = f"{name}: must be an integer from {least} to {largest}, not {shown(number)}"
        raise UsageError(message, reason="out_of_range")
    return number


def check_text(name: str, value: object) -> str:
    """Return `value`, a non-empty string, of argument `name`.

    Raises:
        UsageError: If `value` is not a string, is empty, or has an unpaired surrogate.
    """
    if not isinstance(value, str) or not value:
        message = f"{name}: must be a non-empty string, not {shown(value)}"
        raise UsageError(message, reason="wrong_type")
    utf8(value, name, UsageError)
    return value


def import_package(module: str, message: str) -> Any:  # noqa: ANN401 - a module
    """Import and return a module of an optional dependency.

    Raises:
        UsageError: With `message`, if the dependency is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise UsageError(message, reason="missing_dependency") from error


@contextmanager
def needs_extra(
    subject: str, extra: str, kind: Callable[..., AttestKitError] = UsageError
) -> Iterator[None]:
    """Context manager: raise an ImportError as an error that names the `extra` to install.

    The error text begins with `subject`, such as the feature that needs the extra of attestkit, one
    of its optional groups of dependencies.

    Raises:
        UsageError: In place of the ImportError, or an error of the class `kind`.
    """
    try:
        yield
    except ImportError as error:
        message = f"{subject}: {error}; run pip install 'attestkit[{extra}]'"
        raise kind(message, reason="missing_dependency") from error
