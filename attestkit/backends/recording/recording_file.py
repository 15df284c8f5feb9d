"""File format of recordings: JSON lines, one object for each call, written immediately.

The first line is the header. Every other line is a call with its answer or its error, in order:

    {"ask": "read_rtmr", "register": 3, "answer": "5c0f..."}
    {"change": "journal_emit", "name": "model-loaded", ..., "answer": null}
    {"ask": "read_event_log", "as": 2}

`ask` is a call that reads, `change` one that changes the state of the TEE. `as` is the number,
from 1, of the line with the complete answer. The last line has the number of calls. If it is
missing, the recording was not closed, but is valid nevertheless. A truncated last line is ignored.
"""

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from attestkit._crypto.hashes import sha256
from attestkit._formats.strict_json import decode_strictly, wrong_json_type
from attestkit._sanitize import shown
from attestkit._system.untrusted_files import open_regular
from attestkit.backends.linux.device_errors import unavailable
from attestkit.backends.recording import call_codec
from attestkit.errors import FormatError, UsageError

FORMAT: Final = "attestkit recording"
VERSION: Final = 1
LARGEST: Final = 1 << 28  # bytes of a file
MOST: Final = 1_000_000  # calls in a file
_LONG: Final = 200  # bytes; a repeated answer of this size is replaced by its line number
_ANSWERS: Final = {"answer", "as", "error", "text", "offset", "path", "reason"}


