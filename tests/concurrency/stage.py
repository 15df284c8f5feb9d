"""A deterministic scheduler: threads of which only one runs at a time.

They are real threads that run real code. Between two steps all of them wait, and a `Choose` selects
the next one. A step ends before each line of the watched files (optionally before each access to
shared state), and where a lock is acquired. Equal choices give equal runs, so that a failing run
can be repeated.
"""

import dis
import gc
import sys
import threading
from _thread import allocate_lock
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final, NamedTuple, Protocol

from tests.concurrency.keeping import Keeping

_MOST_STEPS: Final = 50_000
_TIMEOUT: Final = 60.0  # s, for a run of some milliseconds
# Opcodes that access state visible to other threads, or call functions that may.
_ACCESSES: Final = (
    *("LOAD_ATTR", "LOAD_METHOD", "STORE_ATTR", "DELETE_ATTR", "BINARY_SUBSCR", "STORE_SUBSCR"),
    *("DELETE_SUBSCR", "LOAD_DEREF", "STORE_DEREF", "STORE_GLOBAL", "CALL", "CALL_METHOD"),
    *("CALL_FUNCTION", "CALL_FUNCTION_EX", "CALL_FUNCTION_KW", "CALL_KW"),
)
_ACCESS_CODES: Final = frozenset(dis.opmap[name] for name in _ACCESSES if name in dis.opmap)


class DeadlockError(AssertionError):
    """Every thread waits for another one."""


class EndlessError(AssertionError):
    """The threads do not end."""


class _Abandoned(BaseException):
    """The run is over; the thread ends."""


class Decision(NamedTuple):
    """A choice between several threads."""

    options: tuple[int, ...]
    current: int | None  # the running thread, if it could continue
    chosen: int


class Switch(NamedTuple):
    """A change of the running thread."""

    task: int
    where: str  # where the thread continues


class Choose(Protocol):
    """Selects the next thread."""

    def __call__(self, options: tuple[int, ...], current: int | None) -> int:
        """Return one of `options`; `current` is one of them, or None."""


_here: Final = threading.local()


def task_here() -> "Task | None":
    """Return the task of the calling thread; None for a thread outside of the stage."""
    return getattr(_here, "task", None)


class Task:
    """One thread on the stage."""

    def __init__(self, stage: "Stage", number: int, work: Callable[[], object]) -> None:
        self.number = number
        self.ended = False
        self.error: BaseException | None = None
        self.ready: Callable[[], bool] | None = None  # the condition that it waits for
        self.timed = False  # has a timeout
        self.timed_out = False
        self.place: tuple[CodeType, int] | str = "its start"
        self.gate = allocate_lock()
        self.gate.acquire()
        self.leaving = False
        self._stage = stage
        self._work = work
        self.thread = threading.Thread(target=self._run, name=f"task-{number}", daemon=True)

    @property
    def stage(self) -> "Stage":
        """The stage of this task."""
        return self._stage

    @property
    def where(self) -> str:
        """The next line of the thread, or the object that it waits for."""
        if isinstance(self.place, str):
            return self.place
        code, line = self.place
        return f"{Path(code.co_filename).name}:{line} ({code.co_name})"

    def pause(self, place: tuple[CodeType, int] | str) -> None:
        """Let another thread run, if one is selected."""
        if not self.leaving:
            self.place = place
            self._stage.switch(self)

    def wait(self, ready: Callable[[], bool], what: str, *, timed: bool = False) -> bool:
        """Wait until `ready`; False after a timeout, which happens only if no thread can run."""
        while not self.leaving and not ready():
            self.ready, self.timed, self.place = ready, timed, what
            try:
                self._stage.switch(self)
            finally:
                self.ready, self.timed = None, False
            if self.timed_out:
                self.timed_out = False
                return False
        return True

    def _run(self) -> None:
        _here.task = self
        self.gate.acquire()
        with Keeping() as kept:  # raised by the code that inspects the run
            try:
                if not self._stage.over:
                    sys.settrace(self._stage.trace)
                    self._work()
            except _Abandoned:
                pass
            finally:
                sys.settrace(None)
        self.error = kept.error
        self.ended = True
        _here.task = None
        self._stage.leave()


