"""TLS contexts: their arguments, large transfers and concurrent connections."""

import asyncio
import functools
import os
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import uvloop
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from attestkit import ra_tls
from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.pem import encode_pem
from attestkit._crypto.x509.app_certificates import certificate_pem, issue_ca, read_certificate
from attestkit.errors import FormatError, UnsupportedError, UsageError
from attestkit.keys import AppKeys
from attestkit.verifier import AppraisalPolicy, Verifier
from tests.ra_tls import tds
from tests.ra_tls.talks import TIMEOUT, connect_tcp, connected, run_on_loop
from tests.ra_tls.tds import VALID, client_context, server_context
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.verifier.platforms import intel

MUCH = os.urandom(2_000_000)
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def perform_handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """Connect once over sockets."""
    with connected(server, client) as (_, other):
        other.result(TIMEOUT)


def test_server_context_requires_verifier_and_peer_ca_together() -> None:
    """A verifier without the clients' CA gets no certificate; a chain alone proves no TEE."""
    with raises(UsageError, "missing", start="peer_ca: "):
        ra_tls.server_context(intel.verifier(), issued=VALID)
    with raises(UsageError, "missing", start="verifier: "):
        ra_tls.server_context(issued=VALID, peer_ca=tds.CA)


@pytest.mark.parametrize("verifier", ["a verifier", Mock(spec=["verify"])])
def test_server_context_with_invalid_verifier_is_usage_error(verifier: Any) -> None:
    """An object without a policy is not used as a verifier of clients."""
    for any_app in (False, True):
        with raises(UsageError, "wrong_type"):
            ra_tls.server_context(verifier, issued=VALID, peer_ca=tds.CA, any_app=any_app)


@pytest.mark.parametrize("verifier", [None, "a verifier", Mock(spec=["verify"])])
def test_client_context_without_verifier_is_usage_error(verifier: Any) -> None:
    """Without a verifier every server would be accepted."""
    with raises(UsageError, "wrong_type"):
        ra_tls.client_context(verifier)
    with raises(UsageError, "wrong_type"):
        ra_tls.client_context(verifier, any_app=True)


def test_context_tls_settings() -> None:
    """TLS 1.3 only, no tickets, no post-handshake certificates, no key log, no host name check."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSLKEYLOGFILE", "/nowhere/keys")
        contexts = (
            server_context(),
            client_context(server_ca=tds.CA),
            client_context(),
            ra_tls.server_context(),
        )
    for context in contexts:
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.options & ssl.OP_NO_TICKET
        assert context.options & ssl.OP_NO_RENEGOTIATION
        assert not context.post_handshake_auth
        assert not context.check_hostname
        assert not context.keylog_filename
        assert type(context) is ssl.SSLContext
    required, none = ssl.CERT_REQUIRED, ssl.CERT_NONE
    assert [context.verify_mode for context in contexts] == [required, required, none, none]
    assert contexts[0].num_tickets == contexts[3].num_tickets == 0


def test_contexts_use_their_own_verifiers() -> None:
    """Two contexts in use at the same time use their own verifiers."""
    trusting = client_context()
    other = client_context(None, intel.verifier(trust_anchor=None))
    for _ in range(2):
        perform_handshake(ra_tls.server_context(issued=VALID), trusting)
        with pytest.raises(ra_tls.PeerRefusedError):
            perform_handshake(ra_tls.server_context(issued=VALID), other)


# -- accepted apps and lifetimes ------------------------------------------------------------------


ANY_APP = (
    AppraisalPolicy.default(),
    AppraisalPolicy.strict(),
    AppraisalPolicy.default().replace(os_image_hash={bytes(32)}),  # which runs any app
    AppraisalPolicy.default().replace(app_id={intel.APP_ID}),  # which any image can report
)
"""Policies that any app can meet."""


def test_server_context_without_app_policy_requires_any_app() -> None:
    """A policy that any app can meet is an error, because the clients' CA may be that of many."""
    for policy in ANY_APP:
        verifier = intel.verifier(policy=policy)
        with raises(UsageError, "any_app"):
            ra_tls.server_context(verifier, issued=VALID, peer_ca=tds.CA)
        ra_tls.server_context(verifier, issued=VALID, peer_ca=tds.CA, any_app=True)
    image = AppraisalPolicy.default().replace(os_image_hash={intel.IMAGE.os_image_hash})
    named = intel.verifier(policy=image.replace(app_id={intel.APP_ID}))
    perform_handshake(server_context(verifier=named, any_app=False), client_context())
    other = intel.verifier(policy=image.replace(app_id={bytes(20)}))
    with raises(ra_tls.PeerRefusedError, "app_id"):
        perform_handshake(server_context(verifier=other, any_app=False), client_context())


