"""Proxies see tunnels of httpx and httpx2, and no byte of a request."""

import ssl
import sys

import pytest

from attestkit.client.wire.httpx_transport import http_transports
from attestkit.client.wire.tls import tls_context
from attestkit.errors import UsageError
from attestkit.ra_tls import PeerRefusedError
from tests.client.wire.authority import authority
from tests.client.wire.httpx_transport.httpx_clients import calling, every_client
from tests.client.wire.servers import (
    WireServerLike,
    proxying,
    serving,
)
from tests.client.wire.simple_verifier import SimpleServerVerifier
from tests.raising import raises


@every_client
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "ALL_PROXY", "https_proxy"])
def test_httpx_ignores_proxies_of_the_environment(
    kind: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hostile proxy of the environment is not asked."""
    with serving() as server, serving("relay") as relay, proxying(to=relay.port) as proxy:
        monkeypatch.setenv(variable, proxy.url)
        with calling(kind, SimpleServerVerifier(server)) as caller:
            caller.post(server.url, content=b"secret")
        assert proxy.targets == []
        assert relay.received == b""


@every_client
def test_httpx_tunnels_through_explicit_proxy(kind: str) -> None:
    """Through a proxy of CONNECT, the server is proven as without one."""
    with serving() as server, proxying() as proxy:
        server_verifier = SimpleServerVerifier(server)
        with calling(kind, server_verifier, proxy=proxy.url) as caller:
            for target in ("/one", "/two"):
                assert caller.get(server.url + target).json()["target"] == target
        assert proxy.targets == [f"CONNECT 127.0.0.1:{server.port} HTTP/1.1".encode()]
        assert server.questions == server_verifier.proofs == 1


@every_client
def test_httpx_tunnels_through_proxy_of_tls(kind: str) -> None:
    """The proxy's own TLS proves nothing; the server's, inside of it, is proven."""
    with serving() as server, serving("relay") as relay, proxying(name="proxy") as proxy:
        server_verifier = SimpleServerVerifier(server)
        library = pytest.importorskip(kind.split(maxsplit=1)[0])
        context = ssl.create_default_context(cadata=authority().pem)
        options = {"proxy": library.Proxy(proxy.url, ssl_context=context)}
        with calling(kind, server_verifier, **options) as caller:
            assert caller.get(server.url + "/x").json()["target"] == "/x"
        assert server.questions == server_verifier.proofs == 1
        proxy.to = relay.port
        with (
            calling(kind, server_verifier, **options) as caller,
            raises(PeerRefusedError, "other_key"),
        ):
            caller.post(server.url, content=b"secret")
        assert relay.received == b""


@every_client
def test_httpx_refuses_server_behind_hostile_proxy(kind: str) -> None:
    """A proxy that ends TLS itself gets no request, and its tunnels do not fill the pool."""
    with serving() as server, serving("relay") as relay, proxying(to=relay.port) as proxy:
        library = kind.split(maxsplit=1)[0]
        limits = pytest.importorskip(library).Limits(max_connections=1)
        server_verifier = SimpleServerVerifier(server)
        with calling(kind, server_verifier, proxy=proxy.url, limits=limits) as caller:
            for _ in range(3):
                with raises(PeerRefusedError, "other_key"):
                    caller.post(server.url, content=b"secret")
        assert relay.received == b""
        assert relay.questions == 3
        assert server.connections == []


@every_client
def test_httpx_reports_proxy_that_refuses(kind: str) -> None:
    """An answer of the proxy itself is the library's error."""
    refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    with serving() as server, proxying(answer=refusal) as proxy:
        server_verifier = SimpleServerVerifier(server)
        with (
            calling(kind, server_verifier, proxy=proxy.url) as caller,
            pytest.raises(caller.library.ProxyError, match="407"),
        ):
            caller.get(server.url)
        assert server.connections == []


def test_httpx_transport_needs_socksio_for_socks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of SOCKS is refused at once where its library is missing."""
    monkeypatch.setitem(sys.modules, "socksio", None)
    kind = http_transports("httpx").blocking
    with raises(UsageError, "missing_dependency", part="socksio"):
        kind(SimpleServerVerifier(WireServerLike()), tls_context(), proxy="socks5://127.0.0.1:1")
