"""What all tests need of the process that runs them."""

import gc
import os
import signal
import subprocess
from collections.abc import Iterator
from types import TracebackType

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


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Keep the garbage collector from going through twenty thousand tests again and again.

    All that is there when they are collected stays until the end, so it is no garbage to look for:
    neither while it is made, nor by any full collection of a test.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(optionalhook=True)  # unknown where pytest-xdist is not loaded
def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes `-n auto` means: half as many again as cores.

    A fifth of the time a test waits: for a program to start, or for a server's patience to end.
    """
    return len(os.sched_getaffinity(0)) * 3 // 2


@pytest.fixture(scope="session", autouse=True)
def _programs_end_with_a_failure() -> Iterator[None]:
    """Kill the program of a `with subprocess.Popen(...)` whose block fails.

    Python waits for it there, and what nobody tells to stop is waited for as long as the run may
    take, which then says nothing of the failure.
    """
    wait = subprocess.Popen.__exit__

    def end(
        process: "subprocess.Popen[bytes]",
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            process.kill()
        wait(process, kind, error, trace)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__exit__", end)
        yield


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Leave cycles uncollected, so that what is in one stays for a test to see."""
    gc.disable()
    yield
    gc.enable()
