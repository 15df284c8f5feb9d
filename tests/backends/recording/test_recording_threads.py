"""Threads share a recording, and none of them keeps the others waiting for ever."""

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
from tests.backends.recording.recorded import ASKED, lines, record
from tests.keeping import Keeping
from tests.tees import SEED
from tests.untyped import untyped

OURS = str(Path(attestkit.__file__).parent)
EVENT = runtime_event("one", b"")
PATIENCE = 20.0  # seconds until a thread counts as stuck


def together(*targets: Callable[[], object]) -> None:
    """Run each in a thread, and fail if one does not end; what is stuck does not keep the suite."""
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


def callers(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield a frame, and those that led to it."""
    while frame is not None:
        yield frame
        frame = frame.f_back


class Interrupts:
    """Interrupts this thread where the `nth` function of attestkit's begins, within a `with`."""

    def __init__(self, nth: int) -> None:
        self.left = nth

    def _look(self, frame: FrameType, event: str, _: object) -> None:
        ours = event == "call" and frame.f_code.co_filename.startswith(OURS)
        # When an object goes is chance, and what is raised there Python only prints.
        if ours and not any(each.f_code.co_name == "__del__" for each in callers(frame)):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    def __enter__(self) -> None:
        sys.setprofile(self._look)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


def interrupted_everywhere(journal: Callable[[], Any], use: Callable[[Any], object]) -> int:
    """Interrupt `use` of a journal wherever a function begins; say in how many places.

    Each time another thread has to get the lock afterwards.
    """

    def lock() -> None:
        with log.locked():
            pass

    for nth in itertools.count(1):
        log, interrupts = journal(), Interrupts(nth)
        with contextlib.suppress(KeyboardInterrupt), interrupts:
            use(log)
        together(lock)
        if interrupts.left > 0:
            return nth - 1
    raise AssertionError


def emit(log: Any) -> None:
    """Emit an event."""
    log.emit(EVENT)


def read(log: Any) -> None:
    """Ask for the events, as whoever has the lock may."""
    with log.locked():
        log.events()


@pytest.mark.parametrize("use", [emit, read])
def test_an_interrupt_keeps_no_lock(tmp_path: Path, use: Callable[[Any], object]) -> None:
    """Ctrl-C may come where any function begins, while it is recorded and in a replay."""
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
        assert interrupted_everywhere(journal, use) > 5
    for one in made:
        with contextlib.suppress(BackendError):  # an event was interrupted, and that ended it
            one.close()


def _stacked(log: Any) -> ExitStack:
    stack = ExitStack()
    stack.enter_context(log.locked())
    return stack


def test_an_error_leaves_the_lock(tmp_path: Path) -> None:
    """It is not swallowed, and others get the lock: from a `with`, and from an ExitStack."""
    recording: Any = Recording(tmp_path / "a.jsonl", of=Simulator())
    log = recording.open_journal()
    for held in (log.locked(), _stacked(log)):
        with pytest.raises(ZeroDivisionError), held:
            _ = 1 // 0
    together(lambda: emit(log))
    recording.close()


class Rebooting(Simulator):
    """Says when it reboots."""

    def __init__(self) -> None:
        self.reboots = threading.Event()
        super().__init__(seed=SEED)

    def reset(self) -> None:
        """Say so first."""
        self.reboots.set()
        super().reset()


def test_a_reboot_waits_for_whoever_has_the_journal(tmp_path: Path) -> None:
    """Who has its lock goes on asking, and the reboot comes behind that."""
    backend = Rebooting()
    recording: Any = Recording(tmp_path / "a.jsonl", of=backend)
    log, has_it = recording.open_journal(), threading.Event()
    told: list[str] = []

    def holds() -> None:
        with log.locked():
            has_it.set()
            for _ in range(1000):  # until the reboot waits, or is wrongly under way
                waiting = untyped(backend.open_journal().locked()).waiting
                if waiting or backend.reboots.wait(0.01):
                    break
            told.append("rebooted" if backend.reboots.is_set() else "before")
            log.events()
            log.emit(EVENT)
            told.append("emitted")

    def reboots() -> None:
        has_it.wait(PATIENCE)
        recording.reset()
        told.append("rebooted")

    together(holds, reboots)
    assert told == ["before", "emitted", "rebooted"]
    assert EVENT not in log.events()
    recording.close()
    replay: Any = Recording(tmp_path / "a.jsonl")
    log = replay.open_journal()
    log.events()
    log.emit(EVENT)
    replay.reset()
    assert EVENT not in log.events()


def test_reboots_and_events_of_many_threads(tmp_path: Path) -> None:
    """Also where the journal is first opened while another thread reboots."""
    for number in range(20):
        path = tmp_path / f"{number}.jsonl"
        recording: Any = Recording(path, of=Simulator(seed=SEED))
        start = threading.Barrier(4)

        def reboots(recording: Any = recording, start: threading.Barrier = start) -> None:
            start.wait(PATIENCE)
            for _ in range(10):
                recording.reset()

        def emits(recording: Any = recording, start: threading.Barrier = start) -> None:
            start.wait(PATIENCE)
            for _ in range(10):
                recording.open_journal().emit(EVENT)
                recording.open_journal().events()

        together(reboots, emits, reboots, emits)
        recording.close()
        assert Recording(path).complete


def test_a_reboot_without_a_journal(tmp_path: Path) -> None:
    """An SNP guest has none, and reboots as well."""
    path = tmp_path / "a.jsonl"
    recording: Any = Recording(path, of=Simulator(seed=SEED, platform="snp"))
    recording.reset()
    recording.close()
    replay: Any = Recording(path)
    replay.reset()
    with pytest.raises(BackendError, match="comes no change"):
        replay.reset()


def test_the_journal_of_a_closed_recording(tmp_path: Path) -> None:
    """It refuses, and writes into nobody's file: another may have the descriptor by now."""
    path, other = tmp_path / "a.jsonl", tmp_path / "other"
    backend = Simulator(seed=SEED, state_dir=tmp_path / "state")
    recording: Any = Recording(path, of=backend)
    log = recording.open_journal()
    descriptor = recording._inside.tape._writer._fd
    recording.close()
    with other.open("wb") as file:
        os.dup2(file.fileno(), descriptor)
        for ask in (log.events, recording.reset):
            with pytest.raises(UsageError, match="is closed"):
                ask()
        os.close(descriptor)
    assert other.read_bytes() == b""


def test_threads_share_it(tmp_path: Path) -> None:
    """Whoever locks the journal and asks meets whoever asks the journal, and both go on."""
    recording: Any = record(tmp_path / "a.jsonl", Simulator())
    journal = recording.open_journal()
    found: list[object] = []

    def locks() -> None:
        for _ in range(50):
            with journal.locked():
                found.append(recording.get_quote(ASKED))

    def reads() -> None:
        found.extend(journal.events() for _ in range(50))

    together(locks, reads, locks, reads)
    recording.close()
    assert len(found) == 200
    assert len(lines(tmp_path / "a.jsonl")) == 203
