"""A recording on disk: JSON, one object a line, written as it happens.

The first line is the header, every other a call with its answer or its error, in order:

    {"ask": "read_rtmr", "register": 3, "answer": "5c0f..."}
    {"change": "journal_emit", "name": "model-loaded", ..., "answer": null}
    {"ask": "read_event_log", "as": 2}

`as` names the line, from 1, that has the same answer in full. The last line says how many calls
there are; without it the program that recorded did not come to its end, and what it recorded counts
all the same. A last line that was cut short does not.
"""

import contextlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from attestkit._crypto.hashes import sha256
from attestkit._formats.strict_json import decode_strictly
from attestkit._sanitize import shown
from attestkit.backends.recording.call_codec import (
    CALLS,
    Answer,
    Codec,
    Key,
    Memory,
    Scalar,
    failure_from_json,
    key_of,
)
from attestkit.errors import BackendUnavailableError, FormatError, UsageError

__all__ = [
    "Entry",
    "RecordingFile",
    "RecordingWriter",
    "member",
    "parse_recording",
    "read_answer",
    "read_recording",
    "request",
]

FORMAT: Final = "attestkit recording"
VERSION: Final = 1
LARGEST: Final = 1 << 28  # bytes of a file
MOST: Final = 1_000_000  # calls in a file
_LONG: Final = 200  # characters of an answer from which on a repetition only names its line
_ANSWERS: Final = {"answer", "as", "error", "text", "offset", "reason", "steps"}


class RecordingWriter:
    """Writes a new recording. Each line is with the kernel when `write` returns.

    Args:
        path: Where; nothing may be there yet. Only this user will be able to read it.
        put: Writes to a descriptor, as `os.write`.

    Raises:
        UsageError: It cannot be made; a recording is never written over.
    """

    def __init__(self, path: Path, *, put: Callable[[int, bytes], int] = os.write) -> None:
        self.path = path
        self._put = put
        self._lines = self._size = 0
        self._seen: dict[tuple[Codec, bytes], int] = {}
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(path, flags, 0o600)
        except FileExistsError as error:
            raise UsageError(
                f"{path} is there already, and a recording is not written over: name another file"
            ) from error
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise UsageError(f"{path}: a recording cannot be made there: {why}") from error

    def header(self, fields: Mapping[str, object]) -> None:
        """Write the first line; raises as `write`."""
        self.write({"format": FORMAT, "version": VERSION, **fields})

    def answer(self, request: Mapping[str, object], codec: Codec, answer: object) -> None:
        """Write a call and its answer, as JSON; a long one that is there already by its line.

        Raises:
            OSError: As `write`.
        """
        text = _dump(answer)
        shared = codec.alone and len(text) >= _LONG
        name = codec, sha256(text)
        if shared and (line := self._seen.get(name)) is not None:
            self.write({**request, "as": line})
            return
        self.write({**request, "answer": answer})
        if shared:
            self._seen[name] = self._lines

    def write(self, line: Mapping[str, object]) -> None:
        """Write one line; if that fails, none of it stays.

        Raises:
            OSError: It cannot be written, or the file would get too large to be read.
        """
        data = _dump(line) + b"\n"
        if self._size + len(data) > LARGEST or self._lines >= MOST:
            raise OSError(None, f"a recording has at most {LARGEST} bytes and {MOST} calls")
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._put(self._fd, bytes(rest)) :]
        except BaseException:
            with contextlib.suppress(OSError):  # then a torn line stays, which no reader counts
                os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)
        self._lines += 1

    def end(self) -> None:
        """Write the last line and wait for the disk; raises as `write`."""
        self.write({"end": self._lines - 1})
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


# -- reading -----------------------------------------------------------------------------------


class Entry(NamedTuple):
    """One call and what came of it."""

    key: Key
    change: bool
    answer: Answer


class RecordingFile(NamedTuple):
    """A recording as it was read."""

    header: dict[str, Any]
    entries: tuple[Entry, ...]
    complete: bool  # the program that recorded it closed it


def read_recording(path: Path) -> RecordingFile:
    """Read a recording, at most 256 MiB.

    Raises:
        BackendUnavailableError: It cannot be read.
        FormatError: It is none; the text names file and line.
    """
    data = _read(path)
    try:
        return parse_recording(data)
    except FormatError as error:
        raise FormatError(f"{path}, {error}", reason="recording") from error


def parse_recording(data: bytes) -> RecordingFile:
    """Read the content of a recording.

    Raises:
        FormatError: It is none, or has over a million calls; the text names the line.
    """
    # Counted first: lines that are split off take many times the room of those that are empty.
    if data.count(b"\n") > MOST + 3:  # with the header, the end, and a newline behind that
        raise FormatError(f"more than {MOST} calls", reason="recording")
    lines = data.split(b"\n")
    reader, number = _Reader(), 0
    try:
        for number, line in enumerate(lines, 1):
            found = _object(line, last=number == len(lines))
            if found is not None:
                reader.take(found)
        return reader.end()
    except FormatError as error:
        raise FormatError(f"line {number}: {error}", reason="recording") from error


