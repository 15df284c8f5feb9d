"""Tests of every fault in its short form, and of the record of the full forms."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.all_scenarios import ALL, MODULES
from tests.chaos.faults.connections import CROWD
from tests.chaos.faults.corruptions import corruptions
from tests.chaos.faults.journal import BETWEEN, BETWEEN_SHORT, ways_of
from tests.chaos.scenarios import Form
from tests.chaos.trial import Trial
from tests.docs.promises import promises
from tests.long_runs.records import DIRTY, RECORDS, ROOT

PAGE = ROOT / "docs/security/chaos.md"


def read_record() -> Any:
    """Return the record of the last full run."""
    return json.loads((RECORDS / "chaos.json").read_text(encoding="ascii"))


@pytest.mark.slow
@pytest.mark.rig
@pytest.mark.parametrize("name", ALL)
def test_server_survives_fault(name: str) -> None:
    """Clients get clear errors, lose no acknowledged event, and are served again."""
    if why := ALL[name].missing():
        pytest.skip(why)
    assert ALL[name].run(Form(full=False))["lost"] == 0


def test_chaos_record_has_every_scenario() -> None:
    """Every scenario was run in its full form on a commit, without skips or losses."""
    record = read_record()
    assert list(record["scenarios"]) == list(ALL)
    assert record["commit"]
    assert not record["commit"].endswith(DIRTY)
    for name, found in record["scenarios"].items():
        assert found["fault"] == ALL[name].fault
        assert found["lost"] == 0, name
        assert not found.keys() & {"skipped", "failed"}, name


LASTED = {  # s, of a fault's full form
    "stopped": 60,
    **dict.fromkeys(("driver hangs", "out of descriptors"), 20),
    **dict.fromkeys(("storm of signals", "close to its memory limit", "PCCS hangs"), 10),
    **dict.fromkeys(("disk full", "disk that cannot sync", "device vanishes", "PCCS dies"), 5),
}


def test_chaos_record_is_of_full_form() -> None:
    """Durations and numbers of clients are those of the promises, and every client was closed."""
    scenarios = read_record()["scenarios"]
    for name, seconds in LASTED.items():
        assert scenarios[name]["seconds"] >= seconds, name
    for method in ("GetQuote", "EmitEvent", "GetKey", "Info"):
        assert scenarios["stopped"]["seen"][method]["worst_ms"] > 59_000
    for name in ("5,000 connections", "5,000 connections let in"):
        outcomes = scenarios[name]["strangers"]
        assert sum(outcomes.values()) == CROWD == 5000
        assert "still open" not in outcomes


def test_chaos_record_has_every_corruption() -> None:
    """Each corruption was tried on both kinds; no event was taken while evidence was refused."""
    names = [way.name for way in corruptions()]
    assert len(set(names)) == len(names)
    scenarios = read_record()["scenarios"]
    done = {
        "journal corrupted": names,
        "journal corrupted, on hardware": names,
        "journal corrupted between runs": names[::BETWEEN],
    }
    for name, ways in done.items():
        found = scenarios[name]["ways"]
        assert list(found) == ways
        for way in found.values():
            assert (way["event"], way["evidence"]) != ("taken", "refused")
            assert bool(way["error"]) == ("refused" in (way["event"], way["evidence"]))


def test_promises_state_figures_of_tests() -> None:
    """The promises state the figures of their tests."""
    words = {promise.number: promise.words for promise in promises()}
    names = [way.name for way in corruptions()]
    assert f"any of {len(names)} ways" in words["H10"]
    assert f"every {BETWEEN_SHORT}th between two runs" in words["H10"]
    assert BETWEEN == 5
    assert "every fifth between two runs" in words["H10"]
    halves = [way.name for half in (0, 1) for way in ways_of(Form(full=False), half)]
    assert sorted(halves) == sorted(names)
    assert CROWD == 5000
    assert words["C10"].startswith("Five thousand connections")


def test_chaos_page_states_growth_limits() -> None:
    """The page states each limit on memory, descriptors and threads, and no others."""
    kinds = ("memory", "descriptors", "threads")
    usual = inspect.signature(Trial.__init__).parameters
    bounds = {int(usual[kind].default) for kind in kinds}
    for module in MODULES:
        text = Path(str(module.__file__)).read_text()
        bounds |= {int(number) for number in re.findall(rf"\b(?:{'|'.join(kinds)})=(\d+)", text)}
    paragraph = PAGE.read_text("utf-8").partition("**Nothing leaks.**")[2].partition("\n\n")[0]
    paragraph = (
        " ".join(paragraph.split()).replace("5,000 connections", "").replace("45 seconds", "")
    )
    assert {int(number) for number in re.findall(r"\d+", paragraph)} == bounds
