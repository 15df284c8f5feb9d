"""One verification of many, and how it gets to a worker; `scheduler` sends them out."""

import pickle
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache
from secrets import token_hex
from typing import NamedTuple, Protocol, TypeVar

from attestkit.attestation import Attestation
from attestkit.collateral import Collateral
from attestkit.errors import AttestKitError, UsageError, VerificationError
from attestkit.quote import Quote
from attestkit.verifier.result import AttestationResult

__all__ = [
    "Item",
    "Judge",
    "Outcome",
    "Sent",
    "Task",
    "guarded",
    "is_failure",
    "run_task",
    "verify_one",
]


class Item(NamedTuple):
    """One verification of many; the fields are those of `Verifier.verify`."""

    evidence: bytes | Attestation | Quote
    report_data: bytes | None
    collateral: Collateral | None = None


_Got = TypeVar("_Got")
Outcome = AttestationResult | AttestKitError


class Judge(Protocol):
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
        ...


class Sent:
    """A verifier on its way to workers: threads get this very one, a process its own once."""

    def __init__(self, verifier: Judge) -> None:
        self.verifier = verifier
        self._pickled = b""

    def pickled(self) -> bytes:
        """Return the verifier as a process gets it.

        Raises:
            UsageError: It does not pickle: that is its owner's mistake, and no evidence's.
        """
        if not self._pickled:
            try:
                self._pickled = pickle.dumps(self.verifier)
            except Exception as error:
                raise UsageError(
                    f"the verifier does not pickle ({error}), as it must for other processes: "
                    "give it functions of a module in place of lambdas, or take threads"
                ) from error
        return self._pickled

    def __reduce__(self) -> tuple[object, ...]:
        return _received, (self.pickled(),)


@lru_cache(maxsize=4)
def _received(pickled: bytes) -> Sent:
    """Return what was sent; the same again for the next chunk, with all that it has cached."""
    return Sent(pickle.loads(pickled))  # noqa: S301 - by the executor's owner, like all it is sent


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
        if not is_failure(error):
            raise
        raise VerificationError(
            f"{name}: the verifier failed ({type(error).__name__}); the evidence is refused",
            steps=tuple(steps),
            reason="internal",
        ) from error


def is_failure(error: BaseException) -> bool:
    """Tell what went wrong in a step, as a panic of Rust code's, from an interrupt or an exit."""
    # What Rust calls a panic comes out as an exception that Exception does not cover.
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


class Task:
    """Some items on their way to a worker, with the verifier and the instant.

    An object of ours, into which no executor looks: dask takes lists and tuples apart, and what it
    finds in them for the names of other tasks.
    """

    __slots__ = ("_items", "_now", "_sent")

    def __init__(self, sent: "Sent", items: Sequence[Item], now: datetime) -> None:
        self._sent, self._items, self._now = sent, tuple(items), now

    def __reduce__(self) -> tuple[object, ...]:
        return Task, (self._sent, self._items, self._now)

    def __dask_tokenize__(self) -> str:
        # Two tasks of one name are one to dask, and it makes names with MD5: whoever writes the
        # evidence could have his share the verdict of somebody else's.
        return token_hex(16)

    def outcomes(self) -> list[Outcome]:
        """Judge them; return the outcome of each."""
        return [verify_one(self._sent.verifier, item, self._now) for item in self._items]


def run_task(task: Task) -> list[Outcome]:
    """Do a task, in a worker."""
    return task.outcomes()


def verify_one(verifier: Judge, item: Item, now: datetime) -> Outcome:
    """Judge one; whatever it is, the answer is an outcome."""
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
