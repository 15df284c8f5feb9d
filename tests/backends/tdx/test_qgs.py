"""QGS client: address, exchange, malformed responses, timeouts and connection errors."""

import contextlib
import errno
import os
import socket
import struct
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.backends.linux.syscalls import DeviceCalls
from attestkit.backends.tdx import qgs
from attestkit.backends.tdx.qgs import (
    CODES,
    Deadlines,
    Endpoint,
    check_transport,
    get_quote,
    host_endpoint,
    parse_endpoint,
    parse_quote_response,
    read_configured_port,
)
from attestkit.errors import (
    AttestKitError,
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
    UsageError,
)
from tests.backends.linux.machines import make_reading_calls
from tests.backends.tdx.fake_td import count_open_files
from tests.backends.tdx.qgs_server import (
    KEY_ID,
    QUOTE,
    Behaviour,
    answering,
    closing,
    closing_early,
    dripping,
    framed,
    qgs_server,
    response,
    silent,
)
from tests.raising import errno_of, raises
from tests.runner.cases import every_case
from tests.untyped import untyped

REPORT = bytes(range(256)) * 4
SHORT = Deadlines(connect=5.0, answer=0.2)


def request_quote(
    socket_path: Path, behave: Behaviour, deadlines: Deadlines | None = None
) -> bytes:
    """Return a service's response to one request, and assert that no descriptor is leaked."""
    before = count_open_files()
    server = None
    try:
        with qgs_server(socket_path, behave) as server:
            return get_quote(parse_endpoint(socket_path), REPORT, deadlines=deadlines)
    finally:
        assert server is not None
        assert server.connections == 1
        assert count_open_files() == before


# -- the exchange ------------------------------------------------------------------------------


def test_get_quote_request_follows_the_protocol(socket_path: Path) -> None:
    """One connection carries one request of 1048 bytes."""
    before = count_open_files()
    with qgs_server(socket_path, answering(framed(response()))) as server:
        assert get_quote(parse_endpoint(str(socket_path)), REPORT) == QUOTE
        assert get_quote(parse_endpoint(socket_path), REPORT) == QUOTE
    assert server.connections == 2  # one connection per request
    assert len(server.requests[0]) == 1048
    assert struct.unpack_from("<HHIIIII", server.requests[0]) == (1, 1, 0, 1048, 0, 1024, 0)
    assert server.requests[0][24:] == REPORT
    assert count_open_files() == before


@pytest.mark.parametrize(
    ("reply", "piece"),
    [
        (framed(response()), 1),
        (framed(response()), 5000),
        (framed(response(key_id=KEY_ID, minor=0)), 1 << 20),
        (framed(response()) + b"more", 1 << 20),
    ],
    ids=["byte by byte", "in pieces", "with a key id", "with more after it"],
)
def test_get_quote_accepts_any_valid_response(socket_path: Path, reply: bytes, piece: int) -> None:
    """The length prefix may be split; the key ID and the minor version are ignored."""
    assert request_quote(socket_path, answering(reply, piece=piece)) == QUOTE


@every_case("report", [b"", bytes(1023), bytes(1025), bytearray(1024), None])
def test_get_quote_report_must_be_1024_bytes(report: object) -> None:
    """Nothing is sent otherwise."""
    with raises(UsageError, "wrong_size"):
        get_quote(Endpoint(socket.AF_UNIX, "/none"), untyped(report))


# -- malformed responses -----------------------------------------------------------------------

