"""Many verifications on any executor: a bounded number under way, and none lost with a worker.

What a dead worker had is judged again, one item at a time, in a spare process that has nothing
else: what ends that process twice is refused by itself, and its neighbours get their verdicts.
"""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor, wait
from datetime import datetime
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Final

from attestkit.errors import AttestKitError, UsageError, VerificationError
from attestkit.verifier.batch.input_queue import Arriving, size_of
from attestkit.verifier.batch.task import (
    Item,
    Judge,
    Outcome,
    Sent,
    Task,
    is_failure,
    run_task,
    verify_one,
)
from attestkit.verifier.result import AttestationResult

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

__all__ = ["MOST_IN_FLIGHT", "WINDOW", "leave_with_parent", "verify_all", "verify_each"]

WINDOW: Final = 1024  # items under way, if nobody says otherwise
MOST_IN_FLIGHT: Final = 1_000_000  # what anybody may say
_CHUNK: Final = 16  # verifications a task: sending one to a process costs less than one of them
_CHUNK_BYTES: Final = 1 << 20  # of evidence, after which a task is full
_BYTES: Final = 64 << 20  # of evidence under way, after which none is taken
_TRIES: Final = 2  # processes that an item may end when it is alone, before it is refused
_LONGEST_BEGIN: Final = (
    300.0  # seconds until a process of ours must have begun, initializer and all
)

_logger = logging.getLogger("attestkit.verifier")
_Done = Future[list[Outcome]]
_Outcomes = Generator[tuple[int, Outcome], None, None]


def verify_all(
    verifier: Judge,
    items: Sequence[Item],
    executor: Executor | None,
    progress: Callable[[int, int], None] | None,
    now: datetime,
) -> list[Outcome]:
    """Return the outcome of each item, in their order; see `Verifier.verify_many`."""
    found: dict[int, Outcome] = {}
    with contextlib.closing(_each(verifier, items, executor, WINDOW, now)) as outcomes:
        for index, outcome in outcomes:
            found[index] = outcome
            if progress is not None:
                progress(len(found), len(items))
    return [found[index] for index in range(len(items))]


def verify_each(
    verifier: Judge,
    items: Iterable[Item],
    executor: Executor | None,
    window: int,
    now: datetime,
    *,
    ordered: bool,
) -> _Outcomes:
    """Yield the outcomes as they come, each with the place of its item; see `verify_stream`."""
    window = _checked_window(window)
    # What is at hand as a whole makes full tasks; and where the work is done here, nothing waits.
    if executor is None or isinstance(items, list | tuple):
        return _each(verifier, items, executor, window, now, ordered=ordered)
    return _each_arriving(verifier, items, executor, window, now, ordered=ordered)


def _checked_window(given: object) -> int:
    if not isinstance(given, int) or not 1 <= given <= MOST_IN_FLIGHT:
        raise UsageError(f"window is a number of items, 1 to {MOST_IN_FLIGHT}, not {given!r}")
    return given


def leave_with_parent() -> None:
    """Begin a worker process that ends with the one it works for, and leaves Ctrl-C to that."""
    from multiprocessing import parent_process  # late: such a process has it loaded

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if (parent := parent_process()) is not None:
        # The queue between the two does not tell: a worker holds both of its ends.
        Thread(target=_leave_after, args=(parent,), daemon=True).start()


def _begin_like(initializer: Callable[..., object] | None, arguments: tuple[object, ...]) -> None:
    """Begin a worker process in the place of another pool's, with what that one's begin with."""
    leave_with_parent()
    if initializer is not None and initializer is not leave_with_parent:
        initializer(*arguments)


def _leave_after(parent: "BaseProcess") -> None:
    parent.join()
    os._exit(1)


