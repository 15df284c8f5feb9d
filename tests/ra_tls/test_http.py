"""HTTP between two attested processes: httpx as client, uvicorn as server."""

import asyncio
import json
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Final, TypeAlias

import httpx
import pytest

from attestkit import ra_tls
from attestkit.dstack.app_compose import AppCompose
from attestkit.errors import UsageError, VerificationError
from attestkit.ra_tls import PeerRefusedError
from attestkit.verifier import AttestationResult
from tests.ra_tls import tds
from tests.ra_tls.http_server import COMPOSE
from tests.ra_tls.talks import TIMEOUT
from tests.ra_tls.tds import client_context
from tests.raising import raises
from tests.runner.cases import every_case
from tests.serve.server import ROOT, environment
from tests.verifier.platforms import intel

OURS: Final = b'{"manifest_version":2,"name":"the client","runner":"bash"}'
Ports: TypeAlias = dict[str, int]


@pytest.fixture(scope="module")
def ports() -> Iterator[Ports]:
    """Start the server once for all tests."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.ra_tls.http_server"],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(2 * TIMEOUT, process.kill)  # makes readline() return
        timer.start()
        try:
            yield json.loads(process.stdout.readline())
            process.stdin.close()
            assert process.wait(TIMEOUT) == 0
        finally:
            timer.cancel()
            process.kill()


@cache
def issued() -> ra_tls.Issued:
    """Return the certificate of a TD with another app than the server's."""
    with intel.attester(app_compose=OURS) as tee:
        return tds.issue(tee.attest)


def request_blocking(port: int, mine: ra_tls.Issued | None) -> tuple[Any, AttestationResult]:
    """Send a request with httpx; return the response and the server's result."""
    with httpx.Client(verify=client_context(mine), trust_env=False, timeout=TIMEOUT) as client:
        response = client.post(f"https://127.0.0.1:{port}/", content="secret")
        return response.json(), ra_tls.peer(response.extensions["network_stream"])


def request_async(port: int, mine: ra_tls.Issued | None) -> tuple[Any, AttestationResult]:
    """Send a request with httpx on asyncio."""

    async def program() -> tuple[Any, AttestationResult]:
        options: dict[str, Any] = {"trust_env": False, "timeout": TIMEOUT}
        async with httpx.AsyncClient(verify=client_context(mine), **options) as client:
            response = await client.post(f"https://localhost:{port}/", content="secret")
            return response.json(), ra_tls.peer(response.extensions["network_stream"])

    return asyncio.run(program())


every_client = pytest.mark.parametrize("send", [request_blocking, request_async])


def cause_chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def rejection(error: BaseException) -> PeerRefusedError | None:
    """Return the PeerRefusedError among the causes."""
    return next(
        (cause for cause in cause_chain(error) if isinstance(cause, PeerRefusedError)), None
    )


@every_client
def test_http_both_sides_have_peer_result(send: Any, ports: Ports) -> None:
    """The server's application has the client's app id, and the client the server's."""
    response_json, server = send(ports[""], issued())
    assert response_json["app_id"] == AppCompose.parse(OURS).default_app_id.hex()
    assert response_json["simulated"] is True
    assert response_json["body"] == "secret"
    assert server.app_info is not None
    assert server.app_info.app_id == AppCompose.parse(COMPOSE).default_app_id
    assert server.simulated


@every_client
def test_http_invalid_server_receives_no_request(send: Any, ports: Ports) -> None:
    """The client's error has the reason, and no request is sent."""
    before = send(ports[""], issued())[0]["requests"]
    with pytest.raises(httpx.ConnectError) as caught:
        send(ports["invalid"], issued())
    error = rejection(caught.value)
    assert error is not None
    assert isinstance(error.__cause__, VerificationError)
    assert send(ports[""], issued())[0]["requests"] == before + 1


@every_client
def test_http_invalid_client_gets_error(send: Any, ports: Ports) -> None:
    """The server's application gets no request, and the client an error."""
    before = send(ports[""], issued())[0]["requests"]
    with pytest.raises(httpx.TransportError) as caught:
        send(ports[""], tds.issue(tds.attest_debug))
    assert rejection(caught.value) is None, "the client rejected the server"
    if send is request_blocking:
        assert isinstance(caught.value, httpx.ReadError)
        assert "it may have refused" in str(caught.value)
    assert send(ports[""], issued())[0]["requests"] == before + 1


