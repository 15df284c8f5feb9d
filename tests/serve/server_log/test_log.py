"""Each record is one line of ASCII that strangers cannot shape, as text or as a JSON object."""

import gc
import json
import logging
import os
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.serve.server_log.log import JsonLines, Log, TextLines, ascii_line
from attestkit.serve.server_log.stderr_sink import LONGEST_LINE

OURS = logging.getLogger("attestkit.serve")
LIBRARIES = ("uvicorn", "uvicorn.error", "asyncio", "aiodocker", "py.warnings")
HOSTILE = "a\r\nERROR x: forged\x1b[2J\x9b2J\u202egnp.exe\u2028\u200b\x00\x7f\U0001f600"


class Written:
    """A log whose lines can be read."""

    def __init__(self, log: Log, reader: int) -> None:
        self.log = log
        self._reader = reader

    def lines(self) -> list[str]:
        """Return what was written since the last time, as whole lines of ASCII."""
        try:
            text = os.read(self._reader, 1 << 20).decode("ascii")
        except BlockingIOError:
            return []
        assert text.endswith("\n")
        return text[:-1].split("\n")

    def entries(self) -> list[dict[str, Any]]:
        """Return the same as objects."""
        return [json.loads(line) for line in self.lines()]


@pytest.fixture
def written() -> Iterator[Written]:
    """Take the log of this process over for the test."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    levels = {name: logging.getLogger(name).level for name in ("", "attestkit", *LIBRARIES)}
    # uvicorn sets its own in tests that serve in this process, and so handlers where asked to
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.NOTSET)
        logger.handlers, logger.propagate = [], True
    log = Log(writer)
    yield Written(log, reader)
    log.close()
    for logger, (handlers, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    os.close(reader)
    os.close(writer)


def failure() -> Exception:
    """Return an exception that was raised, with a text of two lines."""
    try:
        int("a\nb")
    except ValueError as error:
        return error
    raise AssertionError


def test_text(written: Written) -> None:
    """Level, logger, message; the exception with the way to it; members that are not said yet."""
    OURS.error("request %s failed", "1-2", exc_info=failure(), extra={"request_id": "1-2"})
    OURS.warning("slow", extra={"seconds": 1.5})
    first, second = written.lines()
    assert re.fullmatch(
        r"ERROR attestkit\.serve: request 1-2 failed ValueError: .* \(test_log\.py:\d+\)", first
    )
    assert second == "WARNING attestkit.serve: slow seconds=1.5"


def test_members_that_the_message_seems_to_hold(written: Written) -> None:
    """Only the number of a request is not said twice, and only where it is said at all."""
    OURS.info("took 100 ms", extra={"retries": 1, "request_id": "1-2"})
    assert written.lines() == ["INFO attestkit.serve: took 100 ms retries=1 request_id=1-2"]


def test_json(written: Written) -> None:
    """An object with the time in UTC to the millisecond, and a member for each thing told."""
    written.log.configure("json")
    OURS.error(
        "request %s failed", "1-2", exc_info=failure(), extra={"request_id": "1-2", "size": 5}
    )
    [entry] = written.entries()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry.pop("time"))
    assert re.fullmatch(r"ValueError: .* \(test_log\.py:\d+\)", entry.pop("exception"))
    assert entry == {
        "level": "error",
        "logger": "attestkit.serve",
        "message": "request 1-2 failed",
        "request_id": "1-2",
        "size": 5,
    }


def test_members_do_not_take_the_place_of_others(written: Written) -> None:
    """Nobody's `extra` changes when, where and how bad it was."""
    written.log.configure("json")
    OURS.info("x", extra={"time": "1970", "level": "debug", "logger": "y", "exception": "z"})
    [entry] = written.entries()
    assert entry["level"] == "info"
    assert entry["logger"] == "attestkit.serve"
    assert entry["time"] > "2000"
    assert "exception" not in entry


@pytest.mark.parametrize("form", ["text", "json"])
def test_strangers_bytes(written: Written, form: str) -> None:
    """A stranger's text begins no line and steers no terminal, wherever it stands."""
    written.log.configure(form)
    OURS.error("%s", HOSTILE, exc_info=ValueError(HOSTILE), extra={"path": HOSTILE})
    logging.getLogger(HOSTILE).error("x")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(HOSTILE, stacklevel=1)
    lines = written.lines()
    assert len(lines) == 3
    for line in lines:
        assert line.isprintable()
    if form == "json":
        assert json.loads(lines[0])["message"] == HOSTILE
    else:
        assert lines[0].startswith(
            r"ERROR attestkit.serve: a ERROR x: forged\x1b[2J\x9b2J\u202egnp"
        )


@pytest.mark.parametrize("form", ["text", "json"])
def test_lines_are_bounded(written: Written, form: str) -> None:
    """Whatever is long is cut, and what came first stays."""
    written.log.configure(form)
    for text in ("x" * 100_000, "\U0001f600" * 100_000, "\x00" * 5000):
        OURS.error("first %s", text, exc_info=ValueError(text), extra={"a": text, "b": [text] * 9})
        [line] = written.lines()
        assert 200 < len(line) < LONGEST_LINE
        assert "first" in line
    many = {f"member{n}": "x" * 100 for n in range(500)}
    OURS.error("first", extra=many)
    [line] = written.lines()
    assert len(line) < LONGEST_LINE
    assert "first" in line
    if form == "json":
        assert json.loads(line)["level"] == "error"