def _each(
    verifier: Judge,
    items: Iterable[Item],
    executor: Executor | None,
    window: int,
    now: datetime,
    *,
    ordered: bool = False,
) -> _Outcomes:
    if executor is None:
        for index, item in enumerate(items):
            yield index, verify_one(verifier, item, now)
        return
    turn, taken = _Turn(ordered=ordered), 0
    with contextlib.closing(_Workers(executor, Sent(verifier), now)) as workers:
        for chunk, size in _chunks(items, min(_CHUNK, window)):
            # What waits for its turn counts, too: else one slow task would let all others pile up.
            while taken > turn.given and (
                taken + len(chunk) > turn.given + window or workers.size + size > _BYTES
            ):
                yield from turn.pass_on(workers.finished(wait=True))
            workers.submit(taken, chunk, size)
            taken += len(chunk)
            yield from turn.pass_on(workers.finished(wait=False))
            while taken >= turn.given + window:  # whoever writes may wait for an answer
                yield from turn.pass_on(workers.finished(wait=True))
        while taken > turn.given:
            yield from turn.pass_on(workers.finished(wait=True))


def _each_arriving(
    verifier: Judge,
    items: Iterable[Item],
    executor: Executor,
    window: int,
    now: datetime,
    *,
    ordered: bool,
) -> _Outcomes:
    """Yield what is judged also while the next item is waited for, in a thread."""
    turn, sent, longest = _Turn(ordered=ordered), 0, min(_CHUNK, window)
    with (
        contextlib.closing(_Workers(executor, Sent(verifier), now)) as workers,
        contextlib.closing(Arriving(items, window, _BYTES, workers.wake)) as arriving,
    ):
        workers.begin()
        arriving.begin()
        while not arriving.is_over() or sent > turn.given:
            chunk, size = arriving.task(longest, _CHUNK_BYTES, idle=workers.idle)
            if chunk:
                workers.submit(sent, chunk, size)
                sent += len(chunk)
            before = workers.size
            found = workers.finished(wait=not chunk, at_most=arriving.due_in())
            arriving.let_go(size=before - workers.size)
            for outcome in turn.pass_on(found):
                yield outcome
                arriving.let_go(items=1)  # not before: who waits for an answer has it by now
        arriving.raise_error()


def _chunks(items: Iterable[Item], longest: int) -> Iterator[tuple[list[Item], int]]:
    """Yield items in tasks, each with the size of its evidence in bytes."""
    chunk: list[Item] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += size_of(item)
        if len(chunk) == longest or size >= _CHUNK_BYTES:
            yield chunk, size
            chunk, size = [], 0
    if chunk:
        yield chunk, size


class _Turn:
    """Outcomes on their way out: as they come, or in the order of their items."""

    def __init__(self, *, ordered: bool) -> None:
        self.given = 0
        self._ordered = ordered
        self._waiting: dict[int, Outcome] = {}

    def pass_on(self, found: Iterable[tuple[int, Outcome]]) -> Iterator[tuple[int, Outcome]]:
        """Yield what may go."""
        self._waiting.update(found)
        while self._waiting:
            index = self.given if self._ordered else next(iter(self._waiting))
            if index not in self._waiting:
                return
            self.given += 1
            yield index, self._waiting.pop(index)


