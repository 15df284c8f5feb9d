"""Critical sections of locks, queues, injected faults and parallel parts."""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from attestkit.errors import UsageError
from tests.concurrency.explore import Run
from tests.concurrency.subjects.registry import private_folder, subject
from tests.concurrency.world import World

_FIFO_LOCK: Final = "attestkit._system.fifo_lock"
_FILE_QUEUE: Final = "attestkit._system.file_queue"


@subject(
    _FIFO_LOCK,
    guards=[
        ("            self.acquire()\n            queue.popleft()", "            queue.popleft()")
    ],
)
def fifo_lock(world: World, _: ExitStack) -> Run:
    """Three threads, one of which acquires twice and re-enters."""
    steps = list[str]()
    lock = world.first.HookedFifoLock(lambda: steps.append("in"), lambda: steps.append("out"))

    def once() -> None:
        with lock:
            pass

    def twice() -> None:
        for _ in range(2):
            with lock, lock:
                pass

    def check() -> None:
        assert steps == ["in", "out"] * 4
        assert lock.waiting == 0

    return Run([once, twice, once], check)


@subject(
    _FILE_QUEUE,
    __name__,
    guards=[("_lock(fd, self._take_ticket(fd) - 1)", "self._take_ticket(fd)")],
)
def file_queue(world: World, stack: ExitStack) -> Run:
    """Threads of several programs take numbers, and enter in order."""
    folder = private_folder(stack)
    queues = [world.first.FileQueue(f"{folder}/queue") for _ in range(2)]
    for queue in queues:
        stack.callback(queue.close)
    inside, most = list[int](), list[int]()

    def work(queue: Any) -> None:
        queue.enter()
        inside.append(1)
        most.append(len(inside))
        inside.pop()
        queue.leave()

    def check() -> None:
        assert most == [1, 1, 1]
        assert not any(queue._descriptors for queue in queues)

    one, two = queues
    return Run([partial(work, one), partial(work, one), partial(work, two)], check)


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@subject(_FILE_QUEUE, guards=[("            if self._closed:\n                self.close()\n", "")])
def closed_queue(world: World, stack: ExitStack) -> Run:
    """A queue closed while a thread is in it leaves no file open."""
    queue = world.first.FileQueue(f"{private_folder(stack)}/queue")
    stack.callback(queue.close)

    def work() -> None:
        queue.enter()
        queue.leave()

    work()  # creates a spare descriptor
    before = _descriptors()

    def check() -> None:
        assert _descriptors() == before - 1

    return Run([work, queue.close, work], check)


def _work(things: Sequence[int]) -> list[int]:
    if 7 in things:
        raise UsageError("seven", reason="wrong_value")
    return [2 * thing for thing in things]


@subject(
    "attestkit._native._threads",
    guards=[
        ("start, end = waiting.pop()", "start, end = waiting[-1]\n                waiting.pop()")
    ],
)
def parallel_parts(world: World, _: ExitStack) -> Run:
    """Parallel parts give each result once and in order."""
    world.first.cpus = lambda: 2

    def work() -> None:
        assert world.first.in_parts(_work, range(6), [2] * 6, 4) == [0, 2, 4, 6, 8, 10]

    return Run([work])


@subject("attestkit._native._threads", guards=[("raise errors[0]", "pass")])
def failing_parallel_parts(world: World, _: ExitStack) -> Run:
    """One error of parallel parts is raised."""
    world.first.cpus = lambda: 2

    def work() -> None:
        with suppress(UsageError):
            world.first.in_parts(_work, range(6, 9), [2] * 3, 2)
            raise AssertionError("the error is lost")

    return Run([work])


@subject(
    "attestkit.backends.simulator.faults.fault_specs",
    guards=[("with self._lock:\n            queue =", "if True:\n            queue =")],
)
def faults(world: World, _: ExitStack) -> Run:
    """A fault armed twice applies to exactly two calls of any threads."""
    armed, struck = world.first.Faults.of("ebusy:2@1"), list[object]()

    def ask() -> None:
        struck.extend(armed.strike("read:outblob") for _ in range(2))

    def check() -> None:
        ask()
        assert len([fault for fault in struck if fault]) == 3
        assert not armed.any

    return Run([ask, partial(armed.arm, "ebusy:1"), ask], check)