MALFORMED = [
    (framed(response(), 0), "length 0, expected 16 to 1048576"),
    (framed(response(), 15), "length 15"),
    (framed(response(), (1 << 20) + 1), "length 1048577"),
    (framed(response(), 0xFFFFFFFF), "length 4294967295"),
    (framed(response())[:3], "truncated response: 3 of 4 bytes"),
    (framed(response())[:4], "truncated response: 4 of 5148 bytes"),
    (framed(response())[:-1], "truncated response: 5147 of 5148 bytes"),
    (framed(response(major=0)), "version (byte 0) 0"),
    (framed(response(major=2)), "version (byte 0) 2"),
    (framed(response(kind=0)), "type (byte 4) 0"),
    (framed(response(kind=3)), "type (byte 4) 3"),
    (framed(response(size=5143)), "size (byte 8) 5143"),
    (framed(response(size=0xFFFFFFFF)), "size (byte 8) 4294967295"),
    (framed(response(quote_size=len(QUOTE) - 1)), "size fields (byte 16) 0 and 5119"),
    (framed(response(id_size=0xFFFFFFFF, quote_size=5121)), "(byte 16) 4294967295 and 5121"),
    (framed(response(b"", size=16)[:16]), "16 bytes, expected at least 24"),
    (framed(response(b"", size=16, code=0x12001)[:16]), "at least 24, error 0x00012001"),
    (framed(response(code=0x12001)), "(unexpected error), but with data: 0 + 5120 bytes"),
]


@pytest.mark.parametrize(("reply", "place_and_value"), MALFORMED)
def test_get_quote_malformed_response_names_field_and_value(
    socket_path: Path, reply: bytes, place_and_value: str
) -> None:
    """The error has the service, the field, its offset and its value."""
    reason = "truncated" if place_and_value.startswith("truncated") else "malformed_response"
    with raises(BackendError, reason, path=str(socket_path), part=place_and_value):
        request_quote(socket_path, answering(reply))


@pytest.mark.parametrize("code", [*CODES, 1, 0x12008, 0xFFFFFFFF])
def test_get_quote_error_code_is_named(socket_path: Path, code: int) -> None:
    """A QGS error means that the quote, not the platform, is unavailable."""
    with raises(
        QuoteUnavailableError,
        "quoting_service",
        path=str(socket_path),
        part=f"{code:#010x} ({CODES.get(code, 'unknown error')})",
    ) as caught:
        request_quote(socket_path, answering(framed(response(b"", code=code))))
    assert "see the log of the QGS on the host" in str(caught.value)
    assert len(set(CODES.values())) == len(CODES)


@pytest.mark.parametrize(("size", "reason"), [(0, "empty"), (1, "too_short"), (1019, "too_short")])
def test_get_quote_empty_or_short_quote_is_unavailable(
    socket_path: Path, size: int, reason: str
) -> None:
    """The minimum size of a quote is 1020 bytes."""
    with raises(QuoteUnavailableError, reason, path=str(socket_path)):
        request_quote(socket_path, answering(framed(response(bytes(size)))))
    assert (
        len(request_quote(socket_path.with_name("t"), answering(framed(response(bytes(1020))))))
        == 1020
    )


@pytest.mark.parametrize("behave", [closing, closing_early])
def test_get_quote_connection_closed_names_possible_causes(
    socket_path: Path, behave: Behaviour
) -> None:
    """The connection may be closed before or after the request was read."""
    with raises(
        QuoteUnavailableError, "connection_lost", path=str(socket_path), part="before DCAP 1.16"
    ):
        request_quote(socket_path, behave)


def test_get_quote_silent_service_times_out(socket_path: Path) -> None:
    """The error has the timeout."""
    start = time.monotonic()
    with raises(QuoteUnavailableError, "timed_out", path=str(socket_path), part="within 0.2 s"):
        request_quote(socket_path, silent, SHORT)
    assert 0.2 <= time.monotonic() - start < 10


def test_get_quote_slow_response_times_out(socket_path: Path) -> None:
    """The deadline covers the complete response."""
    start = time.monotonic()
    with raises(QuoteUnavailableError, "timed_out"):
        request_quote(socket_path, dripping, SHORT)
    assert 0.2 <= time.monotonic() - start < 10


