"""`errors_in` finds the errors in a server's log."""

import logging

import pytest

from attestkit.serve.server_log.log import JsonFormatter, TextFormatter
from tests.serve.server import errors_in


def format_failure(formatter: logging.Formatter, level: int) -> str:
    """Return the line about a failure, as the server writes it."""
    error = ValueError("ERROR Traceback")
    exc_info = (ValueError, error, None)
    return formatter.format(
        logging.LogRecord("uvicorn.error", level, __file__, 1, "x", None, exc_info)
    )


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
@pytest.mark.parametrize("level", [logging.ERROR, logging.CRITICAL])
def test_errors_in_finds_errors(formatter: logging.Formatter, level: int) -> None:
    """Errors are found among other lines, in text and JSON."""
    line = format_failure(formatter, level)
    assert errors_in(f"ready\n{line}\nINFO x: y\n") == [line]


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_errors_in_ignores_warnings(formatter: logging.Formatter) -> None:
    """A warning that quotes an error is not an error."""
    assert errors_in(format_failure(formatter, logging.WARNING)) == []


@pytest.mark.parametrize(
    "line",
    [
        "Traceback (most recent call last):",
        "Exception ignored in: <function x>",
        "Fatal Python error: Segmentation fault",
        "attestkit serve: internal error: ValueError: x",
    ],
)
def test_errors_in_finds_output_of_interpreter(line: str) -> None:
    """Errors printed by Python itself, without the log, are found."""
    assert errors_in(f"ready\n{line}\n") == [line]
    assert errors_in("attestkit serves a simulator\n") == []