T = TypeVar("T")


def member(header: Mapping[str, Any], key: str, kind: type[T]) -> T:
    """Return what a header has under `key`; FormatError if it is of another kind."""
    if not isinstance(found := header.get(key), kind):
        raise FormatError(f"{key}: not a {kind.__name__}")
    return found


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BackendUnavailableError(f"{path}: a recording is a file")
            # What is asked for is allocated, so no more than there is, and one byte to see it grow.
            data = file.read(min(status.st_size, LARGEST) + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise BackendUnavailableError(f"the recording {path} cannot be read: {why}") from error
    if len(data) > LARGEST:
        raise FormatError(f"{path}: longer than {LARGEST} bytes, so no recording")
    return data


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting for whoever would write into a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def _object(line: bytes, *, last: bool) -> dict[str, Any] | None:
    """Return what a line says; nothing for the last one, if it is empty or was cut short."""
    try:
        found = decode_strictly(line)
    except FormatError:
        if last:
            return None
        raise
    if not isinstance(found, dict):
        raise FormatError("not an object")
    return found


class _Reader:
    """Takes line after line."""

    def __init__(self) -> None:
        self.header: dict[str, Any] | None = None
        self.entries: list[Entry] = []
        self.complete = False
        self._memory = Memory()
        self._answers: dict[int, tuple[Codec, object]] = {}

    def take(self, line: dict[str, Any]) -> None:
        """Take the next line; raises FormatError."""
        if self.header is None:
            if line.get("format") != FORMAT:
                raise FormatError(f"no recording: its format is not {FORMAT!r}")
            if line.get("version") != VERSION:
                raise FormatError(f"this attestkit reads recordings of version {VERSION} only")
            self.header = line
            return
        if self.complete:
            raise FormatError("something comes after the end")
        if line.keys() == {"end"}:
            if type(line["end"]) is not int:
                raise FormatError("end: no number of calls")
            if line["end"] != len(self.entries):
                raise FormatError(
                    f"the end counts {shown(line['end'])} calls, not {len(self.entries)}"
                )
            self.complete = True
            return
        if len(self.entries) >= MOST:
            raise FormatError(f"more than {MOST} calls")
        self.entries.append(self._entry(line))

    def end(self) -> RecordingFile:
        """Return everything; raises FormatError if there is not even a header."""
        if self.header is None:
            raise FormatError("no recording: there is no whole header")
        return RecordingFile(self.header, tuple(self.entries), self.complete)

    def _entry(self, line: dict[str, Any]) -> Entry:
        kinds = line.keys() & {"ask", "change"}
        if len(kinds) != 1:
            raise FormatError("neither ask nor change, or both")
        kind = kinds.pop()
        name = line[kind]
        call = CALLS.get(name) if isinstance(name, str) else None
        if call is None or call.change != (kind == "change"):
            raise FormatError(f"{kind}: no call that is recorded so")
        arguments = {
            key: value for key, value in line.items() if key != kind and key not in _ANSWERS
        }
        if not all(value is None or type(value) in (str, int) for value in arguments.values()):
            raise FormatError("an argument is neither text nor a number")
        key = key_of(name, arguments)
        return Entry(key, call.change, self._answer(line, call.codec))

    def _answer(self, line: dict[str, Any], codec: Codec) -> Answer:
        if "as" not in line:
            answer = read_answer(line, codec, self._memory)
            if answer.failure is None and codec.alone:
                self._answers[len(self.entries) + 2] = codec, answer.value  # the header is line 1
            return answer
        if type(line["as"]) is not int or line.keys() & _ANSWERS != {"as"}:
            raise FormatError("as: not the number of a line, alone")
        known, value = self._answers.get(line["as"], (None, None))
        if known is not codec:
            raise FormatError("as: no line before with such an answer")
        return Answer(value)


def read_answer(found: Mapping[str, Any], codec: Codec, memory: Memory) -> Answer:
    """Return the answer, or the error, that an object of a recording has.

    Raises:
        FormatError: It has neither, or both, or it is malformed.
    """
    if ("answer" in found) == ("error" in found):
        raise FormatError("neither answer nor error, or both")
    if "error" in found:
        return Answer(None, failure_from_json(found))
    return Answer(codec.decode(found["answer"], memory))


def request(name: str, arguments: Mapping[str, Scalar]) -> dict[str, object]:
    """Return how a line begins that is about such a call."""
    return {"change" if CALLS[name].change else "ask": name, **arguments}