class RecordingWriter:
    """Writer of a new recording. `write` returns after the line was passed to the kernel.

    Args:
        path: An unused path; the file is created with mode 0600.

    Raises:
        UsageError: If the file exists already, or cannot be created.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._put: Callable[[int, bytes], int] = os.write
        self._lines = self._size = 0
        self._seen: dict[tuple[call_codec.Codec, bytes], int] = {}
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(path, flags, 0o600)
        except FileExistsError as error:
            text = f"{path}: exists already; recordings are never overwritten, choose another path"
            raise UsageError(text, reason="already_exists") from error
        except (OSError, ValueError) as error:
            text = f"{path}: cannot create the recording: {_cause(error)}"
            raise UsageError(text, reason="cannot_write") from error

    def header(self, fields: Mapping[str, object]) -> None:
        """Write the header, which is the first line: format, version, and `fields`.

        Raises:
            OSError: As for `write`.
        """
        self.write({"format": FORMAT, "version": VERSION, **fields})

    def write_result(
        self, call: Mapping[str, object], codec: call_codec.Codec, answer: object
    ) -> None:
        """Write a call and its answer.

        If an earlier line contains the same long answer, the number of that line is written instead
        of the answer.

        Args:
            call: Fields as `call_to_json` returns them.
            codec: Codec that encoded the answer.
            answer: The encoded answer, a JSON value.

        Raises:
            OSError: As for `write`.
        """
        text = _encode_line(answer)
        shared = codec.independent and len(text) >= _LONG
        name = codec, sha256(text)
        if shared and (line := self._seen.get(name)) is not None:
            self.write({**call, "as": line})
            return
        self.write({**call, "answer": answer})
        if shared:
            self._seen[name] = self._lines

    def write(self, line: Mapping[str, object]) -> None:
        """Write one line. If that fails, the file is unchanged.

        Raises:
            OSError: If the line cannot be written, or the file would exceed its limits.
        """
        data = _encode_line(line) + b"\n"
        if self._size + len(data) > LARGEST or self._lines >= MOST:
            raise OSError(None, f"a recording has at most {LARGEST} bytes and {MOST} calls")
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._put(self._fd, bytes(rest)) :]
        except BaseException:
            with contextlib.suppress(OSError):  # readers ignore a truncated last line
                os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)
        self._lines += 1

    def end(self) -> None:
        """Write the last line, with the number of calls, and sync the file to disk.

        Raises:
            OSError: As for `write`.
        """
        self.write({"end": self._lines - 1})
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def _cause(error: OSError | ValueError) -> object:
    return getattr(error, "strerror", None) or error


def _encode_line(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


# -- reading -----------------------------------------------------------------------------------


class RecordedCall(NamedTuple):
    """A call (`key`: name and arguments) and its result, `answer`; `change`: it changes the TEE."""

    key: call_codec.Key
    change: bool
    answer: call_codec.RecordedResult


class RecordingFile(NamedTuple):
    """A parsed recording."""

    header: dict[str, Any]
    entries: tuple[RecordedCall, ...]
    complete: bool  # whether it was closed


def read_recording(path: Path) -> RecordingFile:
    """Read a recording, at most 256 MiB.

    Raises:
        BackendUnavailableError: If the file cannot be read.
        FormatError: If the file is not a valid recording; the text has its path and the line.
    """
    data = _read(path)
    try:
        return parse_recording(data)
    except FormatError as error:
        raise FormatError(f"{path}: {error}", reason=error.reason) from error


def parse_recording(data: bytes) -> RecordingFile:
    """Parse `data`, the content of a recording: JSON lines.

    Raises:
        FormatError: If it is malformed, or has more than a million calls; the text has the number
            of the line.
    """
    # Count first: splitting a file of empty lines would take many times its size.
    if data.count(b"\n") > MOST + 3:  # and the header, the end, and the newline after the end
        raise FormatError(f"more than {MOST} calls", reason="too_many")
    lines = data.split(b"\n")
    parser, number = _Parser(), 0
    try:
        for number, line in enumerate(lines, 1):
            found = _decode_line(line, last=number == len(lines))
            if found is not None:
                parser.feed(found)
        return parser.finish()
    except FormatError as error:
        raise FormatError(f"line {number}: {error}", reason=error.reason) from error


T = TypeVar("T")


def header_field(header: Mapping[str, Any], key: str, kind: type[T]) -> T:
    """Return the field `key` of a recording's header; FormatError if its type is not `kind`."""
    if not isinstance(found := header.get(key), kind):
        problem = f"must be {kind.__name__}, not {type(found).__name__}"
        raise FormatError(f"{key} of the header: {problem}", reason="wrong_type")
    return found


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb", opener=partial(open_regular, follow=True)) as file:
            # `read` allocates its argument: the size of the file, and a byte to detect growth.
            data = file.read(min(os.fstat(file.fileno()).st_size, LARGEST) + 1)
    except (OSError, ValueError) as error:
        text = f"cannot read the recording: {_cause(error)}"
        missing = isinstance(error, FileNotFoundError)
        raise unavailable(path, text, "missing" if missing else "unreadable") from error
    if len(data) > LARGEST:
        raise FormatError(f"{path}: longer than {LARGEST} bytes", reason="too_large")
    return data


def _decode_line(line: bytes, *, last: bool) -> dict[str, Any] | None:
    """Return the object of a line; None if it is the last one and empty or truncated."""
    try:
        found = decode_strictly(line)
    except FormatError:
        if last:
            return None
        raise
    if not isinstance(found, dict):
        raise FormatError(f"must be a JSON object, not {type(found).__name__}", reason="wrong_type")
    return found


def _check_header(line: dict[str, Any]) -> dict[str, Any]:
    if line.get("format") != FORMAT:
        raise FormatError(f"not a recording: format must be {FORMAT!r}", reason="unrecognized")
    if line.get("version") != VERSION:
        raise FormatError(
            f"version: must be {VERSION}; upgrade attestkit, or record again",
            reason="unsupported_version",
        )
    return line


