"""The server for tests of clients: it is proven as it should be, and each deviation is as named."""

import json
import ssl
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect as ws_connect

from attestkit import ra_tls
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit.client.document import PATH
from attestkit.client.services.own_document import OwnDocument
from attestkit.client.services.service import Claims
from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.errors import (
    AttestKitError,
    PolicyError,
    ServiceError,
    UsageError,
)
from attestkit.testing import AttestedServer, SimulatedTee
from tests.raising import raises

Make = Callable[..., AttestedServer]
NONCE = bytes(range(32))
OTHER_APP = b'{"manifest_version":2,"name":"other","runner":"bash"}'


@contextmanager
def connect(server: AttestedServer) -> Iterator[httpx.Client]:
    """Connect with the CA of the server, and the strictness of newer Pythons."""
    context = ssl.create_default_context(cadata=server.ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with httpx.Client(verify=context, base_url=server.url, trust_env=False, timeout=5) as client:
        yield client


def ask(client: httpx.Client) -> tuple[bytes, ObservedPeer]:
    """Return the document, and the peer that sent it."""
    [question] = OwnDocument().questions(NONCE, None)
    with client.stream("GET", question.target) as answer:
        assert answer.status_code == 200
        tls: Any = answer.extensions["network_stream"].get_extra_info("ssl_object")
        leaf = read_certificate(tls.getpeercert(True))
        return answer.read(), ObservedPeer("127.0.0.1", 0, leaf.der, leaf.spki_der)


def prove(server: AttestedServer) -> Claims:
    """Do what an endpoint does on a new connection."""
    with connect(server) as client:
        body, peer = ask(client)
    claims = OwnDocument().read((body,), NONCE, peer, None)
    [machine] = claims.machines
    server.policy.verify(machine.evidence, report_data=machine.report_data)
    return claims


def test_server_is_proven(attested_server: Make) -> None:
    """Document, evidence and policy fit; the app sees its own requests only."""
    server = attested_server()
    assert prove(server).bindings[0].key == server.spki_sha256
    with connect(server) as client:
        answer = client.post("/echo?a=b", content=b"body", headers={"X-One": "1"})
    assert answer.content == b"body"
    [request] = server.requests
    assert (request.method, request.path, request.query) == ("POST", "/echo", "a=b")
    assert ("x-one", "1") in request.headers
    assert request.body_size == 4
    assert server.documents == 1
    assert [data[:4] for data in server.received] == [b"GET ", b"POST"]


def test_server_of_another_app_is_not_accepted(attested_server: Make) -> None:
    """The policy names the app."""
    server, other = attested_server(), attested_server(app_compose=OTHER_APP)
    with connect(other) as client:
        body, peer = ask(client)
    [machine] = OwnDocument().read((body,), NONCE, peer, None).machines
    with pytest.raises(PolicyError):
        server.policy.verify(machine.evidence, report_data=machine.report_data)


@pytest.mark.parametrize("platform", ["tdx", "snp"])
def test_options_of_the_tee(attested_server: Make, platform: str) -> None:
    """The TEE may be of another platform, and may be given."""
    with AttestedServer(platform=platform) as server:
        prove(server)
    with SimulatedTee(platform=platform) as tee:
        prove(attested_server(tee=tee))
        with raises(UsageError, "conflict"):
            AttestedServer(tee=tee, platform=platform)


def test_scenario_is_refused(attested_server: Make) -> None:
    """A platform that is out of date is refused by the policy of the server."""
    with raises(PolicyError, "tcb_status"):
        prove(attested_server(scenario="tcb-OutOfDate"))


def test_rotate(attested_server: Make) -> None:
    """A new key is in the document, and the old connection finishes."""
    server = attested_server()
    with connect(server) as client:
        _, peer = ask(client)
        server.rotate()
        body, same = ask(client)
        assert same == peer
        OwnDocument().read((body,), NONCE, peer, None)
    claims = prove(server)
    assert [one.key for one in claims.bindings] == [server.spki_sha256, peer.spki_sha256]
    assert server.spki_sha256 != peer.spki_sha256


def test_swap_key(attested_server: Make) -> None:
    """The document does not name the new key; open connections keep the old one."""
    server = attested_server()
    with connect(server) as client:
        _, peer = ask(client)
        server.swap_key()
        _, same = ask(client)
        assert same == peer
    with raises(ServiceError, "other_key"):
        prove(server)
    server.restore()
    prove(server)


def test_relay(attested_server: Make) -> None:
    """Genuine evidence is about another key; a changed statement is not that of the evidence."""
    server = attested_server()
    server.relay()
    with raises(ServiceError, "other_key"):
        prove(server)
    server.relay(rewrite=True)
    with raises(PolicyError, "report_data"):
        prove(server)
    server.restore()
    prove(server)


def test_stale(attested_server: Make) -> None:
    """The document is for another nonce, and about the right key."""
    server = attested_server()
    server.stale()
    with raises(ServiceError, "nonce_echo"):
        prove(server)
    with connect(server) as client:
        body, peer = ask(client)
    statement = json.loads(b64decode(json.loads(body)["statement"]))
    assert statement["keys"]["tls"] == [peer.spki_sha256.hex()]


def test_hang(attested_server: Make) -> None:
    """The document never comes; other requests are answered."""
    server = attested_server()
    server.hang()
    with connect(server) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.get(f"{PATH}?nonce={NONCE.hex()}", timeout=0.2)
        assert client.get("/other").status_code == 200
    server.restore()
    prove(server)


def test_server_closes_while_requests_hang(attested_server: Make) -> None:
    """Closing it aborts connections and cancels requests."""
    server = attested_server()
    server.hang()
    with connect(server) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.get(f"{PATH}?nonce={NONCE.hex()}", timeout=0.2)
        server.close()
        with pytest.raises(httpx.ConnectError):
            client.get("/")
    server.close()


def test_close_after_document(attested_server: Make) -> None:
    """The connection ends after the document."""
    server = attested_server()
    server.close_after_document()
    with connect(server) as client:
        ask(client)
        assert client.get("/").status_code == 200
    assert [data[:5] for data in server.received] == [b"GET /", b"GET /"]
    assert len(server.received) == 2


def test_change_document(attested_server: Make) -> None:
    """Any other document can be answered."""
    server = attested_server()
    server.change_document(lambda body: body[:-1])
    with pytest.raises(AttestKitError):
        prove(server)


def test_disconnect(attested_server: Make) -> None:
    """All connections are aborted; new ones are accepted."""
    server = attested_server()
    with connect(server) as client:
        client.get("/")
        server.disconnect()
        client.get("/")
    assert len(server.received) == 2


def test_websocket_is_of_the_app(attested_server: Make) -> None:
    """A WebSocket is recorded, and its messages come back."""
    server = attested_server()
    context = ssl.create_default_context(cadata=server.ca)
    with ws_connect(server.url.replace("https", "wss") + "/ws", ssl=context) as socket:
        socket.send("hello")
        assert socket.recv() == "hello"
    assert [(one.method, one.path) for one in server.requests] == [("WEBSOCKET", "/ws")]


async def refuse(scope: Any, receive: Any, send: Any) -> None:
    """Refuse to start."""
    assert scope["type"] == "lifespan"
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no"})


def test_app_that_refuses_to_start(attested_server: Make) -> None:
    """The server does not start either."""
    with raises(UsageError, "wrong_value"):
        attested_server(refuse)


# -- RA-TLS ----------------------------------------------------------------------------------------


def ra_tls_get(server: AttestedServer, path: str = "/") -> None:
    """Make a request over RA-TLS."""
    transport = ra_tls.HTTPTransport(ra_tls.client_context(server.policy, server_ca=server.ca))
    with httpx.Client(transport=transport, base_url=server.url) as client:
        assert client.post(path, content=b"body").content == b"body"


def test_ra_tls(attested_server: Make) -> None:
    """The certificate has the evidence, also after a renewal, and the server has no document."""
    server = attested_server(ra_tls=True)
    ra_tls_get(server)
    server.rotate()
    ra_tls_get(server, PATH)
    assert [request.path for request in server.requests] == ["/", PATH]


def test_ra_tls_of_an_attacker(attested_server: Make) -> None:
    """Evidence about another key is refused, and no request is sent."""
    server = attested_server(ra_tls=True)
    for attack in (server.swap_key, server.relay):
        attack()
        with pytest.raises(httpx.ConnectError, match="report data"):
            ra_tls_get(server)
        server.restore()
        ra_tls_get(server)
    assert len(server.requests) == 2


def test_ra_tls_has_no_faults_of_documents(attested_server: Make) -> None:
    """Impossible options are refused."""
    server = attested_server(ra_tls=True)
    for control in (server.stale, server.hang, server.close_after_document):
        with raises(UsageError, "not_applicable"):
            control()
