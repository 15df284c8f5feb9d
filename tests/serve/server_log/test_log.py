"""The server log: each record is one bounded line of ASCII, as text or JSON."""

import gc
import json
import logging
import os
import re
import sys
import threading
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.serve.server_log.log import JsonFormatter, ServerLog, TextFormatter
from attestkit.serve.server_log.stderr_sink import LONGEST_LINE
from tests.serve.server import run_python
from tests.serve.server_log.captured_log import CapturedLog

LOGGER = logging.getLogger("attestkit.serve")
TEXT = st.text(st.characters(exclude_categories=()))  # with lone surrogates
HOSTILE = "a\r\nERROR x: forged\x1b[2J\x9b2J\u202egnp.exe\u2028\u200b\x00\x7f\U0001f600"


def raise_error() -> Exception:
    """Return a raised exception with a text of two lines."""
    try:
        int("a\nb")
    except ValueError as error:
        return error
    raise AssertionError


def test_text_format(captured: CapturedLog) -> None:
    """Level, logger, message, exception with its place, and extra members.

    A request id that is in the message is not repeated.
    """
    LOGGER.error("request %s failed", "1-2", exc_info=raise_error(), extra={"request_id": "1-2"})
    LOGGER.warning("slow", extra={"seconds": 1.5, "request_id": "1-2"})
    first, second = captured.read_lines()
    assert re.fullmatch(
        r"ERROR attestkit\.serve: request 1-2 failed ValueError: .* \(test_log\.py:\d+\)", first
    )
    assert second == "WARNING attestkit.serve: slow seconds=1.5 request_id=1-2"


def test_json_format(captured: CapturedLog) -> None:
    """An object with UTC time in milliseconds and a member for each value.

    `extra` cannot replace the standard members.
    """
    captured.log.configure("json")
    extra = {"request_id": "1-2", "size": 5, "time": "1970", "level": "x", "exception": "y"}
    LOGGER.error("request %s failed", "1-2", exc_info=raise_error(), extra=extra)
    [entry] = captured.read_entries()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry.pop("time"))
    assert re.fullmatch(r"ValueError: .* \(test_log\.py:\d+\)", entry.pop("exception"))
    assert entry == {
        "level": "error",
        "logger": "attestkit.serve",
        "message": "request 1-2 failed",
        "request_id": "1-2",
        "size": 5,
    }


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_untrusted_text_is_escaped(captured: CapturedLog, log_format: str) -> None:
    """Untrusted text cannot start a line or emit control characters."""
    captured.log.configure(log_format)
    LOGGER.error("%s", HOSTILE, exc_info=ValueError(HOSTILE), extra={"path": HOSTILE})
    logging.getLogger(HOSTILE).error("x")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(HOSTILE, stacklevel=1)
    read_lines = captured.read_lines()
    assert len(read_lines) == 3
    for line in read_lines:
        assert line.isprintable()
    if log_format == "json":
        assert json.loads(read_lines[0])["message"] == HOSTILE
    else:
        assert read_lines[0].startswith(
            r"ERROR attestkit.serve: a ERROR x: forged\x1b[2J\x9b2J\u202egnp"
        )


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_line_length_is_bounded(captured: CapturedLog, log_format: str) -> None:
    """Long lines are truncated at the end."""
    captured.log.configure(log_format)
    for text in ("x" * 100_000, "\U0001f600" * 100_000, "\x00" * 5000):
        LOGGER.error(
            "first %s", text, exc_info=ValueError(text), extra={"a": text, "b": [text] * 9}
        )
        [line] = captured.read_lines()
        assert 200 < len(line) < LONGEST_LINE
        assert "first" in line
    many = {f"member{n}": "x" * 100 for n in range(500)}
    LOGGER.error("first", extra=many)
    [line] = captured.read_lines()
    assert len(line) < LONGEST_LINE
    assert "first" in line
    if log_format == "json":
        assert json.loads(line)["level"] == "error"


def test_unformattable_record_is_logged(captured: CapturedLog) -> None:
    """Wrong arguments and a failing __str__ do not raise."""

    class Unprintable:
        def __str__(self) -> str:
            raise RuntimeError("no")

    def emit(text: object, *values: object, **members: object) -> None:
        record = logging.LogRecord("x", logging.ERROR, "", 0, text, values, None)
        vars(record).update(members)
        captured.log._handler.handle(record)  # bypasses pytest's handler, which raises

    for log_format in ("text", "json"):
        captured.log.configure(log_format)
        emit("%d", "x")
        emit("%s %s", "x")
        emit("fine")
        emit("x", unprintable=Unprintable())
        emit(Unprintable())
        read_lines = captured.read_lines()
        assert len(read_lines) == 5
        assert "fine" in read_lines[2]
        assert all("record cannot be formatted: RuntimeError" in line for line in read_lines[3:])


