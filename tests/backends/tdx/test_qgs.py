"""The QGS client: a quote, or an error that says whose fault it is, and always in time."""

import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
)
from attestkit.errors import (
    AttestKitError,
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
    UsageError,
)
from tests.backends.tdx.fake_td import open_files
from tests.backends.tdx.qgs_server import (
    KEY_ID,
    QUOTE,
    Behaviour,
    QgsServer,
    answering,
    closing,
    closing_early,
    dripping,
    framed,
    qgs_server,
    response,
    silent,
)
from tests.untyped import untyped

REPORT = bytes(range(256)) * 4
SHORT = Deadlines(connect=5.0, answer=0.2)


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where a socket may be; such a path has little room."""
    return tmp_path_factory.mktemp("q") / "s"


def ask(place: Path, behave: Behaviour, deadlines: Deadlines | None = None) -> bytes:
    """Return what a service that behaves so answers; it is asked once, and nothing stays open."""
    before = open_files()
    server = None
    try:
        with qgs_server(place, behave) as server:
            return get_quote(parse_endpoint(place), REPORT, deadlines=deadlines)
    finally:
        assert server is not None
        assert server.connections == 1
        assert open_files() == before


# -- the exchange ------------------------------------------------------------------------------


def test_a_report_goes_in_and_a_quote_comes_out(place: Path) -> None:
    """One connection, one request of 1048 bytes, whose every field is as specified."""
    before = open_files()
    with qgs_server(place, answering(framed(response()))) as server:
        assert get_quote(parse_endpoint(str(place)), REPORT) == QUOTE
        assert get_quote(parse_endpoint(place), REPORT) == QUOTE
    assert server.connections == 2  # each has its own
    assert len(server.requests[0]) == 1048
    assert struct.unpack_from("<HHIIIII", server.requests[0]) == (1, 1, 0, 1048, 0, 1024, 0)
    assert server.requests[0][24:] == REPORT
    assert open_files() == before


@pytest.mark.parametrize("piece", [1, 3, 5000])
def test_an_answer_may_come_in_pieces(place: Path, piece: int) -> None:
    """The length, too."""
    assert ask(place, answering(framed(response()), piece=piece)) == QUOTE


def test_the_chosen_key_id_is_no_part_of_the_quote(place: Path) -> None:
    """And its minor version is the service's own affair."""
    assert ask(place, answering(framed(response(key_id=KEY_ID, minor=0)))) == QUOTE


def test_what_follows_the_message_is_not_read(place: Path) -> None:
    """Exactly the announced bytes count."""
    assert ask(place, answering(framed(response()) + b"more")) == QUOTE


@pytest.mark.parametrize("report", [b"", bytes(1023), bytes(1025), bytearray(1024), None])
def test_a_report_is_1024_bytes(report: object) -> None:
    """Nobody is asked otherwise."""
    with pytest.raises(UsageError, match="1024 bytes"):
        get_quote(Endpoint(socket.AF_UNIX, "/none"), untyped(report))


# -- misbehaviour ------------------------------------------------------------------------------

MALFORMED = [
    (framed(response(), 0), "announced a message of 0 bytes"),
    (framed(response(), 15), "announced a message of 15 bytes"),
    (framed(response(), (1 << 20) + 1), "announced a message of 1048577 bytes"),
    (framed(response(), 0xFFFFFFFF), "announced a message of 4294967295 bytes"),
    (framed(response())[:3], "closed the connection after 3 of 4 bytes"),
    (framed(response())[:4], "closed the connection after 4 of 5148 bytes"),
    (framed(response())[:-1], "closed the connection after 5147 of 5148 bytes"),
    (framed(response(major=0)), r"version 0 \(byte 0\)"),
    (framed(response(major=2)), r"version 2 \(byte 0\)"),
    (framed(response(kind=0)), r"type 0 \(byte 4\)"),
    (framed(response(kind=3)), r"type 3 \(byte 4\)"),
    (framed(response(size=5143)), r"sent 5144 bytes, their header says 5143 \(byte 8\)"),
    (framed(response(size=0xFFFFFFFF)), r"header says 4294967295 \(byte 8\)"),
    (framed(response(quote_size=len(QUOTE) - 1)), r"the sizes in them \(byte 16\) are 0, 5119"),
    (framed(response(id_size=0xFFFFFFFF, quote_size=5121)), r"\(byte 16\) are 4294967295, 5121"),
    (framed(response(b"", size=16)[:16]), "sent 16 bytes, an answer has 24"),
    (framed(response(b"", size=16, code=0x12001)[:16]), "an answer has 24; .* 0x00012001"),
    (framed(response(code=0x12001)), "0x00012001, unexpected error, and sent 0 and 5120 bytes"),
]


