"""Run one test over all rows of a table, where an item of pytest for each would cost more.

An item costs pytest and pytest-xdist about 3 ms, most rows of a table a few microseconds. Use
`pytest.mark.parametrize` where a row takes long, is chosen by its id, has marks of its own, or
needs fixtures of its own: here all rows share them.
"""

import functools
import inspect
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import pytest

from tests.untyped import untyped

__all__ = ["every_case"]

Test = Callable[..., None]

_LONGEST: Final = 80
"""Characters of a case's name without an id."""


def every_case(
    names: str | Sequence[str],
    rows: Iterable[Any],
    *,
    ids: Callable[[Any], object] | Iterable[object] | None = None,
) -> Callable[[Test], Test]:
    """Return a decorator like `pytest.mark.parametrize` that makes one test of all rows.

    It fails after the last row, with the id and the error of each row that failed. If none failed
    and some skipped, it is skipped, with their number and the reason of the first one.
    """
    words = names.split(",") if isinstance(names, str) else names
    arguments = [name.strip() for name in words]
    cases = _name_cases(arguments, rows, ids)

    def decorate(test: Test) -> Test:
        @functools.wraps(test)
        def check_all(*own: object, **fixtures: object) -> None:
            if not cases:
                pytest.skip(f"no rows of {', '.join(arguments)}")
            failures: dict[str, BaseException] = {}
            skipped = []
            for name, values in cases:
                try:
                    test(*own, **fixtures, **values)
                except pytest.skip.Exception as skip:
                    skipped.append(skip)
                except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - a row may fail by any
                    failures[name] = error
            if failures:
                raise AssertionError(_list(failures, len(cases))) from next(iter(failures.values()))
            if skipped:
                pytest.skip(f"{len(skipped)} of {len(cases)} cases: {skipped[0]}")

        signature = inspect.signature(test)
        others = [one for one in signature.parameters.values() if one.name not in arguments]
        assert len(others) + len(arguments) == len(signature.parameters), arguments
        untyped(check_all).__signature__ = signature.replace(parameters=others)
        return check_all

    return decorate


def _name_cases(
    arguments: Sequence[str],
    rows: Iterable[Any],
    ids: Callable[[Any], object] | Iterable[object] | None,
) -> list[tuple[str, dict[str, Any]]]:
    """Return name and arguments of each row; the number of the row makes its name unique."""
    listed = None if ids is None or callable(ids) else iter(ids)
    cases = []
    for number, row in enumerate(rows):
        name: object = None
        values = row if len(arguments) > 1 else (row,)
        if isinstance(row, type(pytest.param())):
            assert not row.marks, f"row {number} has marks: use pytest.mark.parametrize"
            name, values = row.id, row.values
        if listed is not None:
            name = next(listed)
        if name is None:
            own = [ids(value) if callable(ids) else None for value in values]
            parts = [repr(v) if text is None else text for text, v in zip(own, values, strict=True)]
            name = "-".join(map(str, parts))[:_LONGEST]
        cases.append((f"{number}: {name}", dict(zip(arguments, values, strict=True))))
    return cases


def _list(failures: Mapping[str, BaseException], total: int) -> str:
    """Return the id, the last line of the test, and the error of each failed case."""
    lines = [f"{len(failures)} of {total} cases failed; the first one is above"]
    for name, error in failures.items():
        frames = traceback.extract_tb(error.__traceback__)
        line = frames[min(1, len(frames) - 1)].lineno  # below `check_all`
        lines += [f"[{name}] line {line}: {type(error).__name__}: {error}"]
    return "\n".join(lines)
