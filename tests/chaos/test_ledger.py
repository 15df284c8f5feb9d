"""Tests of the ledger: it detects servers that break their promises."""

import pytest

from tests.chaos.clients import Ledger, RequestOutcome
from tests.chaos.trial import Trial, plain
from tests.serve.server import running_server


@pytest.fixture
def ledger() -> Ledger:
    """Two events acknowledged, and two refused."""
    found = Ledger()
    found.acknowledged += ["chaos-1", "chaos-3"]
    found.refused["chaos-2"] = "RTMR3 was extended, and the next use of the log records the event"
    found.refused["chaos-4"] = "runtime log: cannot write: ...; nothing was changed"
    return found


@pytest.mark.parametrize(
    ("names", "more"),
    [
        (["chaos-1", "chaos-3"], 0),
        (["chaos-1", "chaos-2", "chaos-3"], 1),
        (["of others", "chaos-1", "chaos-3"], 0),
    ],
)
def test_check_events_accepts_promised_events(ledger: Ledger, names: list[str], more: int) -> None:
    """An event that was extended may be completed later; events of other clients are ignored."""
    assert ledger.check_events(names) == more


@pytest.mark.parametrize(
    ("names", "fragment"),
    [
        (["chaos-3", "chaos-1"], "out of order"),
        (["chaos-1", "chaos-3", "chaos-3"], "twice"),
        (
            ["chaos-1", "chaos-3", "chaos-4"],
            "chaos-4 is in the log, but: runtime log",
        ),
    ],
)
def test_check_events_finds_broken_promises(
    ledger: Ledger, names: list[str], fragment: str
) -> None:
    """A reordered or duplicated acknowledged event, or an unchanged one in the log, is found."""
    with pytest.raises(AssertionError, match=fragment):
        ledger.check_events(names)


def test_ledger_lost_lists_missing_events(ledger: Ledger) -> None:
    """Missing acknowledged events are listed; the rest of the log is correct."""
    assert ledger.check_events(["chaos-3"]) == 0
    assert ledger.lost(["chaos-3"]) == {"chaos-1"}
    assert ledger.lost(["chaos-1", "chaos-2", "chaos-3"]) == set()


def test_trial_result_reports_lost_events() -> None:
    """Events lost in any log are in the result, even if later logs have them."""
    with running_server() as server:
        trial = Trial(server)
        with trial, trial.fault():
            trial.wait_answered("EmitEvent")
        acknowledged = trial.ledger.acknowledged[:]
        assert trial.result({})["lost"] == 0
        trial.check_log(acknowledged[1:])
        trial.check_log(acknowledged)
        assert trial.result({})["lost"] == 1


def test_ledger_outcome_includes_overlapping_requests(ledger: Ledger) -> None:
    """Requests that overlap the fault's begin or end are included."""
    for begin, end in ((0, 1), (1, 3), (3, 4), (4, 9), (6, 7)):
        ledger.seen.append(RequestOutcome("GetKey", begin, end, 200, ""))
    assert [(seen.begin, seen.end) for seen in ledger.outcome(2, 5)] == [(1, 3), (3, 4), (4, 9)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("'/tmp/akx_1/disk/runtime_events.log'", "'DIR/runtime_events.log'"),
        ("/proc/123/root/run/log/dstack/x", "DIR/run/log/dstack/x"),
        (f"RTMR3 is {'ab' * 48}", "RTMR3 is HEX"),
        ("chaos-17 at http://127.0.0.1:4711/x", "EVENT at http://HOST:PORT/x"),
    ],
)
def test_plain_removes_machine_specific_parts(text: str, expected: str) -> None:
    """Folders, ports and registers of a run are not in the record."""
    assert plain(text) == expected
