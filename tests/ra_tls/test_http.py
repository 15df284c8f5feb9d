"""Two processes, both attested: httpx here, uvicorn there."""

import asyncio
import json
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
from attestkit.errors import VerificationError
from attestkit.ra_tls import PeerRefusedError
from attestkit.verifier import AttestationResult
from tests.ra_tls import tds
from tests.ra_tls.http_server import COMPOSE
from tests.ra_tls.talks import PATIENCE
from tests.serve.server import ROOT, environment
from tests.verifier import parcels

OURS: Final = b'{"manifest_version":2,"name":"the client","runner":"bash"}'
Ports: TypeAlias = dict[str, int]
unsound = pytest.mark.parametrize("what", tds.UNSOUND)


@pytest.fixture(scope="module")
def ports() -> Iterator[Ports]:
    """Run the server, once for all tests."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.ra_tls.http_server"],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(2 * PATIENCE, process.kill)  # makes readline() return
        timer.start()
        try:
            yield json.loads(process.stdout.readline())
            process.stdin.close()
            assert process.wait(PATIENCE) == 0
        finally:
            timer.cancel()
            process.kill()


@cache
def issued() -> ra_tls.Issued:
    """Return the certificate of our own TD, another app than the server's."""
    with parcels.attester(app_compose=OURS) as tee:
        return tds.issued(tee.attest)


def context(mine: ra_tls.Issued | None) -> ssl.SSLContext:
    """Return the context of a client."""
    return ra_tls.client_context(parcels.verifier(), issued=mine)


def ask_blocking(port: int, mine: ra_tls.Issued | None) -> tuple[Any, AttestationResult]:
    """Ask with httpx; return the answer, and who gave it."""
    with httpx.Client(verify=context(mine), trust_env=False, timeout=PATIENCE) as client:
        response = client.post(f"https://127.0.0.1:{port}/", content="secret")
        return response.json(), ra_tls.peer(response.extensions["network_stream"])


def ask_async(port: int, mine: ra_tls.Issued | None) -> tuple[Any, AttestationResult]:
    """Ask with httpx on asyncio."""

    async def program() -> tuple[Any, AttestationResult]:
        options: dict[str, Any] = {"trust_env": False, "timeout": PATIENCE}
        async with httpx.AsyncClient(verify=context(mine), **options) as client:
            response = await client.post(f"https://localhost:{port}/", content="secret")
            return response.json(), ra_tls.peer(response.extensions["network_stream"])

    return asyncio.run(program())


askers = pytest.mark.parametrize("ask", [ask_blocking, ask_async])


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Go through what led to an exception, itself first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def refusal(error: BaseException) -> PeerRefusedError | None:
    """Return what our check said, if it led to the exception."""
    return next((cause for cause in causes(error) if isinstance(cause, PeerRefusedError)), None)


@askers
def test_both_know_each_other(ask: Any, ports: Ports) -> None:
    """The server's application knows the client's app, and the client the server's."""
    answer, server = ask(ports[""], issued())
    assert answer["app_id"] == AppCompose.parse(OURS).default_app_id.hex()
    assert answer["simulated"] is True
    assert answer["body"] == "secret"
    assert server.app_info is not None
    assert server.app_info.app_id == AppCompose.parse(COMPOSE).default_app_id
    assert server.simulated


@askers
@unsound
def test_an_unsound_server(ask: Any, ports: Ports, what: str) -> None:
    """The client's error tells why, and no request has left."""
    before = ask(ports[""], issued())[0]["requests"]
    with pytest.raises(httpx.ConnectError) as caught:
        ask(ports[what], issued())
    refused = refusal(caught.value)
    assert refused is not None
    assert isinstance(refused.__cause__, VerificationError)
    assert ask(ports[""], issued())[0]["requests"] == before + 1


@askers
@unsound
def test_an_unsound_client(ask: Any, ports: Ports, what: str) -> None:
    """The server's application sees no request, and the client gets an error, not an answer."""
    before = ask(ports[""], issued())[0]["requests"]
    with pytest.raises(httpx.TransportError) as caught:
        ask(ports[""], tds.UNSOUND[what]())
    assert refusal(caught.value) is None, "the client was to be refused"
    if ask is ask_blocking and what != "an expired certificate":  # OpenSSL's alert tells that
        assert isinstance(caught.value, httpx.ReadError)
        assert "the server broke off before it said anything: it may have refused us" in str(
            caught.value
        )
    assert ask(ports[""], issued())[0]["requests"] == before + 1


@askers
def test_a_client_without_a_certificate(ask: Any, ports: Ports) -> None:
    """It is refused by TLS itself."""
    before = ask(ports[""], issued())[0]["requests"]
    with pytest.raises(httpx.TransportError):
        ask(ports[""], None)
    assert ask(ports[""], issued())[0]["requests"] == before + 1


def test_many_clients(ports: Ports) -> None:
    """Many at once are told apart."""
    mine = issued()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask_blocking(ports[""], mine)[0]["app_id"], range(40)))
    assert answers == [AppCompose.parse(OURS).default_app_id.hex()] * 40


def test_a_connection_is_used_again(ports: Ports) -> None:
    """Requests on one connection are from the peer that was checked when it was made."""
    with httpx.Client(verify=context(issued()), trust_env=False, timeout=PATIENCE) as client:
        peers = set()
        for _ in range(3):
            response = client.post(f"https://127.0.0.1:{ports['']}/", content="secret")
            peers.add(ra_tls.peer(response.extensions["network_stream"]))
        assert len(peers) == 1
