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
    from threading import Thread  # late: only large batches need it

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

    threads = [Thread(target=take_parts) for _ in range(min(cpus(), sum(sizes) // share) - 1)]
    for number, thread in enumerate(threads):
        try:
            thread.start()
        except RuntimeError:  # no more to be had, so fewer do the work
            del threads[number:]
            break
    take_parts()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [result for start, _ in spans for result in results[start]]
