"""Properties are held to what they say, not to how busy the machine is."""

import pytest
from hypothesis import HealthCheck, settings


def test_no_property_is_timed(pytestconfig: pytest.Config) -> None:
    """Neither an example nor the drawing of some; the other checks of health are made."""
    if pytestconfig.getoption("--hypothesis-profile", default=None):
        pytest.skip("another profile was asked for")
    assert settings().deadline is None
    assert set(settings().suppress_health_check) == {HealthCheck.too_slow}