class _Workers:
    """The executor, and what takes its place where it gives up."""

    def __init__(self, executor: Executor, sent: Sent, now: datetime) -> None:
        self.size = 0  # bytes of evidence that is under way
        self._given = self._executor = executor
        self._sent, self._now = sent, now
        self._spare: Executor | None = None
        self._unfit: Exception | None = None  # why no process of ours begins
        self._tasks: dict[_Done, tuple[int, list[Item], int]] = {}
        self._done: SimpleQueue[_Done | None] = SimpleQueue()  # None wakes who waits
        self._begun = self._told = False
        self._beside = False  # a thread takes the items
        if not isinstance(executor, ThreadPoolExecutor):
            _check_that_main_runs()

    @property
    def idle(self) -> bool:
        """Tell whether nothing is under way."""
        return not self._tasks

    def wake(self) -> None:
        """Have who waits for a task wait no more; from any thread."""
        self._done.put(None)

    def begin(self) -> None:
        """Start the processes of a pool, before there is a thread beside them: some are forked.

        Raises:
            UsageError: As `submit`.
        """
        self._beside = True
        if _has_processes(self._given):
            self.submit(0, [], 0)

    def submit(self, at: int, chunk: list[Item], size: int) -> None:
        """Send items out, of which the first is number `at`.

        Raises:
            UsageError: The executor takes no work, from the first on; or it has processes, and
                the verifier does not pickle.
        """
        if _has_processes(self._given):
            self._sent.pickled()
        future = self._sent_out(Task(self._sent, chunk, self._now))
        self._tasks[future] = at, chunk, size
        self.size += size
        future.add_done_callback(self._done.put)

    def _sent_out(self, task: Task) -> _Done:
        failure: Exception | None = None
        for _ in range(_TRIES):
            if self._unfit is not None and self._executor is not self._given:
                break  # the given one may be well where none of ours begins
            try:
                future = self._executor.submit(run_task, task)
            except Exception as error:
                if not self._begun and not isinstance(error, BrokenExecutor):
                    raise UsageError(f"the executor takes no work: {error}") from error
                failure = error.with_traceback(None)  # which has this frame, and the evidence
                self._tell(error)
                if self._unfit is not None:
                    break
                self._replace()
            else:
                self._begun = True
                return future
        lost: _Done = Future()
        # Not `_unfit` itself: what is raised for each task keeps the frames, and evidence, of all.
        lost.set_exception(failure or BrokenExecutor("no process of attestkit's own begins"))
        return lost

    def _replace(self) -> None:
        """Go on without an executor that is broken, or was closed meanwhile."""
        if self._executor is not self._given:
            self._executor.shutdown(wait=False, cancel_futures=True)
        with contextlib.suppress(Exception):
            self._executor = self._begin_pool(getattr(self._given, "_max_workers", 1))
        if self._unfit is not None:  # which is kept, without what its frames hold
            self._unfit.__traceback__ = None

    def _pool(self, workers: int) -> Executor:
        """Return an executor of ours, like the one that was given."""
        if isinstance(self._given, ThreadPoolExecutor):  # none of which dies by itself
            return ThreadPoolExecutor(workers)
        # Late: most have no need of processes of ours.
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        context = getattr(self._given, "_mp_context", None)  # how its owner wants them to start
        if context is None or (self._beside and context.get_start_method() == "fork"):
            # A fork has each lock as it is: that of stdin, if the thread beside waits for a line of
            # it, and the child would wait for that for ever.
            context = get_context("spawn")
        # What it sets up may be what makes a verifier safe: to do without is no choice of ours.
        own = self._given if _has_processes(self._given) else None
        first = getattr(own, "_initializer", None), getattr(own, "_initargs", ())
        return ProcessPoolExecutor(workers, context, initializer=_begin_like, initargs=first)

    def finished(self, *, wait: bool, at_most: float | None = None) -> list[tuple[int, Outcome]]:
        """Return what is done by now; with `wait` at least the outcomes of one task.

        That waits no longer than `at_most` seconds, and until somebody calls `wake`.
        """
        found: list[tuple[int, Outcome]] = []
        with contextlib.suppress(Empty):
            while True:
                future = self._done.get(wait and not found, at_most)
                if future is None:
                    wait = False
                    continue
                at, chunk, size = self._tasks.pop(future)
                self.size -= size
                found.extend(enumerate(self._outcomes(future, chunk), at))
        return found

    def _outcomes(self, future: _Done, chunk: list[Item]) -> list[Outcome]:
        try:
            return _checked(future.result(), chunk)
        except BaseException as error:  # a dead process, a value that does not pickle
            if not is_failure(error):
                raise
            self._tell(error)
            error.__traceback__ = None  # it holds this frame, and what has the error: a circle
        if not isinstance(self._given, ThreadPoolExecutor):
            self._sent.pickled()  # else its owner's mistake would be a refusal of each item
        return self._again(chunk)

    def _tell(self, cause: BaseException) -> None:
        """Say once that the executor gave up, and why."""
        if not self._told:
            self._told = True
            text = (
                "the executor gave up (%s: %s): what it had goes on in workers of attestkit's own"
            )
            _logger.warning(text, type(cause).__name__, cause)

    def _again(self, items: list[Item]) -> list[Outcome]:
        """Judge items that may have ended a worker where no others are: all, then one by one."""
        if self._unfit is not None or not items:
            return [_refusal(self._unfit) for _ in items if self._unfit]
        refused: Outcome | None = None
        for _ in range(_TRIES if len(items) == 1 else 1):
            try:
                return _checked(self._in_spare(items), items)
            except BaseException as error:
                if not is_failure(error):
                    raise
                refused = _refusal(error)
                if not isinstance(error, BrokenExecutor):
                    break  # it would not pickle the next time either
        if len(items) == 1 and refused is not None:
            return [refused]
        return [outcome for item in items for outcome in self._again([item])]

    def _in_spare(self, items: list[Item]) -> list[Outcome]:
        spare = self._spare = self._spare or self._begin_pool(1)
        try:
            # As long as it takes: what judges has the verifier's bounds, which nobody knows here.
            return spare.submit(run_task, Task(self._sent, items, self._now)).result()
        except BaseException as error:
            if isinstance(error, BrokenExecutor) or not is_failure(error):  # or an interrupt
                self._spare = None
                _kill(spare)
            raise

    def _begin_pool(self, workers: int) -> Executor:
        """Return a pool of ours that works; where none does, that is no evidence's fault."""
        if self._unfit is not None:
            raise self._unfit
        failure: Exception = BrokenExecutor(f"no process began within {_LONGEST_BEGIN:g} seconds")
        for _ in range(_TRIES):
            pool = self._pool(workers)
            try:
                future = pool.submit(run_task, Task(self._sent, [], self._now))
                if wait([future], _LONGEST_BEGIN).done:
                    future.result()
                    return pool
                _kill(pool)
            except BaseException as error:
                _kill(pool)
                if not isinstance(error, Exception):
                    raise
                failure = error.with_traceback(None)
        self._unfit = failure
        raise failure

    def close(self) -> None:
        """Take back what is not done; somebody's Ctrl-C, or a caller that has seen enough."""
        for task in self._tasks:
            task.cancel()
        if self._executor is not self._given:
            self._executor.shutdown(cancel_futures=True)
        if self._spare is not None:
            self._spare.shutdown(cancel_futures=True)


