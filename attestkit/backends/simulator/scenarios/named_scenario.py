"""A named scenario with its expected outcome."""

from typing import Final, NamedTuple

from attestkit.backends.simulator.scenarios.config import Scenario

NO_STATUS: Final = "accepted"
"""Outcome of scenarios that a policy accepts on a platform without a TCB status."""


class NamedScenario(NamedTuple):
    """A scenario with its expected outcome."""

    scenario: Scenario
    outcome: str  # TCB status if a strict verifier accepts it, else the reason of its error
    text: str  # one line of help
