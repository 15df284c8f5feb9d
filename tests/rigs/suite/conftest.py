"""Fixtures of the suite: a freshly booted guest of each type."""

from collections.abc import Iterator

import pytest

from tests.rigs.suite.guests import KINDS, Guest, running, use_paths_below

VARIABLES = (
    "ATTESTKIT_BACKEND",
    "DCAP_TDX_QUOTE_CONFIGFS_PATH",
    "DCAP_TDX_RTMR_SYSFS_PATH",
    "DSTACK_CCEL_FILE",
    "DSTACK_HOST_SHARED_DIR",
    "DSTACK_SIMULATOR_ENDPOINT",
)


@pytest.fixture(name="running", scope="session", params=list(KINDS))
def run_guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    """Run a guest of each type."""
    with running(request.param) as guest:
        yield guest


@pytest.fixture
def guest(running: Guest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guest]:
    """Return the freshly booted guest; assert that no entry and no fault is left."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    running.boot()
    if running.elsewhere:
        use_paths_below(running.emulator.root, monkeypatch)
    yield running
    assert running.emulator.armed() == []
    if running.has_reports:
        assert running.emulator.entries() == []
