"""Outcomes of tests, for programs that run some and report on them."""

import pytest


class Outcomes:
    """A pytest plugin that keeps the outcome of each test, and why it was skipped.

    Attributes:
        outcomes: "passed", "failed" or "skipped", by node id.
        reasons: Reason of each skipped test, by node id.
    """

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}
        self.reasons: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the outcome: of the call, or of what failed or was skipped before or after it."""
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.nodeid] = report.outcome
            if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
                self.reasons[report.nodeid] = report.longrepr[2].removeprefix("Skipped: ")


def run_tests(*arguments: str) -> Outcomes:
    """Run tests in this process, slow ones too.

    attestkit must not be imported before, because pytest rewrites its plugin.
    """
    outcomes = Outcomes()
    options = ["-q", "-p", "no:benchmark", "-p", "no:cacheprovider", "-m", "slow or not slow"]
    pytest.main([*options, *arguments], plugins=[outcomes])
    return outcomes
