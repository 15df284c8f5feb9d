"""Attacks on a proven client, by each library: the server's log shows no request.

The servers record what they decrypt, so that a request which a client withdraws is seen, too.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

import attestkit
from attestkit.client.asgi import Receive, Scope, Send
from attestkit.client.endpoint import Endpoint
from attestkit.errors import AttestKitError, ServiceError, UsageError
from attestkit.ra_tls import PeerRefusedError
from attestkit.testing import AttestedServer
from tests.client.callers import CALLERS, Caller, calling, find_error, refusal_of
from tests.client.wire.servers import proxying
from tests.raising import raises
from tests.untyped import untyped

Make = Callable[..., AttestedServer]
QUESTION: Final = b"GET /.well-known/attestkit?nonce="
SECRET: Final = b"a secret of the user"
every_library = pytest.mark.parametrize("library", CALLERS)
# Their connections are proven on the wire; the others have redirects and proxies of their own.
every_proven = pytest.mark.parametrize(
    "library", [name for name, kind in CALLERS.items() if not kind.pins_only]
)


def connect(server: AttestedServer, *others: AttestedServer, **options: Any) -> Endpoint:
    """Connect to a server as its user does; one CA has issued the certificates of all servers."""
    server_ca = "".join(one.ca for one in (server, *others))
    return attestkit.connect(server.url, policy=server.policy, server_ca=server_ca, **options)


def only_questions(received: list[bytes]) -> bool:
    """Return whether connections carried questions for documents alone, one each."""
    return all(
        not one
        or (one.startswith(QUESTION) and one.count(b"\r\n\r\n") == 1 and one[-4:] == b"\r\n\r\n")
        for one in received
    )


@contextmanager
def attacked(server: AttestedServer, *others: AttestedServer) -> Iterator[None]:
    """Check that servers receive no byte of a request over new connections."""
    before = [len(one.received) for one in (server, *others)]
    requests = [len(one.requests) for one in (server, *others)]
    yield
    for one, count in zip((server, *others), before, strict=True):
        assert only_questions(one.received[count:])
    assert [len(one.requests) for one in (server, *others)] == requests
    assert not any(SECRET in log for one in (server, *others) for log in one.received)


def refuses(caller: Caller, *reasons: str, url: str | None = None) -> None:
    """Check that a request is refused, and that a new proof is, where pins alone are compared."""
    error = refusal_of(lambda: caller.post(SECRET, url))
    if not caller.pins_only:
        assert error.reason in reasons
        return
    assert error.reason == "other_key"
    with pytest.raises(AttestKitError) as caught:
        caller.endpoint.prove()
    assert caught.value.reason in reasons
    assert refusal_of(lambda: caller.post(SECRET, url)).reason == "other_key"


def replay(server: AttestedServer, endpoint: Endpoint) -> None:
    """Answer with the document of the first proof, to its nonce, whatever the request is."""
    [recorded] = endpoint.proof.bundle.answers
    server.rotate()
    server.change_document(lambda _: recorded)


def stale(server: AttestedServer, _: Endpoint) -> None:
    """Answer with documents to another nonce, about a new key."""
    server.rotate()
    server.stale()


ATTACKS: Final[dict[str, tuple[Callable[[AttestedServer, Endpoint], None], tuple[str, ...]]]] = {
    "key swap": (lambda server, _: server.swap_key(), ("other_key",)),
    "relay": (lambda server, _: server.relay(), ("other_key",)),
    "relay that names its key": (lambda server, _: server.relay(rewrite=True), ("report_data",)),
    "stale document": (stale, ("nonce_echo",)),
    "replayed document": (replay, ("nonce_echo", "other_key")),
}


@pytest.mark.slow
@every_library
@pytest.mark.parametrize("name", ATTACKS)
def test_attack_after_a_proof(attested_server: Make, library: str, name: str) -> None:
    """After an attack no new connection carries a request, and afterwards all is well again."""
    attack, reasons = ATTACKS[name]
    server = attested_server()
    with connect(server) as endpoint, calling(library, endpoint) as caller:
        assert caller.post(b"first") == b"first"
        attack(server, endpoint)
        server.disconnect()
        with attacked(server):
            refuses(caller, *reasons)
        server.restore()
        if caller.pins_only:
            endpoint.prove()
        assert caller.post(b"last") == b"last"


@every_library
def test_old_connection_is_that_of_the_old_key(attested_server: Make, library: str) -> None:
    """A key that is swapped after the proof changes nothing on a connection that is open."""
    server = attested_server()
    with connect(server) as endpoint, calling(library, endpoint) as caller:
        assert caller.post(b"first") == b"first"
        server.swap_key()
        if caller.pins_only:  # these have a connection for each request here
            refuses(caller, "other_key")
        else:
            assert caller.post(b"second") == b"second"
        with attacked(server), calling(library, endpoint) as another:
            refuses(another, "other_key")


@every_library
def test_other_server_of_the_same_name(attested_server: Make, library: str) -> None:
    """Another server at the address, with a certificate for the name, receives no request."""
    server, other = attested_server(), attested_server(app_compose=OTHER_APP)
    with connect(server, other) as endpoint, calling(library, endpoint) as caller:
        assert caller.post(b"first") == b"first"
        with attacked(server, other):
            error = refusal_of(lambda: caller.post(SECRET, other.url))
            assert error.reason in ("other_origin", "other_key")


OTHER_APP: Final = b'{"manifest_version":2,"name":"other","runner":"bash"}'


# -- redirects -------------------------------------------------------------------------------------


class Redirecting:
    """An app that redirects all requests to `target`."""

    target = b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with status 307, which keeps method and body."""
        if scope["type"] == "websocket":
            await receive()
            headers = [(b"location", self.target.replace(b"https", b"wss"))]
            await send({"type": "websocket.http.response.start", "status": 307, "headers": headers})
            await send({"type": "websocket.http.response.body", "body": b""})
        elif scope["type"] == "http":
            headers = [(b"location", self.target), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 307, "headers": headers})
            await send({"type": "http.response.body", "body": b""})


