"""Applications of Starlette and FastAPI behind mutual RA-TLS, served by uvicorn."""

import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from attestkit import ra_tls
from tests.ra_tls import tds
from tests.ra_tls.talks import TIMEOUT

uvicorn = pytest.importorskip("uvicorn")


def starlette_app() -> Any:
    """Return a Starlette application that echoes."""
    pytest.importorskip("starlette", reason="starlette is not here")
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def echo(request: Request) -> JSONResponse:
        return JSONResponse({"scheme": request.url.scheme, "body": await request.json()})

    return Starlette(routes=[Route("/echo", echo, methods=["POST"])])


def fastapi_app() -> Any:
    """Return a FastAPI application that echoes."""
    fastapi = pytest.importorskip("fastapi", reason="fastapi is not here")
    app = fastapi.FastAPI()

    async def echo(body: dict[str, Any]) -> dict[str, Any]:
        return {"scheme": "https", "body": body}

    app.post("/echo")(echo)
    return app


@pytest.fixture(params=[starlette_app, fastapi_app])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    """Serve the application in a thread; return its port."""
    issued = tds.issue()
    context = tds.server_context(issued)
    config = uvicorn.Config(request.param(), log_level="critical", log_config=None, lifespan="off")
    config.load()
    config.ssl = context
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(TIMEOUT)
        assert not thread.is_alive()


def ask(port: int, issued: ra_tls.Issued | None) -> Any:
    """Send a request, with a certificate if given."""
    context = tds.client_context(issued)
    with httpx.Client(verify=context, trust_env=False, timeout=TIMEOUT) as client:
        return client.post(f"https://127.0.0.1:{port}/echo", json={"a": 1}).json()


def test_application_answers_attested_client(port: int) -> None:
    """Both sides are attested, and the framework parses the request as usual."""
    assert ask(port, tds.issue()) == {"scheme": "https", "body": {"a": 1}}


def test_application_rejects_other_clients(port: int) -> None:
    """A client without a certificate, or with a debuggable TD, is rejected."""
    for issued in (None, tds.issue(tds.attest_debug)):
        with pytest.raises(httpx.TransportError):
            ask(port, issued)