# -- transports -----------------------------------------------------------------------------------


def transport_of(kind: str, context: ssl.SSLContext) -> Any:
    """Return a transport of ours."""
    return (ra_tls.HTTPTransport if kind == "blocking" else ra_tls.AsyncHTTPTransport)(context)


def request_over(transport: Any, url: str, **options: Any) -> httpx.Response:
    """Send a request with a client of a transport's kind."""
    options = {"timeout": TIMEOUT, **options}
    if isinstance(transport, ra_tls.HTTPTransport):
        with httpx.Client(transport=transport, **options) as client:
            return client.post(url, content="secret")

    async def program() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, **options) as client:
            return await client.post(url, content="secret")

    return asyncio.run(program())


every_transport = pytest.mark.parametrize("kind", ["blocking", "async"])


@every_transport
def test_transport_verifies_server(kind: str, ports: Ports) -> None:
    """A request over a transport reaches a verified server, and no other; proxies are ignored."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
        transport = transport_of(kind, client_context(issued()))
        response = request_over(transport, f"https://localhost:{ports['']}/")
    assert response.json()["body"] == "secret"
    assert ra_tls.peer(response.extensions["network_stream"]).simulated
    transport = transport_of(kind, client_context(issued()))
    with pytest.raises(httpx.ConnectError) as caught:
        request_over(transport, f"https://localhost:{ports['invalid']}/")
    assert rejection(caught.value) is not None


@every_transport
@pytest.mark.parametrize("scheme", ["http", "HTTP", "ws", "ftp"])
def test_transport_refuses_url_without_tls(kind: str, scheme: str) -> None:
    """A request without TLS is refused before a connection is made."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/"
        with raises(UsageError, "plain_http"):
            request_over(transport_of(kind, client_context()), url)
        with pytest.raises(BlockingIOError):
            listener.accept()


@every_transport
def test_transport_has_limits(kind: str) -> None:
    """The limits of the pool are httpx's own, or the given ones."""
    make = ra_tls.HTTPTransport if kind == "blocking" else ra_tls.AsyncHTTPTransport
    plain = (httpx.HTTPTransport if kind == "blocking" else httpx.AsyncHTTPTransport)()
    default, given = (
        make(client_context()),
        make(client_context(), limits=httpx.Limits(max_connections=3)),
    )
    name = "_max_connections"
    assert getattr(default._pool, name) == getattr(plain._pool, name)
    assert getattr(given._pool, name) == 3


def test_transport_refuses_redirect_to_http() -> None:
    """A redirect to a URL without TLS is not followed either."""
    transport = ra_tls.HTTPTransport(client_context())
    target = httpx.Request("POST", "http://127.0.0.1:1/")
    with httpx.Client(transport=transport, follow_redirects=True) as client:
        answer = httpx.MockTransport(
            lambda _: httpx.Response(307, headers={"location": str(target.url)})
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                httpx.HTTPTransport, "handle_request", answer.handle_request, raising=True
            )
            with raises(UsageError, "plain_http"):
                client.post("https://127.0.0.1:1/", content="secret")


@every_case(
    "context", [ssl.create_default_context(), tds.blind_context(), tds.server_context(), None, True]
)
def test_transport_of_other_context_is_usage_error(context: Any) -> None:
    """Only a context that verifies servers is accepted."""
    for kind in (ra_tls.HTTPTransport, ra_tls.AsyncHTTPTransport):
        with raises(UsageError, "wrong_type"):
            kind(context)


def test_http_concurrent_clients_are_distinguished(ports: Ports) -> None:
    """Each of several concurrent clients has its own result."""
    mine = issued()
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda _: request_blocking(ports[""], mine)[0]["app_id"], range(16))
        assert set(answers) == {AppCompose.parse(OURS).default_app_id.hex()}


def test_http_reused_connection_keeps_verified_peer(ports: Ports) -> None:
    """All requests of a connection come from the peer verified at its start."""
    with httpx.Client(verify=client_context(issued()), trust_env=False, timeout=TIMEOUT) as client:
        peers = set()
        for _ in range(3):
            response = client.post(f"https://127.0.0.1:{ports['']}/", content="secret")
            peers.add(ra_tls.peer(response.extensions["network_stream"]))
        assert len(peers) == 1