@every_library
def test_redirect_to_an_unproven_server(attested_server: Make, library: str) -> None:
    """It is not followed, although that server is genuine: it is not proven."""
    app = Redirecting()
    server, other = attested_server(app), attested_server()
    app.target = other.url.encode() + b"/"
    follows = {"follow_redirects": True} if "httpx" in library else {}
    with connect(server, other) as endpoint, calling(library, endpoint, **follows) as caller:
        with attacked(other):
            error = refusal_of(lambda: caller.post(SECRET[:3]))
        assert error.reason in ("other_origin", "other_key")
        assert not any(other.received)


@every_proven
def test_redirect_to_plain_http(attested_server: Make, library: str) -> None:
    """Neither is one to plain HTTP."""
    app = Redirecting()
    server = attested_server(app)
    app.target = server.url.replace("https", "http").encode() + b"/"
    follows = {"follow_redirects": True} if "httpx" in library else {}
    with connect(server) as endpoint, calling(library, endpoint, **follows) as caller:
        assert refusal_of(lambda: caller.post(b"x")).reason == "plain_http"
    assert len(server.requests) == 1


# -- the environment, and options ------------------------------------------------------------------


@every_library
def test_proxies_of_the_environment(
    attested_server: Make, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not used; websockets uses them, and their own server is refused."""
    server, attacker = attested_server(), attested_server(app_compose=OTHER_APP)
    with proxying(to=attacker.port) as proxy:
        for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
            monkeypatch.setenv(name.lower(), proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        with connect(server, attacker) as endpoint, calling(library, endpoint) as caller:
            assert proxy.targets == []
            if library == "websockets":
                assert refusal_of(lambda: caller.post(SECRET)).reason == "other_key"
                assert proxy.targets
                caller.post(b"body", proxy=None)
            else:
                assert caller.post(b"body") == b"body"
                assert proxy.targets == []
    assert not any(attacker.received)
    assert not attacker.requests


@every_proven
def test_proxy_that_ends_tls(attested_server: Make, library: str) -> None:
    """A tunnel that leads to another server is refused, although its CA is accepted."""
    server = attested_server()
    with proxying(to=server.port) as proxy, connect(server, proxy=proxy.url) as endpoint:
        with calling(library, endpoint) as caller:
            assert caller.post(b"first") == b"first"
            assert proxy.targets
        server.relay()
        with attacked(server), calling(library, endpoint) as caller:
            refuses(caller, "other_key")


@every_library
def test_variables_of_tls(
    attested_server: Make, library: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither do they log keys, nor choose a CA, nor switch a check off."""
    server, keys = attested_server(), tmp_path / "keys.log"
    monkeypatch.setenv("SSLKEYLOGFILE", str(keys))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "missing.pem"))
    monkeypatch.setenv("CURL_CA_BUNDLE", "")
    monkeypatch.setenv("PYTHONHTTPSVERIFY", "0")
    with connect(server) as endpoint, calling(library, endpoint) as caller:
        assert caller.post(b"first") == b"first"
        server.swap_key()
        server.disconnect()
        with attacked(server):
            refuses(caller, "other_key")
    assert not keys.exists()


