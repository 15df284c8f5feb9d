"""Responses of a replay: order, errors, registers and the journal."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import attestkit
from attestkit.attester import Attester
from attestkit.backends.base import Backend
from attestkit.backends.recording import Recording
from attestkit.backends.recording.recording_file import read_recording
from attestkit.backends.simulator import Simulator
from attestkit.errors import (
    AttestKitError,
    BackendBusyError,
    BackendError,
    CollateralError,
    CollateralExpiredError,
    FormatError,
    JournalError,
    QuoteUnavailableError,
    ReplayError,
    SignatureError,
    UsageError,
)
from attestkit.event_log.journal import RuntimeLog
from attestkit.event_log.runtime_events import runtime_event
from tests.backends.recording.recorded import REPORT_DATA, record
from tests.raising import raises
from tests.tees import FakeAgent, FakeSnp
from tests.untyped import untyped


def test_replay_returns_responses_in_order(tmp_path: Path) -> None:
    """The last response repeats."""
    backend = FakeSnp()
    with Attester(record(tmp_path / "a.jsonl", backend)) as tee:
        for number in range(3):
            backend.host_data = bytes([number] * 32)
            tee.attest(report_data=bytes(64))
    with attestkit.open("recording", path=tmp_path / "a.jsonl") as tee:
        found = [untyped(tee.backend).get_snp_report(bytes(64)).report for _ in range(5)]
    assert [bytes([number] * 32) in report for number, report in enumerate(found[:3])] == [True] * 3
    assert found[2] == found[3] == found[4]


def test_replay_unrecorded_request_lists_recorded_ones(tmp_path: Path) -> None:
    """The error has the recorded requests, or the next recorded change."""
    path = tmp_path / "a.jsonl"
    recording: Any = record(path, Simulator())
    for number in range(7):
        recording.get_quote(bytes([number] * 64))
    recording.read_rtmr(1)
    recording.extend_rtmr(3, bytes(48))
    recording.read_rtmr(2)
    recording.close()
    replay: Any = Recording(path)
    with pytest.raises(QuoteUnavailableError) as caught:
        replay.get_quote(REPORT_DATA)
    assert caught.value.reason == "not_recorded"
    text = str(caught.value)
    assert str(path) in text
    assert f"get_quote({REPORT_DATA.hex()}) was not recorded after 0 of 1 changes" in text
    assert f"get_quote({'03' * 64}), 3 more of get_quote, read_rtmr" in text, text
    assert "04" * 64 not in text
    with pytest.raises(BackendError, match=r"read_rtmr\(2\) was not .*: read_rtmr\(1\), get_q"):
        replay.read_rtmr(2)
    with pytest.raises(BackendError, match=rf"is extend_rtmr\(3, {'00' * 48}\)"):
        replay.extend_rtmr(3, b"1" * 48)
    replay.extend_rtmr(3, bytes(48))
    assert replay.read_rtmr(2) == Simulator().read_rtmr(2)
    with pytest.raises(BackendError, match=r"after 1 of 1 changes; .*: read_rtmr\(2\)"):
        replay.read_rtmr(1)
    with pytest.raises(BackendError, match="no change"):
        replay.extend_rtmr(3, bytes(48))
    with pytest.raises(BackendError, match="read_event_log"):
        replay.read_event_log()


def test_replay_restarts_responses_after_a_change(tmp_path: Path) -> None:
    """After a change, its first response is returned, whatever was read before."""

    def use(backend: Any) -> list[object]:
        found: list[object] = []
        for number in (1, 2, 3):
            backend.extend_rtmr(3, bytes([number]) * 48)
            found.extend(backend.read_event_log() for _ in range(3))
        return found

    class Counting(Simulator):
        calls = 0

        def read_event_log(self) -> bytes:
            self.calls += 1
            return bytes([self.calls])

    recording = record(tmp_path / "a.jsonl", Counting())
    assert use(recording) == [bytes([number]) for number in range(1, 10)]
    recording.close()
    assert use(Recording(tmp_path / "a.jsonl")) == [bytes([number]) for number in range(1, 10)]


def test_replay_opens_journal_anywhere(tmp_path: Path) -> None:
    """The time of opening is irrelevant; another version is another journal."""
    recording: Any = record(tmp_path / "a.jsonl", Simulator())
    recording.extend_rtmr(2, bytes(48))
    journal = recording.open_journal(1)
    assert journal.version == 1
    journal.emit(runtime_event("one", b""))
    events = journal.events()
    journal.close()
    recording.close()
    replay: Any = Recording(tmp_path / "a.jsonl")
    with raises(BackendError, "not_recorded"):
        replay.open_journal(2)
    found = replay.open_journal(1)
    assert found is replay.open_journal(2)
    assert found.version == 1
    with raises(BackendError, "not_recorded"):
        found.emit(runtime_event("one", b""))
    replay.extend_rtmr(2, bytes(48))
    with pytest.raises(BackendError, match=r"is journal_emit\('one'\)"):
        found.emit(runtime_event("two", b"2"))
    found.emit(runtime_event("one", b""))
    assert found.events() == events
    assert found.events() is found.events()
    found.close()


def test_replay_journal_opens_after_recorded_error(tmp_path: Path) -> None:
    """A journal that was opened at the second attempt can be opened after a change."""

    class Hesitant(Simulator):
        refused = False

        def open_journal(self, version: int | None = None) -> RuntimeLog:
            if not self.refused:
                self.refused = True
                raise BackendBusyError("once", reason="lock")
            return super().open_journal(version)

    recording: Any = record(tmp_path / "a.jsonl", Hesitant())
    with raises(BackendBusyError, "lock"):
        recording.open_journal()
    recording.open_journal()
    recording.extend_rtmr(3, bytes(48))
    assert recording.open_journal().version == 1
    recording.close()
    replay: Any = Recording(tmp_path / "a.jsonl")
    replay.extend_rtmr(3, bytes(48))
    assert replay.open_journal().version == 1
    replay = Recording(tmp_path / "a.jsonl")
    with raises(BackendBusyError, "lock"):
        replay.open_journal()
    assert replay.open_journal() is replay.open_journal()


ERRORS: list[AttestKitError] = [
    BackendBusyError("busy", reason="device"),
    QuoteUnavailableError("no quote", reason="timed_out"),
    FormatError("bad", offset=7, reason="short_body"),
    ReplayError("not so", reason="rtmr_mismatch"),
    CollateralError("none", reason="missing"),
    CollateralExpiredError("old", reason="crl_expired"),
    SignatureError("bad", reason="bad_signature"),
    UsageError("use", reason="conflict"),
    JournalError("torn", reason="damaged"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_replay_repeats_recorded_error(tmp_path: Path, error: AttestKitError) -> None:
    """Type, text and attributes are equal, and later responses follow."""

    class Failing(FakeSnp):
        def get_quote(self, report_data: bytes) -> bytes:
            if self.asked:
                return super().get_quote(report_data)
            self.asked = 1
            raise error

    def request_quotes(backend: Backend) -> list[object]:
        with pytest.raises(type(error)) as caught:
            backend.get_quote(REPORT_DATA)
        found = caught.value
        more = [getattr(found, name, None) for name in ("offset", "reason")]
        return [type(found), str(found), *more, backend.get_quote(REPORT_DATA)]

    recording = record(tmp_path / "a.jsonl", Failing())
    first = request_quotes(recording)
    recording.close()
    assert first == request_quotes(Recording(tmp_path / "a.jsonl"))


def test_recorded_error_of_foreign_class_gets_nearest_own_class(tmp_path: Path) -> None:
    """A subclass from another package is replayed as attestkit's class."""

    class MyError(BackendBusyError):
        pass

    backend = FakeSnp()
    backend.refusal = MyError("mine", reason="device")
    recording: Any = record(tmp_path / "a.jsonl", backend)
    with pytest.raises(MyError):
        recording.get_snp_report(REPORT_DATA)
    recording.close()
    replay: Any = Recording(tmp_path / "a.jsonl")
    with raises(BackendBusyError, "device", args=("mine",)):
        replay.get_snp_report(REPORT_DATA)


