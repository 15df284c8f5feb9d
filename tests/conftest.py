"""What all tests need of the process that runs them."""

import signal

import pytest
from hypothesis import HealthCheck, settings


def pytest_configure(config: pytest.Config) -> None:
    """Let an interrupt be one, and no property fail because the machine was busy.

    Whoever started us in the background had interrupts ignored. Hypothesis gives each example 200
    ms, also the first, which may import a library, and drawing ten of them a second; neither says
    anything of the property. Its other checks stay as they are, and so does a profile asked for.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not config.getoption("--hypothesis-profile", default=None):
        slow = {*settings().suppress_health_check, HealthCheck.too_slow}
        untimed = settings(deadline=None, suppress_health_check=tuple(slow))
        settings.register_profile("untimed", untimed)
        settings.load_profile("untimed")
