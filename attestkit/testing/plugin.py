"""pytest plugin: fixtures with simulated TEEs, whose servers start on first use.

pytest loads the plugin in every environment with attestkit, so it imports attestkit lazily.
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
    from attestkit.kms import SimulatedKms
    from attestkit.testing.attested_server import AttestedServer
    from attestkit.testing.server import ServerLoop
    from attestkit.testing.tee import SimulatedTee

_CONTRACT = "attestkit.testing.contract"
_REWRITER = "_pytest.assertion.rewrite"


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """Limit pytest's assertion rewriting in attestkit to the contract.

    pytest rewrites the whole package of a plugin, in every run if it cannot cache the result. That
    takes ten times as long as importing the modules.
    """
    # No public API removes such a mark. A pytest without these attributes is slower.
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
    """Remember the running test, for variables that `tee_session` sets until its end."""
    item.config.stash[_TEST] = item


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Forget the test: from here on its variables would not be restored."""
    item.config.stash[_TEST] = None


class _Session(NamedTuple):
    """Resources shared by the TEEs of a test session: a function for folders, and an event loop."""

    make_folder: Callable[[], Path]
    loop: "ServerLoop"


@pytest.fixture(scope="session")
def _attestkit_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Session]:
    """Provide the shared resources, and close them at the end of the session."""
    from attestkit.testing.server import ServerLoop  # lazy: not every session has TEEs

    loop = ServerLoop()
    yield _Session(partial(tmp_path_factory.mktemp, "tee"), loop)
    loop.close()


def _make_tee(
    session: _Session,
    setenv: Callable[[str, str], object],
    stack: ExitStack,
    options: dict[str, Any],
) -> "SimulatedTee":
    with _fast_imports():
        from attestkit.testing.tee import SharedResources, SimulatedTee  # lazy: as above

    resources = SharedResources(session.make_folder, setenv, session.loop)
    return stack.enter_context(SimulatedTee(resources=resources, **options))


@contextmanager
def _fast_imports() -> Iterator[None]:
    """Import without garbage collection and without pytest's assertion rewriting.

    A collection would traverse the objects of all tests, and pytest would examine each module.
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
    _attestkit_session: _Session, monkeypatch: pytest.MonkeyPatch
) -> "Iterator[Callable[..., SimulatedTee]]":
    """Function that creates simulated TEEs, which are closed after the test.

    `tee_factory(scenario="tcb-OutOfDate")` has the arguments of `attestkit.testing.SimulatedTee`.
    """
    with ExitStack() as stack:

        def make(**options: Any) -> "SimulatedTee":
            return _make_tee(_attestkit_session, monkeypatch.setenv, stack, options)

        yield make


@pytest.fixture
def tee(tee_factory: "Callable[[], SimulatedTee]") -> "SimulatedTee":
    """A freshly booted simulated TEE for one test: up to date, with deterministic evidence.

    Its server starts on the first use of `.socket`, `.url`, `.client` and similar attributes.
    """
    return tee_factory()


@pytest.fixture
def attested_server(
    _attestkit_session: _Session, monkeypatch: pytest.MonkeyPatch
) -> "Iterator[Callable[..., AttestedServer]]":
    """Function that starts HTTPS servers in simulated TEEs; they are closed after the test.

    `attested_server(app)` has the arguments of `attestkit.testing.AttestedServer`.
    """
    with ExitStack() as stack:

        def make(app: Any = None, **options: Any) -> "AttestedServer":  # noqa: ANN401 - of ASGI
            with _fast_imports():
                from attestkit.testing.attested_server import AttestedServer  # lazy: as above
                from attestkit.testing.tee import SharedResources

            make_folder, loop = _attestkit_session
            options["resources"] = SharedResources(make_folder, monkeypatch.setenv, loop)
            return stack.enter_context(AttestedServer(app, **options))

        yield make


@pytest.fixture
def kms_factory(
    _attestkit_session: _Session, tee: "SimulatedTee"
) -> "Iterator[Callable[..., SimulatedKms]]":
    """Function that creates simulated KMSs, which are closed after the test.

    `kms_factory(faults="kms_refuses")` has the arguments of `attestkit.kms.SimulatedKms`. By
    default it verifies evidence of `tee`, and its keys are the same in every test.
    """
    from attestkit.testing.tee import SEED  # lazy: not every session has TEEs

    with ExitStack() as stack:

        def make(verifier: Any = None, **options: Any) -> "SimulatedKms":  # noqa: ANN401
            with _fast_imports():
                from attestkit.kms import SimulatedKms  # lazy: as above

            if "state_dir" not in options:
                options.setdefault("seed", SEED)
            options.setdefault("thread", _attestkit_session.loop.thread())
            return stack.enter_context(SimulatedKms(verifier or tee.verifier(), **options))

        yield make


@pytest.fixture
def kms(kms_factory: "Callable[[], SimulatedKms]") -> "SimulatedKms":
    """A simulated KMS that releases keys to every app of `tee`, for one test.

    Its URL is `.url`, the roots to pin are `.root`.
    """
    return kms_factory()


@pytest.fixture(scope="session")
def tee_session(
    _attestkit_session: _Session, pytestconfig: pytest.Config
) -> "Iterator[SimulatedTee]":
    """A simulated TEE shared by all tests of the session, which see each other's events.

    The environment variables of its `.client` are set until the end of the test that reads it.
    """
    with ExitStack() as stack:
        yield _make_tee(_attestkit_session, partial(_setenv_for_test, pytestconfig), stack, {})


def _setenv_for_test(config: pytest.Config, name: str, value: str) -> None:
    """Set the environment variable `name` to `value` until the end of the running test, if any.

    The test's own `monkeypatch` is used, because two of them would have to be undone in order.
    """
    item = config.stash.get(_TEST, None)
    if item is None:
        return
    request: Any = getattr(item, "_request", None)
    if request is not None:
        request.getfixturevalue("monkeypatch").setenv(name, value)
        return
    # No public API returns the fixtures of a test. Some kinds of tests have none.
    from attestkit.testing import environment  # lazy: not every session has TEEs

    item.addfinalizer(partial(environment.restore, item))
    environment.setenv(item, name, value)
