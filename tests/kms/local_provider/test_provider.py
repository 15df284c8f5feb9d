"""The simulated local key provider: what it releases, its TCP server and its limits."""

import pickle
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from attestkit._crypto.ed25519 import x25519_public_key
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.quoting_enclave import QuotingEnclave, TdBody
from attestkit.backends.simulator.scenarios.config import QuoteConfig
from attestkit.errors import AttestKitError, FormatError, KmsError, UsageError
from attestkit.kms.local_provider import SimulatedLocalProvider, TcpProvider, fetch_local_keys
from attestkit.kms.local_provider.provider import MAX_CONNECTIONS
from attestkit.kms.local_provider.sealed_key import (
    MAX_FRAME,
    encode_request,
    open_seed,
    td_report_data,
)
from tests.kms.local_provider.machine import NOW, PKI, TD, make_provider, make_verifier
from tests.raising import raises
from tests.vectors import load, needs_shared

SECRET = bytes(range(1, 33))
REPORT_DATA = td_report_data(x25519_public_key(SECRET))
BODY = TdBody(report_data=REPORT_DATA)
BAD_FRAMES = load("kms.json").get("groups", {}).get("local_bad_frames", {}).get("rows", [])


@pytest.fixture
def provider() -> Iterator[SimulatedLocalProvider]:
    """Return a running provider."""
    with make_provider() as provider:
        yield provider


def seed_of(provider: SimulatedLocalProvider, body: TdBody) -> bytes:
    """Return the seed of a TD with a body of version 1.0."""
    answer = provider.release(QuotingEnclave(PKI).quote(body.td10()))
    return open_seed(SECRET, answer.encrypted_key)


def test_seed_depends_on_registers_and_enclave_only(provider: SimulatedLocalProvider) -> None:
    """Each register changes the seed, other fields do not, and a TD 1.5 has the same seed."""
    seed = seed_of(provider, BODY)
    changed = [
        seed_of(provider, BODY._replace(**{name: b"\1" * 48}))
        for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")
    ]
    assert len({seed, *changed}) == 6
    assert seed_of(provider, BODY._replace(mr_config_id=b"\1" * 48)) == seed
    td15 = provider.release(QuotingEnclave(PKI).quote(BODY.td15(), version=5))
    assert open_seed(SECRET, td15.encrypted_key) == seed
    with make_provider() as again:
        assert seed_of(again, BODY) == seed


def test_td_with_any_tcb_status_is_served(
    provider: SimulatedLocalProvider, caplog: pytest.LogCaptureFixture
) -> None:
    """The TCB status is only logged, as upstream."""
    outdated = QuotingEnclave(PKI, config=QuoteConfig(qe_isvsvn=2)).quote(BODY.td10())
    with caplog.at_level("INFO", "attestkit.kms"):
        assert provider.release(outdated)
    assert "OutOfDate" in caplog.text


@pytest.mark.parametrize(
    ("quote", "reason"),
    [
        (QuotingEnclave(PKI, "1").quote(BODY.td10()), "identity"),
        (QuotingEnclave(SimulatedPki(bytes(32))).quote(BODY.td10()), "untrusted_root"),
        (
            QuotingEnclave(PKI).quote(BODY._replace(td_attributes=b"\1\0\0\x10" + bytes(4)).td10()),
            "td_debug",
        ),
        (QuotingEnclave(PKI).quote(BODY._replace(report_data=bytes(64)).td10()), "invalid_key"),
        (b"", "short_header"),
    ],
)
def test_quote_of_another_machine_or_debug_td_is_refused(
    provider: SimulatedLocalProvider, quote: bytes, reason: str
) -> None:
    """Other machines, roots, debug TDs, and keys of low order get no seed."""
    with pytest.raises(AttestKitError, check=lambda error: error.reason == reason):
        provider.release(quote)
    with raises(KmsError, "connection"):
        TcpProvider(*provider.address)(quote)


def test_quote_of_an_enclave_is_refused(provider: SimulatedLocalProvider) -> None:
    """The provider's own quote is not that of a TD."""
    with raises(FormatError, "wrong_type"):
        provider.release(provider.release(TD.get_quote(REPORT_DATA)).provider_quote)


