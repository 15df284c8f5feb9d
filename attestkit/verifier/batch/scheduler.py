"""Batch verification on any executor, with bounded concurrency and recovery from dead workers.

The items of a dead worker are verified again one by one in a spare process. An item that ends the
spare process twice is rejected; the other items get their results.
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
from attestkit.verifier.batch.task import (
    BatchTask,
    ItemReader,
    Outcome,
    SharedVerifier,
    VerificationItem,
    VerifierProtocol,
    is_internal_failure,
    returned,
    run_task,
    verify_one,
)
from attestkit.verifier.result import AttestationResult

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

WINDOW: Final = 1024  # default number of items in flight
MOST_IN_FLIGHT: Final = 1_000_000  # largest window
# Items per task, so that a submission costs less than a verification: the more, the less it costs,
# but each worker should have several tasks.
_CHUNK: Final = 16
_LARGE_CHUNK: Final = 32
_TASKS: Final = 4  # for each worker, if it is to get large chunks
_CHUNK_BYTES: Final = 1 << 20  # of evidence per task
_BYTES: Final = 64 << 20  # of evidence in flight
_TRIES: Final = 2  # processes that a single item may end before it is rejected
_LONGEST_BEGIN: Final = 300.0  # seconds until a started process must be ready

_logger = logging.getLogger("attestkit.verifier")
_Done = Future[list[Outcome]]
_Outcomes = Generator[tuple[int, Outcome], None, None]


def verify_all(
    verifier: VerifierProtocol,
    items: Sequence[VerificationItem],
    executor: Executor | None,
    progress: Callable[[int, int], None] | None,
    now: datetime,
) -> list[Outcome]:
    """Return the outcome of each item, in order: a result or an error.

    Args:
        verifier: Verifies the items.
        items: The evidence, with its arguments of `Verifier.verify`.
        executor: Executor that runs the tasks; None verifies in this thread.
        progress: Called with the number of completed items and the total; None: not called.
        now: Time of the verification, with a time zone.

    Raises:
        UsageError: As for `Verifier.verify_stream`.
    """
    found: dict[int, Outcome] = {}
    each = verify_each(verifier, items, executor, WINDOW, now, ordered=False)
    with contextlib.closing(each) as outcomes:
        for index, outcome in outcomes:
            found[index] = outcome
            if progress is not None:
                progress(len(found), len(items))
    return [found[index] for index in range(len(items))]


def verify_each(
    verifier: VerifierProtocol,
    items: Iterable[VerificationItem],
    executor: Executor | None,
    window: int,
    now: datetime,
    *,
    ordered: bool,
) -> _Outcomes:
    """Yield the index of each item and its outcome: a result or an error.

    Args:
        verifier: Verifies the items.
        items: The evidence, with its arguments of `Verifier.verify`.
        executor: Executor that runs the tasks; None verifies in this thread.
        window: Maximum number of items in flight.
        now: Time of the verification, with a time zone.
        ordered: Whether the outcomes are in the order of the items, not of completion.

    Raises:
        UsageError: As for `Verifier.verify_stream`.
    """
    given: object = window
    if not isinstance(given, int) or not 1 <= window <= MOST_IN_FLIGHT:
        message = f"window: must be an integer from 1 to {MOST_IN_FLIGHT}, not {window!r}"
        raise UsageError(message, reason="out_of_range")
    if executor is None:  # there is nothing to overlap
        outcomes = (returned(verify_one(verifier, item, now)) for item in items)
        return ((index, outcome) for index, outcome in enumerate(outcomes))
    return _verify_in_workers(verifier, items, executor, window, now, ordered=ordered)


def exit_with_parent() -> None:
    """Initialise a worker process: ignore Ctrl-C, and exit when the parent process exits."""
    from multiprocessing import parent_process  # lazy: already loaded in such a process

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if (parent := parent_process()) is not None:
        # The queue does not signal it: a worker has both of its ends open.
        Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _initialize_worker(
    initializer: Callable[..., object] | None, arguments: tuple[object, ...]
) -> None:
    """Initialise a worker process of a replacement pool as the first pool would.

    Args:
        initializer: Initializer of the first pool; None if it has none.
        arguments: Positional arguments of the initializer.
    """
    exit_with_parent()
    if initializer is not None and initializer is not exit_with_parent:
        initializer(*arguments)


def _exit_after(parent: "BaseProcess") -> None:
    parent.join()
    os._exit(1)


def _verify_in_workers(
    verifier: VerifierProtocol,
    items: Iterable[VerificationItem],
    executor: Executor,
    window: int,
    now: datetime,
    *,
    ordered: bool,
) -> _Outcomes:
    buffer, submitted, longest = _OutcomeBuffer(ordered=ordered), 0, _chunk(executor, window)
    with (
        contextlib.closing(_Workers(executor, SharedVerifier(verifier), now)) as workers,
        contextlib.closing(ItemReader(items, window, _BYTES, workers.wake)) as reader,
    ):
        if not isinstance(items, list | tuple):  # reading may block
            workers.begin()
            reader.begin()
        while not reader.is_over() or submitted > buffer.yielded:
            chunk, size = reader.task(longest, _CHUNK_BYTES, idle=workers.idle)
            if chunk:
                workers.submit(submitted, chunk, size)
                submitted += len(chunk)
            before = workers.size
            over = reader.is_over() and workers.idle
            found = workers.finished(wait=not (chunk or over), at_most=reader.due_in())
            reader.release(size=before - workers.size)
            for outcome in buffer.add(found):
                yield outcome
                reader.release(items=1)  # after the caller has the outcome
        reader.raise_error()


def _chunk(executor: Executor, window: int) -> int:
    """Return the number of items per task, which grows with `window` for each worker.

    Args:
        executor: The executor, whose number of workers counts if it is known.
        window: Maximum number of items in flight.
    """
    workers = getattr(executor, "_max_workers", None)  # not of every executor
    share = window // (_TASKS * workers) if isinstance(workers, int) and workers > 0 else 0
    return min(window, max(_CHUNK, min(_LARGE_CHUNK, share)))


class _OutcomeBuffer:
    """Buffer of outcomes: yields them as completed, or in the order of their items."""

    def __init__(self, *, ordered: bool) -> None:
        self.yielded = 0
        self._ordered = ordered
        self._waiting: dict[int, Outcome] = {}

    def add(self, found: Iterable[tuple[int, Outcome]]) -> Iterator[tuple[int, Outcome]]:
        """Add outcomes; yield all, or with `ordered` those that are next in order.

        Args:
            found: Indices of items, and their outcomes; the result has the same pairs.
        """
        self._waiting.update(found)
        while self._waiting:
            index = self.yielded if self._ordered else next(iter(self._waiting))
            if index not in self._waiting:
                return
            self.yielded += 1
            yield index, returned(self._waiting.pop(index))


class _Workers:
    """The caller's executor, and the pool that replaces it if it fails."""

    def __init__(self, executor: Executor, shared: SharedVerifier, now: datetime) -> None:
        self.size = 0  # bytes of evidence in flight
        self._first = self._executor = executor
        self._shared, self._now = shared, now
        self._spare: Executor | None = None
        self._start_failure: Exception | None = None  # why replacement processes do not start
        self._tasks: dict[_Done, tuple[int, list[VerificationItem], int]] = {}
        self._done: SimpleQueue[_Done | None] = SimpleQueue()  # None wakes `finished`
        self._begun = self._logged = False
        self._has_item_thread = False  # whether a thread reads the items
        if not isinstance(executor, ThreadPoolExecutor):
            _check_that_main_runs()

    @property
    def idle(self) -> bool:
        """Whether no task is in flight."""
        return not self._tasks

    def wake(self) -> None:
        """Interrupt the wait in `finished`, from any thread."""
        self._done.put(None)

    def begin(self) -> None:
        """Start the processes of a pool by an empty task, because forking is not safe with threads.

        Raises:
            UsageError: As for `submit`.
        """
        self._has_item_thread = True
        if _has_processes(self._first):
            self.submit(0, [], 0)

    def submit(self, at: int, chunk: list[VerificationItem], size: int) -> None:
        """Submit items of `size` bytes, the first of which has index `at`.

        Raises:
            UsageError: If the executor does not accept its first task, or has processes and the
                verifier cannot be pickled.
        """
        if _has_processes(self._first):
            self._shared.pickled()
        future = self._submit(BatchTask(self._shared, chunk, self._now))
        self._tasks[future] = at, chunk, size
        self.size += size
        future.add_done_callback(self._done.put)

    def _submit(self, task: BatchTask) -> _Done:
        """Submit a task, and return its Future.

        If the executor fails, it is replaced, and the Future has that error.
        """
        try:
            future = self._executor.submit(run_task, task)
        except Exception as error:
            if not self._begun and not isinstance(error, BrokenExecutor):
                message = f"executor: does not accept tasks: {error}; pass one that is open"
                raise UsageError(message, reason="closed") from error
            self._log_failure(error)
            self._replace()
            lost: _Done = Future()
            lost.set_exception(error.with_traceback(None))  # its frames reference the evidence
            return lost
        self._begun = True
        return future

    def _replace(self) -> None:
        """Replace an executor that is broken or closed."""
        if self._executor is not self._first:
            self._executor.shutdown(wait=False, cancel_futures=True)
        with contextlib.suppress(Exception):
            self._executor = self._begin_pool(getattr(self._first, "_max_workers", 1))
        if self._start_failure is not None:  # stored without the frames of its traceback
            self._start_failure.__traceback__ = None

    def _pool(self, workers: int) -> Executor:
        """Return a replacement executor of the same kind as the caller's.

        Args:
            workers: Its number of threads or processes.
        """
        if isinstance(self._first, ThreadPoolExecutor):
            return ThreadPoolExecutor(workers)
        # Lazy: rarely needed.
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        context = getattr(self._first, "_mp_context", None)  # the caller's start method
        if context is None or (self._has_item_thread and context.get_start_method() == "fork"):
            # A forked child would deadlock on a lock that the item thread holds, such as stdin's.
            context = get_context("spawn")
        # The verifier may depend on the initializer, so it must not be left out.
        own = self._first if _has_processes(self._first) else None
        first = getattr(own, "_initializer", None), getattr(own, "_initargs", ())
        return ProcessPoolExecutor(workers, context, initializer=_initialize_worker, initargs=first)

    def finished(self, *, wait: bool, at_most: float | None = None) -> list[tuple[int, Outcome]]:
        """Return completed outcomes with their indices; with `wait`, block for those of one task.

        The wait ends after `at_most` seconds, if given, or when `wake` is called.
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

    def _outcomes(self, future: _Done, chunk: list[VerificationItem]) -> list[Outcome]:
        try:
            return _check_outcomes(future.result(), chunk)
        except BaseException as error:  # dead process, or value that cannot be pickled
            if not is_internal_failure(error):
                raise
            self._log_failure(error)
            error.__traceback__ = None  # breaks the reference cycle with this frame
        if not isinstance(self._first, ThreadPoolExecutor):
            self._shared.pickled()  # a UsageError instead of a rejection of every item
        return self._verify_in_spare(chunk)

    def _log_failure(self, cause: BaseException) -> None:
        """Log once that the executor failed."""
        if not self._logged:
            self._logged = True
            text = "executor failed (%s: %s); continuing in attestkit's own pool"
            _logger.warning(text, type(cause).__name__, cause)

    def _verify_in_spare(self, items: list[VerificationItem]) -> list[Outcome]:
        """Verify items that may have ended a worker in the spare process: together, then singly."""
        if self._start_failure is not None or not items:
            return [_rejection(self._start_failure) for _ in items if self._start_failure]
        rejection: Outcome | None = None
        for _ in range(_TRIES if len(items) == 1 else 1):
            try:
                return _check_outcomes(self._run_in_spare(items), items)
            except BaseException as error:
                if not is_internal_failure(error):
                    raise
                rejection = _rejection(error)
                if not isinstance(error, BrokenExecutor):
                    break  # deterministic, such as a value that cannot be pickled
        if len(items) == 1 and rejection is not None:
            return [rejection]
        return [outcome for item in items for outcome in self._verify_in_spare([item])]

    def _run_in_spare(self, items: list[VerificationItem]) -> list[Outcome]:
        spare = self._spare = self._spare or self._begin_pool(1)
        try:
            # No timeout: the verifier has its own limits.
            return spare.submit(run_task, BatchTask(self._shared, items, self._now)).result()
        except BaseException as error:
            interrupted = not is_internal_failure(error)
            if interrupted or isinstance(error, BrokenExecutor):
                self._spare = None
                _kill(spare)
            raise

    def _begin_pool(self, workers: int) -> Executor:
        """Return a working replacement pool; raise the cause if its processes do not start.

        Args:
            workers: Its number of threads or processes.
        """
        if self._start_failure is not None:
            raise self._start_failure
        failure: Exception = BrokenExecutor(f"no process began within {_LONGEST_BEGIN:g} seconds")
        for _ in range(_TRIES):
            pool = self._pool(workers)
            try:
                future = pool.submit(run_task, BatchTask(self._shared, [], self._now))
                if wait([future], _LONGEST_BEGIN).done:
                    future.result()
                    return pool
                _kill(pool)
            except BaseException as error:
                _kill(pool)
                if not isinstance(error, Exception):
                    raise
                failure = error.with_traceback(None)
        self._start_failure = failure
        raise failure

    def close(self) -> None:
        """Cancel pending tasks and shut down replacement pools."""
        for task in self._tasks:
            task.cancel()
        if self._executor is not self._first:
            self._executor.shutdown(cancel_futures=True)
        if self._spare is not None:
            self._spare.shutdown(cancel_futures=True)


def _has_processes(executor: Executor) -> bool:
    """Return whether `executor` is a ProcessPoolExecutor, without importing its module."""
    kinds = type(executor).__mro__
    return any(kind.__module__ == "concurrent.futures.process" for kind in kinds)


def _kill(pool: Executor) -> None:
    """Kill the processes of a replacement pool; waiting futures raise BrokenExecutor."""
    for process in list((getattr(pool, "_processes", None) or {}).values()):
        process.kill()
    pool.shutdown(wait=False)


def _check_that_main_runs() -> None:
    """Check that this is not a worker process that is still importing the main module.

    Raises:
        UsageError: If this is such a process, because the program lacks a `__main__` guard.
    """
    loaded = sys.modules.get("multiprocessing.process")
    if loaded is not None and getattr(loaded.current_process(), "_inheriting", False):
        raise UsageError(
            "worker process: started while the main module is still being imported; call it "
            "below `if __name__ == '__main__':`",
            reason="wrong_process",
        )


def _check_outcomes(answer: object, items: list[VerificationItem]) -> list[Outcome]:
    """Return the result of a task, after a check.

    Args:
        answer: What the executor returned.
        items: Items of the task.

    Raises:
        UsageError: If `answer` is not a list of one result or error for each item.
    """
    found: list[object] = answer if isinstance(answer, list) else []
    outcomes = [each for each in found if isinstance(each, AttestationResult | AttestKitError)]
    if not len(outcomes) == len(found) == len(items):  # a None would be taken for a success
        message = "executor: must return the result of the submitted task, unchanged"
        raise UsageError(message, reason="wrong_type")
    return outcomes


def _rejection(error: BaseException) -> VerificationError:
    text = f"verification: not completed: {type(error).__name__}: {error}"
    rejection = VerificationError(text, reason="internal")
    rejection.__cause__ = error.with_traceback(None)  # its frames reference the items
    return rejection
