"""The pytest plugin: fixtures with simulated TEEs, whose server starts when a test asks for it.

It is loaded in every test run of an environment that has attestkit, so it loads nothing itself.
"""

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from attestkit.testing.server import ServerLoop
    from attestkit.testing.tee import SimulatedTee

__all__ = ["tee", "tee_factory", "tee_session"]

_CONTRACT = "attestkit.testing.contract"
_REWRITER = "_pytest.assertion.rewrite"


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """Have pytest rewrite the asserts of the contract, and of nothing else here.

    Whatever is beside a plugin is compiled by pytest itself, in every run where it cannot keep the
    result: for all of this package that is ten times what its modules take otherwise.
    """
    # No public call takes such a mark back; a pytest without these names is slower, no more.
    hook = getattr(pluginmanager, "rewrite_hook", None)
    marked: Any = getattr(hook, "_must_rewrite", None)
    known: Any = getattr(hook, "_marked_for_rewrite_cache", None)
    if isinstance(marked, set) and isinstance(known, dict):
        marked.discard("attestkit")
        known.clear()
    if _CONTRACT not in sys.modules:
        pytest.register_assert_rewrite(_CONTRACT)


_TEST = pytest.StashKey[pytest.Item | None]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note whose turn it is, for what a TEE of the run sets on its behalf."""
    item.config.stash[_TEST] = item


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """From here on nothing would be put back any more."""
    item.config.stash[_TEST] = None


class _Run(NamedTuple):
    """What the TEEs of a run share."""

    make_folder: Callable[[], Path]
    loop: "ServerLoop"


@pytest.fixture(scope="session")
def _attestkit_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Run]:
    """Keep what the TEEs of a run share, and end it with the run."""
    from attestkit.testing.server import ServerLoop  # late: not every run has TEEs

    loop = ServerLoop()
    yield _Run(partial(tmp_path_factory.mktemp, "tee"), loop)
    loop.close()


def _made(
    run: _Run, setenv: Callable[[str, str], object], stack: ExitStack, options: dict[str, Any]
) -> "SimulatedTee":
    with _bare_imports():
        from attestkit.testing.tee import SimulatedTee, Surroundings  # late: for runs with TEEs

    around = Surroundings(run.make_folder, setenv, run.loop)
    return stack.enter_context(SimulatedTee(surroundings=around, **options))


@contextmanager
def _bare_imports() -> Iterator[None]:
    """Import without what a test run does besides, and has nothing of here.

    The garbage collector would look through all tests, though imports leave no garbage; and pytest
    would ask of each module whether it is a test, whose asserts it is to rewrite.
    """
    kinds = [type(finder).__module__ for finder in sys.meta_path]
    at = kinds.index(_REWRITER) if _REWRITER in kinds else None
    hook = None if at is None else sys.meta_path.pop(at)
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if at is not None and hook is not None:
            sys.meta_path.insert(at, hook)
        if collects:
            gc.enable()


@pytest.fixture
def tee_factory(
    _attestkit_run: _Run, monkeypatch: pytest.MonkeyPatch
) -> "Iterator[Callable[..., SimulatedTee]]":
    """Make simulated TEEs that end with the test: `tee_factory(scenario="tcb-OutOfDate")`.

    It takes what `attestkit.testing.SimulatedTee` does: scenario, faults, quote_version, platform,
    seed, state_dir, and what else the simulator takes.
    """
    with ExitStack() as stack:

        def make(**options: Any) -> "SimulatedTee":
            return _made(_attestkit_run, monkeypatch.setenv, stack, options)

        yield make


@pytest.fixture
def tee(tee_factory: "Callable[[], SimulatedTee]") -> "SimulatedTee":
    """A simulated TEE for this test alone, just booted: healthy, up to date, the same every time.

    Its server starts with the first use of `.socket`, `.url`, `.client` and their like.
    """
    return tee_factory()


@pytest.fixture(scope="session")
def tee_session(_attestkit_run: _Run, pytestconfig: pytest.Config) -> "Iterator[SimulatedTee]":
    """A simulated TEE for all tests of the run; what one test emits the next one finds.

    The variables of its `.client` are set until the end of the test that asks for them.
    """
    with ExitStack() as stack:
        yield _made(_attestkit_run, partial(_setenv_for_test, pytestconfig), stack, {})


def _setenv_for_test(config: pytest.Config, name: str, value: str) -> None:
    """Set a variable until the test ends that runs now; between tests there is none to set it for.

    By the test's own `monkeypatch`, for two of them would have to be undone in the right order.
    """
    item = config.stash.get(_TEST, None)
    if item is None:
        return
    request: Any = getattr(item, "_request", None)
    if request is not None:
        request.getfixturevalue("monkeypatch").setenv(name, value)
        return
    # No public call gives a test's fixtures; kinds of tests that have none are not without this.
    from attestkit.testing import environment  # late: not every run has TEEs

    item.addfinalizer(partial(environment.restore, item))
    environment.setenv(item, name, value)