@pytest.mark.parametrize(("reply", "text"), MALFORMED)
def test_a_malformed_answer_is_told_by_what_is_wrong(place: Path, reply: bytes, text: str) -> None:
    """Each with its own text, and the place where the service is."""
    with pytest.raises(BackendError, match=text) as caught:
        ask(place, answering(reply))
    assert type(caught.value) is BackendError
    assert str(place) in str(caught.value)


def test_sizes_that_wrap_in_32_bits_are_refused(place: Path) -> None:
    """24 + 0xFFFFFFFF + 5121 is 5144, modulo 2 ** 32, which is what was sent."""
    assert (24 + 0xFFFFFFFF + 5121) % (1 << 32) == 5144
    with pytest.raises(BackendError):
        ask(place, answering(framed(response(id_size=0xFFFFFFFF, quote_size=5121))))


@pytest.mark.parametrize("code", [*CODES, 1, 0x12008, 0xFFFFFFFF])
def test_a_failure_is_told_by_its_name(place: Path, code: int) -> None:
    """The platform is here, the quote is not."""
    with pytest.raises(QuoteUnavailableError, match=f"{code:#010x}") as caught:
        ask(place, answering(framed(response(b"", code=code))))
    assert CODES.get(code, "not a code of its list") in str(caught.value)
    assert len(set(CODES.values())) == len(CODES)


@pytest.mark.parametrize("size", [0, 1, 1019])
def test_less_than_a_quote_is_a_failure_of_the_host(place: Path, size: int) -> None:
    """With success in the error code; an empty quote as well as a short one."""
    with pytest.raises(QuoteUnavailableError, match=f"gave {size} bytes, .* has 1020"):
        ask(place, answering(framed(response(bytes(size)))))
    assert len(ask(place.with_name("t"), answering(framed(response(bytes(1020)))))) == 1020


@pytest.mark.parametrize("behave", [closing, closing_early])
def test_hanging_up_is_an_old_or_a_failing_service(place: Path, behave: Behaviour) -> None:
    """With the request read, or not: nobody answered, and the text says what that means."""
    with pytest.raises(QuoteUnavailableError, match=r"old QGS \(before DCAP 1\.16\)"):
        ask(place, behave)


def test_a_silent_service_is_left_in_time(place: Path) -> None:
    """The text says how long we waited."""
    start = time.monotonic()
    with pytest.raises(QuoteUnavailableError, match=r"did not answer within 0\.2 s"):
        ask(place, silent, SHORT)
    assert 0.2 <= time.monotonic() - start < 10


def test_a_dripping_service_is_left_in_time(place: Path) -> None:
    """Each byte comes soon; the answer as a whole does not."""
    start = time.monotonic()
    with pytest.raises(QuoteUnavailableError, match=r"did not answer within 0\.2 s"):
        ask(place, dripping, SHORT)
    assert 0.2 <= time.monotonic() - start < 10


def test_time_is_that_of_the_clock_handed_in(place: Path) -> None:
    """30 seconds from the connection to the last byte, whatever comes in between."""
    now = iter(range(0, 1000, 7))
    with (
        qgs_server(place, dripping),
        pytest.raises(QuoteUnavailableError, match="did not answer within 30 s"),
    ):
        get_quote(parse_endpoint(place), REPORT, clock=lambda: float(next(now)))
    assert next(now) == 42  # start, send, three pieces in time, and one that is not


