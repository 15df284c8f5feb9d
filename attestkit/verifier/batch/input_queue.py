"""Reading of items in a thread, while outcomes of earlier items are yielded."""

from collections import deque
from collections.abc import Callable, Iterable
from contextvars import copy_context
from dataclasses import fields
from threading import Condition, Thread, current_thread
from time import monotonic
from types import TracebackType
from typing import Final, NamedTuple

from attestkit.attestation import Attestation
from attestkit.collateral import Collateral
from attestkit.quote import Quote
from attestkit.verifier.batch.task import Item

__all__ = ["ItemReader", "size_of"]

_LINGER: Final = 0.01  # seconds that an item waits for its task to fill
_GRACE: Final = 0.1  # seconds that `close` waits for the iterator


class _QueuedItem(NamedTuple):
    item: Item
    size: int  # bytes
    due: float  # time at which its task is submitted, full or not


class ItemReader:
    """Reader of an iterable in a thread, with limits on items and bytes in flight.

    Args:
        items: Iterable of items, iterated in the thread.
        window: Maximum number of items in flight: read and not yet released.
        most: Bytes of evidence in flight from which on no item is read.
        came: Function that the thread calls after each item and at the end.
    """

    def __init__(
        self, items: Iterable[Item], window: int, most: int, came: Callable[[], object]
    ) -> None:
        self._items: Iterable[Item] | None = items
        self._window, self._most, self._came = window, most, came
        self._changed = Condition()
        self._queue: deque[_QueuedItem] = deque()
        self._taken = self._size = 0  # in flight
        self._waiting = 0  # bytes of queued items
        self._ended = self._stopped = False
        self._error: BaseException | None = None
        self._thread: Thread | None = None

    def begin(self) -> None:
        """Start the thread, in a copy of the caller's context."""
        run = copy_context().run
        self._thread = Thread(target=run, args=(self._run,), name="attestkit items", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with _ReportEnd(self._end):
            # The only reference from here on, so that a generator is closed in time.
            iterable, self._items = self._items, None
            items = iter(iterable or ())
            del iterable
            while self._has_room():
                try:
                    item = next(items)
                except StopIteration:
                    break
                self._take(item)
                del item

    def _has_room(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or not self._is_full())
            return not self._stopped

    def _is_full(self) -> bool:
        return self._taken >= self._window or self._size >= self._most

    def _take(self, item: Item) -> None:
        size = size_of(item)
        with self._changed:
            if self._stopped:
                return
            self._taken += 1
            self._size += size
            self._waiting += size
            self._queue.append(_QueuedItem(item, size, monotonic() + _LINGER))
        self._came()

    def _end(self, error: BaseException | None) -> None:
        with self._changed:
            self._ended, self._error = True, None if self._stopped else error
        self._came()

    def is_over(self) -> bool:
        """Return whether all items have been returned."""
        with self._changed:
            return self._ended and not self._queue

    def task(self, longest: int, largest: int, *, idle: bool) -> tuple[list[Item], int]:
        """Return the items of the next task and their size in bytes; no items if it is not due.

        A task is due when it has `longest` items or `largest` bytes, when workers are `idle`, when
        no more items can be read, or when its first item has waited for 10 ms.
        """
        with self._changed:
            if not isinstance(self._error, Exception):
                self.raise_error()  # an interrupt is raised at once
            if not self._queue:
                return [], 0
            full = len(self._queue) >= longest or self._waiting >= largest
            due = idle or self._ended or self._is_full() or monotonic() >= self._queue[0].due
            chunk: list[Item] = []
            size = 0
            while (full or due) and self._queue and len(chunk) < longest and size < largest:
                taken = self._queue.popleft()
                chunk.append(taken.item)
                size += taken.size
            self._waiting -= size
            return chunk, size

    def due_in(self) -> float | None:
        """Return the seconds until the queued items are due; None if the queue is empty."""
        with self._changed:
            return max(0.0, self._queue[0].due - monotonic()) if self._queue else None

    def release(self, *, items: int = 0, size: int = 0) -> None:
        """Release the window for yielded items, and for verified bytes."""
        with self._changed:
            self._taken -= items
            self._size -= size
            self._changed.notify_all()

    def raise_error(self) -> None:
        """Raise the exception of the iterator, if any."""
        error, self._error = self._error, None  # its frames reference this object
        try:
            if error is not None:
                raise error
        finally:
            del error

    def close(self) -> None:
        """Stop the thread; if its iterator blocks, it ends at the next item.

        A blocking call in another thread cannot be interrupted.
        """
        with self._changed:
            self._stopped, self._items, self._error = True, None, None
            self._queue.clear()
            self._changed.notify_all()
        # The garbage collector may close an abandoned stream in that very thread.
        thread = self._thread
        if thread is not None and thread is not current_thread() and thread.is_alive():
            thread.join(_GRACE)


class _ReportEnd:
    """Context manager that passes the exception of its block to a function, and suppresses it."""

    def __init__(self, end: Callable[[BaseException | None], object]) -> None:
        self._end = end

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._end(error)
        return True


def size_of(item: object) -> int:
    """Return the bytes of an item's evidence and collateral, of any type."""
    size = 0
    rest: list[object] = [item]
    while rest:  # nested tuples, whose depth and number the decoders limit
        part = rest.pop()
        if isinstance(part, bytes | str):
            size += len(part)
        elif isinstance(part, tuple):
            rest.extend(part)
        elif isinstance(part, Attestation):
            rest.append(part.evidence)
        elif isinstance(part, Quote):
            rest.append(part.raw)
        elif isinstance(part, Collateral):
            rest.extend(getattr(part, field.name) for field in fields(part))
    return size
