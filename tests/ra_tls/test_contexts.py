"""Contexts: what they are made of, and that they carry much and many."""

import asyncio
import functools
import os
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from attestkit import ra_tls
from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.x509.app_certificates import certificate_pem, issue_ca, read_certificate
from attestkit.errors import FormatError, UnsupportedError, UsageError
from attestkit.keys import AppKeys
from attestkit.verifier import Verifier
from tests.ra_tls import tds
from tests.ra_tls.talks import PATIENCE, connected, run
from tests.verifier import parcels

GOOD = tds.issued()
MUCH = os.urandom(5_000_000)
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def server(peer_ca: str | bytes = tds.CA) -> ssl.SSLContext:
    """Return the context of a server that asks its clients for evidence."""
    return ra_tls.server_context(parcels.verifier(), issued=GOOD, peer_ca=peer_ca)


def client(**options: Any) -> ssl.SSLContext:
    """Return the context of a client with evidence."""
    return ra_tls.client_context(parcels.verifier(), issued=GOOD, **options)


def handshake(theirs: ssl.SSLContext, ours: ssl.SSLContext) -> None:
    """Connect once over sockets."""

    def serve() -> None:
        with theirs.wrap_socket(there, server_side=True):
            pass

    there, here = connected()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(serve)
        with ours.wrap_socket(here):
            future.result(PATIENCE)


def test_a_server_needs_both_or_neither() -> None:
    """A verifier without the clients' authority never sees a certificate; a chain proves no TEE."""
    with pytest.raises(UsageError, match="peer_ca"):
        ra_tls.server_context(parcels.verifier(), issued=GOOD)
    with pytest.raises(UsageError, match="verifier"):
        ra_tls.server_context(issued=GOOD, peer_ca=tds.CA)


@pytest.mark.parametrize("verifier", [None, "a verifier"])
def test_a_client_needs_a_verifier(verifier: Any) -> None:
    """Without one, everybody would be accepted."""
    with pytest.raises(UsageError):
        ra_tls.client_context(verifier)


def test_what_is_asked_of_tls() -> None:
    """TLS 1.3 alone; no tickets, no later certificates, no log of keys; names are nobody's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSLKEYLOGFILE", "/nowhere/keys")
        contexts = server(), client(server_ca=tds.CA), client(), ra_tls.server_context()
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


def test_verifiers_are_not_mixed() -> None:
    """Two contexts judge by their own verifiers, also when both are in use."""
    trusting, other = client(), ra_tls.client_context(parcels.verifier(trust_anchor=None))
    for _ in range(2):
        handshake(ra_tls.server_context(issued=GOOD), trusting)
        with pytest.raises(ra_tls.PeerRefusedError):
            handshake(ra_tls.server_context(issued=GOOD), other)


@pytest.mark.parametrize(
    "authority",
    [
        tds.CA,
        tds.CA.encode(),
        f"# the app's\n{tds.CA}# and another one\n{AppKeys.from_seed(bytes(32)).ca_cert}",
    ],
)
def test_forms_of_authorities(authority: str | bytes) -> None:
    """PEM as text or bytes, one or several, with words between."""
    handshake(server(authority), client(server_ca=authority))


@pytest.mark.parametrize(
    "authority", ["", b"", "x", "ü".encode(), read_certificate(tds.CA).der, tds.CA[:-30]]
)
def test_authorities_that_are_none(authority: str | bytes) -> None:
    """Anything else is refused, and not read as no authority."""
    with pytest.raises(FormatError):
        server(authority)
    with pytest.raises(FormatError):
        client(server_ca=authority)


def test_an_intermediate_authority_suffices() -> None:
    """The app's authority is trusted by itself, whoever stands above it."""
    root, key = P256Key.from_scalar(b"\1" * 32), P256Key.from_scalar(b"\2" * 32)
    until = int(parcels.NOW.timestamp()) + 3650 * tds.DAY
    life: dict[str, Any] = {"path_length": 1, "not_before": tds.LONG_AGO, "not_after": until}
    above = certificate_pem(issue_ca(key=root, subject="the KMS", **life))
    ours = certificate_pem(issue_ca(key=key, subject="an app's", **life, issuer=(above, root)))
    issued = tds.issued(ca_cert=ours, ca_key=key)
    theirs = ra_tls.server_context(parcels.verifier(), issued=issued, peer_ca=ours)
    handshake(theirs, ra_tls.client_context(parcels.verifier(), issued=issued, server_ca=ours))


# -- the key -------------------------------------------------------------------------------------


def test_the_key_is_in_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes through memory, and no descriptor stays open."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = len(list(Path("/proc/self/fd").iterdir()))
    contexts = [client() for _ in range(3)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert list(tmp_path.iterdir()) == []
    handshake(ra_tls.server_context(issued=GOOD), contexts[0])


def test_keys_that_do_not_fit() -> None:
    """Foreign, broken and encrypted keys are refused, and nobody is asked for a password."""
    other = tds.issued(key=None)
    locked = BestAvailableEncryption(b"a password")
    encrypted = tds.KEY.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked).decode()
    for key in (other.key_pem, "", encrypted):
        with pytest.raises(UsageError) as caught:
            ra_tls.server_context(issued=GOOD._replace(key_pem=key))
        assert "PRIVATE" not in str(caught.value)
    with pytest.raises(UsageError):
        ra_tls.server_context(issued=GOOD._replace(certificate_chain=()))