@pytest.mark.parametrize(
    ("level", "own_count", "library_count"),
    [("debug", 5, 4), ("info", 4, 4), ("warning", 3, 3), ("error", 2, 2)],
)
def test_level_filters_records(
    captured: CapturedLog, level: str, own_count: int, library_count: int
) -> None:
    """Records below the level are dropped; debug records of libraries always."""
    captured.log.configure("json", level)
    for name, count in (
        ("attestkit.ra_tls", own_count),
        ("uvicorn.error", library_count),
        ("a", library_count),
    ):
        for number in (10, 20, 30, 40, 50):
            logging.getLogger(name).log(number, "x")
        assert len(captured.read_lines()) == count


def test_uncaught_exceptions_are_logged(captured: CapturedLog) -> None:
    """Exceptions in threads and destructors are one line each."""

    class FailingDestructor:
        def __del__(self) -> None:
            raise ValueError("in a destructor")

    def fail() -> None:
        raise ValueError("in a thread")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    del thread
    FailingDestructor()
    gc.collect()
    first, second = captured.read_lines()
    assert first.startswith("ERROR attestkit.serve: thread failed ValueError: in a thread (")
    assert "ValueError: in a destructor (test_log.py:" in second


DESTRUCTORS = """
import faulthandler, gc, logging, os, threading
from attestkit.serve.server_log.log import ServerLog

class Foreign:
    def __init__(self):
        self.cycle = self
    def __del__(self):
        logging.getLogger("aiohttp").warning("unclosed")

def say():
    for n in range(1500):
        Foreign()
        log._sink.write([b"x\\n"] * 20)
        logging.getLogger("other").warning("said")

faulthandler.dump_traceback_later(30, exit=True)
log = ServerLog(os.open("/dev/null", os.O_WRONLY))
gc.set_threshold(20, 1000, 1000)  # collect garbage often
threads = [threading.Thread(target=say) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("done")
"""


def test_destructors_may_log() -> None:
    """A destructor may log during garbage collection while any thread writes."""
    done = run_python(DESTRUCTORS)
    assert done.stdout == "done\n", done.stderr


def test_print_lines(captured: CapturedLog) -> None:
    """Lines are printed as they are; in JSON they are one record with the addresses."""
    captured.log.print_lines(["serving", "  curl x", "\x1b"], places={"http": "http://x"})
    assert captured.read_lines() == ["serving", "  curl x", r"\x1b"]
    captured.log.configure("json", "error")
    captured.log.print_lines(["serving"], places={"http": "http://x"})
    assert captured.read_lines() == []
    captured.log.configure("json")
    captured.log.print_lines(["serving", "  curl x"], places={"http": "http://x"})
    [entry] = captured.read_entries()
    assert (entry["message"], entry["places"]) == ("serving", {"http": "http://x"})


def test_report_error_ignores_level(captured: CapturedLog) -> None:
    """The fatal error is one line at every level."""
    captured.log.configure("text", "error")
    captured.log.report_error("x\n\x1by")
    assert captured.read_lines() == [r"attestkit serve: x \x1by"]
    captured.log.configure("json", "error")
    captured.log.report_error("x\n\x1by")
    [entry] = captured.read_entries()
    assert (entry["level"], entry["message"]) == ("critical", "x\n\x1by")


def test_close_restores_logging() -> None:
    """Closing restores handlers and hooks."""
    before = (list(logging.getLogger().handlers), sys.unraisablehook, threading.excepthook)
    reader, writer = os.pipe()
    log = ServerLog(writer)
    assert sys.unraisablehook is not before[1]
    log.close()
    assert (logging.getLogger().handlers, sys.unraisablehook, threading.excepthook) == before
    os.close(reader)
    os.close(writer)


@pytest.mark.slow
@pytest.mark.parametrize("log_format", [TextFormatter, JsonFormatter])
@given(text=TEXT, extra=st.dictionaries(TEXT, TEXT | st.floats() | st.none()))
def test_any_record_is_one_line(
    log_format: type[logging.Formatter], text: str, extra: dict[str, Any]
) -> None:
    """An arbitrary record gives one bounded line, and valid JSON."""
    record = logging.LogRecord("x", 40, "", 0, text, None, None)
    vars(record).update({f"k{key}": value for key, value in extra.items()})
    line = log_format().format(record)
    assert line.isascii()
    assert line.isprintable()
    assert len(line) < LONGEST_LINE
    if log_format is JsonFormatter:
        json.loads(line)
