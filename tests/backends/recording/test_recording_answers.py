"""A replay answers as the recorded backend did: in its order, with its errors, nothing else."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import attestkit
from attestkit.attester import Attester
from attestkit.backends.base import Backend
from attestkit.backends.recording import Recording
from attestkit.backends.simulator import Simulator
from attestkit.errors import (
    AttestKitError,
    BackendBusyError,
    BackendError,
    FormatError,
    JournalError,
    QuoteUnavailableError,
    ReplayError,
    SignatureError,
    UsageError,
)
from attestkit.event_log.journal import RuntimeLog
from attestkit.event_log.runtime_events import runtime_event
from tests.backends.recording.recorded import ASKED, leave_the_machine_out, record
from tests.tees import SEED, FakeAgent, FakeSnp
from tests.untyped import untyped


@pytest.fixture(autouse=True)
def _own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this machine gets in."""
    leave_the_machine_out(tmp_path, monkeypatch)


def test_evidence_comes_again_byte_for_byte(tmp_path: Path) -> None:
    """Before an event and after it, with what was asked and nothing else."""
    path = tmp_path / "a.jsonl"

    def use(tee: Attester) -> list[object]:
        found: list[object] = [tee.attest(b"nonce").to_bytes(), tee.registers()]
        found += [tee.emit_event("model", b"1"), tee.attest(b"nonce").to_bytes()]
        found += [tee.get_quote(b"").raw, tee.event_log().to_json(), tee.info(), tee.vm_config]
        return [*found, tee.app_compose.raw]

    with attestkit.open("recording", path=path, of="simulator", options={"seed": SEED}) as tee:
        first = use(tee)
    with attestkit.open("recording", path=path) as tee:
        assert use(tee) == first


def test_several_answers_come_in_their_order(tmp_path: Path) -> None:
    """The last one again after that."""
    backend = FakeSnp()
    with Attester(record(tmp_path / "a.jsonl", backend)) as tee:
        for number in range(3):
            backend.host_data = bytes([number] * 32)
            tee.attest(b"")
    with attestkit.open("recording", path=tmp_path / "a.jsonl") as tee:
        found = [untyped(tee.backend).get_snp_report(bytes(64)).report for _ in range(5)]
    assert [bytes([number] * 32) in report for number, report in enumerate(found[:3])] == [True] * 3
    assert found[2] == found[3] == found[4]


def test_what_was_not_recorded_fails_with_what_was(tmp_path: Path) -> None:
    """Requests list what there is in their place, changes the one that comes."""
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
        replay.get_quote(ASKED)
    text = str(caught.value)
    assert str(path) in text
    assert f"get_quote({ASKED.hex()}) was not recorded after 0 of 1 changes" in text
    assert f"get_quote({'03' * 64}), 3 more of get_quote, read_rtmr" in text, text
    assert "04" * 64 not in text
    with pytest.raises(BackendError, match=r"read_rtmr\(2\) was not .* has read_rtmr\(1\), get_q"):
        replay.read_rtmr(2)
    with pytest.raises(BackendError, match=rf"comes extend_rtmr\(3, {'00' * 48}\)"):
        replay.extend_rtmr(3, b"1" * 48)
    replay.extend_rtmr(3, bytes(48))
    assert replay.read_rtmr(2) == Simulator().read_rtmr(2)
    with pytest.raises(BackendError, match=r"after 1 of 1 changes; there it has read_rtmr\(2\)"):
        replay.read_rtmr(1)
    with pytest.raises(BackendError, match="comes no change"):
        replay.extend_rtmr(3, bytes(48))
    with pytest.raises(BackendError, match="read_event_log"):
        replay.read_event_log()


def test_each_stretch_has_answers_of_its_own(tmp_path: Path) -> None:
    """Behind a change the first of them comes first again, however many were given before it."""

    def use(backend: Any) -> list[object]:
        found: list[object] = []
        for number in (1, 2, 3):
            backend.extend_rtmr(3, bytes([number]) * 48)
            found.extend(backend.read_event_log() for _ in range(3))
        return found

    class Counting(Simulator):
        asked = 0

        def read_event_log(self) -> bytes:
            self.asked += 1
            return bytes([self.asked])

    recording = record(tmp_path / "a.jsonl", Counting())
    assert use(recording) == [bytes([number]) for number in range(1, 10)]
    recording.close()
    assert use(Recording(tmp_path / "a.jsonl")) == [bytes([number]) for number in range(1, 10)]


def test_the_journal_is_opened_where_it_was_not_recorded(tmp_path: Path) -> None:
    """Nothing depends on when it is opened; with another version it is another journal."""
    recording: Any = record(tmp_path / "a.jsonl", Simulator())
    recording.extend_rtmr(2, bytes(48))
    journal = recording.open_journal(1)
    assert journal.version == 1
    journal.emit(runtime_event("one", b""))
    events = journal.events()
    journal.close()
    recording.close()
    replay: Any = Recording(tmp_path / "a.jsonl")
    with pytest.raises(BackendError, match=r"open_journal\(2\) was not recorded"):
        replay.open_journal(2)
    found = replay.open_journal(1)
    assert found is replay.open_journal(2)
    assert found.version == 1
    with pytest.raises(BackendError, match="comes extend_rtmr"):
        found.emit(runtime_event("one", b""))
    replay.extend_rtmr(2, bytes(48))
    with pytest.raises(BackendError, match=r"comes journal_emit\('one'\)"):
        found.emit(runtime_event("two", b"2"))
    found.emit(runtime_event("one", b""))
    assert found.events() == events
    assert found.events() is found.events()
    found.close()


