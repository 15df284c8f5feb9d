"""Handlers of calls: the recorder, which forwards them to a backend, and the replayer.

State changes divide a recording into segments. Within a segment, the results of equal calls are
replayed in their order, and the last one again after that. A state change must be the next one that
was recorded. Calls are serialised.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import TypeVar, cast

from attestkit.backends.linux.device_errors import failed
from attestkit.backends.recording import call_codec
from attestkit.backends.recording.recording_file import (
    RecordedCall,
    RecordingFile,
    RecordingWriter,
    call_to_json,
)
from attestkit.errors import AttestKitError, FormatError, UsageError

T = TypeVar("T")


class Recorder:
    """Handler that forwards calls to the backend and writes their results.

    A result is returned even if it cannot be written, because the TEE may have changed its state.
    Recording stops then, since later calls would be inconsistent, and `close` raises an error.
    """

    def __init__(self, writer: RecordingWriter) -> None:
        self.stopped: str = ""  # the reason why recording has stopped
        self._writer = writer
        self._state = call_codec.CodecState()
        self._process = os.getpid()
        self._lock = Lock()
        self._attempts = 0  # number of attempts to lock the journal since the last change
        self._closed = False

    def call(
        self, name: str, arguments: Mapping[str, call_codec.Scalar], invoke: Callable[[], T]
    ) -> T:
        """Call the backend, and record and return its result, or record and raise its error.

        Args:
            name: The method, a key of `CALLS`.
            arguments: Its arguments as they are recorded, bytes as hex.
            invoke: Calls the backend.

        Raises:
            UsageError: If the recorder is closed, or was created before a fork.
            AttestKitError: That of the backend.
        """
        with self._lock:
            self._check_usable()
            call = call_codec.CALLS[name]
            try:
                value = invoke()
            except AttestKitError as error:
                self._write_failure(name, arguments, error)
                raise
            except BaseException:
                if call.changes_state:
                    self._stop(f"{name} was interrupted, with an unknown result")
                raise
            finally:
                self._attempts = 0 if call.changes_state else self._attempts
            if not self.stopped:
                # Not in a function of its own: an interrupt at its start would lose the result.
                try:
                    encoded = call.codec.encode(value, self._state)
                    self._writer.write_result(call_to_json(name, arguments), call.codec, encoded)
                except OSError as error:
                    self._stop(str(error.strerror or error))
                except Exception as error:  # noqa: BLE001 - a plugin may return anything
                    kind = type(error).__name__
                    self._stop(f"the result of {name} cannot be encoded ({kind})")
                except BaseException:
                    self._stop(f"writing {name} was interrupted")
                    raise
            return value

    def lock_journal(self, enter: Callable[[], object]) -> None:
        """Lock the journal by calling `enter`; if that fails, record the error and raise it."""
        with self._lock:
            self._check_usable()
            self._attempts += 1
            attempt = self._attempts
        try:
            enter()
        except AttestKitError as error:
            with self._lock:
                self._write_failure(call_codec.LOCK, {"attempt": attempt}, error)
            raise

    def _write_failure(
        self, name: str, arguments: Mapping[str, call_codec.Scalar], error: AttestKitError
    ) -> None:
        if not self.stopped and not self._closed:  # the descriptor may be reused after `close`
            try:
                self._writer.write(
                    {**call_to_json(name, arguments), **call_codec.error_to_json(error)}
                )
            except OSError as failure:
                self._stop(str(failure.strerror or failure))
            except FormatError as failure:
                self._stop(str(failure))

    def _stop(self, why: str) -> None:
        self.stopped = self.stopped or why

    def _check_usable(self) -> None:
        if self._process != os.getpid():
            text = "recording: opened in another process; open another recording after a fork"
            raise UsageError(text, reason="wrong_process")
        if self._closed:
            raise UsageError(f"{self._writer.path}: the recording is closed", reason="closed")

    def close(self) -> None:
        """Finish the file. Idempotent.

        Raises:
            BackendError: If the recording is incomplete.
        """
        if self._closed or self._process != os.getpid():
            return
        with self._lock:
            self._closed = True
            try:
                if not self.stopped:
                    self._writer.end()
            except OSError as error:
                self._stop(str(error.strerror or error))
            finally:
                self._writer.close()
        if self.stopped:
            text = f"the recording is incomplete: {self.stopped}"
            raise failed(self._writer.path, text, "truncated")


class _Segment:
    """The results between two state changes, and the change at the end, if any."""

    def __init__(self) -> None:
        self.answers: dict[call_codec.Key, list[call_codec.RecordedResult]] = {}
        self.change: RecordedCall | None = None


class Replayer:
    """Handler that returns the recorded results of a file."""

    def __init__(self, path: Path, recorded: RecordingFile) -> None:
        self._path = path
        self._complete = recorded.complete
        self._segments = [_Segment()]
        self._constants: dict[call_codec.Key, call_codec.RecordedResult] = {}
        for entry in recorded.entries:
            segment = self._segments[-1]
            if (
                call_codec.CALLS[entry.key[0]].constant and entry.answer.failure is None
            ):  # errors pass
                self._constants.setdefault(entry.key, entry.answer)
            if entry.change:
                segment.change = entry
                self._segments.append(_Segment())
            else:
                segment.answers.setdefault(entry.key, []).append(entry.answer)
        self._lock = Lock()
        self._at = 0  # index of the current segment
        self._used: Counter[call_codec.Key] = Counter()
        self._attempts = 0
        self._closed = False

    def call(
        self, name: str, arguments: Mapping[str, call_codec.Scalar], invoke: Callable[[], T]
    ) -> T:
        """Return the recorded result, or raise the recorded error.

        Args:
            name: The method, a key of `CALLS`.
            arguments: Its arguments as they are recorded, bytes as hex.
            invoke: Not called; it is a parameter because `Recorder.call` has it.

        Raises:
            UsageError: If the replayer is closed.
            BackendError: If the call was not recorded here; the text lists the recorded calls.
            AttestKitError: If the recorded result is an error.
        """
        del invoke
        key, call = call_codec.key_of(name, arguments), call_codec.CALLS[name]
        with self._lock:
            if self._closed:
                raise UsageError(f"{self._path}: the recording is closed", reason="closed")
            found = self._change(key) if call.changes_state else self._find(key)
        if found is None:
            text = self._missing(key, change=call.changes_state)
            raise call.not_recorded_error(text, reason="not_recorded")
        return cast("T", found.get())  # as the codec of the call guarantees

    def _find(self, key: call_codec.Key) -> call_codec.RecordedResult | None:
        answers = self._segments[self._at].answers.get(key)
        if answers is None:
            return self._constants.get(key)
        used, self._used[key] = self._used[key], self._used[key] + 1
        return answers[min(used, len(answers) - 1)]

    def _change(self, key: call_codec.Key) -> call_codec.RecordedResult | None:
        change = self._segments[self._at].change
        if change is None or change.key != key:
            return None
        self._at += 1
        self._used.clear()
        self._attempts = 0
        return change.answer

    def _missing(self, key: call_codec.Key, *, change: bool) -> str:
        segment, changes = self._segments[self._at], len(self._segments) - 1
        where = f" after {self._at} of {changes} changes" if changes else ""
        text = f"{self._path}: {call_codec.describe(key)} was not recorded{where}; "
        if not change:
            text += f"recorded there: {call_codec.describe_recorded(key, [*segment.answers])}"
        elif segment.change is not None:
            text += f"the next recorded change is {call_codec.describe(segment.change.key)}"
        else:
            text += "no change is recorded there"
        if not self._complete and self._at == changes:
            text += "; the recording was not closed, so its end may be missing"
        return text

    def lock_journal(self, enter: Callable[[], object]) -> None:
        """Lock the journal by calling `enter`; raise the recorded error if recording failed here.

        Attempts to lock are numbered, so that each attempt gets the result of the recorded one.
        """
        with self._lock:
            self._attempts += 1
            found = self._find(call_codec.key_of(call_codec.LOCK, {"attempt": self._attempts}))
        if found is not None:
            found.get()
        enter()

    def close(self) -> None:
        """End the replay. A second call has no effect."""
        self._closed = True
