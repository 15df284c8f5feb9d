"""Fixtures: guests on a simulated TD, and clients in this process."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.keys import AppKeys
from attestkit.serve import listener_apps
from attestkit.serve.services.context import Guest
from tests.serve.asgi import Client
from tests.serve.guests import NOW, SEED, MakeGuest, vector_keys


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
                "vm_config": tee.vm_config,
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
def dstack(guest: Guest, loop: asyncio.AbstractEventLoop) -> Client:
    """Return a client of dstack.sock."""
    return Client(listener_apps.dstack_app(guest), loop)


@pytest.fixture
def tappd(guest: Guest, loop: asyncio.AbstractEventLoop) -> Client:
    """Return a client of tappd.sock."""
    return Client(listener_apps.tappd_app(guest), loop)


@pytest.fixture
def external(guest: Guest, loop: asyncio.AbstractEventLoop) -> Client:
    """Return a client of the external listener."""
    return Client(listener_apps.external_app(guest), loop)


@pytest.fixture
def vector_dstack(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> Client:
    """Return a client of dstack.sock with the vectors' app keys."""
    return Client(listener_apps.dstack_app(make_guest(app_keys=vector_keys())), loop)


@pytest.fixture
def vector_tappd(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> Client:
    """Return a client of tappd.sock with the vectors' app keys."""
    return Client(listener_apps.tappd_app(make_guest(app_keys=vector_keys())), loop)
