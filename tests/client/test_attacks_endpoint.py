"""Attacks on endpoints and the local proxy, each by a server or program that may say anything."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

import attestkit
from attestkit import Require
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit.client.local_proxy import LocalProxy
from attestkit.ra_tls import PeerRefusedError
from attestkit.testing import AttestedServer
from tests.runner.cases import every_case
from tests.untyped import untyped

Make = Callable[..., AttestedServer]


def test_document_with_many_values(attested_server: Make) -> None:
    """A document of 16 MiB would have five million lists, and take 400 MiB."""
    server = attested_server()
    with attestkit.connect(server.url, policy=server.policy, server_ca=server.ca) as endpoint:
        server.change_document(lambda _: b'{"version":1,"a":[' + b"[]," * (1 << 20) + b"0]}")
        with pytest.raises(PeerRefusedError) as refused:
            endpoint.prove()
        assert refused.value.reason == "too_many"


def test_proof_ends_with_the_certificate(attested_server: Make) -> None:
    """A key counts no longer than its certificate, which says nothing about the server's name."""
    server = attested_server(ra_tls=True)
    with attestkit.connect(
        server.url,
        policy=server.policy,
        require=Require(freshness="key possession"),
        max_age=timedelta(days=7),
    ) as endpoint:
        certificate = endpoint.proof.bundle.certificate
        assert certificate is not None
        assert any("of this name" in text for text in endpoint.proof.not_proven)
        end = read_certificate(certificate).valid_until
        assert endpoint.proof.claims.valid_until == end
        assert endpoint.proof.valid_until == end


@every_case(
    ("target", "hosts"),
    [
        (b"http://evil.example/", [b"127.0.0.1:8337"]),
        (b"evil.example:443", [b"127.0.0.1:8337"]),
        (b"", [b"127.0.0.1:8337"]),
        (b"/", [b"evil.example", b"127.0.0.1:8337"]),
        (b"/", [b"127.0.0.1:8337", b"127.0.0.1:8337"]),
        (b"/", []),
    ],
)
def test_local_proxy_refuses_other_hosts(target: bytes, hosts: list[bytes]) -> None:
    """Neither target nor headers name another host, in whichever way uvicorn parses them."""
    proxy = LocalProxy(untyped(None), ("127.0.0.1", 8337))
    scope = {
        "type": "http",
        "method": "GET",
        "raw_path": target,
        "query_string": b"",
        "server": ("127.0.0.1", 8337),
        "headers": [(b"host", value) for value in hosts],
    }
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(proxy(scope, untyped(None), send))
    assert sent[0]["status"] == 403
