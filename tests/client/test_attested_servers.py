"""`connect` with servers of attestkit: no byte of a request reaches one that is not proven."""

from collections.abc import Callable
from typing import Any, Final

import pytest

import attestkit
from attestkit.client.endpoint import Endpoint
from attestkit.client.proofs.appraisal import Require
from attestkit.errors import AttestKitError, PolicyError
from attestkit.ra_tls import PeerRefusedError
from attestkit.testing import AttestedServer
from tests.raising import raises

Make = Callable[..., AttestedServer]
DOCUMENT: Final = b"GET /.well-known/attestkit?nonce="
OTHER_APP: Final = b'{"manifest_version":2,"name":"other","runner":"bash"}'
SECRET: Final = b"a secret of the user"


def connect(server: AttestedServer, **options: Any) -> Endpoint:
    """Connect to a server as its user does."""
    return attestkit.connect(server.url, policy=server.policy, server_ca=server.ca, **options)


def nothing_was_sent(server: AttestedServer) -> bool:
    """Return whether the server received questions for documents, and nothing else."""
    return all(one.count(b"HTTP/1.1") <= 1 for one in server.received) and all(
        not one or one.startswith(DOCUMENT) for one in server.received
    )


ATTACKS: Final[dict[str, tuple[Callable[[AttestedServer], None], str]]] = {
    "swap_key": (AttestedServer.swap_key, "other_key"),
    "relay": (AttestedServer.relay, "other_key"),
    "relay that names its key": (lambda server: server.relay(rewrite=True), "report_data"),
    "stale": (AttestedServer.stale, "nonce_echo"),
    "hang": (AttestedServer.hang, "timeout"),
    "cut document": (lambda server: server.change_document(lambda body: body[:-1]), "syntax"),
    "empty document": (lambda server: server.change_document(lambda _: b""), "syntax"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacked_server_is_refused(attested_server: Make, name: str) -> None:
    """A server that is attacked from the beginning gets no request."""
    attack, reason = ATTACKS[name]
    server = attested_server()
    attack(server)
    with pytest.raises(AttestKitError) as caught:
        connect(server, service="attestkit", timeout=0.5 if name == "hang" else 60)
    assert caught.value.reason == reason
    assert not server.requests
    assert nothing_was_sent(server)


@pytest.mark.parametrize("name", ATTACKS)
def test_server_that_is_attacked_after_its_proof_is_refused(
    attested_server: Make, name: str
) -> None:
    """A new connection to an attacked server carries no request; a proven one still does."""
    attack, reason = ATTACKS[name]
    if name in ("stale", "hang", "cut document", "empty document"):
        rest = attack

        def attack(server: AttestedServer) -> None:
            server.rotate()  # else the key is proven already
            rest(server)

    server = attested_server()
    timeout = 2 if name == "hang" else 60  # the first proof has to come in it
    with connect(server, timeout=timeout) as endpoint, endpoint.client() as client:
        assert client.post("/", content=b"first").content == b"first"
        attack(server)
        assert client.post("/", content=b"second").content == b"second"
        with endpoint.client() as another, pytest.raises(AttestKitError) as caught:
            another.post("/", content=SECRET)
        assert caught.value.reason == reason
    assert [request.body_size for request in server.requests] == [5, 6]
    assert not any(SECRET in received for received in server.received)


def test_rotation_is_followed(attested_server: Make) -> None:
    """A new key is proven before the next request on it; old connections go on."""
    server = attested_server()
    with connect(server) as endpoint, endpoint.client() as client:
        client.post("/", content=b"1")
        for number in (b"2", b"3"):
            server.rotate()
            assert client.post("/", content=number).content == number
            server.disconnect()
            assert client.post("/", content=number).content == number
    assert len(server.requests) == 5
    assert server.documents == 3  # one for each key


def test_connection_that_ends_with_the_document(attested_server: Make) -> None:
    """A server that closes the connection after its document gets the request on another one."""
    server = attested_server()
    server.close_after_document()
    with connect(server) as endpoint, endpoint.client() as client:
        server.rotate()
        assert client.post("/", content=b"body").content == b"body"
    assert len(server.requests) == 1


@pytest.mark.parametrize("ra_tls", [False, True])
def test_policy_is_enforced(attested_server: Make, *, ra_tls: bool) -> None:
    """A platform that is out of date, and another app, are refused."""
    server = attested_server(ra_tls=ra_tls)
    stale = attested_server(ra_tls=ra_tls, scenario="tcb-OutOfDate")
    require = Require(freshness="key possession")
    with raises(PeerRefusedError, "tcb_status"):
        connect(stale, require=require)
    other = attested_server(ra_tls=ra_tls, app_compose=OTHER_APP)
    with pytest.raises(PeerRefusedError) as caught:
        attestkit.connect(other.url, policy=server.policy, server_ca=other.ca, require=require)
    assert isinstance(caught.value.__cause__, PolicyError)
    assert not stale.requests
    assert not other.requests


@pytest.mark.parametrize("platform", ["tdx", "snp"])
def test_server_with_ra_tls(attested_server: Make, platform: str) -> None:
    """The certificate proves the server, and its renewals; another key is refused."""
    server = attested_server(ra_tls=True, platform=platform)
    options = {"service": "ra-tls", "require": Require(freshness="key possession")}
    with connect(server, **options) as endpoint, endpoint.client() as client:
        for body in (b"1", b"2"):
            assert client.post("/", content=body).content == body
            server.rotate()
            server.disconnect()
        for attack in (server.swap_key, server.relay):
            attack()
            with raises(PeerRefusedError, "report_data"):
                client.post("/", content=SECRET)
    assert len(server.requests) == 2
    assert not any(SECRET in received for received in server.received)
