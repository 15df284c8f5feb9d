"""Emulated quote generation service: Intel's message format and error codes."""

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestkit.backends.simulator.faults.fault_specs import Fault, Faults
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.td_reports import EmulatedTd, ReportQuoter
from attestkit.emulator.quote_service import QuoteService, answer_request, listen
from attestkit.errors import BackendError, FormatError, UsageError
from attestkit.quote import Quote
from attestkit.td_report import TdReport
from tests.raising import raises

KEY_ID = bytes.fromhex("e86c046e8cc44d958173fc43c1fa4f3f")
NONCE = bytes(range(64))
PKI = SimulatedPki(bytes(32))


def make_td(pki: SimulatedPki = PKI, *, extended: bool = False) -> EmulatedTd:
    """Return a TD on a platform."""
    return EmulatedTd(pki, extended=extended, mr_config_id=b"\x07" * 48, random=bytes)


REPORT = make_td().report(NONCE)


@pytest.fixture
def socket_path(tmp_path: Path) -> Iterator[str]:
    """Return the path of a running service."""
    service = QuoteService(listen(str(tmp_path / "qgs")), ReportQuoter(PKI))
    service.start()
    yield str(tmp_path / "qgs")
    service.close()
    assert not (tmp_path / "qgs").exists()


def exchange(socket_path: str, request: bytes) -> bytes:
    """Send all data, shut down writing, and return the response."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(socket_path)
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        response = b""
        # Closing before everything is read resets the connection.
        with contextlib.suppress(ConnectionResetError):
            while chunk := client.recv(4096):
                response += chunk
    return response


def message(report: bytes = REPORT, ids: bytes = b"", **fields: int) -> bytes:
    """Return a GET_QUOTE_REQ with its length; `fields` replaces header fields."""
    right = {
        "major": 1,
        "minor": 1,
        "kind": 0,
        "size": 24 + len(report) + len(ids),
        "error": 0,
        "report_size": len(report),
        "ids_size": len(ids),
    }
    values = {**right, **fields}
    length = values.pop("length", right["size"])
    return struct.pack(">I", length) + struct.pack("<HHIIIII", *values.values()) + report + ids


def parse_response(response: bytes) -> Quote:
    """Return the quote of a successful response, after a check of its header."""
    assert struct.unpack_from(">I", response) == (len(response) - 4,)
    major, _, kind, size, error, id_size, quote_size = struct.unpack_from("<HHIIIII", response, 4)
    assert (major, kind, error, id_size) == (1, 1, 0, 16)
    assert size == len(response) - 4 == 24 + id_size + quote_size
    assert response[28:44] == KEY_ID
    return Quote.parse(response[44:])


@pytest.mark.parametrize("ids", [b"", KEY_ID, bytes(16) + KEY_ID], ids=["any", "ours", "both"])
def test_get_quote_returns_the_platforms_quote(socket_path: str, ids: bytes) -> None:
    """The key is one of the requested keys."""
    quote = parse_response(exchange(socket_path, message(ids=ids)))
    report = TdReport.parse(REPORT)
    assert quote.raw[48 : 48 + 584] == report.quote_body()
    assert (quote.report_data, quote.rtmrs) == (NONCE, report.rtmrs)


def test_bare_report_returns_bare_quote(socket_path: str) -> None:
    """1024 bytes without a header are a request of the old format."""
    assert Quote.parse(exchange(socket_path, REPORT)).report_data == NONCE


def test_bare_report_of_td_15_returns_bare_quote(socket_path: str) -> None:
    """The first bytes of a report are type, subtype and version, which is 1 for TD 1.5."""
    report = make_td(extended=True).report(NONCE)
    assert report[:4] == b"\x81\0\1\0"
    assert Quote.parse(exchange(socket_path, report)).report_data == NONCE


def error_response(code: int, minor: int = 1) -> bytes:
    """Return the response with an error code."""
    return struct.pack(">I", 24) + struct.pack("<HHIIIII", 1, minor, 1, 24, code, 0, 0)


FLIPPED = REPORT[:900] + bytes([REPORT[900] ^ 1]) + REPORT[901:]
OTHERS = make_td(SimulatedPki(b"\x01" * 32)).report(NONCE)


@pytest.mark.parametrize(
    ("request_", "response"),
    [
        (message(FLIPPED), error_response(0x12001)),
        (message(OTHERS), error_response(0x12001)),
        (message(ids=bytes(16)), error_response(0x12001)),
        (message(major=2), error_response(0x12004)),
        (message(minor=9, kind=3), error_response(0x12005, 9)),
        (message(size=1047), error_response(0x12006)),
        (message(report_size=1023), error_response(0x12006)),
        (message(REPORT[:1023]), error_response(0x12006)),
        (message(ids=bytes(15)), error_response(0x12006)),
        (message(ids_size=0xFFFFFFFF), error_response(0x12006)),
        (struct.pack("> I", 16) + struct.pack("<HHIII", 1, 1, 0, 16, 0), error_response(0x12006)),
    ],
)
def test_invalid_request_returns_error_code(
    socket_path: str, request_: bytes, response: bytes
) -> None:
    """Both sizes of the response are 0."""
    assert exchange(socket_path, request_) == response


@pytest.mark.parametrize(
    "request_",
    [
        *(b"", b"\0\0", message()[:100], message(length=2000), message(length=0)),
        *(message(length=1 << 17), b"\xff" * 5000, FLIPPED, REPORT[:1000]),
    ],
)
def test_malformed_frame_closes_the_connection(socket_path: str, request_: bytes) -> None:
    """The next client is served."""
    assert exchange(socket_path, request_) == b""
    parse_response(exchange(socket_path, message()))


@pytest.mark.parametrize("length", [0, 3, 15])
def test_short_message_in_long_buffer_is_truncated(length: int) -> None:
    """A driver passes its buffer, of which the message may be a small part."""
    with raises(FormatError, "truncated", offset=0):
        answer_request(ReportQuoter(PKI), message(length=length))
    for size in range(20):
        with raises(FormatError, "truncated", offset=0):
            answer_request(ReportQuoter(PKI), message()[:size])
    assert (
        parse_response(answer_request(ReportQuoter(PKI), message() + bytes(99))).report_data
        == NONCE
    )


def test_slow_client_does_not_block_others(socket_path: str) -> None:
    """A client may be slow to send its request."""
    with socket.socket(socket.AF_UNIX) as slow:
        slow.settimeout(30)
        slow.connect(socket_path)
        slow.sendall(message()[:500])
        parse_response(exchange(socket_path, message()))
        slow.sendall(message()[500:])
        assert len(slow.recv(100)) == 100


def test_quoter_version_5_has_td15_body() -> None:
    """Other versions than 4 and 5 are rejected."""
    report = make_td(extended=True).report(NONCE)
    quote = Quote.parse(ReportQuoter(PKI, version=5).quote(report))
    assert quote.header.version == 5
    assert quote.raw[54 : 54 + 648] == TdReport.parse(report).quote_body(extended=True)
    with raises(UsageError, "wrong_value"):
        ReportQuoter(PKI, version=3)


def test_quoter_without_mac_check_accepts_other_platform() -> None:
    """The report must be well formed."""
    quoter = ReportQuoter(PKI, check_mac=False)
    assert Quote.parse(quoter.quote(OTHERS)).report_data == NONCE
    with raises(FormatError, "inconsistent") as caught:
        quoter.quote(FLIPPED)
    assert caught.value.offset in (32, 80)  # a hash of its REPORTMACSTRUCT
    with raises(FormatError, "inconsistent"):
        ReportQuoter(PKI).quote(OTHERS)


def test_service_faults_affect_one_response_each(tmp_path: Path) -> None:
    """An error code, a closed connection and a truncated response."""
    faults = Faults(map(Fault.parse, ["qgs_error", "qgs_closes", "qgs_truncates"]))
    service = QuoteService(listen(str(tmp_path / "qgs")), ReportQuoter(PKI), faults)
    service.start()
    responses = [exchange(str(tmp_path / "qgs"), message()) for _ in range(4)]
    service.close()
    assert responses[:2] == [error_response(0x12001, 0), b""]
    assert responses[2] == responses[3][: len(responses[3]) // 2]


def test_listen_replaces_stale_socket_only(tmp_path: Path) -> None:
    """Other files stay, and an unusable path is an error."""
    socket_path = str(tmp_path / "qgs")
    listen(socket_path).close()
    listen(socket_path).close()
    with raises(BackendError, "io_error", path=str(tmp_path / "none/qgs")) as caught:
        listen(str(tmp_path / "none/qgs"))
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    kept = tmp_path / "kept"
    kept.write_text("precious")
    with raises(BackendError, "io_error", path=str(kept), part=os.strerror(errno.EADDRINUSE)):
        listen(str(kept))
    assert kept.read_text() == "precious"
    for path in ("", "x" * 108, "\udcff" * 108):
        with raises(UsageError, "wrong_size"):
            listen(path)
    for port in ("", "0", "x", "-1", str((1 << 32) - 1), "9" * 5000):
        with raises(UsageError, "wrong_value"):
            listen(f"vsock:{port}")


@pytest.mark.skipif(not Path("/dev/vsock").exists(), reason="the kernel has no vsock here")
def test_get_quote_over_vsock() -> None:
    """Real AF_VSOCK, if the kernel has a loopback."""
    listener = socket.socket(socket.AF_VSOCK)
    listener.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
    listener.listen()
    socket_path = (1, listener.getsockname()[1])
    service = QuoteService(listener, ReportQuoter(PKI))
    service.start()
    try:
        with socket.socket(socket.AF_VSOCK) as client:
            client.settimeout(30)
            try:
                client.connect(socket_path)
            except OSError as error:
                pytest.skip(f"no vsock loopback: {error.strerror}")
            client.sendall(message())
            response = b""
            while chunk := client.recv(4096):
                response += chunk
    finally:
        service.close()
    parse_response(response)