def test_get_quote_deadline_uses_given_clock(socket_path: Path) -> None:
    """The deadline is 30 s from the connection to the last byte."""
    now = iter(range(0, 1000, 7))
    with (
        qgs_server(socket_path, dripping),
        raises(QuoteUnavailableError, "timed_out"),
    ):
        get_quote(parse_endpoint(socket_path), REPORT, clock=lambda: float(next(now)))
    assert next(now) == 42  # start, send, three reads in time, and one too late


@given(
    st.binary(max_size=200)
    | st.builds(
        response,
        st.binary(max_size=30) | st.just(QUOTE),
        key_id=st.binary(max_size=20),
        major=st.integers(0, 3),
        kind=st.integers(0, 3),
        code=st.sampled_from([0, 0, 0x12001, 7]),
        size=st.none() | st.integers(0, 0xFFFFFFFF),
        id_size=st.none() | st.integers(0, 0xFFFFFFFF),
        quote_size=st.none() | st.integers(0, 0xFFFFFFFF),
    )
)
def test_parse_quote_response_quote_is_the_message_tail(message: bytes) -> None:
    """A returned quote has the announced size; other bytes raise one of attestkit's errors."""
    try:
        quote = parse_quote_response(message, "service")
    except AttestKitError:
        return
    major, _, kind, size, code, id_size, quote_size = struct.unpack_from("<HHIIIII", message)
    assert (major, kind, size, code) == (1, 1, len(message), 0)
    assert len(quote) == quote_size >= 1020
    assert quote == message[24 + id_size :]


class FakeConnection:
    """Connection to a peer that sends these bytes and then closes."""

    def __init__(self, data: bytes, error: OSError | None = None) -> None:
        self._data = data
        self._error = error
        self.read_sizes: list[int] = []

    def settimeout(self, seconds: float) -> None:
        """Accept any positive timeout."""
        assert seconds > 0

    def connect(self, address: object) -> None:
        """Raise the injected error, if any."""
        del address
        if self._error is not None:
            raise self._error

    def sendall(self, data: bytes) -> None:
        """Accept the request."""
        assert len(data) == 1052

    def recv(self, size: int) -> bytes:
        """Return the next bytes."""
        self.read_sizes.append(size)
        piece, self._data = self._data[:size], self._data[size:]
        return piece


def exchange_message(peer: FakeConnection) -> bytes:
    """Return the message received over a connection."""
    exchange = qgs._Exchange(untyped(peer), host_endpoint(4050), Deadlines(), time.monotonic)
    return exchange.run(qgs.quote_request(REPORT))


@given(st.binary(max_size=100) | st.builds(framed, st.binary(max_size=60)))
def test_exchange_any_bytes_give_message_or_error(data: bytes) -> None:
    """A message has the size of its length prefix."""
    try:
        message = exchange_message(FakeConnection(data))
    except AttestKitError:
        return
    assert data[:4] == struct.pack(">I", len(message))
    assert data[4:].startswith(message)


def test_exchange_checks_length_before_reading_on() -> None:
    """The length prefix is checked before memory is allocated."""
    peer = FakeConnection(b"\xff" * 1000)
    with raises(BackendError, "malformed_response"):
        exchange_message(peer)
    assert peer.read_sizes == [4]


def test_exchange_allocates_memory_as_data_arrives() -> None:
    """An announced size alone allocates no memory."""
    peer = FakeConnection(framed(b"", 1 << 20) + b"x")
    with raises(BackendError, "truncated", path="vsock 2:4050"):
        exchange_message(peer)
    assert max(peer.read_sizes) == 64 << 10


# -- connecting --------------------------------------------------------------------------------