def test_verification_cannot_be_switched_off(attested_server: Make) -> None:
    """Httpx has no such option here; those of requests, on session and request, do nothing."""
    server = attested_server()
    with connect(server) as endpoint:
        for http in ("httpx", "httpx2"):
            for name in ("verify", "transport", "mounts", "proxy"):
                options: dict[str, Any] = {name: False}
                for make in (endpoint.client, endpoint.async_client):
                    with raises(UsageError, "conflict"):
                        make(http=untyped(http), **options)
        with calling("requests", endpoint, verify=False, trust_env=True) as caller:
            assert caller.post(b"first", verify=False) == b"first"
            server.swap_key()
            server.disconnect()
            with attacked(server):
                error = refusal_of(lambda: caller.post(SECRET, verify=False))
                assert error.reason == "other_key"


def test_no_server_ca_is_no_way_around(attested_server: Make) -> None:
    """Without the CA of the server, nothing is proven and nothing is sent."""
    server = attested_server()
    with attacked(server), raises(ServiceError, "unknown_service"):
        attestkit.connect(server.url, policy=server.policy)
    with attacked(server), raises(ServiceError, "connection"):
        attestkit.connect(server.url, policy=server.policy, service="attestkit")


# -- rotation under load ---------------------------------------------------------------------------


@pytest.mark.slow
@every_library
def test_rotation_under_load(attested_server: Make, library: str) -> None:
    """New keys while 4 clients send: no request is lost, and each key is proven once."""
    server, done, rotations = attested_server(), threading.Event(), 8

    def work(number: int) -> int:
        with calling(library, endpoint) as caller:
            count = 0
            while not done.is_set() or count < 5:
                body = b"%d %d" % (number, count)
                assert send(caller, body) == body
                count += 1
            return count

    with connect(server) as endpoint, ThreadPoolExecutor(4) as threads:
        running = [threads.submit(work, number) for number in range(4)]
        try:
            for _ in range(rotations):
                server.rotate()
                with endpoint.client() as client:  # of the new key
                    client.get("/")
        finally:
            done.set()
        sent = sum(one.result(60) for one in running)
    assert len(server.requests) == sent + rotations
    if CALLERS[library].pins_only:  # each proves the server when it has seen the key
        assert server.documents >= 1 + rotations
    else:
        assert server.documents == 1 + rotations


def send(caller: Caller, body: bytes) -> bytes:
    """Send a request; where pins are compared, prove the server as often as its key changes."""
    for _ in range(20):
        try:
            return caller.post(body)
        except Exception as error:
            if not caller.pins_only:
                raise
            if find_error(error).reason != "other_key":
                raise
            caller.endpoint.prove()
    raise AssertionError("the key changes too often")


def test_refusals_are_of_one_class(attested_server: Make) -> None:
    """For the libraries it is an error of TLS; it has attestkit's reason."""
    server = attested_server()
    with connect(server) as endpoint, calling("httpx", endpoint) as caller:
        server.swap_key()
        with raises(PeerRefusedError, "other_key"):
            caller.post(SECRET)
