"""Shared keys."""

import pytest

from attestkit.keys import AppKeys, LocalKeys
from tests.vectors import SHARED

SEED = bytes(range(32))
FIXTURE = SHARED / "data/dstack/simulator/appkeys.json"


@pytest.fixture
def app_keys() -> AppKeys:
    """Return the keys of the vectors' seed."""
    return AppKeys.from_seed(SEED)


@pytest.fixture
def keys() -> LocalKeys:
    """Return the deriver for the agent's own key file."""
    return LocalKeys(AppKeys.load(FIXTURE))