def test_records_that_cannot_be(written: Written) -> None:
    """Arguments that do not fit, or that cannot be shown, do not end the program."""

    class Rude:
        def __str__(self) -> str:
            raise RuntimeError("no")

    def say(text: object, *values: object, **members: object) -> None:
        record = logging.LogRecord("x", logging.ERROR, "", 0, text, values, None)
        vars(record).update(members)
        written.log._handler.handle(record)  # without pytest's, which are not as patient

    for form in ("text", "json"):
        written.log.configure(form)
        say("%d", "x")
        say("%s %s", "x")
        say("fine")
        say("x", rude=Rude())
        say(Rude())
        lines = written.lines()
        assert len(lines) == 5
        assert "fine" in lines[2]
        assert all("a record cannot be written: RuntimeError" in line for line in lines[3:])


@pytest.mark.parametrize(
    ("level", "ours", "theirs"),
    [("debug", 5, 4), ("info", 4, 4), ("warning", 3, 3), ("error", 2, 2)],
)
def test_levels(written: Written, level: str, ours: int, theirs: int) -> None:
    """From the level up; others' debugging is never told, for it may hold what passes through."""
    written.log.configure("json", level)
    for name, count in (("attestkit.ra_tls", ours), ("uvicorn.error", theirs), ("a", theirs)):
        for number in (10, 20, 30, 40, 50):
            logging.getLogger(name).log(number, "x")
        assert len(written.lines()) == count


@pytest.mark.parametrize(
    "name", ["uvicorn", "uvicorn.error", "asyncio", "aiodocker", "py.warnings"]
)
def test_libraries_are_told_too(written: Written, name: str) -> None:
    """Through the one log there is."""
    logging.getLogger(name).warning("%s", "careful")
    assert written.lines() == [f"WARNING {name}: careful"]


def test_what_nobody_catches(written: Written) -> None:
    """Failed threads and destructors are a line each, in place of a page on stderr."""

    class Sore:
        def __del__(self) -> None:
            raise ValueError("in a destructor")

    def fail() -> None:
        raise ValueError("in a thread")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    del thread
    Sore()
    gc.collect()
    first, second = written.lines()
    assert first.startswith("ERROR attestkit.serve: a thread failed ValueError: in a thread (")
    assert "ValueError: in a destructor (test_log.py:" in second


DESTRUCTORS = """
import faulthandler, gc, logging, os, threading
from attestkit.serve.server_log.log import Log

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
log = Log(os.open("/dev/null", os.O_WRONLY))
gc.set_threshold(20, 1000, 1000)  # as often as a busy server would sooner or later
threads = [threading.Thread(target=say) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("done")
"""


def test_destructors_may_log() -> None:
    """Wherever garbage is collected, also while lines are being written, by several threads."""
    done = subprocess.run(
        [sys.executable, "-c", DESTRUCTORS],
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "done\n", done.stderr


def test_what_people_are_told(written: Written) -> None:
    """Lines as they are; as JSON one record of the first, with the places as a member."""
    written.log.say(["serving", "  curl x", "\x1b"], places={"http": "http://x"})
    assert written.lines() == ["serving", "  curl x", r"\x1b"]
    written.log.configure("json", "error")
    written.log.say(["serving"], places={"http": "http://x"})
    assert written.lines() == []
    written.log.configure("json")
    written.log.say(["serving", "  curl x"], places={"http": "http://x"})
    [entry] = written.entries()
    assert (entry["message"], entry["places"]) == ("serving", {"http": "http://x"})


def test_why_it_ends(written: Written) -> None:
    """In a line, whatever the level."""
    written.log.configure("text", "error")
    written.log.complain("x\n\x1by")
    assert written.lines() == [r"attestkit serve: x \x1by"]
    written.log.configure("json", "error")
    written.log.complain("x\n\x1by")
    [entry] = written.entries()
    assert (entry["level"], entry["message"]) == ("critical", "x\n\x1by")


def test_it_gives_everything_back() -> None:
    """A program that serves for a while has its own log again afterwards."""
    before = (list(logging.getLogger().handlers), sys.unraisablehook, threading.excepthook)
    reader, writer = os.pipe()
    log = Log(writer)
    assert sys.unraisablehook is not before[1]
    log.close()
    assert (logging.getLogger().handlers, sys.unraisablehook, threading.excepthook) == before
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("form", [TextLines, JsonLines])
def test_half_a_surrogate_pair(form: type[logging.Formatter]) -> None:
    """As in the name of a file that is no UTF-8, it is an escape like others."""
    record = logging.LogRecord("x", 40, "", 0, "a\udc80b", None, None)
    assert r"a\udc80b" in form().format(record)


@given(st.text(), st.integers(10, 50))
def test_printable(text: str, longest: int) -> None:
    """Any text is a line of ASCII within its bound; plain text is itself."""
    found = ascii_line(text, longest)
    assert found.isascii()
    assert found.isprintable() or not found
    assert len(found) <= longest
    if text.isascii() and text.isprintable() and len(text) <= longest:
        assert found == text


@pytest.mark.parametrize("form", [TextLines, JsonLines])
@given(text=st.text(), extra=st.dictionaries(st.text(), st.text() | st.floats() | st.none()))
def test_any_record(form: type[logging.Formatter], text: str, extra: dict[str, Any]) -> None:
    """Whatever it holds, it is one line that fits, and JSON where it should be."""
    record = logging.LogRecord("x", 40, "", 0, text, None, None)
    vars(record).update({f"k{key}": value for key, value in extra.items()})
    line = form().format(record)
    assert line.isascii()
    assert line.isprintable()
    assert len(line) < LONGEST_LINE
    if form is JsonLines:
        json.loads(line)