def test_an_error_settles_nothing(tmp_path: Path) -> None:
    """A journal that could be opened at last can be opened behind a change too."""

    class Hesitant(Simulator):
        refused = False

        def open_journal(self, version: int | None = None) -> RuntimeLog:
            if not self.refused:
                self.refused = True
                raise BackendBusyError("once")
            return super().open_journal(version)

    recording: Any = record(tmp_path / "a.jsonl", Hesitant())
    with pytest.raises(BackendBusyError, match="once"):
        recording.open_journal()
    recording.open_journal()
    recording.extend_rtmr(3, bytes(48))
    assert recording.open_journal().version == 1
    recording.close()
    replay: Any = Recording(tmp_path / "a.jsonl")
    replay.extend_rtmr(3, bytes(48))
    assert replay.open_journal().version == 1
    replay = Recording(tmp_path / "a.jsonl")
    with pytest.raises(BackendBusyError, match="once"):
        replay.open_journal()
    assert replay.open_journal() is replay.open_journal()


ERRORS: list[AttestKitError] = [
    BackendBusyError("busy"),
    QuoteUnavailableError("no quote"),
    FormatError("bad", offset=7, reason="short"),
    ReplayError("not so", steps=("one", "two"), reason="rtmr_mismatch"),
    SignatureError("bad"),
    UsageError("use"),
    JournalError("torn"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_come_again(tmp_path: Path, error: AttestKitError) -> None:
    """With their class, their text and what else they say; then what came after them."""

    class Failing(FakeSnp):
        def get_quote(self, report_data: bytes) -> bytes:
            if self.asked:
                return super().get_quote(report_data)
            self.asked = 1
            raise error

    def ask(backend: Backend) -> list[object]:
        with pytest.raises(type(error)) as caught:
            backend.get_quote(ASKED)
        found = caught.value
        more = [getattr(found, name, None) for name in ("offset", "reason", "steps")]
        return [type(found), str(found), *more, backend.get_quote(ASKED)]

    recording = record(tmp_path / "a.jsonl", Failing())
    first = ask(recording)
    recording.close()
    assert first == ask(Recording(tmp_path / "a.jsonl"))


def test_an_error_of_somebody_elses_class_is_one_of_ours(tmp_path: Path) -> None:
    """The nearest class of attestkit's own tree."""

    class MyError(BackendBusyError):
        pass

    backend = FakeSnp()
    backend.refusal = MyError("mine")
    recording: Any = record(tmp_path / "a.jsonl", backend)
    with pytest.raises(MyError):
        recording.get_snp_report(ASKED)
    recording.close()
    replay: Any = Recording(tmp_path / "a.jsonl")
    with pytest.raises(BackendBusyError, match="mine") as caught:
        replay.get_snp_report(ASKED)
    assert type(caught.value) is BackendBusyError


class Stubborn(Simulator):
    """Its journal cannot be locked three times."""

    attempts = 0

    def open_journal(self, version: int | None = None) -> Any:
        """Return a journal with such a lock."""
        del version
        return self

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock, or refuse."""
        self.attempts += 1
        if self.attempts in (2, 3, 7):
            raise JournalError(f"attempt {self.attempts}")
        yield


def test_a_journal_that_cannot_be_locked_is_recorded(tmp_path: Path) -> None:
    """At the attempts at which it could not, and not at others; a change counts anew."""

    def use(tee: Any) -> list[str]:
        told = []
        for _ in range(5):
            try:
                with tee.open_journal().locked():
                    told.append("locked")
            except JournalError as error:
                told.append(str(error))
        tee.extend_rtmr(3, bytes(48))
        return told

    recording = record(tmp_path / "a.jsonl", Stubborn())
    first = use(recording), use(recording)
    recording.close()
    replay = Recording(tmp_path / "a.jsonl")
    assert first == (use(replay), use(replay))
    assert first[0] == ["locked", "attempt 2", "attempt 3", "locked", "locked"]
    assert first[1] == ["locked", "attempt 7", "locked", "locked", "locked"]


def test_a_reboot_is_a_change(tmp_path: Path) -> None:
    """What is asked behind it is answered as it was there."""
    recording: Any = record(tmp_path / "a.jsonl", Simulator())
    journal = recording.open_journal()
    boot = journal.events()
    journal.emit(runtime_event("one", b""))
    longer = journal.events()
    recording.reset()
    assert journal.events() == boot
    recording.close()
    replay: Any = Recording(tmp_path / "a.jsonl")
    found = replay.open_journal()
    assert found.events() == boot
    with pytest.raises(BackendError, match="comes journal_emit"):
        replay.reset()
    found.emit(runtime_event("one", b""))
    assert found.events() == longer
    replay.reset()
    assert found.events() == boot


@pytest.mark.parametrize("size", [0, 1, 63, 65])
def test_other_sizes_are_refused_in_a_replay_too(tmp_path: Path, size: int) -> None:
    """As the contract has it, whether or not it was recorded."""
    record(tmp_path / "a.jsonl", FakeAgent()).close()
    replay: Any = Recording(tmp_path / "a.jsonl")
    for door in (replay.get_quote, replay.get_quote_response):
        with pytest.raises(UsageError, match="64 bytes"):
            door(bytes(size))
    with pytest.raises(UsageError, match="bytes as its payload"):
        replay.emit_event("name", "text")
    record(tmp_path / "b.jsonl", Simulator()).close()
    replay = Recording(tmp_path / "b.jsonl")
    for register in (-1, 4, True, "1"):
        with pytest.raises(UsageError, match="no RTMR"):
            replay.read_rtmr(register)
    with pytest.raises(UsageError, match="48 bytes"):
        replay.extend_rtmr(3, bytes(size))
    recording: Any = record(tmp_path / "c.jsonl", Simulator())
    with pytest.raises(UsageError, match="Events"):
        recording.open_journal().emit("x")
    recording.close()
