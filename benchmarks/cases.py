"""Benchmark cases: one task each, with its implementations in attestkit and peers.

Peers are other packages, each used as its documentation shows. Packages that are not installed are
skipped.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Final, NamedTuple

import attestkit
from attestkit import _native
from attestkit.event_log import EventLog
from attestkit.event_log.runtime_events import runtime_event
from benchmarks.timing import Call

__all__ = [
    "LONG",
    "OURS",
    "SHORT",
    "Case",
    "Samples",
    "lengthen_log",
    "prepare_contenders",
    "simulate_samples",
    "without_padding",
]

OURS: Final = "attestkit"
SEED: Final = bytes(range(32))
SHORT, LONG = "short", "long"
NOT_INSTALLED: Final = "not installed"
LONG_EVENTS: Final = 51


class Samples:
    """Inputs of the cases: a quote, a CCEL, and a short and a long event log.

    Attributes:
        origin: Description of the source.
        quote: TDX quote, version 4.
        ccel: Log area without padding, except eight bytes of 0xFF after the records.
        logs: `short` and `long`, as JSON of the guest agent.
    """

    def __init__(self, origin: str, quote: bytes, ccel: bytes, logs: Mapping[str, str]) -> None:
        self.origin = origin
        self.quote = quote
        self.ccel = ccel
        self.logs = logs

    @cached_property
    def parsed(self) -> dict[str, EventLog]:
        """The parsed logs."""
        return {name: EventLog.from_json(text) for name, text in self.logs.items()}

    @cached_property
    def digests(self) -> dict[str, list[tuple[int, bytes]]]:
        """Register and digest of each event, by log."""
        return {
            name: [(event.register, event.digest) for event in log.events]
            for name, log in self.parsed.items()
        }


def _identity(result: object) -> object:
    return result


class Case(NamedTuple):
    """One benchmark case."""

    id: str
    title: str
    setups: Mapping[str, Callable[[Samples], Call]]  # by contender, attestkit first
    # The part of a result that must be equal for all contenders.
    values: Callable[[Any], object] = _identity


class Contenders(NamedTuple):
    """The contenders of a case, attestkit first, and the reasons why others are skipped."""

    calls: dict[str, Call]
    left_out: dict[str, str]

    @property
    def ready(self) -> bool:
        """Whether attestkit is one of them; without it there is nothing to compare."""
        return OURS in self.calls


def prepare_contenders(case: Case, samples: Samples) -> Contenders:
    """Return the contenders that can run a case with the same result as attestkit.

    A peer that fails, perhaps because of an incompatible version, or has a different result is
    skipped, because its time would not be comparable.
    """
    contenders = Contenders({}, {})
    expected: object = None
    for name, set_up in case.setups.items():
        try:
            call = set_up(samples)
            found = case.values(call())
        except ImportError as error:
            contenders.left_out[name] = f"{NOT_INSTALLED}: {error.name}"
        except Exception as error:
            if name == OURS:
                raise
            contenders.left_out[name] = f"failed: {type(error).__name__}: {error}"
        else:
            if name == OURS:
                expected = found
            if found == expected:
                contenders.calls[name] = call
            else:
                contenders.left_out[name] = "different result"
    return contenders


def lengthen_log(name: str, log: EventLog) -> EventLog:
    """Return a log with runtime events appended, up to the length of the long log."""
    missing = max(LONG_EVENTS - len(log.events), 8)
    return log.with_runtime(runtime_event(f"{name}-{n}", bytes(20)) for n in range(missing))


def without_padding(area: bytes) -> bytes:
    """Return the records of a CCEL and the next eight bytes.

    Peers copy the rest of the area for each record, so the 200 kB of padding in real logs would
    double their time.
    """
    return area[: _native.ccel_walk(area)[3]] + b"\xff" * 8


def simulate_samples() -> Samples:
    """Return samples of the simulator, which needs no hardware."""
    # Lazy: most commands need neither.
    from attestkit.backends.simulator.boot_log import boot_log
    from attestkit.backends.simulator.images.os_image import simulated_image

    with attestkit.open("simulator", seed=SEED) as tee:
        quote, log = tee.get_quote(bytes(64)).raw, tee.event_log()
    ccel = without_padding(boot_log(simulated_image()))
    long = lengthen_log("event", EventLog.from_ccel(ccel))
    logs = {SHORT: log.to_json(), LONG: long.to_json()}
    return Samples("the simulator", quote, ccel, logs)