def test_client_context_without_app_policy_requires_any_app() -> None:
    """A policy that any app can meet is an error, unless the caller says that it is intended."""
    for policy in ANY_APP:
        with raises(UsageError, "any_app"):
            ra_tls.client_context(intel.verifier(policy=policy))
        with raises(UsageError, "any_app"):  # a CA may be that of many apps
            ra_tls.client_context(intel.verifier(policy=policy), server_ca=tds.CA)
        ra_tls.client_context(intel.verifier(policy=policy), any_app=True)
    image = AppraisalPolicy.default().replace(os_image_hash={intel.IMAGE.os_image_hash})
    pinned = image.replace(app_id={intel.APP_ID})
    context = ra_tls.client_context(intel.verifier(policy=pinned), max_lifetime=None)
    perform_handshake(ra_tls.server_context(issued=VALID), context)
    other = image.replace(app_id={bytes(20)})
    context = ra_tls.client_context(intel.verifier(policy=other), max_lifetime=None)
    with raises(ra_tls.PeerRefusedError, "app_id"):
        perform_handshake(ra_tls.server_context(issued=VALID), context)


def test_contexts_refuse_long_lived_certificate_by_default() -> None:
    """Both sides refuse a certificate of ten years, and accept it with a caution if asked to."""
    verifier = intel.verifier()
    client = ra_tls.client_context(verifier, issued=VALID, any_app=True)
    with raises(ra_tls.PeerRefusedError, "cert_lifetime"):
        perform_handshake(server_context(), client)
    server = ra_tls.server_context(verifier, issued=VALID, peer_ca=tds.CA, any_app=True)
    with raises(ra_tls.PeerRefusedError, "cert_lifetime"):
        perform_handshake(server, client_context())
    with connected(server_context(), client_context()) as (end, future):
        for one in (end, future.result(TIMEOUT)):
            step = ra_tls.peer(one).steps[-1]
            assert (step.check, step.outcome) == ("certificate_key", "caution")


@pytest.mark.parametrize(
    "authority",
    [
        tds.CA,
        tds.CA.encode(),
        f"# the app's\n{tds.CA}# and another one\n{AppKeys.from_seed(bytes(32)).ca_cert}",
    ],
)
def test_peer_ca_accepts_pem_text_and_bytes(authority: str | bytes) -> None:
    """PEM as text or bytes, one or several, with text between."""
    perform_handshake(server_context(peer_ca=authority), client_context(server_ca=authority))


MALFORMED = encode_pem("CERTIFICATE", bytes.fromhex("3003020101"))  # PEM of another structure


@every_case(
    "authority",
    ["", b"", "x", "ü".encode(), read_certificate(tds.CA).der, tds.CA[:-30], MALFORMED],
)
def test_peer_ca_of_other_text_is_format_error(authority: str | bytes) -> None:
    """Other input is rejected, and not read as an empty list."""
    with raises(FormatError, "syntax", "encoding"):
        server_context(peer_ca=authority)
    with raises(FormatError, "syntax", "encoding"):
        client_context(server_ca=authority)


def test_peer_ca_of_another_type_is_usage_error() -> None:
    """Neither a path object nor a number is read as certificates."""
    for wrong in (Path("ca.pem"), 5):
        with raises(UsageError, "wrong_type"):
            server_context(peer_ca=untyped(wrong))


def test_peer_ca_may_be_intermediate() -> None:
    """The app's CA is trusted without its issuer."""
    root, key = P256Key.from_scalar(b"\1" * 32), P256Key.from_scalar(b"\2" * 32)
    until = int(intel.NOW.timestamp()) + 3650 * tds.DAY
    life: dict[str, Any] = {"path_length": 1, "not_before": tds.LONG_AGO, "not_after": until}
    above = certificate_pem(issue_ca(key=root, subject="the KMS", **life))
    app_ca = certificate_pem(issue_ca(key=key, subject="an app's", **life, issuer=(above, root)))
    issued = tds.issue(ca_cert=app_ca, ca_key=key)
    server = server_context(issued, peer_ca=app_ca)
    perform_handshake(server, client_context(issued, server_ca=app_ca))


# -- the private key ------------------------------------------------------------------------------


def test_context_writes_key_to_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is loaded from memory, and no descriptor remains open."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = len(list(Path("/proc/self/fd").iterdir()))
    contexts = [client_context() for _ in range(3)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert list(tmp_path.iterdir()) == []
    perform_handshake(ra_tls.server_context(issued=VALID), contexts[0])


def test_context_with_other_key_fails() -> None:
    """Foreign, malformed and encrypted keys are rejected, without a password prompt."""
    other = tds.issue(key=None)
    locked = BestAvailableEncryption(b"a password")
    encrypted = tds.KEY.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked).decode()
    for key in (other.key_pem, "", encrypted):
        with raises(UsageError, "invalid_key") as caught:
            ra_tls.server_context(issued=VALID._replace(key_pem=key))
        assert "PRIVATE" not in str(caught.value)
    with raises(UsageError, "invalid_key"):
        ra_tls.server_context(issued=VALID._replace(certificate_chain=()))


@every_case(
    "issued", [("a key", "certificates"), tuple(VALID), "PEM", {"key": "a key"}, ra_tls.Issued]
)
def test_context_of_other_issued_type_is_usage_error(issued: Any) -> None:
    """Another type is rejected, and its value is not in the error."""
    client = functools.partial(ra_tls.client_context, Verifier(), any_app=True)
    for make in (ra_tls.server_context, client):
        with raises(UsageError, "wrong_type") as caught:
            make(issued=issued)
        assert "key" not in str(caught.value)


