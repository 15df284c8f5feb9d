"""Items that arrive while others are judged: a thread waits for the next, and no outcome has to."""

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

__all__ = ["Arriving", "size_of"]

_LINGER: Final = 0.01  # seconds that an item waits at most for others of its task
_GRACE: Final = 0.1  # seconds that closing waits for an iterator which is at work on an item


class _AtHand(NamedTuple):
    item: Item
    size: int  # bytes
    due: float  # when it goes out, alone if need be


class Arriving:
    """An iterator of items in a thread of its own, which takes as many as there is room for.

    Args:
        items: The iterator; it is begun, and asked for each item, in that thread.
        window: Items that may be taken and not yet let go.
        most: Bytes of evidence, from which on none is taken until some are let go.
        came: Called from the thread when there is an item more, and at the end.
    """

    def __init__(
        self, items: Iterable[Item], window: int, most: int, came: Callable[[], object]
    ) -> None:
        self._items: Iterable[Item] | None = items
        self._window, self._most, self._came = window, most, came
        self._changed = Condition()
        self._at_hand: deque[_AtHand] = deque()
        self._taken = self._size = 0  # and not yet let go
        self._waiting = 0  # bytes of what is at hand
        self._ended = self._stopped = False
        self._error: BaseException | None = None
        self._thread: Thread | None = None

    def begin(self) -> None:
        """Take the first items, in the context that the caller has now."""
        run = copy_context().run
        self._thread = Thread(target=run, args=(self._run,), name="attestkit items", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with _Kept(self._end):
            # Held by nothing else from here on: a generator that was given away is closed in time.
            given, self._items = self._items, None
            items = iter(given or ())
            del given
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
            self._at_hand.append(_AtHand(item, size, monotonic() + _LINGER))
        self._came()

    def _end(self, error: BaseException | None) -> None:
        with self._changed:
            self._ended, self._error = True, None if self._stopped else error
        self._came()

    def is_over(self) -> bool:
        """Tell whether every item was handed out, and no more will come."""
        with self._changed:
            return self._ended and not self._at_hand

    def task(self, longest: int, largest: int, *, idle: bool) -> tuple[list[Item], int]:
        """Return the items of the next task, and their size in bytes; none where more may come.

        A task is full at `longest` items or `largest` bytes. It goes out before that where nobody
        has anything to do (`idle`), where none can come, or where its first has waited for 10 ms.
        """
        with self._changed:
            if not isinstance(self._error, Exception):
                self.raise_error()  # an interrupt is not kept waiting
            if not self._at_hand:
                return [], 0
            full = len(self._at_hand) >= longest or self._waiting >= largest
            due = idle or self._ended or self._is_full() or monotonic() >= self._at_hand[0].due
            chunk: list[Item] = []
            size = 0
            while (full or due) and self._at_hand and len(chunk) < longest and size < largest:
                taken = self._at_hand.popleft()
                chunk.append(taken.item)
                size += taken.size
            self._waiting -= size
            return chunk, size

    def due_in(self) -> float | None:
        """Return the seconds until the items at hand go out; None if there are none."""
        with self._changed:
            return max(0.0, self._at_hand[0].due - monotonic()) if self._at_hand else None

    def let_go(self, *, items: int = 0, size: int = 0) -> None:
        """Make room: for so many items that were yielded, or bytes that were judged."""
        with self._changed:
            self._taken -= items
            self._size -= size
            self._changed.notify_all()

    def raise_error(self) -> None:
        """Raise what the iterator did, once its items are through."""
        error, self._error = self._error, None  # its frames hold this object: no circle
        try:
            if error is not None:
                raise error
        finally:
            del error

    def close(self) -> None:
        """End the thread. One that waits for its iterator ends when that has its next item.

        Nothing ends a call that blocks in another thread: who made the iterator can.
        """
        with self._changed:
            self._stopped, self._items, self._error = True, None, None
            self._at_hand.clear()
            self._changed.notify_all()
        # A stream that nobody has any more is closed by whoever collects it: that thread, too.
        thread = self._thread
        if thread is not None and thread is not current_thread() and thread.is_alive():
            thread.join(_GRACE)


class _Kept:
    """Hands on what ends its block, whatever it is."""

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
    """Return the bytes of an item: of its evidence and its collateral, whatever they are in."""
    size = 0
    rest: list[object] = [item]
    while rest:  # evidence is tuples in tuples, of which its decoders bound the depth and number
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
