"""Fixtures of the suite: a guest of each kind, just booted."""

from collections.abc import Iterator

import pytest

from tests.rigs.suite.guests import KINDS, Guest, look_below, running

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
    """Run a guest of each kind."""
    with running(request.param) as guest:
        yield guest


@pytest.fixture
def guest(running: Guest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guest]:
    """Return the guest, just booted; no entry and no fault may be left in it."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    running.boot()
    if running.elsewhere:
        look_below(running.emulator.root, monkeypatch)
    yield running
    assert running.emulator.armed() == []
    if running.has_reports:
        assert running.emulator.entries() == []