@every_case("fields", [(None, ()), ("key", (None,)), ("key", None), (b"", ("",))])
def test_context_of_issued_with_invalid_fields_is_usage_error(fields: Any) -> None:
    """The fields of an Issued must have their types."""
    with raises(UsageError, "invalid_key"):
        ra_tls.server_context(issued=ra_tls.Issued(*fields))


def test_context_without_memfd_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the system has no memory files, the key is not written elsewhere."""
    monkeypatch.delattr(os, "memfd_create")
    with raises(UnsupportedError, "feature"):
        client_context()
    client_context(None)  # a client without a key needs none


# -- large transfers and concurrency --------------------------------------------------------------


def test_sockets_transfer_megabytes_in_both_directions() -> None:
    """Megabytes arrive unchanged in both directions, and both ends close properly.

    Each end has one thread: in CPython without a lock per SSL object, two threads corrupt its
    state.
    """
    server_socket, client_socket = connect_tcp()

    def echo() -> None:
        with server_context().wrap_socket(server_socket, server_side=True) as connection:
            while chunk := connection.recv(65536):
                connection.sendall(chunk)
            connection.unwrap()

    with ThreadPoolExecutor(1) as pool:
        echoing = pool.submit(echo)
        with client_context().wrap_socket(client_socket, suppress_ragged_eofs=False) as client:
            back = b""
            for at in range(0, len(MUCH), 65536):
                client.sendall(MUCH[at : at + 65536])
                while len(back) < min(at + 65536, len(MUCH)):
                    back += client.recv(65536)
            client.unwrap()
        echoing.result(TIMEOUT)
    assert back == MUCH


@pytest.mark.parametrize("loop", LOOPS)
def test_streams_transfer_megabytes(loop: str) -> None:
    """The same over an event loop, with the attestation result of the peer."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert ra_tls.peer(writer).simulated
        assert ra_tls.peer(writer.transport).simulated
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def program() -> bytes:
        listener = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=server_context())
        async with listener:
            address = listener.sockets[0].getsockname()
            reader, writer = await asyncio.open_connection(*address, ssl=client_context())
            assert ra_tls.peer(writer).app_info is not None
            writer.write(MUCH)
            back = await reader.readexactly(len(MUCH))
            writer.close()
            await writer.wait_closed()
            return back

    assert run_on_loop(LOOPS[loop](), program()) == MUCH


@pytest.mark.parametrize("loop", LOOPS)
def test_concurrent_connections_on_loop_are_verified_separately(loop: str) -> None:
    """Concurrent valid and invalid clients each have their own result."""
    valid, invalid = (
        client_context(),
        client_context(tds.issue(tds.attest_debug)),
    )
    called = 0

    async def application(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal called
        called += 1
        writer.write(await reader.readexactly(1))
        writer.close()

    async def request(address: tuple[str, int], context: ssl.SSLContext) -> bool:
        reader, writer = await asyncio.open_connection(*address, ssl=context)
        writer.write(b"x")
        try:
            return await reader.read(1) == b"x"
        except OSError:
            return False
        finally:
            writer.close()
            await asyncio.wait([asyncio.ensure_future(writer.wait_closed())])

    async def program() -> list[bool]:
        listener = await asyncio.start_server(application, "127.0.0.1", 0, ssl=server_context())
        async with listener:
            address = listener.sockets[0].getsockname()
            requests = [request(address, (valid, invalid)[number % 2]) for number in range(20)]
            return await asyncio.gather(*requests)

    assert run_on_loop(LOOPS[loop](), program()) == [True, False] * 10
    assert called == 10


def test_context_is_usable_from_threads() -> None:
    """One context serves several threads."""
    server, client = server_context(), client_context()

    def exchange(number: int) -> bytes:
        with connected(server, client) as (connection, future):
            future.result(TIMEOUT).sendall(b"%04d" % number)
            return connection.recv(4, 0)

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(exchange, range(32))) == [b"%04d" % number for number in range(32)]


def test_listening_socket_verifies_accepted_connections() -> None:
    """Connections of a listening TLS socket are verified when they are accepted."""
    with socket.create_server(("127.0.0.1", 0)) as plain:
        listener = server_context().wrap_socket(plain, server_side=True)
        with listener, ThreadPoolExecutor(1) as pool:
            future = pool.submit(listener.accept)
            invalid = client_context(tds.issue(tds.attest_debug))
            raw = socket.create_connection(listener.getsockname())
            with invalid.wrap_socket(raw) as client, pytest.raises(ConnectionResetError):
                client.recv(1)
            assert isinstance(future.exception(TIMEOUT), ra_tls.PeerRefusedError)
            future = pool.submit(listener.accept)
            with client_context().wrap_socket(socket.create_connection(listener.getsockname())):
                connection, _ = future.result(TIMEOUT)
                with connection:
                    assert ra_tls.peer(connection).simulated
