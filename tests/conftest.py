"""Settings of the test process."""

import faulthandler
import gc
import os
import re
import signal
import subprocess
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadScheduling

    from attestkit.backends.tpm.client import TpmClient


HANG: Final = 1200.0
"""Seconds after which a test shows where it hangs, and its process ends.

The longest test, on an emulated machine, takes eight minutes.
"""

SET_ANEW: Final = 60.0
"""Seconds for which tests share one watchdog."""

SLOW: Final = re.compile(r"mark\.slow|slow\(|thorough\(")
"""What the text of each file with slow tests contains."""

ALLOCATIONS: Final = 20_000
"""New objects, less the freed ones, after which garbage is collected.

With Python's 700, a test that makes many objects that last, such as a syntax tree, takes twice as
long.
"""

EXAMPLES: Final = 50
"""The most examples of a property in the default run, unless it chooses a number.

Other runs, of which `make devmode` has all tests, take Hypothesis's 100.
"""

WHOLLY_SLOW: Final = re.compile(
    r"^pytestmark = (?:pytest\.mark\.slow\b|\[[^]]*pytest\.mark\.slow\b)", re.MULTILINE
)
"""What the text of a file contains that has no other tests."""


def pytest_configure(config: pytest.Config) -> None:
    """Enable interrupts, and keep Hypothesis from failing on a busy machine.

    A process that was started in the background ignores interrupts. Hypothesis limits an example to
    200 ms, also the first one, which may import a library, and the drawing of ten to a second; both
    limits are disabled. Its other checks, and a profile chosen by option, remain.
    """
    config.pluginmanager.register(Watchdog(), "watchdog")
    if hasattr(config, "workerinput"):  # set by pytest-xdist
        from tests.runner.messages import send_fewer  # lazy: other runs do not need it

        send_fewer(config)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not config.getoption("--hypothesis-profile", default=None):
        slow = {*settings().suppress_health_check, HealthCheck.too_slow}
        most = settings().max_examples
        if config.getoption("markexpr") == "not slow":
            most = min(most, EXAMPLES)
        untimed = settings(max_examples=most, deadline=None, suppress_health_check=tuple(slow))
        settings.register_profile("untimed", untimed)
        settings.load_profile("untimed")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files whose tests would all be deselected: each process collects faster."""
    marks = config.getoption("markexpr")
    if marks not in {"slow", "not slow"} or not collection_path.match("test_*.py"):
        return None
    text = collection_path.read_text(encoding="utf-8")
    unwanted = not SLOW.search(text) if marks == "slow" else WHOLLY_SLOW.search(text)
    return True if unwanted else None


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Compile a share of the tests, and keep the collector from traversing 20,000 collected ones.

    The collected objects live until the end, so they are frozen: neither collection of tests nor
    any full garbage collection later has to traverse them.
    """
    gc.disable()
    try:
        if hasattr(session.config, "workerinput"):  # set by pytest-xdist
            from tests.runner.first_import import import_share  # lazy: other runs do not need it

            import_share(session.config)
        yield
    finally:
        gc.freeze()
        gc.set_threshold(ALLOCATIONS)
        gc.enable()


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist the hook is unknown
def pytest_xdist_auto_num_workers() -> int:
    """Return the number of processes for `-n auto`: 1.5 per core.

    Tests wait for a fifth of their time, for a program's start or a server's timeout.
    """
    return len(os.sched_getaffinity(0)) * 3 // 2


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: "Producer") -> "LoadScheduling | None":
    """Start the tests of minutes first, unless an option chooses another distribution."""
    if config.getoption("dist") != "load":
        return None
    from tests.runner.scheduling import (
        LongestFirst,  # lazy: without pytest-xdist it cannot be imported
    )

    return LongestFirst(config, log)


class Watchdog:
    """End the process if a test hangs, like pytest's `faulthandler_timeout`.

    That option starts and joins a thread for each of 20,000 tests, which takes longer than most of
    them on busy cores. Here the tests of a minute share one; so a test has one minute less at most.
    """

    def __init__(self) -> None:
        self._file = os.dup(2)  # while tests run, pytest captures the output
        self._due = 0.0

    def __del__(self) -> None:
        os.close(self._file)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Start it again if it is due."""
        if time.monotonic() >= self._due:
            faulthandler.dump_traceback_later(HANG, exit=True, file=self._file)
            self._due = time.monotonic() + SET_ANEW
        result = yield
        if item.get_closest_marker("slow"):
            self._due = 0  # such a test may disable it
        return result

    def pytest_sessionfinish(self) -> None:
        """Stop it."""
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session", autouse=True)
def _programs_end_with_a_failure() -> Iterator[None]:
    """Kill the program of a `with subprocess.Popen(...)` whose block fails.

    Python waits for the program at the block's end; without a signal, it would wait until the time
    limit of the whole run, and the failure would not be reported.
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


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test run, shared by all workers."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Disable the garbage collector, so that reference cycles remain visible to a test."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def software_tpm(tmp_path: Path) -> "Iterator[TpmClient]":
    """Return a client of a new swtpm; skip the test without swtpm."""
    from tests.machines.software_tpm import SWTPM, opened_swtpm  # lazy: most tests need no TPM

    if SWTPM is None:
        pytest.skip("swtpm is not installed")
    folder = tmp_path / "swtpm"
    folder.mkdir()
    with opened_swtpm(folder) as client:
        yield client
