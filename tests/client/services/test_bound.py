"""Services of the caller's own, such as an app that publishes what dstack's guest agent attests."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import fastapi
import httpx
import pytest

import attestkit
from attestkit import Attestation, ReportData, Require
from attestkit._crypto.hashes import sha256
from attestkit.client import ObservedPeer, bound
from attestkit.client.services.bound import BoundService
from attestkit.client.services.service import Binding, Claims
from attestkit.errors import FormatError, ServiceError, UsageError
from attestkit.ra_tls import PeerRefusedError
from attestkit.testing import AttestedServer
from tests.raising import raises

Make = Callable[..., AttestedServer]
OTHER: Final = ObservedPeer("other.test", 443, b"", b"another key")


def formula(seen: ObservedPeer, nonce: bytes, _body: bytes) -> bytes:
    """Return the report data of the app: its label, the key and the nonce."""
    return ReportData.bind("my-app", seen.spki_sha256 + nonce)


def service(path: str = "/evidence?nonce={nonce}", **changes: Any) -> Any:
    """Return the service of the app, which passes on the answer of `/v1/Attest`."""
    options = {"evidence": Attestation.from_agent_response, "report_data": formula, **changes}
    return bound(path=path, **options)


@pytest.fixture
def server(attested_server: Make) -> AttestedServer:
    """Provide a dstack app with the document of its own."""
    api = fastapi.FastAPI()

    def attest(digest: bytes, nonce: str) -> Any:
        report_data = ReportData.bind("my-app", digest + bytes.fromhex(nonce))
        transport = httpx.HTTPTransport(uds=made.tee.socket)
        with httpx.Client(transport=transport, base_url="http://dstack") as agent:
            return agent.post("/v1/Attest", json={"report_data": report_data.hex()}).json()

    @api.get("/evidence")
    def evidence(nonce: str) -> Any:
        return attest(made.spki_sha256, nonce)

    @api.get("/certificate")
    def certificate(nonce: str) -> Any:
        pem = ssl.get_server_certificate(("127.0.0.1", made.port))
        return attest(sha256(ssl.PEM_cert_to_DER_cert(pem)), nonce)

    made = attested_server(api)
    return made


def connect(server: AttestedServer, own: Any, **options: Any) -> attestkit.Endpoint:
    """Connect to the app."""
    return attestkit.connect(
        server.url, service=own, policy=server.policy, server_ca=server.ca, **options
    )


def test_answer_of_dstacks_attest(server: AttestedServer) -> None:
    """Key and nonce are in its evidence, and the connection is proven."""
    with connect(server, service(name="mine")) as endpoint:
        proof = endpoint.proof
        assert (proof.service, proof.freshness) == ("mine", "nonce")
        assert [one.key for one in proof.bindings] == [server.spki_sha256]
        assert proof.result.app_info is not None


def test_other_report_data_are_refused(server: AttestedServer) -> None:
    """Evidence over another key, nonce or label is refused, as is an answer without evidence."""
    for other in (
        lambda _, nonce, body: formula(OTHER, nonce, body),
        lambda seen, _, body: formula(seen, bytes(32), body),
        lambda seen, nonce, _: ReportData.bind("another", seen.spki_sha256 + nonce),
    ):
        with raises(PeerRefusedError, "report_data"):
            connect(server, service(report_data=other))
    with raises(PeerRefusedError, "syntax"):
        connect(server, service(evidence=lambda body: json.loads(body)["another"]))


def test_without_a_nonce_the_key_alone_is_shown(server: AttestedServer) -> None:
    """A path without a nonce must be accepted by the caller."""
    path = f"/evidence?nonce={'00' * 32}"
    constant = service(path, report_data=lambda seen, _, body: formula(seen, bytes(32), body))
    with raises(PeerRefusedError, "no_freshness"):
        connect(server, constant)
    with connect(server, constant, require=Require(freshness="key possession")) as endpoint:
        assert endpoint.proof.freshness == "key possession"


class OfCertificate(BoundService):
    """A service whose evidence names the certificate of the connection in place of its key."""

    def read(
        self, answers: tuple[bytes, ...], nonce: bytes, seen: ObservedPeer | None, model: str | None
    ) -> Claims:
        """Return the claims of `BoundService` with another binding."""
        claims = super().read(answers, nonce, seen, model)
        assert seen is not None
        binding = Binding("tls-certificate", sha256(seen.certificate), "server")
        return replace(claims, bindings=(binding,))


def test_event_loops_accept_a_certificate_in_the_evidence(server: AttestedServer) -> None:
    """A connection of asyncio is for the certificate that the evidence names, and no other one."""

    def report_data(seen: ObservedPeer, nonce: bytes, _body: bytes) -> bytes:
        return ReportData.bind("my-app", sha256(seen.certificate) + nonce)

    async def request(context: ssl.SSLContext) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context)
        writer.write(b"GET / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n")
        line = await reader.readline()
        writer.close()
        with contextlib.suppress(OSError):  # if the server closed it first
            await writer.wait_closed()
        return line

    path = "/certificate?nonce={nonce}"
    own = OfCertificate("mine", path, Attestation.from_agent_response, report_data)
    with connect(server, own) as endpoint:
        assert asyncio.run(request(endpoint.ssl_context)).startswith(b"HTTP/1.1 404")
        server.rotate()
        with raises(PeerRefusedError, "other_key"):
            asyncio.run(request(endpoint.ssl_context))


def test_arguments() -> None:
    """The path begins with a slash, and report data have 64 bytes."""
    with raises(UsageError, "wrong_value"):
        service("evidence")
    with raises(ServiceError, "no_channel"):
        service().read((b"{}",), bytes(32), None, None)
    peer = ObservedPeer("host", 443, b"", b"")
    short = service(evidence=lambda _: b"", report_data=lambda *_: bytes(63))
    with raises(UsageError, "wrong_size"):
        short.read((b"",), bytes(32), peer, None)
    with raises(FormatError, "syntax"):
        service(evidence=lambda body: json.loads(body)["x"]).read((b"{}",), bytes(32), peer, None)
