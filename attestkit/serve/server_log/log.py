"""The log: a line of text, or a JSON object, for each record of ours and of foreign libraries.

Lines are ASCII without control characters and bounded, so that bytes of strangers can neither
begin a line, nor steer a terminal, nor fill a disk quickly. What is given as `extra` becomes
members of the object. Nobody logs keys or payloads; foreign exceptions are logged with their text.
"""

import json
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from attestkit.serve.server_log.access_log import AccessLog
from attestkit.serve.server_log.stderr_sink import LONGEST_LINE, Sink

__all__ = ["JsonLines", "Log", "TextLines", "ascii_line", "in_one_line"]

_PATIENCE: Final = 0.05  # seconds that one record may wait for a reader
_LAST_PATIENCE: Final = 1.0  # the same at the end, when nothing else waits
_OUR_LOGGERS: Final = "attestkit"
_PLAIN: Final = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"})
_RESERVED: Final = frozenset({"time", "level", "logger", "message", "exception"})
_NAMED: Final = frozenset({"request_id", "dropped"})  # our messages say these themselves
_CONTROLS: Final = {code: f"\\x{code:02x}" for code in (*range(32), 127)}
_CUT: Final = "..."


def ascii_line(text: str, longest: int) -> str:
    """Return text as ASCII in one line of at most so many characters.

    White space of any kind is one space, other characters that a terminal or an editor might act
    upon are written as escapes.
    """
    if not (text.isascii() and text.isprintable()):
        text = " ".join(text[:longest].split()).translate(_CONTROLS)
        text = text.encode("ascii", "backslashreplace").decode("ascii")
    return text if len(text) <= longest else text[: longest - len(_CUT)] + _CUT


