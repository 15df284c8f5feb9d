"""Property tests have no time limit, so a busy machine cannot fail them."""

import pytest
from hypothesis import HealthCheck, settings


def test_no_property_is_timed(pytestconfig: pytest.Config) -> None:
    """No limit applies to an example or to drawing; the other health checks are active."""
    if pytestconfig.getoption("--hypothesis-profile", default=None):
        pytest.skip("another profile was asked for")
    assert settings().deadline is None
    assert set(settings().suppress_health_check) == {HealthCheck.too_slow}
