"""Applications of others, under uvicorn: an app of Starlette, or FastAPI, behind mutual RA-TLS."""

import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from attestkit import ra_tls
from tests.ra_tls import tds
from tests.ra_tls.talks import PATIENCE
from tests.verifier import parcels

uvicorn = pytest.importorskip("uvicorn")


def starlette_app() -> Any:
    """Return an application of Starlette, which echoes."""
    pytest.importorskip("starlette", reason="starlette is not here")
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def echo(request: Request) -> JSONResponse:
        return JSONResponse({"scheme": request.url.scheme, "body": await request.json()})

    return Starlette(routes=[Route("/echo", echo, methods=["POST"])])


def fastapi_app() -> Any:
    """Return an application of FastAPI, which does the same."""
    fastapi = pytest.importorskip("fastapi", reason="fastapi is not here")
    app = fastapi.FastAPI()

    async def echo(body: dict[str, Any]) -> dict[str, Any]:
        return {"scheme": "https", "body": body}

    app.post("/echo")(echo)
    return app


@pytest.fixture(params=[starlette_app, fastapi_app])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    """Serve the application in a thread; return where."""
    issued = tds.issued()
    context = ra_tls.server_context(parcels.verifier(), issued=issued, peer_ca=tds.CA)
    config = uvicorn.Config(request.param(), log_level="critical", log_config=None, lifespan="off")
    config.load()
    config.ssl = context
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


def ask(port: int, issued: ra_tls.Issued | None) -> Any:
    """Ask it, as who has a certificate or as who has none."""
    context = ra_tls.client_context(parcels.verifier(), issued=issued)
    with httpx.Client(verify=context, trust_env=False, timeout=PATIENCE) as client:
        return client.post(f"https://127.0.0.1:{port}/echo", json={"a": 1}).json()


def test_it_answers_whom_it_believes(port: int) -> None:
    """Both sides are attested, and the framework's own parsing of the request is as ever."""
    assert ask(port, tds.issued()) == {"scheme": "https", "body": {"a": 1}}


def test_it_answers_nobody_else(port: int) -> None:
    """Neither who shows nothing, nor who shows a TD that its host may look into."""
    for issued in (None, tds.issued(tds.debug)):
        with pytest.raises(httpx.TransportError):
            ask(port, issued)
