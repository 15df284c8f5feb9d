"""The two ways to have a call answered: by a backend, which is written down, or by the file.

State changes divide a recording. Between two of them a request is answered as it was there: several
answers in their order, the last one again after that. A change has to be the next that was
recorded. One call is made at a time.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import Protocol, TypeVar, cast

from attestkit.backends.recording.call_codec import (
    CALLS,
    LOCK,
    Answer,
    Key,
    Memory,
    Scalar,
    describe,
    failure_to_json,
    key_of,
    missing,
)
from attestkit.backends.recording.recording_file import (
    Entry,
    RecordingFile,
    RecordingWriter,
    request,
)
from attestkit.errors import AttestKitError, BackendError, UsageError

__all__ = ["PlayingTape", "RecordingTape", "Tape"]

T = TypeVar("T")


class Tape(Protocol):
    """Has calls answered."""

    def answer(self, name: str, arguments: Mapping[str, Scalar], ask: Callable[[], T]) -> T:
        """Return the answer to a call of `CALLS`, or raise the error; `ask` asks the backend."""
        ...

    def enter(self, enter: Callable[[], object]) -> None:
        """Lock a journal by `enter`, or raise the error."""
        ...

    def close(self) -> None:
        """End; a second call does nothing."""
        ...


class RecordingTape:
    """Asks the backend, and writes down what it answers.

    An answer is given even if it cannot be written: the TEE has moved on. Nothing is recorded from
    there on, for what came later would not fit, and `close` says so.
    """

    def __init__(self, writer: RecordingWriter) -> None:
        self.stopped: str = ""  # why nothing is recorded any more
        self._writer = writer
        self._memory = Memory()
        self._process = os.getpid()
        self._turn = Lock()
        self._attempts = 0  # to lock the journal, since the last change
        self._closed = False

    def answer(self, name: str, arguments: Mapping[str, Scalar], ask: Callable[[], T]) -> T:
        """Return what the backend answers, or raise what it raises."""
        with self._turn:
            self._check_usable()
            call = CALLS[name]
            try:
                value = ask()
            except AttestKitError as error:
                self._write_failure(name, arguments, error)
                raise
            except BaseException:
                if call.change:
                    self._stop(f"{name} was interrupted, and what came of it is not known")
                raise
            finally:
                self._attempts = 0 if call.change else self._attempts
            if not self.stopped:
                try:
                    encoded = call.codec.encode(value, self._memory)
                    self._writer.answer(request(name, arguments), call.codec, encoded)
                except OSError as error:
                    self._stop(str(error.strerror or error))
                except Exception as error:  # noqa: BLE001 - a plugin may answer anything
                    kind = type(error).__name__
                    self._stop(f"what {name} answered cannot be written ({kind})")
                except BaseException:
                    self._stop(f"writing {name} was interrupted")
                    raise
            return value

    def enter(self, enter: Callable[[], object]) -> None:
        """Lock a journal; that it could not be locked is written down."""
        with self._turn:
            self._check_usable()
            self._attempts += 1
            attempt = self._attempts
        try:
            enter()
        except AttestKitError as error:
            with self._turn:
                self._write_failure(LOCK, {"attempt": attempt}, error)
            raise

    def _write_failure(
        self, name: str, arguments: Mapping[str, Scalar], error: AttestKitError
    ) -> None:
        if not self.stopped and not self._closed:  # else the descriptor may be another file's
            try:
                self._writer.write({**request(name, arguments), **failure_to_json(error)})
            except OSError as failure:
                self._stop(str(failure.strerror or failure))

    def _stop(self, why: str) -> None:
        self.stopped = self.stopped or why

    def _check_usable(self) -> None:
        if self._process != os.getpid():
            raise UsageError("a recording does not survive a fork: make another in this process")
        if self._closed:
            raise UsageError(f"the recording {self._writer.path} is closed")

    def close(self) -> None:
        """End the file.

        Raises:
            BackendError: It does not have everything; the text says why.
        """
        if self._closed or self._process != os.getpid():
            return
        with self._turn:
            self._closed = True
            try:
                if not self.stopped:
                    self._writer.end()
            except OSError as error:
                self._stop(str(error.strerror or error))
            finally:
                self._writer.close()
        if self.stopped:
            raise BackendError(
                f"{self._writer.path}: the recording does not have everything: {self.stopped}"
            )


class _Stretch:
    """What was recorded between two changes, and the change that ended it, if one did."""

    def __init__(self) -> None:
        self.answers: dict[Key, list[Answer]] = {}
        self.change: Entry | None = None


class PlayingTape:
    """Answers as the file says."""

    def __init__(self, path: Path, recorded: RecordingFile) -> None:
        self._path = path
        self._complete = recorded.complete
        self._stretches = [_Stretch()]
        self._settled: dict[Key, Answer] = {}
        for entry in recorded.entries:
            stretch = self._stretches[-1]
            if CALLS[entry.key[0]].settled and entry.answer.failure is None:  # errors pass
                self._settled.setdefault(entry.key, entry.answer)
            if entry.change:
                stretch.change = entry
                self._stretches.append(_Stretch())
            else:
                stretch.answers.setdefault(entry.key, []).append(entry.answer)
        self._turn = Lock()
        self._at = 0  # which stretch
        self._given: Counter[Key] = Counter()
        self._attempts = 0
        self._closed = False

    def answer(self, name: str, arguments: Mapping[str, Scalar], ask: Callable[[], T]) -> T:
        """Return what was recorded, or raise it; an error lists what was recorded in its place."""
        del ask
        key, call = key_of(name, arguments), CALLS[name]
        with self._turn:
            if self._closed:
                raise UsageError(f"the recording {self._path} is closed")
            found = self._change(key) if call.change else self._find(key)
        if found is None:
            raise call.missing(self._missing(key, change=call.change))
        return cast("T", found.give())  # by the codec of the call

    def _find(self, key: Key) -> Answer | None:
        answers = self._stretches[self._at].answers.get(key)
        if answers is None:
            return self._settled.get(key)
        given, self._given[key] = self._given[key], self._given[key] + 1
        return answers[min(given, len(answers) - 1)]

    def _change(self, key: Key) -> Answer | None:
        change = self._stretches[self._at].change
        if change is None or change.key != key:
            return None
        self._at += 1
        self._given.clear()
        self._attempts = 0
        return change.answer

    def _missing(self, key: Key, *, change: bool) -> str:
        stretch, changes = self._stretches[self._at], len(self._stretches) - 1
        where = f" after {self._at} of {changes} changes" if changes else ""
        text = f"{self._path}: {describe(key)} was not recorded{where}; there "
        if not change:
            text += f"it has {missing(key, [*stretch.answers])}"
        elif stretch.change is not None:
            text += f"comes {describe(stretch.change.key)}"
        else:
            text += "comes no change"
        if not self._complete and self._at == changes:
            text += "; the program that recorded it did not come to its end"
        return text

    def enter(self, enter: Callable[[], object]) -> None:
        """Lock a journal of nobody's, unless that failed when it was recorded."""
        with self._turn:
            self._attempts += 1
            found = self._find(key_of(LOCK, {"attempt": self._attempts}))
        if found is not None:
            found.give()
        enter()

    def close(self) -> None:
        """End; a second call does nothing."""
        self._closed = True
