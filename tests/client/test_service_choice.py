"""Which service a server is: by name, by host, by certificate; else its own document."""

import ssl
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import pytest

import attestkit
from attestkit.client.origin import Origin
from attestkit.client.service_choice import Dialing, choose_service, open_service, service_names
from attestkit.client.services.bound import bound
from attestkit.errors import ServiceError, UsageError
from attestkit.testing import AttestedServer
from tests.client.wire.servers import proxying
from tests.raising import raises

Make = Callable[..., AttestedServer]


def dialing(server: AttestedServer, **changes: Any) -> Dialing:
    """Return how the server is connected to."""
    return Dialing(Origin("127.0.0.1", server.port), server.ca, None, 10)._replace(**changes)


def test_named_service_needs_no_connection() -> None:
    """A name, and an object of the caller's, are taken as they are."""
    nowhere = Dialing(Origin("127.0.0.1", 1), None, None, 1)
    assert choose_service("tinfoil", nowhere).name == "tinfoil"
    mine = bound(path="/x", evidence=lambda _: b"", report_data=lambda *_: bytes(64))
    assert choose_service(mine, nowhere) is mine
    with raises(UsageError, "unknown_name"):
        choose_service("unknown", nowhere)


def test_known_host_needs_no_connection() -> None:
    """The host names its service."""
    nowhere = Dialing(Origin("inference.tinfoil.sh", 1), None, None, 0.01)
    assert choose_service("auto", nowhere).name == "tinfoil"


def test_certificate_or_document(attested_server: Make) -> None:
    """A certificate with evidence is RA-TLS, whether WebPKI accepts it or not."""
    plain, ra_tls = attested_server(), attested_server(ra_tls=True)
    assert choose_service("auto", dialing(plain)).name == "attestkit"
    assert choose_service("auto", dialing(ra_tls)).name == "ra-tls"
    assert choose_service("auto", dialing(ra_tls, server_ca=None)).name == "ra-tls"
    assert all(log == b"" for log in plain.received + ra_tls.received)


def test_unknown_authority(attested_server: Make) -> None:
    """Without evidence in it, a certificate that is not accepted is refused, with the remedy."""
    server = attested_server()
    with raises(ServiceError, "unknown_service", part="server_ca="):
        choose_service("auto", dialing(server, server_ca=None))
    assert all(log == b"" for log in server.received)


def test_no_connection() -> None:
    """Errors of the network are the service's."""
    with raises(ServiceError, "connection"):
        choose_service("auto", Dialing(Origin("127.0.0.1", 1), None, None, 5))


def test_proxy(attested_server: Make) -> None:
    """Connections lead through the tunnel of a proxy, if there is one."""
    server = attested_server()
    with proxying() as proxy:
        found = choose_service("auto", dialing(server, proxy=proxy.url))
        assert found.name == "attestkit"
        [target] = proxy.targets
        assert target.startswith(f"CONNECT 127.0.0.1:{server.port} HTTP/1.".encode())
    forbidden = b"HTTP/1.1 403 Forbidden\r\n\r\n"
    with proxying(answer=forbidden) as proxy, raises(ServiceError, "connection", part="403"):
        choose_service("auto", dialing(server, proxy=proxy.url))


@pytest.mark.parametrize(
    ("proxy", "reason"),
    [
        ("socks5://127.0.0.1", "wrong_value"),
        ("http://", "wrong_value"),
        ("http://a..b:3128", "wrong_value"),
        (f"http://{'a' * 70}:3128", "wrong_value"),
        ("http://a\0b", "wrong_value"),
        ("http://a:70000", "wrong_value"),
        ("http://\ud800@a", "wrong_value"),
        (5, "wrong_type"),
        (b"http://a", "wrong_type"),
    ],
)
@pytest.mark.parametrize("service", ["auto", "attestkit"])
def test_malformed_proxy(service: str, proxy: Any, reason: str) -> None:
    """The URL of a proxy has the scheme http and a valid host; no connection is opened."""
    with raises(UsageError, reason):
        attestkit.connect(
            "https://127.0.0.1:1", policy="hardware-only", service=service, proxy=proxy
        )


def test_proxy_with_a_password(attested_server: Make) -> None:
    """User and password in the URL of a proxy are sent to the proxy alone."""
    server = attested_server()
    with proxying() as proxy:
        url = f"http://us%40er:pass@127.0.0.1:{proxy.port}"
        assert choose_service("auto", dialing(server, proxy=url)).name == "attestkit"
        expected = b"Proxy-Authorization: Basic " + b64encode(b"us@er:pass")
        assert all(expected in head for head in proxy.heads)
        assert proxy.heads
    assert all(log == b"" for log in server.received)


def test_webpki_is_off_for_ra_tls_alone(attested_server: Make) -> None:
    """Every other service, and none of RA-TLS, has the name and the chain verified."""
    found = dialing(attested_server(), server_ca=None)
    for name in service_names():
        mode = found.context(open_service(name)).verify_mode
        assert (mode == ssl.CERT_REQUIRED) == (name not in ("ra-tls", "ra-tls-other")), name