class _Parser:
    """Parser of a recording that receives one line at a time."""

    def __init__(self) -> None:
        self.header: dict[str, Any] | None = None
        self.entries: list[RecordedCall] = []
        self.complete = False
        self._state = call_codec.CodecState()
        self._answers: dict[int, tuple[call_codec.Codec, object]] = {}

    def feed(self, line: dict[str, Any]) -> None:
        """Process the next line; raises FormatError."""
        if self.header is None:
            self.header = _check_header(line)
            return
        if self.complete:
            raise FormatError("no line may follow that of `end`", reason="trailing_data")
        if line.keys() == {"end"}:
            if type(line["end"]) is not int:
                raise wrong_json_type("end", "the number of calls", line["end"])
            if line["end"] != len(self.entries):
                text = f"end: {shown(line['end'])} calls, but the file has {len(self.entries)}"
                raise FormatError(text, reason="wrong_size")
            self.complete = True
            return
        if len(self.entries) >= MOST:
            raise FormatError(f"more than {MOST} calls", reason="too_many")
        self.entries.append(self._parse_call(line))

    def finish(self) -> RecordingFile:
        """Return the recording; FormatError without a header."""
        if self.header is None:
            raise FormatError("not a recording: incomplete header", reason="truncated")
        return RecordingFile(self.header, tuple(self.entries), self.complete)

    def _parse_call(self, line: dict[str, Any]) -> RecordedCall:
        kinds = line.keys() & {"ask", "change"}
        kind = _only(kinds, "must have either ask or change")
        name = line[kind]
        call = call_codec.CALLS.get(name) if isinstance(name, str) else None
        if call is None or call.changes_state != (kind == "change"):
            raise FormatError(
                f"{kind}: unknown call {shown(str(name))}, or one of the other kind; upgrade "
                "attestkit, or record again",
                reason="wrong_value",
            )
        arguments = {key: line[key] for key in line.keys() - _ANSWERS - {kind}}
        if not {type(value) for value in arguments.values()} <= {str, int, type(None)}:
            raise FormatError("arguments: must be strings, integers or null", reason="wrong_type")
        key = call_codec.key_of(name, arguments)
        return RecordedCall(key, call.changes_state, self._parse_result(line, call.codec))

    def _parse_result(
        self, line: dict[str, Any], codec: call_codec.Codec
    ) -> call_codec.RecordedResult:
        if "as" not in line:
            answer = result_from_json(line, codec, self._state)
            if answer.failure is None and codec.independent:
                self._answers[len(self.entries) + 2] = codec, answer.value  # the header is line 1
            return answer
        if type(line["as"]) is not int:
            raise wrong_json_type("as", "a line number", line["as"])
        if line.keys() & _ANSWERS != {"as"}:
            raise FormatError("as: cannot be combined with answer or error", reason="inconsistent")
        known, value = self._answers.get(line["as"], (None, None))
        if known is not codec:
            raise FormatError(
                "as: must be the number of an earlier line with an answer of the same kind",
                reason="wrong_value",
            )
        return call_codec.RecordedResult(value)


def _only(names: set[str], problem: str) -> str:
    """Return the single element of `names`; FormatError with the text `problem` otherwise."""
    if len(names) != 1:
        raise FormatError(problem, reason="inconsistent" if names else "missing")
    return names.pop()


def result_from_json(
    found: Mapping[str, Any], codec: call_codec.Codec, state: call_codec.CodecState
) -> call_codec.RecordedResult:
    """Return the answer or the error in an object of a recording, which has exactly one of them.

    Args:
        found: The object.
        codec: Codec of the call's answers.
        state: Runtime events of the previous answers, to which this one may refer.

    Raises:
        FormatError: If it has neither or both, or is malformed.
    """
    if _only(found.keys() & {"answer", "error"}, "must have either answer or error") == "error":
        return call_codec.RecordedResult(None, call_codec.error_from_json(found))
    return call_codec.RecordedResult(codec.decode(found["answer"], state))


def call_to_json(name: str, arguments: Mapping[str, call_codec.Scalar]) -> dict[str, object]:
    """Return the fields that identify a call in a line of the recording: `name` and arguments.

    `name` is a key of `CALLS`; in the arguments bytes are hex already.
    """
    return {"change" if call_codec.CALLS[name].changes_state else "ask": name, **arguments}