def test_the_deadlines_are_those_of_the_specification() -> None:
    """Five seconds to connect, thirty for the answer."""
    assert Deadlines() == (5.0, 30.0)


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: response(b"") + tail))
def test_any_message_gives_a_quote_or_an_error_of_ours(message: bytes) -> None:
    """Whatever the host sends."""
    with contextlib.suppress(AttestKitError):
        assert type(parse_quote_response(message, "somebody")) is bytes


@given(
    st.builds(
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
def test_only_a_whole_answer_gives_a_quote(message: bytes) -> None:
    """What is returned is the tail of the message, of the size that it says."""
    try:
        quote = parse_quote_response(message, "somebody")
    except AttestKitError:
        return
    major, _, kind, size, code, id_size, quote_size = struct.unpack_from("<HHIIIII", message)
    assert (major, kind, size, code) == (1, 1, len(message), 0)
    assert len(quote) == quote_size >= 1020
    assert quote == message[24 + id_size :]


class Bytewise:
    """A connection whose peer sends these bytes, and then hangs up."""

    def __init__(self, data: bytes, error: OSError | None = None) -> None:
        self._data = data
        self._error = error
        self.asked: list[int] = []

    def settimeout(self, seconds: float) -> None:
        """Take any time that is left."""
        assert seconds > 0

    def connect(self, address: object) -> None:
        """Fail as told."""
        del address
        if self._error is not None:
            raise self._error

    def sendall(self, data: bytes) -> None:
        """Take the request."""
        assert len(data) == 1052

    def recv(self, size: int) -> bytes:
        """Return the next bytes."""
        self.asked.append(size)
        piece, self._data = self._data[:size], self._data[size:]
        return piece


def exchange(peer: Bytewise) -> bytes:
    """Return the message that comes over a connection."""
    run = qgs._Exchange(host_endpoint(4050), Deadlines(), time.monotonic).run
    return run(untyped(peer), qgs.quote_request(REPORT))


@given(st.binary(max_size=100) | st.builds(framed, st.binary(max_size=60)))
def test_any_bytes_give_a_message_or_an_error_of_ours(data: bytes) -> None:
    """A message is what the length before it says."""
    try:
        message = exchange(Bytewise(data))
    except AttestKitError:
        return
    assert data[:4] == struct.pack(">I", len(message))
    assert data[4:].startswith(message)


def test_nothing_is_asked_for_behind_an_absurd_length() -> None:
    """The four bytes are judged before another is read, or memory for it taken."""
    peer = Bytewise(b"\xff" * 1000)
    with pytest.raises(BackendError, match="announced"):
        exchange(peer)
    assert peer.asked == [4]


def test_memory_is_taken_as_bytes_come() -> None:
    """A megabyte that is only announced costs no megabyte at each read."""
    peer = Bytewise(framed(b"", 1 << 20) + b"x")
    with pytest.raises(BackendError, match="closed the connection after 5 of"):
        exchange(peer)
    assert max(peer.asked) == 64 << 10


# -- connecting --------------------------------------------------------------------------------

CONNECT_ERRORS = [
    (errno.ECONNREFUSED, QuoteUnavailableError, "nothing listens there"),
    (errno.ECONNRESET, QuoteUnavailableError, "nothing listens there"),
    (errno.ENODEV, BackendUnavailableError, "no vsock to the host"),
    (errno.EADDRNOTAVAIL, BackendUnavailableError, "no vsock to the host"),
    (errno.ENETUNREACH, BackendUnavailableError, "no vsock to the host"),
    (errno.EHOSTUNREACH, BackendUnavailableError, "no vsock to the host"),
    (errno.EAFNOSUPPORT, BackendUnavailableError, "no vsock to the host"),
    (errno.EACCES, BackendUnavailableError, "may not connect"),
    (errno.EPERM, BackendUnavailableError, "may not connect"),
    (errno.ENOENT, BackendUnavailableError, "no such socket"),
    (errno.EAGAIN, BackendBusyError, "too many wait"),
    (errno.ETIMEDOUT, QuoteUnavailableError, "no connection within 5 s"),
    (errno.EPIPE, QuoteUnavailableError, "is the host's QGS up"),
]


@pytest.mark.parametrize(("number", "kind", "text"), CONNECT_ERRORS)
def test_each_errno_of_connect_has_its_text(
    number: int, kind: type[BackendError], text: str
) -> None:
    """Down, without transport, forbidden: each is another thing to do."""
    with pytest.raises(BackendError, match=text) as caught:
        exchange(Bytewise(b"", OSError(number, os.strerror(number))))
    assert type(caught.value) is kind
    assert "vsock 2:4050" in str(caught.value)


def test_a_connection_that_does_not_come_about_is_left_in_time() -> None:
    """Python's own timeout has no errno."""
    with pytest.raises(QuoteUnavailableError, match="no connection within 5 s"):
        exchange(Bytewise(b"", TimeoutError("timed out")))


def test_a_socket_that_nobody_listens_on(place: Path) -> None:
    """Refused, and missing, on real sockets."""
    with pytest.raises(BackendUnavailableError, match="no such socket"):
        get_quote(parse_endpoint(place), REPORT)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(place))
        with pytest.raises(QuoteUnavailableError, match=r"ECONNREFUSED.*nothing listens"):
            get_quote(parse_endpoint(place), REPORT)


def test_a_service_with_a_full_queue_is_busy(place: Path) -> None:
    """A real queue, that nobody takes from."""
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as waiting:
        listener.bind(str(place))
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = waiting.enter_context(socket.socket(socket.AF_UNIX))
                client.settimeout(0)
                client.connect(str(place))
        with pytest.raises(BackendBusyError, match="too many wait"):
            get_quote(parse_endpoint(place), REPORT)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.EAFNOSUPPORT, "modprobe"),
        (errno.EPROTONOSUPPORT, "modprobe"),
        (errno.EPERM, "seccomp"),
        (errno.EACCES, "seccomp"),
        (errno.EMFILE, "fewer open files"),
    ],
)
def test_a_socket_that_cannot_be_made(
    monkeypatch: pytest.MonkeyPatch, number: int, text: str
) -> None:
    """A kernel without vsock, and a container whose rules forbid it."""

    def refuse(*_: object) -> socket.socket:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(qgs, "_PYTHON_HAS_VSOCK", value=True)
    for call in (
        lambda: get_quote(host_endpoint(4050), REPORT),
        lambda: check_transport(host_endpoint(4050)),
    ):
        with pytest.raises(BackendUnavailableError, match=text) as caught:
            call()
        assert errno.errorcode[number] in str(caught.value)


def test_a_python_without_vsock_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the interpreter that lacks it, not the machine."""
    monkeypatch.setattr(qgs, "_PYTHON_HAS_VSOCK", value=False)
    with pytest.raises(BackendUnavailableError, match="Python was built without"):
        check_transport(host_endpoint(4050))


def vsock_loopback() -> bool:
    """Tell whether this machine reaches itself over vsock."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_VSOCK) as listener:
        listener.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
        listener.listen()
        with socket.socket(socket.AF_VSOCK) as client:
            client.settimeout(1)
            client.connect((1, listener.getsockname()[1]))
            return True
    return False


@pytest.fixture
def vsock() -> Iterator[QgsServer]:
    """Run a service on a free port of vsock."""
    if not vsock_loopback():
        pytest.skip("this kernel has no vsock loopback (modprobe vsock_loopback)")
    place = (socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY)
    with qgs_server(place, answering(framed(response()))) as server:
        yield server


@pytest.mark.rig
def test_the_same_over_vsock(vsock: QgsServer) -> None:
    """Real AF_VSOCK, where the kernel has a loopback."""
    endpoint = parse_endpoint(("vsock", 1, vsock.address[1]))
    check_transport(endpoint)
    assert get_quote(endpoint, REPORT) == QUOTE