CONNECT_ERRORS = [
    (errno.ECONNREFUSED, QuoteUnavailableError, "cannot_connect", "start the QGS (qgsd)"),
    (errno.ECONNRESET, QuoteUnavailableError, "cannot_connect", "start the QGS (qgsd)"),
    (errno.ENODEV, BackendUnavailableError, "missing", "vhost-vsock-pci"),
    (errno.EADDRNOTAVAIL, BackendUnavailableError, "missing", "vhost-vsock-pci"),
    (errno.ENETUNREACH, BackendUnavailableError, "missing", "vhost-vsock-pci"),
    (errno.EHOSTUNREACH, BackendUnavailableError, "missing", "vhost-vsock-pci"),
    (errno.EAFNOSUPPORT, BackendUnavailableError, "missing", "vhost-vsock-pci"),
    (errno.EACCES, BackendUnavailableError, "permission_denied", "allow this user"),
    (errno.EPERM, BackendUnavailableError, "permission_denied", "allow this user"),
    (errno.ENOENT, BackendUnavailableError, "missing", "start the QGS"),
    (errno.EAGAIN, BackendBusyError, "overloaded", "retry later"),
    (errno.ETIMEDOUT, QuoteUnavailableError, "timed_out", "within 5 s"),
    (errno.EPIPE, QuoteUnavailableError, "cannot_connect", "check the QGS"),
]


@every_case(("number", "kind", "reason", "remedy"), CONNECT_ERRORS)
def test_connect_errno_gives_reason_and_remedy(
    number: int, kind: type[BackendError], reason: str, remedy: str
) -> None:
    """Each cause has its own remedy."""
    with raises(kind, reason, path="vsock 2:4050", part=remedy) as caught:
        exchange_message(FakeConnection(b"", OSError(number, os.strerror(number))))
    assert errno_of(caught.value) == number


def test_connect_timeout_is_unavailable() -> None:
    """Python's own timeout has no errno."""
    with raises(QuoteUnavailableError, "timed_out"):
        exchange_message(FakeConnection(b"", TimeoutError("timed out")))


def test_connect_unused_or_missing_socket(socket_path: Path) -> None:
    """Real sockets, refused and missing."""
    with raises(BackendUnavailableError, "missing", path=str(socket_path)):
        get_quote(parse_endpoint(socket_path), REPORT)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(socket_path))
        with raises(QuoteUnavailableError, "cannot_connect", path=str(socket_path)) as caught:
            get_quote(parse_endpoint(socket_path), REPORT)
        assert errno_of(caught.value) == errno.ECONNREFUSED


@pytest.mark.parametrize(
    ("number", "reason", "remedy"),
    [
        (errno.EAFNOSUPPORT, "missing", "modprobe"),
        (errno.EPROTONOSUPPORT, "missing", "modprobe"),
        (errno.EPERM, "permission_denied", "seccomp"),
        (errno.EACCES, "permission_denied", "seccomp"),
        (errno.EMFILE, "cannot_connect", "close some files"),
    ],
)
def test_socket_creation_errors_give_reason_and_remedy(
    monkeypatch: pytest.MonkeyPatch, number: int, reason: str, remedy: str
) -> None:
    """A kernel may lack vsock, or a container may forbid it."""

    def refuse(*_: object) -> socket.socket:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(qgs, "_PYTHON_HAS_VSOCK", value=True)
    for call in (
        lambda: get_quote(host_endpoint(4050), REPORT),
        lambda: check_transport(host_endpoint(4050)),
    ):
        with raises(BackendUnavailableError, reason, path="vsock 2:4050", part=remedy) as caught:
            call()
        assert errno.errorcode[number] in str(caught.value)


def test_check_transport_python_without_vsock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The missing dependency is the interpreter's vsock support."""
    monkeypatch.setattr(qgs, "_PYTHON_HAS_VSOCK", value=False)
    with raises(BackendUnavailableError, "missing_dependency"):
        check_transport(host_endpoint(4050))


def test_endpoint_from_option_or_default() -> None:
    """The default is the host's vsock address."""
    assert host_endpoint(4050) == (socket.AF_VSOCK, (2, 4050))
    assert parse_endpoint(("vsock", 3, 5)) == (socket.AF_VSOCK, (3, 5))
    assert parse_endpoint("/run/qgs") == parse_endpoint(Path("/run/qgs"))
    assert str(parse_endpoint("/run/qgs")) == "/run/qgs"


