"""Every fault in its short form, and the table that tells of the full ones."""

import inspect
import re
from pathlib import Path

import pytest

from tests.chaos.connections import CROWD
from tests.chaos.corruptions import corruptions
from tests.chaos.every import ALL, MODULES
from tests.chaos.journal import BETWEEN
from tests.chaos.scenarios import Form
from tests.chaos.table import DOCUMENT, read_record, with_table
from tests.chaos.trial import Trial
from tests.promises import promises
from tests.records import DIRTY


@pytest.mark.slow
@pytest.mark.rig
@pytest.mark.parametrize("name", ALL)
def test_the_server_holds(name: str) -> None:
    """Clients see a clear error, lose nothing that was acknowledged, and are served again."""
    if why := ALL[name].missing():
        pytest.skip(why)
    assert ALL[name].run(Form(full=False))["lost"] == 0


def test_the_record_has_every_scenario() -> None:
    """Each was measured, on a commit, in its full form; none was skipped, and nothing was lost."""
    record = read_record()
    assert list(record["scenarios"]) == list(ALL)
    assert record["commit"]
    assert not record["commit"].endswith(DIRTY)
    for name, found in record["scenarios"].items():
        assert found["fault"] == ALL[name].fault
        assert found["lost"] == 0, name
        assert not found.keys() & {"skipped", "failed"}, name


LASTED = {  # seconds of a fault's full form
    "stopped": 60,
    **dict.fromkeys(("driver hangs", "out of descriptors"), 20),
    **dict.fromkeys(("storm of signals", "close to its memory limit", "PCCS hangs"), 10),
    **dict.fromkeys(("disk full", "disk that cannot sync", "device vanishes", "PCCS dies"), 5),
}


def test_the_record_is_of_the_full_form() -> None:
    """Faults lasted as long, and strangers were as many, as promises say; all strangers ended."""
    scenarios = read_record()["scenarios"]
    for name, seconds in LASTED.items():
        assert scenarios[name]["seconds"] >= seconds, name
    for method in ("GetQuote", "EmitEvent", "GetKey", "Info"):
        assert scenarios["stopped"]["seen"][method]["worst_ms"] > 59_000
    for name in ("5,000 connections", "5,000 connections let in"):
        strangers = scenarios[name]["strangers"]
        assert sum(strangers.values()) == CROWD == 5000
        assert "still open" not in strangers


def test_the_record_has_every_corruption() -> None:
    """Each was tried on both kinds of journal, and some between runs; none was believed."""
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


def test_promises_say_how_much() -> None:
    """Their figures are those of what their tests do."""
    words = {promise.number: promise.words for promise in promises()}
    assert f"any of {len(corruptions())} ways" in words["H10"]
    assert CROWD == 5000
    assert words["C10"].startswith("Five thousand connections")


def test_the_page_says_what_may_grow() -> None:
    """docs/chaos.md tells each bound on memory, descriptors and threads, and no other."""
    kinds = ("memory", "descriptors", "threads")
    usual = inspect.signature(Trial.__init__).parameters
    bounds = {int(usual[kind].default) for kind in kinds}
    for module in MODULES:
        text = Path(str(module.__file__)).read_text()
        bounds |= {int(number) for number in re.findall(rf"\b(?:{'|'.join(kinds)})=(\d+)", text)}
    told = DOCUMENT.read_text("utf-8").partition("**Nothing leaks.**")[2].partition("\n\n")[0]
    told = " ".join(told.split()).replace("5,000 connections", "").replace("45 seconds", "")
    assert {int(number) for number in re.findall(r"\d+", told)} == bounds


def test_the_table_is_the_record() -> None:
    """docs/chaos.md says what the record says."""
    text = DOCUMENT.read_text("utf-8")
    assert text == with_table(text, read_record())
