"""Server log: text or JSON lines for the records of attestkit and of libraries.

Lines are limited in length and ASCII without control characters. Untrusted text can therefore not
forge a line, send escape sequences to a terminal, or fill a disk quickly. Values in `extra` become
members of the JSON object. Keys and payloads are never logged; exceptions of libraries are logged
with their text.
"""

import json
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from attestkit.serve.server_log.access_log import AccessLog
from attestkit.serve.server_log.stderr_sink import LONGEST_LINE, StderrSink

_PATIENCE: Final = 0.05  # seconds that a record may wait for a slow reader
_LAST_PATIENCE: Final = 1.0  # the same for the last records
_OUR_LOGGERS: Final = "attestkit"
_PLAIN: Final = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"})
_RESERVED: Final = ("time", "level", "logger", "message", "exception")
_NAMED: Final = frozenset({"request_id", "dropped"})  # already part of the message
_SHARES: Final = (2048, 512, 64)  # characters of a value of a record that is too long
_CONTROLS: Final = {code: f"\\x{code:02x}" for code in (*range(32), 127)}
_CUT: Final = "..."


def ascii_line(text: str, max_length: int) -> str:
    """Return text as one line of ASCII with at most `max_length` characters.

    White space becomes single spaces; control and non-ASCII characters are escaped.
    """
    if not (text.isascii() and text.isprintable()):
        text = " ".join(text[:max_length].split()).translate(_CONTROLS)
        text = text.encode("ascii", "backslashreplace").decode("ascii")
    return text if len(text) <= max_length else text[: max_length - len(_CUT)] + _CUT


def one_line_traceback(error: BaseException | None) -> str:
    """Return an exception, and file and line of the last six calls in its traceback.

    Empty for None.
    """
    if error is None:
        return ""
    trace = traceback.walk_tb(error.__traceback__)
    places = [f"{Path(frame.f_code.co_filename).name}:{line}" for frame, line in trace]
    return f"{type(error).__name__}: {error} ({' > '.join(places[-6:])})"


def _message(record: logging.LogRecord) -> str:
    with suppress(Exception):  # arguments that do not match the format
        return record.getMessage()
    return str(record.msg)


def _members(record: logging.LogRecord) -> dict[str, Any]:
    """Return the `extra` members of a record."""
    return {key: value for key, value in vars(record).items() if key not in _PLAIN}


class TextFormatter(logging.Formatter):
    """Formatter of text lines: level, logger, message, extra fields of the record, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its line end."""
        message = _message(record)
        parts = [f"{record.levelname} {record.name}: {message}"]
        for key, value in _members(record).items():
            if key not in _NAMED or str(value) not in message:
                parts.append(f"{key}={value}")
        if record.exc_info and (text := one_line_traceback(record.exc_info[1])):
            parts.append(text)
        return ascii_line(" ".join(parts), LONGEST_LINE - 1)


class JsonFormatter(logging.Formatter):
    """Formatter of JSON lines: time, level, logger, message, extra fields, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the JSON object without a line end; values that are too long are cut."""
        at = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        entry: dict[str, Any] = {
            "time": at.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        entry |= {key: value for key, value in _members(record).items() if key not in _RESERVED}
        if record.exc_info and (text := one_line_traceback(record.exc_info[1])):
            entry["exception"] = text
        line = _json(entry)
        for share in _SHARES:
            if len(line) < LONGEST_LINE:
                return line
            line = _json({key: _shortened(value, share) for key, value in entry.items()})
        if len(line) < LONGEST_LINE:
            return line
        return _json({key: _shortened(entry[key], 64) for key in _RESERVED if key in entry})


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), default=str)