def in_one_line(error: BaseException | None) -> str:
    """Return what went wrong and the way to it, innermost place last."""
    if error is None:
        return ""
    places = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{Path(code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return f"{type(error).__name__}: {error} ({' > '.join(places[-6:])})"


def _message(record: logging.LogRecord) -> str:
    with suppress(Exception):  # arguments that do not fit, of whomever
        return record.getMessage()
    return str(record.msg)


def _members(record: logging.LogRecord) -> dict[str, Any]:
    """Return what a record was given besides what every record has."""
    return {key: value for key, value in vars(record).items() if key not in _PLAIN}


class TextLines(logging.Formatter):
    """Records as lines for people: level, logger, message, members, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        message = _message(record)
        parts = [f"{record.levelname} {record.name}: {message}"]
        for key, value in _members(record).items():
            if key not in _NAMED or str(value) not in message:
                parts.append(f"{key}={value}")
        if record.exc_info and (told := in_one_line(record.exc_info[1])):
            parts.append(told)
        return ascii_line(" ".join(parts), LONGEST_LINE - 1)


class JsonLines(logging.Formatter):
    """Records as JSON objects: time, level, logger, message, members, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object, without a line end."""
        at = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        entry: dict[str, Any] = {
            "time": at.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        entry |= {key: value for key, value in _members(record).items() if key not in _RESERVED}
        if record.exc_info and (told := in_one_line(record.exc_info[1])):
            entry["exception"] = told
        return _bounded(entry)


def _bounded(entry: dict[str, Any]) -> str:
    """Return an object as JSON that fits into a line; what is too long is cut, last members go."""
    longest = LONGEST_LINE - 1
    text = _json(entry)
    share = longest // 2
    while len(text) > longest and share >= 64:
        cut = {key: _shortened(value, share) for key, value in entry.items()}
        text = _json(cut)
        share //= 2
    if len(text) > longest:
        text = _json({key: _shortened(entry[key], 64) for key in _RESERVED if key in entry})
    return text


def _json(entry: dict[str, Any]) -> str:
    return json.dumps(entry, separators=(",", ":"), default=str)


def _shortened(value: object, share: int) -> object:
    """Return a value whose JSON takes about `share` characters at most."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = value if isinstance(value, str) else _json({"": value})[4:-1]
    encoded = json.dumps(text[:share])
    if len(encoded) <= share and len(text) <= share:
        return value
    return text[: share // 12] + _CUT  # a character takes twelve at most


class _Handler(logging.Handler):
    """Hands records to a sink, requests that came before an error first."""

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self.before_error: Callable[[], None] | None = None
        self._sink = sink

    def handle(self, record: logging.LogRecord) -> bool:
        """Write one record, without a lock, which a destructor might wait for: the sink has one."""
        wanted = bool(self.filter(record))
        if wanted:
            self.emit(record)
        return wanted

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; whatever goes wrong with it, the program goes on."""
        with suppress(
            Exception
        ):  # a program must not fail for its log, and where would it be said?
            line = self._line(record)
            if self.before_error is not None and record.levelno >= logging.ERROR:
                self.before_error()
            self._sink.write([line], _PATIENCE)

    def _line(self, record: logging.LogRecord) -> bytes:
        try:
            text = self.format(record)
        except Exception as error:  # noqa: BLE001 - of whatever somebody gave it
            told = {
                "name": "attestkit.serve",
                "levelno": record.levelno,
                "levelname": record.levelname,
                "msg": f"a record cannot be written: {type(error).__name__}",
            }
            text = self.format(logging.makeLogRecord(told))
        return text.encode("ascii", "backslashreplace") + b"\n"


class Log:
    """The log of this process, on standard error; text from `info` up, until told otherwise.

    Until `close` it takes what all loggers say, warnings, and the exceptions of threads and of
    destructors.
    """

    def __init__(self, descriptor: int = 2) -> None:
        self.format: str = "text"
        self._sink = Sink(descriptor, self._dropped)
        self._handler = _Handler(self._sink)
        self._logger = logging.getLogger("attestkit.serve")
        self._access: AccessLog | None = None
        self._hooks = sys.unraisablehook, threading.excepthook
        sys.unraisablehook, threading.excepthook = _unraisable, _thread_failed
        logging.captureWarnings(capture=True)
        logging.getLogger().addHandler(self._handler)
        self.configure()

    def configure(self, form: str = "text", level: str = "info") -> None:
        """Choose the form, text or json, and the least level that is told.

        Foreign libraries are told from `info` up at most: what they say below is for those who
        write them, and may hold what passes through.
        """
        self.format = form
        self._handler.setFormatter(JsonLines() if form == "json" else TextLines())
        number = getattr(logging, level.upper())
        logging.getLogger(_OUR_LOGGERS).setLevel(number)
        logging.getLogger().setLevel(max(number, logging.INFO))

    def access_log(self, now: Callable[[], float]) -> AccessLog:
        """Return the log of requests, in the same form and place."""
        self._access = AccessLog(self._sink, json_form=self.format == "json", now=now)
        self._handler.before_error = self._access.flush
        return self._access

    def say(self, lines: Sequence[str], **members: object) -> None:
        """Tell people something that is no record; as JSON it is one, of the first line."""
        if self.format == "json":
            self._logger.info("%s", lines[0], extra=members)
        else:
            told = [f"{ascii_line(line, LONGEST_LINE - 1)}\n".encode("ascii") for line in lines]
            self._sink.write(told, _PATIENCE)

    def complain(self, text: str) -> None:
        """Tell why the server ends."""
        if self.format == "json":
            self._logger.critical("%s", text)
        else:
            line = ascii_line(f"attestkit serve: {text}", LONGEST_LINE - 1)
            self._sink.write([f"{line}\n".encode("ascii")], _LAST_PATIENCE)

    def close(self) -> None:
        """Write what is still held back, and leave everything as it was."""
        if self._access is not None:
            self._access.flush(_LAST_PATIENCE)
        logging.getLogger().removeHandler(self._handler)
        logging.captureWarnings(capture=False)
        sys.unraisablehook, threading.excepthook = self._hooks

    def _dropped(self, count: int) -> bytes:
        record = logging.makeLogRecord(
            {
                "name": "attestkit.serve",
                "levelno": logging.WARNING,
                "levelname": "WARNING",
                "msg": f"{count} lines of the log were dropped: nobody took them",
                "dropped": count,
            }
        )
        return self._handler.format(record).encode("ascii") + b"\n"


def _unraisable(failure: "sys.UnraisableHookArgs") -> None:
    _foreign("an exception that nobody could catch", failure.exc_value, failure.exc_traceback)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    _foreign("a thread failed", failure.exc_value, failure.exc_traceback)


def _foreign(text: str, error: BaseException | None, trace: TracebackType | None) -> None:
    if error is not None:
        found = (type(error), error, trace)
        logging.getLogger("attestkit.serve").error(text, exc_info=found)
