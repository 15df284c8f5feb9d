"""Tasks of batch verification, as sent to workers by `scheduler`."""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from datetime import datetime
from functools import lru_cache
from secrets import token_hex
from types import EllipsisType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from attestkit._argument_checks import wrong_type
from attestkit._verification_steps import VerificationStep
from attestkit.attestation import Attestation
from attestkit.collateral import Collateral
from attestkit.errors import AttestKitError, UsageError, VerificationError, return_error
from attestkit.quote import Quote
from attestkit.snp_report import SnpReport
from attestkit.verifier.claims import values_of
from attestkit.verifier.result import AttestationResult, without_evidence

if TYPE_CHECKING:
    from attestkit.verifier.gpu_join import GpuInput


@dataclass(frozen=True, slots=True)
class VerificationItem:
    """One piece of evidence in a batch, with arguments of `Verifier.verify`.

    Pass either `nonce` or `report_data`; neither with a `GpuBinding`.
    """

    evidence: bytes | Attestation | Quote | SnpReport
    _: KW_ONLY
    nonce: bytes | None = None
    report_data: bytes | EllipsisType | None = ...
    collateral: Collateral | None = None
    gpu: "GpuInput" = None

    def __reduce__(self) -> tuple[object, ...]:
        # Half the time of the state of a frozen dataclass.
        kind: Any = type(self)
        return _restore_item, (kind, values_of(kind)(self))


def _restore_item(kind: type[VerificationItem], values: tuple[object, ...]) -> VerificationItem:
    """Return a pickled item, also of a subclass, which may have more fields."""
    item = object.__new__(kind)
    for one, value in zip(fields(kind), values, strict=True):
        object.__setattr__(item, one.name, value)
    return item


_Given = ParamSpec("_Given")
_Got = TypeVar("_Got")
Outcome = AttestationResult | AttestKitError


class VerifierProtocol(Protocol):
    """Protocol of `Verifier`."""

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
        """Verify one item; see `Verifier.verify`."""
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
    """Return the unpickled verifier, cached so that tasks share its caches."""
    return SharedVerifier(pickle.loads(pickled))  # noqa: S301 - from the process that owns the executor


def run_step(
    name: str,
    steps: Sequence[VerificationStep],
    step: Callable[_Given, _Got],
    *given: _Given.args,
    **named: _Given.kwargs,
) -> _Got:
    """Run a verification step; an unexpected exception becomes a VerificationError."""
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
    """Return whether an exception is a failure of a step, not an interrupt or an exit."""
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
    """Run a task in a worker."""
    return task.outcomes()


def verify_one(verifier: VerifierProtocol, item: object, now: datetime) -> Outcome:
    """Verify one item of any type; return its result or error."""
    if not isinstance(item, VerificationItem):
        return wrong_type("item", "a VerificationItem", item)
    try:
        return run_step(
            "verification",
            (),
            lambda: without_evidence(
                verifier.verify(
                    item.evidence,
                    nonce=item.nonce,
                    report_data=item.report_data,
                    now=now,
                    collateral=item.collateral,
                    gpu=item.gpu,
                )
            ),
        )
    except AttestKitError as error:
        return error


def returned(outcome: Outcome) -> Outcome:
    """Return an outcome for the caller of a batch; an error is false in a condition."""
    return outcome if isinstance(outcome, AttestationResult) else return_error(outcome)
