"""Tasks of batch verification, as sent to workers by `scheduler`, and the reading of their items.

Items are read in a thread if the input may block, while earlier outcomes are yielded.
"""

import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import KW_ONLY, dataclass, fields
from datetime import datetime
from functools import lru_cache
from secrets import token_hex
from threading import Condition, Thread, current_thread
from time import monotonic
from types import EllipsisType, TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, ParamSpec, Protocol, TypeVar

from attestkit._argument_checks import wrong_type
from attestkit._outcomes.steps import VerificationStep
from attestkit.attestation import Attestation
from attestkit.collateral import Collateral
from attestkit.errors import AttestKitError, UsageError, VerificationError, return_error
from attestkit.quote import Quote
from attestkit.snp_report import SnpReport
from attestkit.verifier.claims import values_of
from attestkit.verifier.evidence.formats import EvidenceBundle
from attestkit.verifier.result import AttestationResult, without_evidence

if TYPE_CHECKING:
    from attestkit.verifier.gpu_join import GpuInput

_LINGER: Final = 0.01  # seconds that an item waits for its task to fill
_GRACE: Final = 0.1  # seconds that `close` waits for the iterator


@dataclass(frozen=True, slots=True)
class VerificationItem:
    """One piece of evidence in a batch, with arguments of `Verifier.verify`.

    Pass either `nonce` or `report_data`; neither with a `GpuBinding`. Of `bundle` only
    certificates, CRLs and endorsements of GPUs are used, as by `Verifier.for_bundle`, and no
    certificates or CRLs of TPM keys are fetched: pass its evidence and collateral as well.
    """

    evidence: bytes | Attestation | Quote | SnpReport
    _: KW_ONLY
    nonce: bytes | None = None
    report_data: bytes | EllipsisType | None = ...
    collateral: Collateral | None = None
    gpu: "GpuInput" = None
    bundle: EvidenceBundle | None = None

    def __reduce__(self) -> tuple[object, ...]:
        # Half the time of the state of a frozen dataclass.
        kind: Any = type(self)
        return _restore_item, (kind, values_of(kind)(self))


def _restore_item(kind: type[VerificationItem], values: tuple[object, ...]) -> VerificationItem:
    """Restore a pickled item.

    Args:
        kind: Class of the item: VerificationItem, or a subclass with more fields.
        values: Values of its fields, in their order.
    """
    item = object.__new__(kind)
    for one, value in zip(fields(kind), values, strict=True):
        object.__setattr__(item, one.name, value)
    return item


_Given = ParamSpec("_Given")
_Got = TypeVar("_Got")
Outcome = AttestationResult | AttestKitError


class VerifierProtocol(Protocol):
    """The methods of `Verifier` that a batch needs."""

    def verify(
        self,
        evidence: bytes | Attestation | Quote | SnpReport,
        *,
        nonce: bytes | None,
        report_data: bytes | EllipsisType | None,
        now: datetime | float | None = None,
        collateral: Collateral | None = None,
        gpu: "GpuInput" = None,
    ) -> AttestationResult:
        """Verify one item, and return its result.

        Arguments and errors are those of `Verifier.verify`: a nonce of 8 to 64 bytes or report data
        of up to 64 bytes; time; collateral; evidence of GPUs.
        """
        ...

    def for_bundle(self, bundle: EvidenceBundle) -> "VerifierProtocol":
        """Return a verifier that uses certificates, CRLs and endorsements of a bundle."""
        ...


class SharedVerifier:
    """A verifier for workers: shared by threads, pickled once for each process."""

    def __init__(self, verifier: VerifierProtocol) -> None:
        self.verifier = verifier
        self._pickled = b""

    def pickled(self) -> bytes:
        """Return the pickled verifier.

        Raises:
            UsageError: If the verifier cannot be pickled.
        """
        if not self._pickled:
            try:
                self._pickled = pickle.dumps(self.verifier)
            except Exception as error:
                raise UsageError(
                    f"verifier: cannot be pickled for other processes: {error}; use functions of "
                    "a module instead of lambdas, or threads",
                    reason="not_picklable",
                ) from error
        return self._pickled

    def __reduce__(self) -> tuple[object, ...]:
        return _unpickle, (self.pickled(),)


@lru_cache(maxsize=4)
def _unpickle(pickled: bytes) -> SharedVerifier:
    """Return the verifier in `pickled`, the bytes of pickle.

    The result is cached, so that tasks share its caches.
    """
    return SharedVerifier(pickle.loads(pickled))  # noqa: S301 - from the process that owns the executor


