"""Processes of pytest-xdist send what the report of a run needs, and nothing else."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from tests.runner.messages import send_fewer
from tests.untyped import untyped

QUIET: Mapping[str, object] = {"verbose": 0, "durations": None, "xmlpath": None}


class Interactor:
    """The part of a process of pytest-xdist that sends messages."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any]] = []

    def sendevent(self, name: str, **content: object) -> None:
        """Note a message."""
        self.sent.append((name, content))


def sent(name: str, options: Mapping[str, object] = QUIET, **data: object) -> bool:
    """Return whether a process sends a message."""
    interactor = Interactor()
    manager = SimpleNamespace(get_plugins=lambda: [object(), interactor])
    send_fewer(untyped(SimpleNamespace(option=SimpleNamespace(**options), pluginmanager=manager)))
    report = {"when": "call", "outcome": "passed", "sections": []} | data
    interactor.sendevent(name, data=report)
    assert interactor.sent in ([], [(name, {"data": report})])
    return bool(interactor.sent)


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


@pytest.mark.parametrize("option", [{"verbose": 1}, {"durations": 0}, {"xmlpath": "report.xml"}])
def test_runs_that_report_more_get_all_messages(option: dict[str, object]) -> None:
    """Durations are those of set-up and tear-down, too."""
    assert sent("logstart", {**QUIET, **option})
    assert sent("testreport", {**QUIET, **option}, when="setup")
