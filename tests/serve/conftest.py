"""Fixtures: guests on a simulated TD, and clients in this process."""

import asyncio
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.keys import AppKeys
from attestkit.serve import listener_apps
from attestkit.serve.services.context import Guest
from tests.serve.asgi import Client
from tests.serve.guests import NOW, SEED, GuestClient, MakeGuest, vector_keys
from tests.serve.server import Server, running_server
from tests.serve.systemd.notify import FakeServiceManager


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder with a short path, to stay below the length limit of a socket's path."""
    with tempfile.TemporaryDirectory(prefix="ak") as name:
        yield Path(name)


@pytest.fixture
def manager(folder: Path) -> Iterator[FakeServiceManager]:
    """Return a service manager at a path."""
    with closing(FakeServiceManager(folder / "notify")) as manager:
        yield manager


@pytest.fixture(scope="session")
def dev_server() -> Iterator[Server]:
    """Return a simulator with the development listener, for tests that change nothing."""
    with running_server("--dev-http", "127.0.0.1:0") as server:
        yield server
        server.check_log()


@pytest.fixture(scope="session")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Return an event loop for all in-process requests."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def make_guest() -> Iterator[MakeGuest]:
    """Return a factory of guests that end with the test.

    `backend` is the class of the simulated TD, `compose` contains members of app-compose.json, and
    other arguments go to `Guest`.
    """
    with ExitStack() as stack:

        def make(
            backend: type[Simulator] = Simulator,
            compose: dict[str, Any] | None = None,
            app_keys: AppKeys | None = None,
            **options: Any,
        ) -> Guest:
            text = {"manifest_version": 2, "name": "an app", "runner": "bash", **(compose or {})}
            simulator = backend(seed=SEED, app_compose=json.dumps(text).encode(), app_keys=app_keys)
            tee = stack.enter_context(Attester(simulator))
            values: dict[str, Any] = {
                "app_compose": tee.app_compose,
                "app_keys": simulator.app_keys,
                "now": lambda: NOW,
                "random": lambda size: bytes(range(1, size + 1)),
            }
            guest = Guest(tee, **{**values, **options})
            stack.callback(guest.close)
            return guest

        yield make


@pytest.fixture
def guest(make_guest: MakeGuest) -> Guest:
    """Return an app with its own keys and a local CA."""
    return make_guest()


@pytest.fixture
def guest_client(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> GuestClient:
    """Return a factory of clients of a listener ("dstack", "tappd", "external", "dev").

    The listener belongs to a given guest, or to a new one with the other arguments.
    """

    def make(listener: str, guest: Guest | None = None, **options: Any) -> Client:
        app = getattr(listener_apps, f"{listener}_app")
        return Client(app(guest or make_guest(**options)), loop)

    return make


@pytest.fixture
def dstack(guest: Guest, guest_client: GuestClient) -> Client:
    """Return a client of dstack.sock."""
    return guest_client("dstack", guest)


@pytest.fixture
def tappd(guest: Guest, guest_client: GuestClient) -> Client:
    """Return a client of tappd.sock."""
    return guest_client("tappd", guest)


@pytest.fixture
def external(guest: Guest, guest_client: GuestClient) -> Client:
    """Return a client of the external listener."""
    return guest_client("external", guest)


@pytest.fixture
def vector_dstack(guest_client: GuestClient) -> Client:
    """Return a client of dstack.sock with the vectors' app keys."""
    return guest_client("dstack", app_keys=vector_keys())


@pytest.fixture
def vector_tappd(guest_client: GuestClient) -> Client:
    """Return a client of tappd.sock with the vectors' app keys."""
    return guest_client("tappd", app_keys=vector_keys())
