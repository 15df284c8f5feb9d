"""What a row of the benchmarks is: one piece of work, and everybody who can do it here.

Peers are packages of others, each used as its own documentation or its only entry point has it. One
that is not installed is left out of the race.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Final, NamedTuple

import attestkit
from attestkit import _native
from attestkit.cli.bench.timing import Call
from attestkit.event_log import EventLog
from attestkit.event_log.runtime_events import runtime_event

__all__ = [
    "LONG",
    "OURS",
    "SHORT",
    "Row",
    "Samples",
    "contenders",
    "padded",
    "simulated",
    "without_fill",
]

OURS: Final = "attestkit"
SEED: Final = bytes(range(32))
SHORT, LONG = "short", "long"
NOT_INSTALLED: Final = "not installed"
LONG_EVENTS: Final = 51


class Samples:
    """What the work is done on: a quote, a CCEL, and a short and a long log.

    Attributes:
        origin: where they are from, for people.
        quote: bytes of a TDX quote, version 4.
        ccel: a log area that ends with its records, and eight bytes of 0xFF as every real one.
        logs: `short` and `long`, as the agent's JSON.
    """

    def __init__(self, origin: str, quote: bytes, ccel: bytes, logs: Mapping[str, str]) -> None:
        self.origin = origin
        self.quote = quote
        self.ccel = ccel
        self.logs = logs

    @cached_property
    def parsed(self) -> dict[str, EventLog]:
        """The logs, read."""
        return {name: EventLog.from_json(text) for name, text in self.logs.items()}

    @cached_property
    def digests(self) -> dict[str, list[tuple[int, bytes]]]:
        """Register and digest of each event of the logs."""
        return {
            name: [(event.register, event.digest) for event in log.events]
            for name, log in self.parsed.items()
        }


def _all_of_it(result: object) -> object:
    return result


class Row(NamedTuple):
    """One piece of work."""

    id: str
    what: str
    makers: Mapping[str, Callable[[Samples], Call]]  # the first of them is ours
    # What of a result all must agree on.
    values: Callable[[Any], object] = _all_of_it


class Field(NamedTuple):
    """Who races in a row, ours first, and who cannot, with the reason."""

    calls: dict[str, Call]
    left_out: dict[str, str]

    @property
    def ready(self) -> bool:
        """Whether we are among them; without us there is nothing to compare."""
        return OURS in self.calls


def contenders(row: Row, samples: Samples) -> Field:
    """Return whoever can do the work here, all of them agreeing about the result.

    A peer that breaks, perhaps because it is of another version than this file knows, or whose
    result is another than ours, is left out: its time would mean nothing.
    """
    field = Field({}, {})
    expected: object = None
    for name, make in row.makers.items():
        try:
            call = make(samples)
            found = row.values(call())
        except ImportError as error:
            field.left_out[name] = f"{NOT_INSTALLED}: {error.name}"
        except Exception as error:
            if name == OURS:
                raise
            field.left_out[name] = f"broken: {type(error).__name__}: {error}"
        else:
            if name == OURS:
                expected = found
            if found == expected:
                field.calls[name] = call
            else:
                field.left_out[name] = "has another result"
    return field


def padded(name: str, log: EventLog) -> EventLog:
    """Return a log with runtime events behind it, up to the length of a long one."""
    missing = max(LONG_EVENTS - len(log.events), 8)
    return log.with_runtime(runtime_event(f"{name}-{n}", bytes(20)) for n in range(missing))


def without_fill(area: bytes) -> bytes:
    """Return a CCEL's records and the first eight bytes behind them.

    Peers copy what is behind each record over and over, so the 200 kB of fill behind real ones
    would double their time.
    """
    return area[: _native.ccel_walk(area)[3]] + b"\xff" * 8


def simulated() -> Samples:
    """Return what the simulator makes, which is all that a user's machine has."""
    # Late: most commands need neither.
    from attestkit.backends.simulator.boot_log import boot_log
    from attestkit.backends.simulator.os_image import simulated_image

    with attestkit.open("simulator", seed=SEED) as tee:
        quote, log = tee.get_quote(bytes(64)).raw, tee.event_log()
    ccel = without_fill(boot_log(simulated_image()))
    long = padded("event", EventLog.from_ccel(ccel))
    logs = {SHORT: log.to_json(), LONG: long.to_json()}
    return Samples("the simulator", quote, ccel, logs)