def _has_processes(executor: Executor) -> bool:
    """Tell a pool of processes, without loading what they take."""
    kinds = type(executor).__mro__
    return any(kind.__module__ == "concurrent.futures.process" for kind in kinds)


def _kill(pool: Executor) -> None:
    """End a pool of ours and its processes; whoever waits for one finds the pool broken."""
    for process in list((getattr(pool, "_processes", None) or {}).values()):
        process.kill()
    pool.shutdown(wait=False)


def _check_that_main_runs() -> None:
    """Refuse a program without a guard, which a process of ours would run again from its start.

    Raises:
        UsageError: This process is about to begin, and imports the program for that.
    """
    loaded = sys.modules.get("multiprocessing.process")
    if loaded is not None and getattr(loaded.current_process(), "_inheriting", False):
        raise UsageError(
            "a process that judges begins, and would run the program once more: what starts it "
            "belongs below `if __name__ == '__main__':`"
        )


def _checked(answer: object, items: list[Item]) -> list[Outcome]:
    """Return what an executor answered, if it is what was asked for."""
    found: list[object] = answer if isinstance(answer, list) else []
    outcomes = [each for each in found if isinstance(each, AttestationResult | AttestKitError)]
    if not len(outcomes) == len(found) == len(items):  # who looks for errors would miss a None
        raise UsageError("the executor answers with something else than its task")
    return outcomes


def _refusal(error: BaseException) -> VerificationError:
    text = f"the verification did not come to its end ({type(error).__name__}: {error})"
    refused = VerificationError(text, reason="internal")
    refused.__cause__ = error.with_traceback(None)  # whose frames hold the items of its task
    return refused
