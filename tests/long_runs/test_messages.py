"""Processes of pytest-xdist send what the report of a run needs, and nothing else."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from tests.runner.messages import send_fewer
from tests.untyped import untyped

QUIET: Mapping[str, object] = {
    "verbose": 0,
    "durations": None,
    "durations_min": None,
    "xmlpath": None,
}
REPORT: dict[str, object] = {
    "when": "call",
    "outcome": "passed",
    "sections": [],
    "duration": 0.1,
    "keywords": {"slow": 1},
}


class Interactor:
    """The part of a process of pytest-xdist that sends messages."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any]] = []

    def sendevent(self, name: str, **content: object) -> None:
        """Note a message."""
        self.sent.append((name, content))


def send(name: str, options: Mapping[str, object], data: Mapping[str, object]) -> list[Any]:
    """Return the data of the messages that a process sends for one."""
    interactor = Interactor()
    manager = SimpleNamespace(get_plugins=lambda: [object(), interactor])
    send_fewer(untyped(SimpleNamespace(option=SimpleNamespace(**options), pluginmanager=manager)))
    interactor.sendevent(name, data=data)
    assert all(kind == name for kind, _ in interactor.sent)
    return [content["data"] for _, content in interactor.sent]


def sent(name: str, options: Mapping[str, object] = QUIET, **data: object) -> bool:
    """Return whether a process sends a message, all of it but the keywords."""
    report = REPORT | data
    found = send(name, options, report)
    assert found in ([], [report], [report | {"keywords": {}}])
    return bool(found)


def test_reports_that_change_the_result_are_sent() -> None:
    """A test that passes, and whatever fails, is skipped or prints at any time."""
    assert sent("testreport")
    for when in ("setup", "call", "teardown"):
        assert sent("testreport", when=when, outcome="failed")
        assert sent("testreport", when=when, outcome="skipped")
        assert sent("testreport", when=when, sections=[("Captured stdout", "text")])
    for name in ("collectionfinish", "runtest_protocol_complete", "internal_error"):
        assert sent(name)


def test_messages_without_effect_are_left_out() -> None:
    """A start, an end, and a set-up or tear-down that passed."""
    assert not sent("logstart")
    assert not sent("logfinish")
    assert not sent("testreport", when="setup")
    assert not sent("testreport", when="teardown")


def test_keywords_of_other_tests_are_sent() -> None:
    """The report of a skipped test shows whether its file or the test itself is skipped."""
    for outcome, keywords in (("passed", {}), ("skipped", {"slow": 1}), ("failed", {"slow": 1})):
        [report] = send("testreport", QUIET, REPORT | {"outcome": outcome})
        assert report["keywords"] == keywords


def test_durations_that_are_shown_are_sent() -> None:
    """Durations are those of set-up and tear-down, too, of 5 ms or more."""
    options = {**QUIET, "durations": 30}
    assert not sent("logstart", options)
    for when in ("setup", "teardown"):
        assert sent("testreport", options, when=when, duration=0.005)
        assert not sent("testreport", options, when=when, duration=0.0049)
    assert sent("testreport", options, duration=0.0049)


@pytest.mark.parametrize(
    "option", [{"verbose": 1}, {"durations": 0, "durations_min": 0.0}, {"xmlpath": "report.xml"}]
)
def test_runs_that_report_more_get_all_messages(option: dict[str, object]) -> None:
    """Each test's start, and each duration."""
    assert sent("logstart", {**QUIET, **option})
    assert sent("testreport", {**QUIET, **option}, when="setup", duration=0.0)
