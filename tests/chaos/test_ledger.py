"""Tests of the ledger: it detects servers that break their promises."""

from types import SimpleNamespace

import pytest

from tests.chaos.clients import Ledger, RequestOutcome
from tests.chaos.trial import Trial
from tests.serve.server import running_server
from tests.untyped import untyped


@pytest.fixture
def ledger() -> Ledger:
    """Two events acknowledged, and two refused."""
    found = Ledger()
    found.acknowledged += ["chaos-1", "chaos-3"]
    found.refused["chaos-2"] = "no space; RTMR3 was extended, and the next use of the log records"
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
        (["chaos-1", "chaos-3"], "chaos-2 is missing in the log, but: no space"),
    ],
)
def test_check_events_finds_broken_promises(
    ledger: Ledger, names: list[str], fragment: str
) -> None:
    """An event that is reordered, twice, in the log against its error or missing is found."""
    with pytest.raises(AssertionError, match=fragment):
        ledger.check_events(names)
    assert ledger.check_events(["chaos-1", "chaos-2", "chaos-3"]) == 1


@pytest.mark.parametrize("text", ["", "no space"])
def test_trial_result_requires_answers_of_other_methods(text: str) -> None:
    """A method that is not expected to fail must be answered with 200, whatever its error says."""
    ledger = Ledger()
    trial = Trial(untyped(None), untyped(SimpleNamespace(ledger=ledger, names=("Info", "GetKey"))))
    ledger.seen += [RequestOutcome("Info", 0, 1, 500, "no space")]
    assert trial.result({}, {"Info": "no space"})["lost"] == 0
    ledger.seen += [RequestOutcome("GetKey", 0, 1, 500, text)]
    with pytest.raises(AssertionError, match="GetKey: 500"):
        trial.result({}, {"Info": "no space"})


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
