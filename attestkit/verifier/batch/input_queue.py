"""Reading of items, in a thread if the input may block, while earlier outcomes are yielded."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from contextvars import copy_context
from threading import Condition, Thread, current_thread
from time import monotonic
from types import TracebackType
from typing import Final, NamedTuple

from attestkit.attestation import Attestation
from attestkit.collateral import Collateral
from attestkit.quote import Quote
from attestkit.verifier.batch.task import VerificationItem

_LINGER: Final = 0.01  # seconds that an item waits for its task to fill
_GRACE: Final = 0.1  # seconds that `close` waits for the iterator


class _QueuedItem(NamedTuple):
    item: VerificationItem
    size: int  # bytes
    due: float  # time at which its task is submitted, full or not


class ItemReader:
    """Reader of an iterable, with limits on items and bytes in flight.

    `task` reads the items in the caller's thread, unless `begin` has started a thread for it.

    Args:
        items: Iterable of items.
        window: Maximum number of items in flight: read and not yet released.
        most: Maximum bytes of evidence in flight; reading pauses when they are reached.
        came: Function that the thread calls after each item and at the end.
    """

    def __init__(
        self, items: Iterable[VerificationItem], window: int, most: int, came: Callable[[], object]
    ) -> None:
        self._items: Iterable[VerificationItem] | None = items
        self._window, self._most, self._came = window, most, came
        self._changed = Condition()
        self._queue: deque[_QueuedItem] = deque()
        self._taken = self._size = 0  # in flight
        self._waiting = 0  # bytes of queued items
        self._ended = self._stopped = False
        self._error: BaseException | None = None
        self._thread: Thread | None = None
        self._here: Iterator[VerificationItem] | None = None  # read without a thread

    def begin(self) -> None:
        """Start the thread, in a copy of the caller's context."""
        run = copy_context().run
        self._thread = Thread(target=run, args=(self._run,), name="attestkit items", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with ExitStack() as stack:
            stack.push(self._end)
            items = self._iterator()
            while self._has_room() and self._read_item(items):
                self._came()

    def _iterator(self) -> Iterator[VerificationItem]:
        """Return the iterator, and drop the iterable, so that a generator is closed in time."""
        iterable, self._items = self._items, None
        return iter(iterable or ())

    def _read_item(self, items: Iterator[VerificationItem]) -> bool:
        """Queue the next item; return whether there was one."""
        try:
            item = next(items)
        except StopIteration:
            return False
        size = size_of(item)
        with self._changed:
            if not self._stopped:
                self._taken += 1
                self._size += size
                self._waiting += size
                self._queue.append(_QueuedItem(item, size, monotonic() + _LINGER))
        return True

    def _has_room(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or not self._is_full())
            return not self._stopped

    def _is_full(self) -> bool:
        return self._taken >= self._window or self._size >= self._most

    def _end(
        self, _kind: object, error: BaseException | None, _trace: TracebackType | None
    ) -> bool:
        """Store the exception that ended the thread, and suppress it."""
        with self._changed:
            self._ended, self._error = True, None if self._stopped else error
        self._came()
        return True

    def is_over(self) -> bool:
        """Return whether all items have been returned."""
        with self._changed:
            return self._ended and not self._queue

    def task(self, longest: int, largest: int, *, idle: bool) -> tuple[list[VerificationItem], int]:
        """Return the items of the next task and their size in bytes; no items if it is not due.

        A task is due when it has `longest` items or `largest` bytes, when workers are `idle`, when
        no more items can be read, or when its first item has waited for 10 ms.
        """
        with self._changed:
            if not isinstance(self._error, Exception):
                self.raise_error()  # an interrupt is raised at once
            if self._thread is None:
                self._fill_queue(longest, largest)
            if not self._queue:
                return [], 0
            full = len(self._queue) >= longest or self._waiting >= largest
            due = idle or self._ended or self._is_full() or monotonic() >= self._queue[0].due
            chunk: list[VerificationItem] = []
            size = 0
            while (full or due) and self._queue and len(chunk) < longest and size < largest:
                taken = self._queue.popleft()
                chunk.append(taken.item)
                size += taken.size
            self._waiting -= size
            return chunk, size

    def _fill_queue(self, longest: int, largest: int) -> None:
        """Read the items of a task in this thread."""
        if self._here is None:
            self._here = self._iterator()
        while not (self._ended or self._is_full()):
            if len(self._queue) >= longest or self._waiting >= largest:
                return
            self._ended = not self._read_item(self._here)

    def due_in(self) -> float | None:
        """Return the seconds until the queued items are due; None if the queue is empty."""
        with self._changed:
            return max(0.0, self._queue[0].due - monotonic()) if self._queue else None

    def release(self, *, items: int = 0, size: int = 0) -> None:
        """Allow reading of more items, after `items` were yielded or `size` bytes were verified."""
        with self._changed:
            self._taken -= items
            self._size -= size
            self._changed.notify_all()

    def raise_error(self) -> None:
        """Raise the exception that the input iterator raised, if any."""
        error, self._error = self._error, None  # its frames reference this object
        try:
            if error is not None:
                raise error
        finally:
            del error

    def close(self) -> None:
        """Stop the thread. If its iterator blocks, the thread ends at the next item.

        The reason is that a blocking call in another thread cannot be interrupted.
        """
        with self._changed:
            self._stopped, self._items, self._error = True, None, None
            self._queue.clear()
            self._changed.notify_all()
        # The garbage collector may close an abandoned stream in that very thread.
        thread = self._thread
        if thread is not None and thread is not current_thread() and thread.is_alive():
            thread.join(_GRACE)


def size_of(item: object) -> int:
    """Return the size of an item's evidence and collateral in bytes; the item may have any type."""
    size = 0
    rest: list[object] = [item]
    while rest:  # nested tuples, whose depth and number the decoders limit
        part = rest.pop()
        if isinstance(part, bytes | str):
            size += len(part)
        elif isinstance(part, VerificationItem):
            rest += part.evidence, part.collateral
        elif isinstance(part, tuple):
            rest.extend(part)
        elif isinstance(part, Attestation):
            rest.append(part.evidence)
        elif isinstance(part, Quote):
            rest.append(part.raw)
        elif isinstance(part, Collateral):
            size += part.size
    return size