class Stage:
    """One run of some threads.

    Args:
        choose: Who runs next.
        watched: The files whose lines are steps.
        fine: Whether accesses within a line are steps too.
    """

    def __init__(self, choose: Choose, watched: frozenset[str], *, fine: bool = False) -> None:
        self.over = False
        self.failure: AssertionError | None = None
        self.decisions: list[Decision] = []
        self.switches: list[Switch] = []
        self.timeouts = 0  # waits that only a timeout has ended
        self.tasks: list[Task] = []
        self._choose = choose
        self._watched = watched
        self._fine = fine
        self._codes: dict[CodeType, bytes] = {}
        self._steps = 0
        self._finished = threading.Event()

    def run(self, works: Sequence[Callable[[], object]]) -> None:
        """Run all threads to their end; their errors are in `tasks`, the run's in `failure`."""
        for work in works:
            self.spawn(work)
        collecting = gc.isenabled()
        gc.disable()  # a finalizer would run at unpredictable steps
        try:
            first = self._next(None)
            assert first is not None
            first.gate.release()
            if not self._finished.wait(_TIMEOUT):
                raise RuntimeError("a thread waits for an object that the stage does not control")
            for task in self.tasks:  # one by one, including abandoned ones
                if not task.ended:
                    task.gate.release()
                task.thread.join()
        finally:
            if collecting:
                gc.enable()

    def spawn(self, work: Callable[[], object]) -> Task:
        """Add a thread."""
        task = Task(self, len(self.tasks), work)
        self.tasks.append(task)
        task.thread.start()
        return task

    def switch(self, task: Task) -> None:
        """Run the selected thread, and return when this task is selected again."""
        chosen = self._next(task)
        if chosen is not task and chosen is not None:
            chosen.gate.release()
            task.gate.acquire()
        if self.over:
            task.leaving = True
            raise _Abandoned

    def leave(self) -> None:
        """Select another thread when this one ends."""
        chosen = None if self.over else self._next(None)
        if chosen is None:
            self._finished.set()
        else:
            chosen.gate.release()

    def _next(self, current: Task | None) -> Task | None:
        """Return the next task; None if all have ended or the run is over."""
        able = [t for t in self.tasks if not t.ended and (t.ready is None or t.ready())]
        if not able:
            return self._wake_or_report_deadlock()
        self._steps += 1
        if self._steps > _MOST_STEPS:
            self._abandon(EndlessError(f"no end after {_MOST_STEPS} steps"))
            return None
        chosen = able[0]
        if len(able) > 1:
            options = tuple(task.number for task in able)
            mine = current.number if current in able and current is not None else None
            number = self._choose(options, mine)
            self.decisions.append(Decision(options, mine, number))
            chosen = self.tasks[number]
        if chosen is not current:
            self.switches.append(Switch(chosen.number, chosen.where))
        return chosen

    def _wake_or_report_deadlock(self) -> Task | None:
        waiting = [task for task in self.tasks if not task.ended]
        if not waiting:
            return None
        for task in waiting:
            if task.timed:
                task.timed_out = True
                self.timeouts += 1
                return task
        text = ", ".join(f"thread {task.number} waits for {task.where}" for task in waiting)
        self._abandon(DeadlockError(text))
        return None

    def _abandon(self, failure: AssertionError) -> None:
        self.over, self.failure = True, failure

    # -- steps ---------------------------------------------------------------------------------

    def trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        """Trace frames of watched files."""
        del event, arg
        if frame.f_code.co_filename not in self._watched:
            return None
        frame.f_trace_opcodes = self._fine
        return self._step

    def _step(self, frame: FrameType, event: str, arg: Any) -> Any:
        del arg
        if event == "line" or (event == "opcode" and self._is_access(frame)):
            task = task_here()
            if task is not None:
                task.pause((frame.f_code, frame.f_lineno))
        return self._step

    def _is_access(self, frame: FrameType) -> bool:
        code = self._codes.get(frame.f_code)
        if code is None:
            code = self._codes[frame.f_code] = frame.f_code.co_code
        return code[frame.f_lasti] in _ACCESS_CODES