def test_changed_byte_of_the_signed_quote_is_refused(
    provider: SimulatedLocalProvider,
) -> None:
    """No changed register, key or QE id gets a seed; `tests/verifier/dcap` changes every byte."""
    quote = QuotingEnclave(PKI).quote(BODY.td10())
    for at in range(0, 632, 7):
        changed = bytearray(quote)
        changed[at] ^= 1
        with pytest.raises(AttestKitError):
            provider.release(bytes(changed))


def test_keys_over_tcp(provider: SimulatedLocalProvider) -> None:
    """A TD gets its keys over TCP; two fetches give the same keys."""
    tcp = TcpProvider(*provider.address)
    verifier = make_verifier()
    with (
        fetch_local_keys(TD.get_quote, tcp, verifier=verifier, now=NOW) as keys,
        fetch_local_keys(
            TD.get_quote, tcp, verifier=verifier, now=NOW, mr_enclave=provider.mr_enclave
        ) as again,
    ):
        assert keys.k256_key == again.k256_key


def exchange(provider: SimulatedLocalProvider, data: bytes) -> bytes:
    """Send bytes, and return all that the provider answers."""
    found = bytearray()
    with socket.create_connection(provider.address, 30) as sock:
        sock.sendall(data)
        with suppress(ConnectionResetError):  # closed with unread bytes
            while piece := sock.recv(65_536):
                found += piece
    return bytes(found)


@needs_shared
@pytest.mark.parametrize("row", BAD_FRAMES, ids=lambda row: row["id"])
def test_bad_frame_closes_the_connection(
    provider: SimulatedLocalProvider, row: dict[str, str]
) -> None:
    """The connection is closed without an answer, by the length alone if that is out of range."""
    assert exchange(provider, bytes.fromhex(row["frame"])) == b""


def test_good_request_after_bad_ones(provider: SimulatedLocalProvider) -> None:
    """The server goes on after refused requests, and ignores what follows the first request."""
    for data in (b"\xff\xff\xff\xff", b"\0\0\0\1x", b"GET / HTTP/1.1\r\n\r\n"):
        assert exchange(provider, data) == b""
    message = encode_request(TD.get_quote(REPORT_DATA))
    frame = len(message).to_bytes(4, "big") + message
    assert exchange(provider, frame).startswith(b"\0")


def test_slow_client_is_disconnected() -> None:
    """A request that does not arrive in time closes the connection, also byte by byte."""
    with (
        make_provider(timeout=0.2) as provider,
        socket.create_connection(provider.address, 30) as sock,
    ):
        sock.sendall(MAX_FRAME.to_bytes(4, "big") + b"{")
        assert sock.recv(1) == b""


def test_connections_are_limited() -> None:
    """With 32 idle connections, the next one is served when one of them ends."""
    with make_provider() as provider, ExitStack() as stack:
        idle = [
            stack.enter_context(socket.create_connection(provider.address, 30))
            for _ in range(MAX_CONNECTIONS)
        ]
        with socket.create_connection(provider.address, 0.3) as late:
            late.sendall(bytes(4))
            with pytest.raises(TimeoutError):
                late.recv(1)
            idle[0].close()
            late.settimeout(30)
            assert late.recv(1) == b""


def test_close_ends_connections_and_threads() -> None:
    """`close` disconnects clients, ends all threads, and refuses later requests."""
    before = set(threading.enumerate())  # among them those of providers of other tests
    provider = make_provider()
    with socket.create_connection(provider.address, 30) as sock:
        sock.sendall(b"\0")
        provider.close()
        with suppress(ConnectionResetError):  # the byte was not read
            assert sock.recv(1) == b""
    provider.close()
    mine = set(threading.enumerate()) - before
    assert not [one for one in mine if one.name == "local-provider"]
    with raises(UsageError, "closed"):
        provider.release(TD.get_quote(REPORT_DATA))
    with raises(KmsError, "connection"):
        TcpProvider(*provider.address)(b"")


def test_secret_stays_inside() -> None:
    """The sealing key is neither shown nor pickled; a used port is a usage error."""
    with make_provider(sealing_key=b"5ec2e7" * 3) as provider:
        assert "5ec2e7" not in repr(provider)
        with raises(UsageError, "not_picklable"):
            pickle.dumps(provider)
        with raises(UsageError, "wrong_value"):
            make_provider(port=provider.address[1])