def _shortened(value: object, share: int) -> object:
    """Return a value, or its text cut so that its JSON takes at most `share` characters."""
    if len(_json(value)) <= share:
        return value
    text = value if isinstance(value, str) else _json(value)
    return text[: share // 12] + _CUT  # JSON takes up to twelve characters for one


def _record(level: int, text: str, **members: object) -> logging.LogRecord:
    """Return a log record of the logger attestkit.serve.

    `level` is a number as `logging.INFO`; `members` are its `extra`.
    """
    name = {"name": "attestkit.serve", "levelno": level, "levelname": logging.getLevelName(level)}
    return logging.makeLogRecord({**name, "msg": text, **members})


class _Handler(logging.Handler):
    """Handler that writes records to a sink, with pending access log lines before an error."""

    def __init__(self, sink: StderrSink) -> None:
        super().__init__()
        self.before_error: Callable[[], None] | None = None
        self._sink = sink

    def createLock(self) -> None:  # noqa: N802 - as logging names it
        """Use no lock, on which a destructor could deadlock; the sink is thread-safe."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Emit a record without a lock, which the base class requires since Python 3.13."""
        passes = bool(self.filter(record))
        if passes:
            self.emit(record)
        return passes

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, suppressing all errors."""
        with suppress(Exception):  # a failure to log must not stop the program
            line = self._line(record)
            if self.before_error is not None and record.levelno >= logging.ERROR:
                self.before_error()
            self._sink.write([line], _PATIENCE)

    def _line(self, record: logging.LogRecord) -> bytes:
        try:
            text = self.format(record)
        except Exception as error:  # noqa: BLE001 - of a foreign __str__
            problem = f"record cannot be formatted: {type(error).__name__}"
            text = self.format(_record(record.levelno, problem))
        return text.encode("ascii", "backslashreplace") + b"\n"


class ServerLog:
    """Log of this process on standard error; text of level `info` by default.

    Until `close` it handles the records of all loggers, warnings, and unhandled exceptions of
    threads and destructors.
    """

    def __init__(self, descriptor: int = 2) -> None:
        self.format: str = "text"
        self._sink = StderrSink(descriptor, self._dropped)
        self._handler = _Handler(self._sink)
        self._logger = logging.getLogger("attestkit.serve")
        self._access: AccessLog | None = None
        self._hooks = sys.unraisablehook, threading.excepthook
        sys.unraisablehook, threading.excepthook = _unraisable, _thread_failed
        logging.captureWarnings(capture=True)
        logging.getLogger().addHandler(self._handler)
        self.configure()

    def configure(self, form: str = "text", level: str = "info") -> None:
        """Set the format, text or json, and the minimum level: a name of `logging` in lower case.

        Libraries log at `info` or above: their debug messages may contain request data.
        """
        self.format = form
        self._handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
        number = getattr(logging, level.upper())
        logging.getLogger(_OUR_LOGGERS).setLevel(number)
        logging.getLogger().setLevel(max(number, logging.INFO))

    def access_log(self, now: Callable[[], float]) -> AccessLog:
        """Return the access log, in the same format and to the same sink.

        `now` returns the Unix time.
        """
        self._access = AccessLog(self._sink, json_form=self.format == "json", now=now)
        self._handler.before_error = self._access.flush
        return self._access

    def print_lines(self, lines: Sequence[str], **members: object) -> None:
        """Write lines without log level; in JSON, one record with the first line and `members`."""
        if self.format == "json":
            self._logger.info("%s", lines[0], extra=members)
        else:
            encoded = [f"{ascii_line(line, LONGEST_LINE - 1)}\n".encode("ascii") for line in lines]
            self._sink.write(encoded, _PATIENCE)

    def report_error(self, text: str) -> None:
        """Write `text`, the error that ends the server; wait up to a second for a slow reader."""
        if self.format == "json":
            self._logger.critical("%s", text)
        else:
            line = ascii_line(f"attestkit serve: {text}", LONGEST_LINE - 1)
            self._sink.write([f"{line}\n".encode("ascii")], _LAST_PATIENCE)

    def close(self) -> None:
        """Write pending lines and restore the logging configuration."""
        if self._access is not None:
            self._access.flush(_LAST_PATIENCE)
        logging.getLogger().removeHandler(self._handler)
        logging.captureWarnings(capture=False)
        sys.unraisablehook, threading.excepthook = self._hooks

    def _dropped(self, count: int) -> bytes:
        text = f"{count} log lines were dropped: the reader is too slow"
        record = _record(logging.WARNING, text, dropped=count)
        return self._handler.format(record).encode("ascii") + b"\n"


def _unraisable(failure: "sys.UnraisableHookArgs") -> None:
    _log_foreign("unraisable exception", failure.exc_value)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    _log_foreign("thread failed", failure.exc_value)


def _log_foreign(text: str, error: BaseException | None) -> None:
    if error is not None:
        logging.getLogger("attestkit.serve").error(text, exc_info=error)
