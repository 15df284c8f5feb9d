"""Recordings shared by threads: locks, reboots and interrupts without deadlock."""

import contextlib
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import attestkit
from attestkit.backends.recording import Recording
from attestkit.backends.simulator import Simulator
from attestkit.errors import BackendError, UsageError
from attestkit.event_log.runtime_events import runtime_event
from tests.concurrency.keeping import Keeping
from tests.machines.tees import SEED
from tests.raising import raises
from tests.untyped import untyped

OURS = str(Path(attestkit.__file__).parent)
EVENT = runtime_event("one", b"")
PATIENCE = 20.0  # seconds before a thread counts as stuck


def run_in_threads(*targets: Callable[[], object]) -> None:
    """Run each target in a thread; fail if one does not end, without waiting for it at exit."""
    raised: list[BaseException] = []

    def run(target: Callable[[], object]) -> None:
        with Keeping(raised):
            target()

    threads = [threading.Thread(target=run, args=(target,), daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not [thread for thread in threads if thread.is_alive()], "stuck"
    assert not raised, raised


def walk_callers(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield a frame and its callers."""
    while frame is not None:
        yield frame
        frame = frame.f_back


class InterruptAtCall:
    """Raises KeyboardInterrupt at the `nth` call of an attestkit function within a `with`."""

    def __init__(self, nth: int) -> None:
        self.left = nth

    def _look(self, frame: FrameType, event: str, _: object) -> None:
        ours = event == "call" and frame.f_code.co_filename.startswith(OURS)
        # The time of a finalizer is arbitrary, and its exceptions are only printed.
        if ours and not any(each.f_code.co_name == "__del__" for each in walk_callers(frame)):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    def __enter__(self) -> None:
        sys.setprofile(self._look)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


def interrupt_each_call(journal: Callable[[], Any], use: Callable[[Any], object]) -> int:
    """Interrupt `use` of a journal at each function call; return the number of interrupts.

    Another thread must be able to take the lock after each interrupt.
    """

    def lock() -> None:
        with log.locked():
            pass

    for nth in itertools.count(1):
        log, interrupts = journal(), InterruptAtCall(nth)
        with contextlib.suppress(KeyboardInterrupt), interrupts:
            use(log)
        run_in_threads(lock)
        if interrupts.left > 0:
            return nth - 1
    raise AssertionError


def emit(log: Any) -> None:
    """Emit an event."""
    log.emit(EVENT)


def read(log: Any) -> None:
    """Read the events, with the lock."""
    with log.locked():
        log.events()


@pytest.mark.parametrize("use", [emit, read])
def test_interrupt_releases_the_journal_lock(tmp_path: Path, use: Callable[[Any], object]) -> None:
    """KeyboardInterrupt may be raised at each call, while recording and in a replay."""
    path, number = tmp_path / "a.jsonl", itertools.count()
    made: list[Recording] = []
    recording: Any = Recording(path, of=Simulator(seed=SEED))
    use(recording.open_journal())
    recording.close()

    def recorded() -> Any:
        new: Any = Recording(tmp_path / f"{next(number)}.jsonl", of=Simulator(seed=SEED))
        made.append(new)
        return new.open_journal()

    def replayed() -> Any:
        new: Any = Recording(path)
        return new.open_journal()

    for journal in (recorded, replayed):
        assert interrupt_each_call(journal, use) > 5
    for one in made:
        with contextlib.suppress(BackendError):  # an interrupted event ends the recording
            one.close()


def _stacked(log: Any) -> ExitStack:
    stack = ExitStack()
    stack.enter_context(log.locked())
    return stack


def test_error_in_locked_block_releases_the_lock(tmp_path: Path) -> None:
    """The exception is not suppressed, in a `with` and in an ExitStack."""
    recording: Any = Recording(tmp_path / "a.jsonl", of=Simulator())
    log = recording.open_journal()
    for held in (log.locked(), _stacked(log)):
        with pytest.raises(ZeroDivisionError), held:
            _ = 1 // 0
    run_in_threads(lambda: emit(log))
    recording.close()


class RebootSignallingSimulator(Simulator):
    """Simulator that signals its reboots."""

    def __init__(self) -> None:
        self.reboots = threading.Event()
        super().__init__(seed=SEED)

    def reset(self) -> None:
        """Set the event, and reboot."""
        self.reboots.set()
        super().reset()


def test_reboot_waits_for_the_journal_lock(tmp_path: Path) -> None:
    """The lock's owner can make requests; the reboot follows."""
    backend = RebootSignallingSimulator()
    recording: Any = Recording(tmp_path / "a.jsonl", of=backend)
    log, lock_held = recording.open_journal(), threading.Event()
    order: list[str] = []

    def hold_lock() -> None:
        with log.locked():
            lock_held.set()
            for _ in range(1000):  # until the reboot waits, or wrongly runs
                waiting = untyped(backend.open_journal().locked()).waiting
                if waiting or backend.reboots.wait(0.01):
                    break
            order.append("rebooted" if backend.reboots.is_set() else "before")
            log.events()
            log.emit(EVENT)
            order.append("emitted")

    def reboots() -> None:
        lock_held.wait(PATIENCE)
        recording.reset()
        order.append("rebooted")

    run_in_threads(hold_lock, reboots)
    assert order == ["before", "emitted", "rebooted"]
    assert EVENT not in log.events()
    recording.close()
    replay: Any = Recording(tmp_path / "a.jsonl")
    log = replay.open_journal()
    log.events()
    log.emit(EVENT)
    replay.reset()
    assert EVENT not in log.events()


def test_journal_of_closed_recording_rejects_calls(tmp_path: Path) -> None:
    """Nothing is written to the closed descriptor, which may be reused."""
    path, other = tmp_path / "a.jsonl", tmp_path / "other"
    backend = Simulator(seed=SEED, state_dir=tmp_path / "state")
    recording: Any = Recording(path, of=backend)
    log = recording.open_journal()
    descriptor = recording._handler._writer._fd
    recording.close()
    with other.open("wb") as file:
        os.dup2(file.fileno(), descriptor)
        for use in (log.events, recording.reset):
            with raises(UsageError, "closed"):
                use()
        os.close(descriptor)
    assert other.read_bytes() == b""
