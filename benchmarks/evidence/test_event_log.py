"""Event logs: replay beside a loop over hashlib; JSON and CCELs to registers; writing JSON."""

import json
from typing import Final

from pytest_benchmark.fixture import BenchmarkFixture

from attestkit._native import _python_log as twin
from attestkit.event_log import EventLog
from benchmarks.cases import LONG, OURS, Case, Samples
from benchmarks.evidence import event_logs
from benchmarks.racing import Entry, Ledger, each, play
from benchmarks.timing import Call


def _checked(text: str) -> object:
    log = EventLog.from_json(text)
    log.check_events()
    return log.replay()


def _dump(samples: Samples) -> Call:
    """Write the same JSON from dictionaries, with no event to go through."""
    return Call(
        lambda events: json.dumps(events, separators=(",", ":")), json.loads(samples.logs[LONG])
    )


OTHERS: Final = (
    Case(
        "json-checked",
        "JSON of a long log, its events' rules checked, to registers",
        {
            OURS: lambda samples: Call(_checked, samples.logs[LONG]),
            "dstack-sdk": lambda samples: event_logs.dstack_sdk(samples.logs[LONG]),
        },
        event_logs.registers,
    ),
    Case(
        "ccel-events",
        "a CCEL to its events",
        {
            OURS: lambda samples: Call(lambda a: EventLog.from_ccel(a).events, samples.ccel),
            "plain Python's walk": lambda samples: Call(twin.ccel_walk, samples.ccel),
        },
        lambda _: None,
    ),
    Case(
        "to-json",
        "a long log to JSON",
        {
            OURS: lambda samples: Call(EventLog.to_json, samples.parsed[LONG]),
            "json": _dump,
        },
    ),
)


@each((*event_logs.CASES, *OTHERS))
def test_logs(benchmark: BenchmarkFixture, ledger: Ledger, entry: Entry) -> None:
    """One contender of a row."""
    play(benchmark, ledger, entry)
