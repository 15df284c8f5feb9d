"""What tests of whole servers look for at their end is found where it is, and nowhere else."""

import logging

import pytest

from attestkit.serve.server_log.log import JsonLines, TextLines
from tests.serve.server import errors_in


def written(form: logging.Formatter, level: int) -> str:
    """Return the line about a failure, as the server writes it."""
    error = ValueError("ERROR Traceback")
    told = (ValueError, error, None)
    return form.format(logging.LogRecord("uvicorn.error", level, __file__, 1, "x", None, told))


@pytest.mark.parametrize("form", [TextLines(), JsonLines()])
@pytest.mark.parametrize("level", [logging.ERROR, logging.CRITICAL])
def test_errors_are_found(form: logging.Formatter, level: int) -> None:
    """In both forms of the log, among other lines."""
    line = written(form, level)
    assert errors_in(f"ready\n{line}\nINFO x: y\n") == [line]


@pytest.mark.parametrize("form", [TextLines(), JsonLines()])
def test_warnings_are_none(form: logging.Formatter) -> None:
    """Nor is what a line of a lower level quotes."""
    assert errors_in(written(form, logging.WARNING)) == []


@pytest.mark.parametrize(
    "line",
    [
        "Traceback (most recent call last):",
        "Exception ignored in: <function x>",
        "Fatal Python error: Segmentation fault",
        "attestkit serve: internal error: ValueError: x",
    ],
)
def test_what_no_record_tells_is_found(line: str) -> None:
    """Python writes where there is no log any more, or not yet; so does a server's end."""
    assert errors_in(f"ready\n{line}\n") == [line]
    assert errors_in("attestkit serves a simulator\n") == []
