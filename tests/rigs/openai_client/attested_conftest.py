"""Fixtures of openai's own tests, whose answers come over connections that are proven.

A copy of this file is the conftest of a folder below openai's tests, which has a copy of their
`test_client.py`. What a test's router answers is sent by a real server in a simulated TEE; an
exception that it raises becomes a lost connection, or an answer that does not come.
"""

import asyncio
import atexit
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, MutableMapping
from typing import Any, Final

import httpx2
import openai
import pytest
from tests.respx2 import MockRouter  # type: ignore[import-untyped] # of openai's tests

import attestkit
from attestkit.testing.attested_server import AttestedServer

_Event = MutableMapping[str, Any]
_SECONDS: Final = 0.3  # of a test that waits for the end of a time
_KEYS: Final = {"api_key": "My API Key", "admin_api_key": "My Admin API Key"}


class Routes:
    """An ASGI application that answers as the router of the running test does."""

    def __init__(self) -> None:
        self.router: MockRouter | None = None

    async def __call__(
        self,
        scope: _Event,
        receive: Callable[[], Awaitable[_Event]],
        send: Callable[[_Event], Awaitable[None]],
    ) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            for _ in range(2):
                event = await receive()
                await send({"type": f"{event['type']}.complete"})
            return
        body, more = b"", True
        while more:
            event = await receive()
            body, more = body + event.get("body", b""), bool(event.get("more_body"))
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        url = server.url + (scope["raw_path"] + query).decode()
        request = httpx2.Request(scope["method"], url, headers=scope["headers"], content=body)
        assert self.router is not None
        try:
            response = self.router.handler(request)
        except httpx2.TimeoutException:
            await receive()  # until the client gives up
            return
        except httpx2.RequestError:
            await asyncio.to_thread(server.disconnect)
            return
        headers = [(name.lower(), value) for name, value in response.headers.raw]
        await send(
            {"type": "http.response.start", "status": response.status_code, "headers": headers}
        )
        await send({"type": "http.response.body", "body": response.read()})


routes = Routes()
server = AttestedServer(routes)
atexit.register(server.close)
endpoint = attestkit.connect(server.url, policy=server.policy, server_ca=server.ca)
# Read by the tests when they are imported, which is after this module.
os.environ["TEST_API_BASE_URL"] = server.url


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the tests that send requests with these fixtures; others test no connection of ours."""
    own = [one for one in items if _uses_endpoint(getattr(one, "fixturenames", ()))]
    config.hook.pytest_deselected(items=[one for one in items if one not in own])
    items[:] = own


def _uses_endpoint(fixtures: Collection[str]) -> bool:
    return "respx2_mock" in fixtures and not {"client", "async_client"}.isdisjoint(fixtures)


@pytest.fixture
def respx2_mock(request: pytest.FixtureRequest) -> Iterator[MockRouter]:
    """The routes of a test, which patch nothing."""
    marker = request.node.get_closest_marker("respx2")
    options = {} if marker is None else dict(marker.kwargs)
    router = MockRouter(assert_all_called=False, **options)
    routes.router = router
    yield router
    routes.router = None


def _timeout(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"timeout": _SECONDS} if "timeout_errors" in request.node.name else {}


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    """A client of the endpoint."""
    strict = getattr(request, "param", True)
    with endpoint.openai(_strict_response_validation=strict, **_KEYS, **_timeout(request)) as found:
        yield found


@pytest.fixture
async def async_client(request: pytest.FixtureRequest) -> AsyncIterator[openai.AsyncOpenAI]:
    """A client of the endpoint, for asyncio."""
    given = getattr(request, "param", True)
    if isinstance(given, dict) and given.get("http_client") == "aiohttp":
        pytest.skip("openai's client of aiohttp is not one of the endpoint")
    strict = given.get("strict", True) if isinstance(given, dict) else given
    async with endpoint.async_openai(
        _strict_response_validation=strict, **_KEYS, **_timeout(request)
    ) as found:
        yield found


@pytest.fixture(autouse=True)
def _open_connections(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the requests that use a connection, where the tests look into a pool of httpx."""

    def count(client: Any) -> int:
        pools = client._client._transport.pools
        current = pools._current
        return sum(
            lease.users for lease in (*pools._retired, *([] if current is None else [current]))
        )

    monkeypatch.setattr(request.module, "_get_open_connections", count, raising=False)
