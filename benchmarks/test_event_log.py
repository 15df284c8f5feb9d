"""Event logs: replay beside a loop over hashlib, and reading a log in both its forms.

Each group is one piece of work; compare inside a group, in one run. `real` is a captured log of 28
events, `large` the 43 events of a CCEL and 8 runtime events.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from attestkit._native import _python_log as twin
from attestkit.event_log import EventLog
from attestkit.event_log.runtime import runtime_event
from tests.vectors import HAVE_SHARED, data, needs_shared

pytestmark = needs_shared

Benchmark = Callable[..., Any]
BATCH = 64


def make_logs() -> dict[str, EventLog]:
    """Return the two logs that the targets are about."""
    if not HAVE_SHARED:
        return {}
    text = json.loads(data("dstack/verifier/quote-report.json"))["event_log"]
    large = EventLog.from_ccel(data("ccel/go-eventlog/cos-113-intel-tdx.bin"))
    events = [runtime_event(f"event-{number}", bytes(20)) for number in range(8)]
    return {"real": EventLog.from_json(text), "large": large.with_runtime(events)}


LOGS = make_logs()


def with_hashlib(events: list[tuple[int, bytes]]) -> list[bytes]:
    """Fold digests into registers as one writes it in Python."""
    values = [bytes(48)] * 4
    for register, digest in events:
        values[register] = hashlib.sha384(values[register] + digest).digest()
    return values


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("how", ["attestkit", "hashlib"])
def test_replay(benchmark: Benchmark, name: str, how: str) -> None:
    """One log whose digests are in memory."""
    benchmark.group = f"replay {name}"  # type: ignore[attr-defined] # a fixture's attribute
    log = LOGS[name]
    if how == "attestkit":
        found = benchmark(log.replay)
    else:
        found = benchmark(with_hashlib, [(event.register, event.digest) for event in log.events])
    assert tuple(found) == log.replay()


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("how", ["attestkit", "hashlib"])
def test_replay_many(benchmark: Benchmark, name: str, how: str) -> None:
    """64 logs at once."""
    benchmark.group = f"replay 64 times {name}"  # type: ignore[attr-defined] # a fixture's attribute
    logs = [LOGS[name]] * BATCH
    if how == "attestkit":
        found = benchmark(EventLog.replay_many, logs)
    else:
        pairs = [[(event.register, event.digest) for event in log.events] for log in logs]
        found = benchmark(lambda: [with_hashlib(events) for events in pairs])
    assert tuple(found[-1]) == LOGS[name].replay()


@pytest.mark.parametrize("how", ["parse", "parse and replay", "parse and events", "plain Python"])
def test_ccel(benchmark: Benchmark, how: str) -> None:
    """43 events in an area of 256 KiB."""
    benchmark.group = "CCEL"  # type: ignore[attr-defined] # a fixture's attribute
    area = data("ccel/go-eventlog/cos-113-intel-tdx.bin")
    ways: dict[str, Callable[[], object]] = {
        "parse": lambda: EventLog.from_ccel(area),
        "parse and replay": lambda: EventLog.from_ccel(area).replay(),
        "parse and events": lambda: EventLog.from_ccel(area).events,
        "plain Python": lambda: twin.ccel_walk(area),
    }
    assert benchmark(ways[how])


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("how", ["attestkit", "json and hashlib"])
def test_agent_json_to_registers(benchmark: Benchmark, name: str, how: str) -> None:
    """The agent's JSON, read and replayed; the other way checks nothing and trusts the digests."""
    benchmark.group = f"JSON to registers, {name}"  # type: ignore[attr-defined] # a fixture's attribute
    text = LOGS[name].to_json()

    def unchecked() -> list[bytes]:
        events = json.loads(text)
        return with_hashlib([(event["imr"], bytes.fromhex(event["digest"])) for event in events])

    def checked() -> object:
        return EventLog.from_json(text).replay()

    found = benchmark(checked if how == "attestkit" else unchecked)
    assert tuple(found) == LOGS[name].replay()


@pytest.mark.parametrize("name", LOGS)
def test_to_json(benchmark: Benchmark, name: str) -> None:
    """The form that goes with a quote, as every GetQuote writes it."""
    benchmark.group = "trimmed to JSON"  # type: ignore[attr-defined] # a fixture's attribute
    assert benchmark(lambda: LOGS[name].trimmed().to_json())
