"""Assert that a call raises one of attestkit's errors: its type, its reason and its values."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TypeVar

import pytest

from attestkit.errors import AttestKitError

_E = TypeVar("_E", bound=AttestKitError)


@contextmanager
def raises(
    kind: type[_E],
    *reasons: str,
    start: str = "",
    part: str = "",
    text: str | None = None,
    **values: object,
) -> Iterator[pytest.ExceptionInfo[_E]]:
    r"""Expect an error of exactly `kind`, with one of `reasons` and attributes `values`.

    The wording of an error is not compared: it may change, and is asserted once, in one test, with
    `text`. It must start with `start` and contain `part`, such as the name of the wrong field.

    ```
    with raises(FormatError, "truncated", offset=4):
        Quote.parse(b"\x04\x00\x02\x00")
    ```
    """
    with pytest.raises(kind) as caught:
        yield caught
    error = caught.value
    assert type(error) is kind, f"{type(error).__name__} instead of {kind.__name__}: {error}"
    assert error.reason in reasons, f"reason {error.reason!r}, expected {reasons}: {error}"
    found = {name: getattr(error, name) for name in values}
    assert found == values, f"{found}, expected {values}: {error}"
    assert text in (None, str(error)), f"expected {text!r}: {error}"
    assert str(error).startswith(start), f"expected {start!r} at the start: {error}"
    assert part in str(error), f"expected {part!r}: {error}"


def repeated_subjects(error: BaseException) -> set[str]:
    """Return the parts of an error's text that are there twice in a row, as in `a: a: missing`."""
    return {one for one, other in pairwise(str(error).split(": ")) if one == other}


def errno_of(error: BaseException) -> int | None:
    """Return the errno of the OSError that `error` was translated from; None without one."""
    cause = error.__cause__
    return cause.errno if isinstance(cause, OSError) else None


@contextmanager
def raises_os_error() -> Iterator[pytest.ExceptionInfo[OSError]]:
    """Expect an OSError of the system: one with an errno."""
    with pytest.raises(OSError, match=r"\[Errno \d+\]") as caught:
        yield caught
