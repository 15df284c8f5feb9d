"""Server with faults of the kernel: documented errors, and recovery."""

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

import pytest

from attestkit import EventLog, Quote
from tests.rigs.emulator import PATIENCE, requires_fuse
from tests.rigs.guest.system import AppFiles, System, system
from tests.rigs.kernel_paths import requires_namespace
from tests.serve.client import Answer, Connection, call
from tests.serve.server import Server

pytestmark = [pytest.mark.rig, pytest.mark.slow, requires_fuse, requires_namespace]

EVIDENCE = ("GetQuote", "Attest")
SLOW = 3.0  # seconds


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[System, Server]]:
    """Run a server on a TDX guest of Linux 6.18."""
    with system() as guest:
        app = AppFiles.make(guest.folder / "app")
        options = ("--backend", "configfs_tsm", "--measure-app", *app.options)
        with guest.serving(*options) as server:
            yield guest, server
            assert server.stop() == 0
            server.check_log()


@pytest.fixture
def guest(running: tuple[System, Server]) -> Iterator[System]:
    """Return the guest, and assert that no entry is left."""
    guest, _ = running
    guest.machine.clear_faults()
    yield guest
    guest.machine.clear_faults()
    assert guest.machine.entries() == []


@pytest.fixture
def server(running: tuple[System, Server], guest: System) -> Iterator[Server]:
    """Return its server, and assert that it works after the test."""
    _, server = running
    yield server
    guest.machine.clear_faults()
    assert_working(server)


def assert_working(server: Server) -> None:
    """Assert that evidence is consistent."""
    response = call(server.dstack, "GetQuote", {"report_data": "77" * 64})
    assert response.status == 200, response.body
    quote = Quote.parse(bytes.fromhex(response.json()["quote"]))
    assert quote.report_data == b"\x77" * 64
    EventLog.from_json(response.json()["event_log"]).check(quote)


def server_error(response: Answer) -> str:
    """Return the text of an internal server error."""
    assert response.status == 500, response.body
    assert response.headers["content-type"].startswith("application/json")
    found = response.json()
    assert list(found) == ["error"]
    return str(found["error"])


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("empty_outblob", ("the host returned no quote: 0 bytes", "QGS")),
        ("quote_fails", ("the host returned no quote: 0 bytes", "QGS")),
        ("short_outblob", ("the host returned no quote: 1000 bytes", "QGS")),
        ("eio", ("the host failed to create a quote", "(EIO")),
        ("etimedout", ("did not answer in time", "(ETIMEDOUT")),
        ("generation_race:3", ("another process wrote to the entry",)),
        ("wrong_report_data", ("over other report data than requested",)),
        ("provider_changes", ("changed from tdx_guest",)),
        ("mkdir=EACCES", ("no permission to create an entry", "mode 0755", "uid 0")),
        ("mkdir=EBUSY", ("in use; retry", "(EBUSY")),
        ("read:generation=ENXIO", ("the TEE driver was unloaded", "(ENXIO")),
        ("read:ccel_data=EIO", ("cannot be read", "EIO")),
    ],
)
@pytest.mark.parametrize("method", EVIDENCE)
def test_server_fault_gives_backend_error(
    guest: System, server: Server, method: str, fault: str, words: tuple[str, ...]
) -> None:
    """The next request on the same connection succeeds."""
    connection = Connection(server.dstack)
    guest.machine.fault(fault)
    text = server_error(connection.call(method))
    what = {"GetQuote": "Failed to get quote: ", "Attest": "Failed to get attestation: "}[method]
    assert text.startswith(what)
    for word in words:
        assert word in text
    assert "Errno" not in text
    assert guest.machine.armed() == []
    assert connection.call(method).status == 200
    connection.close()


@pytest.mark.parametrize(
    "fault", ["ebusy:3", "eintr", "generation_race:2", "ioctl:GET_REPORT0=EINTR"]
)
def test_server_transient_fault_is_retried(guest: System, server: Server, fault: str) -> None:
    """The quote is made after a delay or a retry."""
    guest.machine.fault(fault)
    if fault.startswith("ioctl"):  # needed by events only
        assert call(server.dstack, "EmitEvent", {"event": "x", "payload": ""}).status == 200
    else:
        assert call(server.dstack, "GetQuote").status == 200
    assert guest.machine.armed() == []


def test_server_failed_extend_emits_no_event(guest: System, server: Server) -> None:
    """It is neither in the register nor in the log."""
    before, log = guest.machine.rtmr(3), call(server.dstack, "GetQuote").json()["event_log"]
    guest.machine.fault("rtmr_extend_fails")
    text = server_error(call(server.dstack, "EmitEvent", {"event": "lost", "payload": "00"}))
    assert "rtmr3:sha384: cannot be extended (EIO" in text
    assert guest.machine.rtmr(3) == before
    assert call(server.dstack, "GetQuote").json()["event_log"] == log
    assert call(server.dstack, "EmitEvent", {"event": "kept", "payload": "00"}).status == 200
    assert guest.machine.rtmr(3) != before


