"""Many verifications, on any executor: order kept, each outcome in its place."""

import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from datetime import datetime
from functools import lru_cache
from typing import Final, NamedTuple, Protocol, TypeVar

from attestkit.attestation import Attestation
from attestkit.collateral import Collateral
from attestkit.errors import AttestKitError, UsageError, VerificationError
from attestkit.quote import Quote
from attestkit.verifier.result import AttestationResult

__all__ = ["Item", "guarded", "verify_all"]

_CHUNK: Final = 16  # verifications a task: sending one to a process costs less than one of them


class Item(NamedTuple):
    """One verification of many; the fields are those of `Verifier.verify`."""

    evidence: bytes | Attestation | Quote
    report_data: bytes | None
    collateral: Collateral | None = None


_Got = TypeVar("_Got")
_Outcome = AttestationResult | AttestKitError


class _Judge(Protocol):
    """A Verifier."""

    def verify(
        self,
        evidence: bytes | Attestation | Quote,
        *,
        report_data: bytes | None,
        now: datetime | float | None = None,
        collateral: Collateral | None = None,
    ) -> AttestationResult:
        """Judge one."""


class _Sent:
    """A verifier on its way to workers: threads get this very one, a process its own once."""

    def __init__(self, verifier: _Judge) -> None:
        self.verifier = verifier
        self._pickled = b""

    def __reduce__(self) -> tuple[object, ...]:
        self._pickled = self._pickled or pickle.dumps(self.verifier)
        return _received, (self._pickled,)


@lru_cache(maxsize=4)
def _received(pickled: bytes) -> _Sent:
    """Return what was sent; the same again for the next chunk, with all that it has cached."""
    return _Sent(pickle.loads(pickled))  # noqa: S301 - by the executor's owner, like all it is sent


def guarded(name: str, steps: Sequence[str], step: Callable[[], _Got]) -> _Got:
    """Take a step; whatever goes wrong in it is a rejection that knows how far we got."""
    try:
        return step()
    except VerificationError as error:
        error.steps = (*steps, *error.steps)  # those of a step come from within
        raise
    except AttestKitError:
        raise
    except BaseException as error:
        if not _is_failure(error):
            raise
        raise VerificationError(
            f"{name}: the verifier failed ({type(error).__name__}); the evidence is refused",
            steps=tuple(steps),
            reason="internal",
        ) from error


def _is_failure(error: BaseException) -> bool:
    """Tell what went wrong in a step, as a panic of Rust code's, from an interrupt or an exit."""
    # What Rust calls a panic comes out as an exception that Exception does not cover.
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def verify_all(
    verifier: _Judge,
    items: Sequence[Item],
    executor: Executor | None,
    progress: Callable[[int, int], None] | None,
    now: datetime,
) -> list[_Outcome]:
    """Return the outcome of each item, in their order; see `Verifier.verify_many`."""
    chunks = [items[at : at + _CHUNK] for at in range(0, len(items), _CHUNK)]
    outcomes: list[list[_Outcome]] = [[] for _ in chunks]
    done = 0

    def keep(index: int, found: list[_Outcome]) -> None:
        nonlocal done
        outcomes[index] = found
        done += len(found)
        if progress is not None:
            progress(done, len(items))

    if executor is None:
        for index, chunk in enumerate(chunks):
            keep(index, [_verify_one(verifier, item, now) for item in chunk])
    else:
        tasks: dict[Future[list[_Outcome]], int] = {}
        sent = _Sent(verifier)
        try:
            for index, chunk in enumerate(chunks):
                tasks[_submitted(executor, sent, chunk, now)] = index
            for task in as_completed(tasks):
                keep(tasks[task], _outcomes(task, len(chunks[tasks[task]])))
        finally:  # somebody's Ctrl-C, or a progress callback that failed
            for task in tasks:
                task.cancel()
    return [outcome for chunk in outcomes for outcome in chunk]


def _submitted(
    executor: Executor, sent: _Sent, chunk: Sequence[Item], now: datetime
) -> "Future[list[_Outcome]]":
    try:
        return executor.submit(_verify_chunk, sent, chunk, now)
    except BrokenExecutor as error:  # a worker died: evidence is refused, the others still count
        refused: Future[list[_Outcome]] = Future()
        refused.set_exception(error)
        return refused
    except RuntimeError as error:
        raise UsageError(f"the executor takes no work: {error}") from error


def _outcomes(task: "Future[list[_Outcome]]", size: int) -> list[_Outcome]:
    """Return what a task found; if it came to nothing, its evidence is refused."""
    try:
        return task.result()
    except BaseException as error:  # a dead process, a value that does not pickle
        if not _is_failure(error):
            raise
        text = f"the verification did not come to its end ({type(error).__name__}: {error})"
        refused = VerificationError(text, reason="internal")
        refused.__cause__ = error
        return [refused] * size


def _verify_chunk(sent: _Sent, items: Sequence[Item], now: datetime) -> list[_Outcome]:
    return [_verify_one(sent.verifier, item, now) for item in items]


def _verify_one(verifier: _Judge, item: Item, now: datetime) -> _Outcome:
    try:
        evidence, report_data, collateral = item
    except (TypeError, ValueError) as error:
        refused = UsageError("an item is an Item: evidence, report data, perhaps collateral")
        refused.__cause__ = error
        return refused
    try:
        return guarded(
            "verification",
            (),
            lambda: verifier.verify(
                evidence, report_data=report_data, now=now, collateral=collateral
            ),
        )
    except AttestKitError as error:
        return error
