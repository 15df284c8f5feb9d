"""What the scenarios hold a server to does fail where a server falls short."""

import pytest

from tests.chaos.clients import Ledger, Seen
from tests.chaos.trial import Trial, plain
from tests.serve.server import running_server


@pytest.fixture
def ledger() -> Ledger:
    """Two events acknowledged, and two refused."""
    found = Ledger()
    found.acknowledged += ["chaos-1", "chaos-3"]
    found.refused["chaos-2"] = "RTMR3 was extended, and the next use of the log completes it"
    found.refused["chaos-4"] = "cannot write the runtime log: ...; nothing was changed"
    return found


@pytest.mark.parametrize(
    ("names", "more"),
    [
        (["chaos-1", "chaos-3"], 0),
        (["chaos-1", "chaos-2", "chaos-3"], 1),
        (["of others", "chaos-1", "chaos-3"], 0),
    ],
)
def test_what_was_promised_is_there(ledger: Ledger, names: list[str], more: int) -> None:
    """An event that was extended may be completed later; others' events are their own."""
    assert ledger.check_events(names) == more


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["chaos-3", "chaos-1"], "out of order"),
        (["chaos-1", "chaos-3", "chaos-3"], "twice"),
        (["chaos-1", "chaos-3", "chaos-4"], "chaos-4 is in the log, but: cannot write"),
    ],
)
def test_what_is_wrong_is_found(ledger: Ledger, names: list[str], told: str) -> None:
    """An acknowledged event moved or doubled; a refused one there all the same."""
    with pytest.raises(AssertionError, match=told):
        ledger.check_events(names)


def test_what_was_lost_is_counted(ledger: Ledger) -> None:
    """An acknowledged event that is gone; what the log has is as promised."""
    assert ledger.check_events(["chaos-3"]) == 0
    assert ledger.lost(["chaos-3"]) == {"chaos-1"}
    assert ledger.lost(["chaos-1", "chaos-2", "chaos-3"]) == set()


def test_a_trial_reports_what_a_log_lost() -> None:
    """A server whose log forgets is told of in the result, whatever it has later."""
    with running_server() as server:
        trial = Trial(server)
        with trial, trial.fault():
            trial.wait_answered("EmitEvent")
        acknowledged = trial.ledger.acknowledged[:]
        assert trial.result({})["lost"] == 0
        trial.check_log(acknowledged[1:])
        trial.check_log(acknowledged)
        assert trial.result({})["lost"] == 1


def test_what_was_under_way_belongs_to_a_fault(ledger: Ledger) -> None:
    """A request that began before it or ended after it does as well."""
    for begin, end in ((0, 1), (1, 3), (3, 4), (4, 9), (6, 7)):
        ledger.seen.append(Seen("GetKey", begin, end, 200, ""))
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
def test_texts_are_the_same_on_every_machine(text: str, expected: str) -> None:
    """No folder, port or register of one run stays in the record."""
    assert plain(text) == expected