def run_step(
    name: str,
    steps: Sequence[VerificationStep],
    step: Callable[_Given, _Got],
    *given: _Given.args,
    **named: _Given.kwargs,
) -> _Got:
    """Return the result of `step`, a function that is a step of a verification.

    A VerificationError gets `steps`, those that passed before. An unexpected exception becomes a
    VerificationError that names the step by `name`.
    """
    try:
        return step(*given, **named)
    except VerificationError as error:
        error.steps = (*steps, *error.steps)  # a step may have passed steps of its own
        raise
    except AttestKitError:
        raise
    except BaseException as error:
        if not is_internal_failure(error):
            raise
        message = f"{name}: internal error: {type(error).__name__}; the evidence is rejected"
        raise VerificationError(message, steps=tuple(steps), reason="internal") from error


def is_internal_failure(error: BaseException) -> bool:
    """Return whether an exception is a failure of the verification, which rejects the item.

    False for an interrupt or an exit.
    """
    # A panic in Rust code is raised as a BaseException.
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


class BatchTask:
    """Items for a worker, with the verifier and the time of the verification.

    Opaque to executors: dask traverses lists and tuples and may mistake their contents for task
    keys.
    """

    __slots__ = ("_items", "_now", "_shared")

    def __init__(
        self, shared: "SharedVerifier", items: Sequence[VerificationItem], now: datetime
    ) -> None:
        self._shared, self._items, self._now = shared, tuple(items), now

    def __reduce__(self) -> tuple[object, ...]:
        return BatchTask, (self._shared, self._items, self._now)

    def __dask_tokenize__(self) -> str:
        # dask merges tasks with equal MD5 tokens: colliding evidence would share a result.
        return token_hex(16)

    def outcomes(self) -> list[Outcome]:
        """Verify the items; return the outcome of each."""
        return [verify_one(self._shared.verifier, item, self._now) for item in self._items]


def run_task(task: BatchTask) -> list[Outcome]:
    """Return the outcomes of a task; executors run this function in a worker."""
    return task.outcomes()


def verify_one(verifier: VerifierProtocol, item: object, now: datetime) -> Outcome:
    """Verify one item of any type; return its result or error."""
    if not isinstance(item, VerificationItem):
        return wrong_type("item", "a VerificationItem", item)

    def verify() -> AttestationResult:
        used = verifier if item.bundle is None else verifier.for_bundle(item.bundle)
        return without_evidence(
            used.verify(
                item.evidence,
                nonce=item.nonce,
                report_data=item.report_data,
                now=now,
                collateral=item.collateral,
                gpu=item.gpu,
            )
        )

    try:
        return run_step("verification", (), verify)
    except AttestKitError as error:
        return error


def returned(outcome: Outcome) -> Outcome:
    """Return an outcome for the caller of a batch: an error is made false in conditions."""
    return outcome if isinstance(outcome, AttestationResult) else return_error(outcome)


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
        on_item: Function that the thread calls after each item that it has read, and at the end.
    """

    def __init__(
        self,
        items: Iterable[VerificationItem],
        window: int,
        most: int,
        on_item: Callable[[], object],
    ) -> None:
        self._items: Iterable[VerificationItem] | None = items
        self._window, self._most, self._on_item = window, most, on_item
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
                self._on_item()

    def _iterator(self) -> Iterator[VerificationItem]:
        """Return the items' iterator; drop the iterable, so that a generator is closed in time."""
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
        """Store the exception that ended the thread; return True to suppress it.

        Args:
            error: The exception; None if the thread ended normally.
        """
        with self._changed:
            self._ended, self._error = True, None if self._stopped else error
        self._on_item()
        return True

    def is_over(self) -> bool:
        """Return whether all items have been read, and returned by `task`."""
        with self._changed:
            return self._ended and not self._queue

    def task(self, longest: int, largest: int, *, idle: bool) -> tuple[list[VerificationItem], int]:
        """Return the items of the next task and their size in bytes; no items if it is not due.

        A task is due when it has `longest` items or `largest` bytes, when workers are `idle`, when
        no more items can be read, or when its first item has waited for 10 ms. An interrupt of the
        input iterator is raised at once.
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
        """Read items for one task in this thread, up to `longest` items or `largest` bytes."""
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
    """Return the approximate size of an item in bytes, by which a task is limited.

    Counted are evidence, collateral, and the CRLs, AK certificates and GPU endorsements of its
    bundle; text counts by characters. Objects of other types, such as GpuEvidence, count 0.
    """
    size = 0
    rest: list[object] = [item]
    while rest:  # nested tuples, whose depth and number the decoders limit
        part = rest.pop()
        if isinstance(part, bytes | str):
            size += len(part)
        elif isinstance(part, VerificationItem):
            rest += part.evidence, part.collateral, part.gpu, part.bundle
        elif isinstance(part, EvidenceBundle):
            rest += part.amd_crls, part.ak_certificates
            if (given := part.gpu_endorsements) is not None:
                rest += tuple(given.rims.values()), given.ocsp, given.nras, given.jwks
        elif isinstance(part, tuple):
            rest.extend(part)
        elif isinstance(part, Attestation):
            rest.append(part.evidence)
        elif isinstance(part, Quote):
            rest.append(part.raw)
        elif isinstance(part, Collateral):
            size += part.size
    return size
