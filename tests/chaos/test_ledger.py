"""Tests of the ledger: it detects servers that break their promises."""

import pytest

from tests.chaos.clients import Ledger
from tests.chaos.trial import Trial
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


@pytest.mark.slow
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
