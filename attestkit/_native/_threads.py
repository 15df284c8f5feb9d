"""Work that drops the GIL, on all the CPUs that this process may use."""

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

__all__ = ["cpus", "in_parts"]

T = TypeVar("T")
R = TypeVar("R")


def cpus() -> int:
    """Return how many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _spans(sizes: Sequence[int], part: int) -> list[tuple[int, int]]:
    """Return starts and ends of neighbours that come to `part` or more, all but the last."""
    spans = []
    start = size = 0
    for end, more in enumerate(sizes, 1):
        size += more
        if size >= part or end == len(sizes):
            spans.append((start, end))
            start, size = end, 0
    return spans


def _side_by_side(task: Callable[[], None], count: int) -> None:
    """Run a task in so many threads, this one among them; in fewer where no more are to be had."""
    from threading import Thread  # late: only large batches need it

    threads = [Thread(target=task) for _ in range(count - 1)]
    for number, thread in enumerate(threads):
        try:
            thread.start()
        except RuntimeError:
            del threads[number:]
            break
    task()
    for thread in threads:
        thread.join()


def in_parts(
    work: Callable[[Sequence[T]], list[R]], things: Sequence[T], sizes: Sequence[int], share: int
) -> list[R]:
    """Return the results of `work` for all things, some of them at a time.

    Args:
        work: Turns things into a result each.
        things: What to work on.
        sizes: How much work each of them is.
        share: How much work is worth a thread. A quarter of it is done at a time, so that a thread
            that is slow does less of it all.

    Raises:
        BaseException: What `work` raised first, after all threads have ended.
    """
    spans = _spans(sizes, share // 4)
    waiting = spans[::-1]
    results: dict[int, list[R]] = {}
    errors: list[BaseException] = []

    def take_parts() -> None:
        while waiting and not errors:
            try:
                start, end = waiting.pop()
            except IndexError:  # another thread was faster
                return
            try:
                results[start] = work(things[start:end])
            except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
                errors.append(error)

    _side_by_side(take_parts, min(cpus(), sum(sizes) // share))
    try:
        if errors:
            raise errors[0]
    finally:
        errors.clear()  # which its own traceback holds, and so all that `work` was given
    return [result for start, _ in spans for result in results[start]]