@every_case(
    "address",
    [
        None,
        4050,
        "",
        b"/run/qgs",
        "a\0b",
        "x" * 108,
        ("vsock", 2),
        ("vsock", -1, 4050),
        ("vsock", 2, 1 << 32),
        ("vsock", "2", "4050"),
        ["vsock", 2, 4050],
    ],
)
def test_parse_endpoint_invalid_address_is_rejected(address: object) -> None:
    """It is rejected before a socket is created."""
    with pytest.raises(UsageError):
        parse_endpoint(address)


GOOD = [
    (b"port = 4050\n", 4050),
    (b" \t port\t=\t4050 \t\n", 4050),
    (b"# port = 1\n\n  # more\nport = 4050 # here\n", 4050),
    (b"port = 4050\r\n", 4050),
    (b"port = 0000004050\n", 4050),
    (b"port = 65535\n", 65535),
]


@pytest.mark.parametrize(("text", "port"), GOOD)
def test_read_configured_port_accepts_spaces_and_comments(
    tmp_path: Path, text: bytes, port: int
) -> None:
    """A configuration may contain blanks, comments and CRLF."""
    file = tmp_path / "tdx-attest.conf"
    file.write_bytes(text)
    assert read_configured_port(file) == port


BAD = [
    (b"", "no `port = N`"),
    (b"# port = 4050\n", "no `port = N`"),
    (b"port = 0\n", "port 0 disables vsock"),
    (b"\nport = 65536\n", "line 2: port must be 1 to 65535, not 65536"),
    (b"port = 00000004050\n", "line 1: must be `port = N`"),
    (b"port = 4050 4051\n", "line 1: must be `port = N`"),
    (b"port = -1\n", "line 1: must be `port = N`"),
    (b"port = \xd9\xa3\n", "line 1: must be `port = N`"),
    (b"port =\n", "line 1: must be `port = N`"),
    (b"# ok\n\nPort = 4050\n", "line 3: must be `port = N`"),
    (b"port = 4050\nprot = 4050\n", "line 2: must be `port = N`"),
    (b"port = 4050\nport = 4051\n", "line 2: repeats the port"),
    (b"\0" * 100, "line 1: must be `port = N`"),
    (b"#" * 70_000, "more than 65536 bytes"),
]


@pytest.mark.parametrize(("text", "problem"), BAD)
def test_read_configured_port_without_port_is_not_configured(
    tmp_path: Path, text: bytes, problem: str
) -> None:
    """The error has the file and the line."""
    file = tmp_path / "tdx-attest.conf"
    file.write_bytes(text)
    with raises(BackendUnavailableError, "not_configured", path=str(file), part=problem):
        read_configured_port(file)


def test_read_configured_port_unreadable_file_is_not_configured(tmp_path: Path) -> None:
    """The file may be missing or inaccessible."""
    file = tmp_path / "tdx-attest.conf"
    with raises(BackendUnavailableError, "not_configured", path=str(file)) as caught:
        read_configured_port(file)
    assert errno_of(caught.value) == errno.ENOENT
    file.touch(0o600)

    for number, reason, part in (
        (errno.EACCES, "permission_denied", "mode 0600"),
        (errno.EIO, "unreadable", "EIO"),
    ):
        failing = DeviceCalls(open_file=Mock(side_effect=OSError(number, "")))
        with raises(BackendUnavailableError, reason, path=str(file), part=part):
            read_configured_port(file, calls=failing)


@given(st.binary(max_size=60))
def test_read_configured_port_any_text_gives_port_or_error(text: bytes) -> None:
    """A port is from 1 to 65535."""
    calls = make_reading_calls(text)
    with contextlib.suppress(BackendUnavailableError):
        assert 0 < read_configured_port(Path("/x"), calls=calls) <= 0xFFFF
