"""PCR 14 and the log of RTMR 3: an event is in both or neither, also after a crash."""

from pathlib import Path

import pytest

from attestkit._crypto.hashes import sha256
from attestkit.backends.gcp.event_logs import (
    PcrAccess,
    PcrJournal,
    event_digest,
    replay_events,
)
from attestkit.errors import AttestKitError, BackendError, JournalError
from attestkit.event_log.event import Event
from attestkit.event_log.journal import LOCK, ZERO, Journal, RegisterAccess, replay_from
from attestkit.event_log.journal_files import OsFolder
from attestkit.event_log.runtime_events import runtime_event

START = b"\7" * 32
EVENTS = [runtime_event(f"event-{at}", bytes([at]), version) for at, version in enumerate((1,) * 4)]


class PowerLossError(BaseException):
    """The program ends here."""


class Registers:
    """RTMR 3 and PCR 14, which survive the program."""

    def __init__(self) -> None:
        self.rtmr, self.pcr = ZERO, START
        self.calls = 0
        self.stop_at: int | None = None  # the call at which the program ends
        self.after = False  # whether it ends after the call took effect
        self.failure: Exception | None = None  # of extending PCR 14
        self.failure_after = False

    def _ends(self, *, done: bool) -> None:
        if self.stop_at == self.calls and self.after == done:
            raise PowerLossError

    def read_rtmr(self) -> bytes:
        """Return RTMR 3."""
        return self.rtmr

    def extend_rtmr(self, digest: bytes) -> None:
        """Extend RTMR 3."""
        self.calls += 1
        self._ends(done=False)
        event = Event(3, 0x08000001, digest, "", b"", 1)
        self.rtmr = replay_from(self.rtmr, (event,))
        self._ends(done=True)

    def read_pcr(self) -> bytes:
        """Return PCR 14."""
        return self.pcr

    def extend_pcr(self, digest: bytes) -> None:
        """Extend PCR 14."""
        self.calls += 1
        self._ends(done=False)
        if self.failure is not None and not self.failure_after:
            raise self.failure
        self.pcr = sha256(self.pcr + digest)
        self._ends(done=True)
        if self.failure is not None:
            raise self.failure

    def open(self, folder: Path) -> PcrJournal:
        """Return the log, as a program that starts now would."""
        register = RegisterAccess(self.read_rtmr, self.extend_rtmr)
        journal = Journal(OsFolder(folder, LOCK), register, boot_id="boot")
        return PcrJournal(journal, PcrAccess(self.read_pcr, self.extend_pcr, lambda: START))


def consistent(registers: Registers, events: tuple[Event, ...]) -> bool:
    """Return whether both registers have the events."""
    return registers.pcr == replay_events(START, events) and registers.rtmr == replay_from(
        ZERO, events
    )


def test_events_extend_both_registers(tmp_path: Path) -> None:
    """The log, RTMR 3 and PCR 14 have the same events."""
    registers = Registers()
    log = registers.open(tmp_path)
    for event in EVENTS:
        log.emit(event)
    assert log.events() == tuple(EVENTS)
    assert log.events() is log.events()
    assert consistent(registers, tuple(EVENTS))
    assert log.version == 1
    assert log.path.startswith(str(tmp_path))
    log.close()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", range(1, 5))
def test_a_crash_at_any_extension_is_repaired(tmp_path: Path, call: int, *, after: bool) -> None:
    """The next program finds the log and both registers in step."""
    registers = Registers()
    registers.stop_at, registers.after = call, after
    log = registers.open(tmp_path)

    def emit_both() -> None:
        for event in EVENTS[:2]:
            log.emit(event)

    with pytest.raises(PowerLossError):
        emit_both()
    log.close()
    registers.stop_at = None
    log = registers.open(tmp_path)
    events = log.events()
    assert consistent(registers, events)
    assert events in (tuple(EVENTS[:count]) for count in range(3))
    for event in EVENTS[len(events) :]:
        log.emit(event)
    assert log.events() == tuple(EVENTS)
    assert consistent(registers, log.events())
    log.close()


def test_a_failed_extension_is_completed_at_the_next_use(tmp_path: Path) -> None:
    """The error says that the event is logged, so that it is not emitted twice."""
    registers = Registers()
    log = registers.open(tmp_path)
    registers.failure = BackendError("TPM: failed", reason="io_error")
    with pytest.raises(JournalError) as caught:
        log.emit(EVENTS[0])
    assert caught.value.reason == "not_recorded"
    assert "do not repeat" in str(caught.value)
    assert registers.pcr == START
    with pytest.raises(BackendError):
        log.events()
    registers.failure = None
    assert log.events() == (EVENTS[0],)
    assert consistent(registers, (EVENTS[0],))


def test_an_extension_that_took_effect_despite_its_error_counts(tmp_path: Path) -> None:
    """The register decides."""
    registers = Registers()
    log = registers.open(tmp_path)
    registers.failure, registers.failure_after = BackendError("late", reason="timed_out"), True
    log.emit(EVENTS[0])
    assert consistent(registers, (EVENTS[0],))


@pytest.mark.parametrize("use", ["events", "emit"])
def test_another_value_of_pcr_14_is_refused(tmp_path: Path, use: str) -> None:
    """Neither two missing events nor an extension by another program is repaired."""
    registers = Registers()
    log = registers.open(tmp_path)
    for event in EVENTS[:3]:
        log.emit(event)
    for value in (
        replay_events(START, EVENTS[:1]),
        sha256(registers.pcr + bytes(32)),
        bytes(32),
        START,
    ):
        registers.pcr = value
        with pytest.raises(AttestKitError) as caught:
            log.events() if use == "events" else log.emit(EVENTS[3])
        assert isinstance(caught.value, JournalError)
        assert caught.value.reason == "mismatch"
        assert caught.value.actual == value
        assert registers.rtmr == replay_from(ZERO, EVENTS[:3])  # nothing was extended


def test_an_extension_by_another_program_in_between_is_noticed(tmp_path: Path) -> None:
    """A program that does not take the log's lock makes the value wrong."""
    registers = Registers()
    log = registers.open(tmp_path)
    extend = registers.extend_pcr

    def disturbed(digest: bytes) -> None:
        registers.pcr = sha256(registers.pcr + bytes(32))
        extend(digest)

    registers.extend_pcr = disturbed  # type: ignore[method-assign]
    log = registers.open(tmp_path / "other")
    with pytest.raises(JournalError):
        log.emit(EVENTS[0])


def test_digests_are_those_of_rtmr_3_with_another_hash() -> None:
    """The preimage is `name:payload`, of version 1, as in dstack's guest."""
    event = runtime_event("app-id", b"\1\2")
    preimage = (0x08000001).to_bytes(4, "little") + b":app-id:\1\2"
    assert event_digest(event) == sha256(preimage)
