"""Numbered cases of each kind, and what came of them. Seed, kind and number determine a case."""

import time
from collections import Counter
from functools import cache
from random import Random
from typing import Final, NamedTuple

from attestkit.errors import AttestKitError
from tests.verifier.dcap.differential.comparison import Comparer
from tests.verifier.dcap.differential.generators import GENERATORS
from tests.verifier.dcap.differential.readers import READERS

PROGRAM: Final = "python -m tests.verifier.dcap.differential"
ACCEPTED_BY_BOTH: Final = "accepted by both"
REJECTED_BY_BOTH: Final = "rejected by both"
UNEXPLAINED: Final = "unexplained"
FAILED: Final = "failed"


class Work(NamedTuple):
    """Cases of a kind."""

    kind: str
    seed: int
    first: int
    size: int
    deadline: float | None  # time.monotonic


class Done(NamedTuple):
    """Result of Work: outcomes with their numbers, and failures."""

    kind: str
    outcomes: Counter[str]
    failures: list[str]


@cache
def _comparer() -> Comparer:
    """Return the comparer of this process, whose engines stay warm."""
    return Comparer()


def run(work: Work) -> Done:
    """Run cases until the deadline."""
    done = Done(work.kind, Counter(), [])
    for number in range(work.first, work.first + work.size):
        if work.deadline is not None and time.monotonic() > work.deadline:
            break
        outcome, failure = run_case(work.kind, work.seed, number)
        done.outcomes[outcome] += 1
        if failure:
            command = f"{PROGRAM} --kind {work.kind} --seed {work.seed} --number {number}"
            done.failures.append(f"{failure}\n  {command}")
    return done


def run_case(kind: str, seed: int, number: int) -> tuple[str, str]:
    """Return the outcome of a case, and the failure, if any."""
    r = Random(f"{seed}/{kind}/{number}")
    try:
        return (_read(kind, r), "") if kind in READERS else _compare(kind, r)
    except Exception as error:  # noqa: BLE001 - any error but an AttestKitError is a failure
        failure = f"{type(error).__name__}: {error}"
        return FAILED if kind in READERS else UNEXPLAINED, failure


def _read(kind: str, r: Random) -> str:
    try:
        READERS[kind](r)
    except AttestKitError:
        return "rejected"
    return "accepted"


def _compare(kind: str, r: Random) -> tuple[str, str]:
    forge = GENERATORS[kind](r)
    found = _comparer().verify(forge, forge.make())
    if found.unexplained:
        return UNEXPLAINED, found.unexplained
    return found.allowed or _AGREED[found.accepted], ""


_AGREED: Final = {(True, True): ACCEPTED_BY_BOTH, (False, False): REJECTED_BY_BOTH}