def test_recording_ends_at_unknown_reason(tmp_path: Path) -> None:
    """A reader would reject the reason; the calls before it are recorded."""

    class Odd(FakeSnp):
        def read_event_log(self) -> bytes:
            raise BackendError("odd", reason=untyped("nowhere"))

    recording: Any = record(tmp_path / "a.jsonl", Odd())
    recording.get_quote(REPORT_DATA)
    with raises(BackendError, "nowhere"):
        recording.read_event_log()
    recording.get_quote(bytes(64))
    with raises(BackendError, "truncated"):
        recording.close()
    assert len(read_recording(tmp_path / "a.jsonl").entries) == 1


class LockFailingSimulator(Simulator):
    """Simulator whose journal lock fails three times."""

    attempts = 0

    def open_journal(self, version: int | None = None) -> Any:
        """Return a journal with such a lock."""
        del version
        return self

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock, or raise JournalError."""
        self.attempts += 1
        if self.attempts in (2, 3, 7):
            raise JournalError(f"attempt {self.attempts}", reason="unreadable")
        yield


def test_replay_repeats_journal_lock_errors(tmp_path: Path) -> None:
    """The same attempts fail; a change restarts the count."""

    def use(tee: Any) -> list[str]:
        outcomes = []
        for _ in range(5):
            try:
                with tee.open_journal().locked():
                    outcomes.append("locked")
            except JournalError as error:
                outcomes.append(str(error))
        tee.extend_rtmr(3, bytes(48))
        return outcomes

    recording = record(tmp_path / "a.jsonl", LockFailingSimulator())
    first = use(recording), use(recording)
    recording.close()
    replay = Recording(tmp_path / "a.jsonl")
    assert first == (use(replay), use(replay))
    assert first[0] == ["locked", "attempt 2", "attempt 3", "locked", "locked"]
    assert first[1] == ["locked", "attempt 7", "locked", "locked", "locked"]


@pytest.mark.parametrize("size", [0, 1, 63, 65])
def test_replay_rejects_wrong_sizes(tmp_path: Path, size: int) -> None:
    """The contract is checked, whether or not the request was recorded."""
    record(tmp_path / "a.jsonl", FakeAgent()).close()
    replay: Any = Recording(tmp_path / "a.jsonl")
    for method in (replay.get_quote, replay.get_quote_response):
        with raises(UsageError, "wrong_size"):
            method(bytes(size))
    with raises(UsageError, "wrong_type"):
        replay.emit_event("name", "text")
    record(tmp_path / "b.jsonl", Simulator()).close()
    replay = Recording(tmp_path / "b.jsonl")
    for register in (-1, 4, True, "1"):
        with raises(UsageError, "out_of_range"):
            replay.read_rtmr(register)
    with raises(UsageError, "wrong_size"):
        replay.extend_rtmr(3, bytes(size))
    recording: Any = record(tmp_path / "c.jsonl", Simulator())
    with raises(UsageError, "wrong_type"):
        recording.open_journal().emit("x")
    recording.close()
