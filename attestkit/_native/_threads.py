"""Parallel execution of work that releases the GIL, on all CPUs available to this process."""

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def cpus() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _spans(sizes: Sequence[int], part: int) -> list[tuple[int, int]]:
    """Divide items into runs of about `part` in total size; return their starts and ends."""
    spans = []
    start = size = 0
    for end, more in enumerate(sizes, 1):
        size += more
        if size >= part or end == len(sizes):
            spans.append((start, end))
            start, size = end, 0
    return spans


def _run_in_threads(task: Callable[[], None], count: int) -> None:
    """Run a task in `count` threads, including this one, or in fewer if threads cannot start."""
    from threading import Thread  # lazy: only large batches need it

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
    work: Callable[[Sequence[T]], list[R]], items: Sequence[T], sizes: Sequence[int], share: int
) -> list[R]:
    """Apply `work` to parts of the items in threads; return all results in order.

    Args:
        work: Function that takes some of the items and returns one result per item.
        items: The items.
        sizes: Amount of work of each item.
        share: Amount of work per thread. A thread takes a quarter of it at a time, so that slow
            threads do less.

    Raises:
        BaseException: The first exception of `work`, after all threads have ended.
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
                results[start] = work(items[start:end])
            except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
                errors.append(error)

    _run_in_threads(take_parts, min(cpus(), sum(sizes) // share))
    try:
        if errors:
            raise errors[0]
    finally:
        errors.clear()  # breaks the cycle with the traceback, which keeps the items alive
    return [result for start, _ in spans for result in results[start]]
