"""The quote generation service speaks Intel's frames, and says no by its error codes."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestkit.backends.simulator.faults.fault_specs import Fault, Faults
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.emulator.quote_service import QuoteService, answer, listen
from attestkit.emulator.td import EmulatedTd, ReportQuoter
from attestkit.errors import BackendError, FormatError, UsageError
from attestkit.quote import Quote
from attestkit.td_report import TdReport

KEY_ID = bytes.fromhex("e86c046e8cc44d958173fc43c1fa4f3f")
NONCE = bytes(range(64))
PKI = SimulatedPki(bytes(32))


def td(pki: SimulatedPki = PKI, *, extended: bool = False) -> EmulatedTd:
    """Return a TD on a platform."""
    return EmulatedTd(pki, extended=extended, mr_config_id=b"\x07" * 48, random=bytes)


REPORT = td().report(NONCE)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[str]:
    """Return where a service listens."""
    service = QuoteService(listen(str(tmp_path / "qgs")), ReportQuoter(PKI))
    service.start()
    yield str(tmp_path / "qgs")
    service.close()
    assert not (tmp_path / "qgs").exists()


def exchange(place: str, request: bytes) -> bytes:
    """Send everything, hang up that way, and return all that comes back."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(place)
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        # A service that hangs up before it has read everything resets the connection.
        with contextlib.suppress(ConnectionResetError):
            while chunk := client.recv(4096):
                answer += chunk
    return answer


def message(report: bytes = REPORT, ids: bytes = b"", **fields: int) -> bytes:
    """Return a GET_QUOTE_REQ with its length; `fields` stand in it in place of what is right."""
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


def quote_of(answer: bytes) -> Quote:
    """Return the quote in a good answer, whose fields must be right."""
    assert struct.unpack_from(">I", answer) == (len(answer) - 4,)
    major, _, kind, size, error, id_size, quote_size = struct.unpack_from("<HHIIIII", answer, 4)
    assert (major, kind, error, id_size) == (1, 1, 0, 16)
    assert size == len(answer) - 4 == 24 + id_size + quote_size
    assert answer[28:44] == KEY_ID
    return Quote.parse(answer[44:])


@pytest.mark.parametrize("ids", [b"", KEY_ID, bytes(16) + KEY_ID], ids=["any", "ours", "both"])
def test_quote(place: str, ids: bytes) -> None:
    """A report of this platform becomes a quote with its fields, by a key that was asked for."""
    quote = quote_of(exchange(place, message(ids=ids)))
    report = TdReport.parse(REPORT)
    assert quote.raw[48 : 48 + 584] == report.quote_body()
    assert (quote.report_data, quote.rtmrs) == (NONCE, report.rtmrs)


def test_bare_report(place: str) -> None:
    """1024 bytes without a frame are answered by the bare quote."""
    assert Quote.parse(exchange(place, REPORT)).report_data == NONCE


def failed(code: int, minor: int = 1) -> bytes:
    """Return the answer that carries an error code."""
    return struct.pack(">I", 24) + struct.pack("<HHIIIII", 1, minor, 1, 24, code, 0, 0)


FLIPPED = REPORT[:900] + bytes([REPORT[900] ^ 1]) + REPORT[901:]
OTHERS = td(SimulatedPki(b"\x01" * 32)).report(NONCE)


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (message(FLIPPED), failed(0x12001)),
        (message(OTHERS), failed(0x12001)),
        (message(ids=bytes(16)), failed(0x12001)),
        (message(major=2), failed(0x12004)),
        (message(minor=9, kind=3), failed(0x12005, 9)),
        (message(size=1047), failed(0x12006)),
        (message(report_size=1023), failed(0x12006)),
        (message(REPORT[:1023]), failed(0x12006)),
        (message(ids=bytes(15)), failed(0x12006)),
        (message(ids_size=0xFFFFFFFF), failed(0x12006)),
        (struct.pack("> I", 16) + struct.pack("<HHIII", 1, 1, 0, 16, 0), failed(0x12006)),
    ],
)
def test_refusals(place: str, request_: bytes, answer: bytes) -> None:
    """Each way to ask wrongly has its code, and both sizes zero."""
    assert exchange(place, request_) == answer


@pytest.mark.parametrize(
    "request_",
    [
        *(b"", b"\0\0", message()[:100], message(length=2000), message(length=0)),
        *(message(length=1 << 17), b"\xff" * 5000, FLIPPED, REPORT[:1000]),
    ],
)
def test_hangs_up(place: str, request_: bytes) -> None:
    """What is no frame gets no answer; the next client does."""
    assert exchange(place, request_) == b""
    quote_of(exchange(place, message()))


