"""Keys that these tests share."""

import pytest

from attestkit.keys import AppKeys, LocalKeys
from tests.vectors import SHARED

SEED = bytes(range(32))
FIXTURE = SHARED / "data/dstack/simulator/appkeys.json"


@pytest.fixture
def app_keys() -> AppKeys:
    """The keys of the seed that the vectors use."""
    return AppKeys.from_seed(SEED)


@pytest.fixture
def keys() -> LocalKeys:
    """The deriver over the agent's own key file."""
    return LocalKeys(AppKeys.load(FIXTURE))
