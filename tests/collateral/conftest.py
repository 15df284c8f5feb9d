"""Fixtures of the tests of collateral."""

import contextlib
import ssl
from collections.abc import Iterator

import pytest

from tests.collateral.http_server import CreateServer, Respond, Server


@pytest.fixture
def create_server() -> Iterator[CreateServer]:
    """Return a function that starts servers, which stop with the test."""
    with contextlib.ExitStack() as stack:

        def create(respond: Respond | bytes, context: ssl.SSLContext | None = None) -> Server:
            server = Server(respond, context)
            stack.callback(server.close)
            return server

        yield create