def test_server_applied_extend_emits_the_event(guest: System, server: Server) -> None:
    """The register's value decides, not the error."""
    before = guest.machine.rtmr(3)
    guest.machine.fault("rtmr_extend_lies")
    assert call(server.dstack, "EmitEvent", {"event": "counted", "payload": "00"}).status == 200
    assert guest.machine.rtmr(3) != before
    assert "counted" in call(server.dstack, "GetQuote").json()["event_log"]


# -- concurrent requests during a slow quote -------------------------------------------------------


# Methods without device access.
OTHERS: dict[str, dict[str, str]] = {
    "Version": {},
    "GetKey": {"path": "x"},
    "Sign": {"algorithm": "ed25519", "data": "22" * 32},
}


def request_repeatedly(server: Server, until: Callable[[], bool]) -> list[tuple[str, float, float]]:
    """Make the other requests repeatedly; return method, request time and response time."""
    responses = []
    connection = Connection(server.dstack)
    while not until():
        for method, message in OTHERS.items():
            begin = time.monotonic()
            response = connection.call(method, message)
            assert response.status == 200, response.body
            responses.append((method, begin, time.monotonic()))
        time.sleep(0.01)  # leave CPU time to other processes
    connection.close()
    return responses


def assert_served_during(
    responses: list[tuple[str, float, float]], begin: float, end: float
) -> None:
    """Assert that the other requests were served all the time, without waiting for the quote."""
    during = [response for response in responses if begin < response[1] and response[2] < end]
    assert {method for method, _, _ in during} == OTHERS.keys()
    moments = [begin, *(answered for _, _, answered in during), end]
    assert max(later - earlier for earlier, later in pairwise(moments)) < (end - begin) / 2


def request_in_thread(
    pool: ThreadPoolExecutor, server: Server, method: str
) -> "Future[tuple[Answer, float, float]]":
    """Make a request, and record its start and end."""

    def make_request() -> tuple[Answer, float, float]:
        begin = time.monotonic()
        response = call(server.dstack, method)
        return response, begin, time.monotonic()

    return pool.submit(make_request)


@pytest.mark.parametrize("method", EVIDENCE)
def test_server_slow_quote_does_not_block_others(
    guest: System, server: Server, method: str
) -> None:
    """All requests without device access are answered meanwhile."""
    guest.machine.fault(f"slow:{SLOW:g}s")
    with ThreadPoolExecutor(1) as pool:
        pending = request_in_thread(pool, server, method)
        responses = request_repeatedly(server, pending.done)
        response, begin, end = pending.result()
    assert response.status == 200
    assert end - begin >= SLOW
    assert_served_during(responses, begin, end)


@pytest.mark.slow
def test_server_busy_device_times_out(guest: System, server: Server) -> None:
    """The request fails after 30 s; the others are served."""
    guest.machine.fault("ebusy:*")
    with ThreadPoolExecutor(1) as pool:
        pending = request_in_thread(pool, server, "GetQuote")
        responses = request_repeatedly(server, pending.done)
        response, begin, end = pending.result()
    assert "the host has not answered an earlier request" in server_error(response)
    assert 25 < end - begin < PATIENCE
    assert_served_during(responses, begin, end)


def test_server_device_requests_are_serialized(guest: System, server: Server) -> None:
    """Each gets its own response."""
    guest.machine.fault("slow:300ms:2", "empty_outblob@1")
    with ThreadPoolExecutor(4) as pool:
        pending = [request_in_thread(pool, server, "GetQuote") for _ in range(4)]
        statuses = sorted(one.result()[0].status for one in pending)
    assert statuses == [200, 200, 200, 500]


def test_server_finishes_request_of_disconnected_client(guest: System, server: Server) -> None:
    """The next request is served."""
    guest.machine.fault("slow:1s")
    connection = Connection(server.dstack)
    connection.request("POST", "/GetQuote", "{}", {"Content-Type": "application/json"})
    connection.close()


def test_server_survives_killed_emulator() -> None:
    """No file can be read any more; keys are served, and the server stops normally."""
    with system() as guest:
        app = AppFiles.make(guest.folder / "app")
        options = ("--backend", "configfs_tsm", "--measure-app", *app.options)
        with guest.serving(*options) as server:
            assert_working(server)
            guest.machine.process.send_signal(signal.SIGKILL)
            guest.machine.process.wait(PATIENCE)
            for method in (*EVIDENCE, "EmitEvent"):
                text = server_error(call(server.dstack, method, {"event": "x", "payload": ""}))
                assert "Errno" not in text
            assert call(server.dstack, "GetKey", {"path": "x"}).status == 200
            assert server.stop() == 0
            server.check_log()
