"""Messages of a process of pytest-xdist: those are left out that change nothing in the report.

For each test a process sends six: that it begins and ends, the reports on set-up, call and
tear-down, and that the next one may be scheduled. They take 2 ms of CPU in both processes, more
than most tests. The report of a usual run needs two of them, unless something failed or printed,
and of a test that passed hardly more than its name.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import pytest

from tests.untyped import untyped

__all__ = ["send_fewer"]

SHORTEST: Final = 0.005
"""Seconds of the shortest duration that `--durations` shows."""


def send_fewer(config: pytest.Config) -> None:
    """Leave messages out, except in a run that reports each test, in XML or as it starts.

    A run with `--durations` reports the set-up and tear-down that take 5 ms.
    """
    options = config.option
    if options.verbose > 0 or options.durations_min is not None or options.xmlpath:
        return
    longest = math.inf if options.durations is None else SHORTEST
    for plugin in config.pluginmanager.get_plugins():
        if send := getattr(plugin, "sendevent", None):
            untyped(plugin).sendevent = partial(send_needed, send, longest)


def send_needed(send: Callable[..., None], longest: float, name: str, **content: Any) -> None:
    """Send a message, unless it says that a test begins or ends, or was set up or torn down."""
    if name in ("logstart", "logfinish"):
        return
    if name == "testreport":
        report = content["data"]
        if report["outcome"] == "passed" and not report["sections"]:
            if report["when"] != "call" and report["duration"] < longest:
                return
            content["data"] = {**report, "keywords": {}}  # marks, and names of folders
    send(name, **content)
