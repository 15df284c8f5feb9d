"""Threads share a recording, and none of them keeps the others waiting for ever."""

import contextlib
import itertools
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import attestkit
from attestkit.backends.recording import Recording
from attestkit.backends.simulator import Simulator
from attestkit.errors import BackendError
from attestkit.event_log.runtime import runtime_event
from tests.tees import SEED

OURS = str(Path(attestkit.__file__).parent)
EVENT = runtime_event("one", b"")
PATIENCE = 20.0  # seconds until a thread counts as stuck


def together(*targets: Callable[[], object]) -> None:
    """Run each in a thread, and fail if one does not end; what is stuck does not keep the suite."""
    raised: list[BaseException] = []

    def run(target: Callable[[], object]) -> None:
        try:
            target()
        except BaseException as error:  # noqa: BLE001 - told below
            raised.append(error)

    threads = [threading.Thread(target=run, args=(target,), daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not [thread for thread in threads if thread.is_alive()], "stuck"
    assert not raised, raised


class Interrupts:
    """Interrupts this thread where the `nth` function of attestkit's begins, within a `with`."""

    def __init__(self, nth: int) -> None:
        self.left = nth

    def _look(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(OURS):
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


def emit(log: Any) -> None:  # noqa: ANN401 - a RuntimeLog
    """Emit an event."""
    log.emit(EVENT)


def read(log: Any) -> None:  # noqa: ANN401 - a RuntimeLog
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

    def recorded() -> Any:  # noqa: ANN401 - a RuntimeLog
        new: Any = Recording(tmp_path / f"{next(number)}.jsonl", of=Simulator(seed=SEED))
        made.append(new)
        return new.open_journal()

    def replayed() -> Any:  # noqa: ANN401 - a RuntimeLog
        new: Any = Recording(path)
        return new.open_journal()

    for journal in (recorded, replayed):
        assert interrupted_everywhere(journal, use) > 5
    for one in made:
        with contextlib.suppress(BackendError):  # an event was interrupted, and that ended it
            one.close()


def _stacked(log: Any) -> ExitStack:  # noqa: ANN401 - a RuntimeLog
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