@pytest.mark.parametrize(
    "issued", [("a key", "certificates"), tuple(GOOD), "PEM", {"key": "a key"}, ra_tls.Issued]
)
def test_what_is_no_issued(issued: Any) -> None:
    """Anything else is the caller's mistake, and does not show in the error."""
    for make in (ra_tls.server_context, functools.partial(ra_tls.client_context, Verifier())):
        with pytest.raises(UsageError, match=r"issued is a ra_tls\.Issued, not ") as caught:
            make(issued=issued)
        assert "key" not in str(caught.value)


@pytest.mark.parametrize("fields", [(None, ()), ("key", (None,)), ("key", None), (b"", ("",))])
def test_an_issued_of_something_else(fields: Any) -> None:
    """Nor may its fields be anything else."""
    with pytest.raises(UsageError, match="not PEM"):
        ra_tls.server_context(issued=ra_tls.Issued(*fields))


def test_without_files_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has none, the key is not written elsewhere."""
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(UnsupportedError):
        client()
    ra_tls.client_context(parcels.verifier())  # a client without a key can do without


# -- much and many -------------------------------------------------------------------------------


def test_much_goes_through_sockets() -> None:
    """Megabytes arrive as they were sent, both ways in turn, and both ends are orderly.

    One thread on either end: an SSL object that two threads use at a time, as CPython had it before
    it gave each a lock, loses its state once in a while.
    """
    there, here = connected()

    def echo() -> None:
        with server().wrap_socket(there, server_side=True) as connection:
            while chunk := connection.recv(65536):
                connection.sendall(chunk)
            connection.unwrap()

    with ThreadPoolExecutor(1) as pool:
        echoing = pool.submit(echo)
        with client().wrap_socket(here, suppress_ragged_eofs=False) as ours:
            back = b""
            for at in range(0, len(MUCH), 65536):
                ours.sendall(MUCH[at : at + 65536])
                while len(back) < min(at + 65536, len(MUCH)):
                    back += ours.recv(65536)
            ours.unwrap()
        echoing.result(PATIENCE)
    assert back == MUCH


@pytest.mark.parametrize("loop", LOOPS)
def test_much_goes_through_streams(loop: str) -> None:
    """The same over an event loop, and the application can tell who is there."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert ra_tls.peer(writer).simulated
        assert ra_tls.peer(writer.transport).simulated
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def program() -> bytes:
        listener = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=server())
        async with listener:
            address = listener.sockets[0].getsockname()
            reader, writer = await asyncio.open_connection(*address, ssl=client())
            assert ra_tls.peer(writer).app_info is not None
            writer.write(MUCH)
            back = await reader.readexactly(len(MUCH))
            writer.close()
            await writer.wait_closed()
            return back

    assert run(LOOPS[loop](), program()) == MUCH


@pytest.mark.parametrize("loop", LOOPS)
def test_many_at_once_on_a_loop(loop: str) -> None:
    """Sound and unsound clients side by side: each gets its own verdict."""
    sound, unsound = (
        client(),
        ra_tls.client_context(parcels.verifier(), issued=tds.issued(tds.debug)),
    )
    called = 0

    async def application(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal called
        called += 1
        writer.write(await reader.readexactly(1))
        writer.close()

    async def ask(address: tuple[str, int], context: ssl.SSLContext) -> bool:
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
        listener = await asyncio.start_server(application, "127.0.0.1", 0, ssl=server())
        async with listener:
            address = listener.sockets[0].getsockname()
            asked = [ask(address, (sound, unsound)[number % 2]) for number in range(60)]
            return await asyncio.gather(*asked)

    assert run(LOOPS[loop](), program()) == [True, False] * 30
    assert called == 30


def test_many_at_once_in_threads() -> None:
    """One context serves threads."""
    theirs, ours = server(), client()

    def talk(number: int) -> bytes:
        there, here = connected()
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(theirs.wrap_socket, there, server_side=True)
            with ours.wrap_socket(here) as connection, future.result(PATIENCE) as other:
                other.sendall(b"%04d" % number)
                return connection.recv(4, 0)

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(talk, range(64))) == [b"%04d" % number for number in range(64)]


def test_a_listening_socket() -> None:
    """Connections of a listening TLS socket are checked when they are accepted."""
    with socket.create_server(("127.0.0.1", 0)) as plain:
        listener = server().wrap_socket(plain, server_side=True)
        with listener, ThreadPoolExecutor(1) as pool:
            future = pool.submit(listener.accept)
            unsound = ra_tls.client_context(parcels.verifier(), issued=tds.issued(tds.debug))
            raw = socket.create_connection(listener.getsockname())
            with unsound.wrap_socket(raw) as ours, pytest.raises(ConnectionResetError):
                ours.recv(1)
            assert isinstance(future.exception(PATIENCE), ra_tls.PeerRefusedError)
            future = pool.submit(listener.accept)
            with client().wrap_socket(socket.create_connection(listener.getsockname())):
                connection, _ = future.result(PATIENCE)
                with connection:
                    assert ra_tls.peer(connection).simulated