@pytest.mark.parametrize("length", [0, 3, 15])
def test_short_messages_in_long_buffers(length: int) -> None:
    """A driver hands over its buffer, of which a message may be the smallest part, or nothing."""
    with pytest.raises(FormatError, match="a message of 16 bytes or more"):
        answer(ReportQuoter(PKI), message(length=length))
    for size in range(20):
        with pytest.raises(FormatError, match="a message of 16 bytes or more"):
            answer(ReportQuoter(PKI), message()[:size])
    assert quote_of(answer(ReportQuoter(PKI), message() + bytes(99))).report_data == NONCE


def test_clients_do_not_wait_for_each_other(place: str) -> None:
    """One who is slow to ask keeps nobody else from an answer."""
    with socket.socket(socket.AF_UNIX) as slow:
        slow.settimeout(30)
        slow.connect(place)
        slow.sendall(message()[:500])
        quote_of(exchange(place, message()))
        slow.sendall(message()[500:])
        assert len(slow.recv(100)) == 100


def test_many_at_once(place: str) -> None:
    """Threads that ask at once are all answered, each its own question."""
    reports = [td().report(bytes([number]) * 64) for number in range(16)]
    said: dict[int, bytes] = {}

    def ask(number: int) -> None:
        said[number] = quote_of(exchange(place, message(reports[number]))).report_data

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {number: bytes([number]) * 64 for number in range(16)}


def test_version_5() -> None:
    """A quoter of version 5 makes quotes with a TD 1.5 body."""
    report = td(extended=True).report(NONCE)
    quote = Quote.parse(ReportQuoter(PKI, version=5).quote(report))
    assert quote.header.version == 5
    assert quote.raw[54 : 54 + 648] == TdReport.parse(report).quote_body(extended=True)
    with pytest.raises(UsageError, match="version 4 and 5, not 3"):
        ReportQuoter(PKI, version=3)


def test_any_platform() -> None:
    """A quoter that is told so takes reports whose MAC is another platform's, if well formed."""
    quoter = ReportQuoter(PKI, check_mac=False)
    assert Quote.parse(quoter.quote(OTHERS)).report_data == NONCE
    with pytest.raises(FormatError, match="does not have the hash"):
        quoter.quote(FLIPPED)
    with pytest.raises(FormatError, match="not of this platform"):
        ReportQuoter(PKI).quote(OTHERS)


def test_faults(tmp_path: Path) -> None:
    """The service's faults break one answer each."""
    faults = Faults(map(Fault.parse, ["qgs_error", "qgs_closes", "qgs_truncates"]))
    service = QuoteService(listen(str(tmp_path / "qgs")), ReportQuoter(PKI), faults)
    service.start()
    answers = [exchange(str(tmp_path / "qgs"), message()) for _ in range(4)]
    service.close()
    assert answers[:2] == [failed(0x12001, 0), b""]
    assert answers[2] == answers[3][: len(answers[3]) // 2]


def test_places(tmp_path: Path) -> None:
    """A leftover socket is replaced, any other file kept; what cannot be had is an error."""
    place = str(tmp_path / "qgs")
    listen(place).close()
    listen(place).close()
    with pytest.raises(BackendError, match=f"cannot listen on {tmp_path}/none/qgs: No such file"):
        listen(str(tmp_path / "none/qgs"))
    kept = tmp_path / "kept"
    kept.write_text("precious")
    with pytest.raises(BackendError, match=f"cannot listen on {kept}: Address already in use"):
        listen(str(kept))
    assert kept.read_text() == "precious"
    for path in ("", "x" * 108, "\udcff" * 108):
        with pytest.raises(UsageError, match="1 to 107 bytes"):
            listen(path)
    for port in ("", "0", "x", "-1", str((1 << 32) - 1), "9" * 5000):
        with pytest.raises(UsageError, match="want vsock:PORT"):
            listen(f"vsock:{port}")


@pytest.mark.skipif(not Path("/dev/vsock").exists(), reason="the kernel has no vsock here")
def test_vsock() -> None:
    """The same over AF_VSOCK, where a loopback is loaded."""
    listener = socket.socket(socket.AF_VSOCK)
    listener.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
    listener.listen()
    place = (1, listener.getsockname()[1])
    service = QuoteService(listener, ReportQuoter(PKI))
    service.start()
    try:
        with socket.socket(socket.AF_VSOCK) as client:
            client.settimeout(30)
            try:
                client.connect(place)
            except OSError as error:
                pytest.skip(f"no vsock loopback: {error.strerror}")
            client.sendall(message())
            answer = b""
            while chunk := client.recv(4096):
                answer += chunk
    finally:
        service.close()
    quote_of(answer)
