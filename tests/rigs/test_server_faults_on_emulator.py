"""The server while something goes wrong below it: its errors are ours, and it goes on serving."""

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

import pytest

from attestkit import EventLog, Quote
from tests.rigs.emulator import PATIENCE, requires_fuse
from tests.rigs.namespace import requires_namespace
from tests.rigs.system import AppFiles, System, system
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
    """Return the guest; whatever goes wrong in it, it has no entry afterwards."""
    guest, _ = running
    guest.machine.clear_faults()
    yield guest
    guest.machine.clear_faults()
    assert guest.machine.entries() == []


@pytest.fixture
def server(running: tuple[System, Server], guest: System) -> Iterator[Server]:
    """Return its server, which is well again after the test."""
    _, server = running
    yield server
    guest.machine.clear_faults()
    assert_well(server)


def assert_well(server: Server) -> None:
    """Require evidence that agrees with itself."""
    answer = call(server.dstack, "GetQuote", {"report_data": "77" * 64})
    assert answer.status == 200, answer.body
    quote = Quote.parse(bytes.fromhex(answer.json()["quote"]))
    assert quote.report_data == b"\x77" * 64
    EventLog.from_json(answer.json()["event_log"]).check(quote)


def error(answer: Answer) -> str:
    """Return the text of an error that is the machine's."""
    assert answer.status == 500, answer.body
    assert answer.headers["content-type"].startswith("application/json")
    found = answer.json()
    assert list(found) == ["error"]
    return str(found["error"])


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("empty_outblob", ("gave 0 bytes in place of a quote", "QGS")),
        ("quote_fails", ("gave 0 bytes in place of a quote", "QGS")),
        ("short_outblob", ("gave 1000 bytes in place of a quote", "QGS")),
        ("eio", ("the host refused to make a quote", "(EIO")),
        ("etimedout", ("did not answer in time", "(ETIMEDOUT")),
        ("generation_race:3", ("somebody else writes to this entry",)),
        ("wrong_report_data", ("over other report data than asked",)),
        ("provider_changes", ("the TEE changed from tdx_guest",)),
        ("mkdir=EACCES", ("no permission to make an entry", "mode 0755", "uid 0")),
        ("mkdir=EBUSY", ("it is in use; try again", "(EBUSY")),
        ("read:generation=ENXIO", ("the TEE driver was unloaded", "(ENXIO")),
        ("read:ccel_data=EIO", ("the firmware's log cannot be read", "EIO")),
    ],
)
@pytest.mark.parametrize("method", EVIDENCE)
def test_what_goes_wrong_is_told(
    guest: System, server: Server, method: str, fault: str, words: tuple[str, ...]
) -> None:
    """As the backend says it; the next request is a good one, on the same connection too."""
    connection = Connection(server.dstack)
    guest.machine.fault(fault)
    text = error(connection.call(method))
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
def test_what_passes_by_is_not_told(guest: System, server: Server, fault: str) -> None:
    """Waiting or another try makes the quote."""
    guest.machine.fault(fault)
    if fault.startswith("ioctl"):  # which only an event needs
        assert call(server.dstack, "EmitEvent", {"event": "x", "payload": ""}).status == 200
    else:
        assert call(server.dstack, "GetQuote").status == 200
    assert guest.machine.armed() == []


def test_an_event_that_was_not_extended(guest: System, server: Server) -> None:
    """It is nowhere: neither in the register, nor in the log."""
    before, log = guest.machine.rtmr(3), call(server.dstack, "GetQuote").json()["event_log"]
    guest.machine.fault("rtmr_extend_fails")
    text = error(call(server.dstack, "EmitEvent", {"event": "lost", "payload": "00"}))
    assert "rtmr3:sha384 cannot be extended (EIO" in text
    assert guest.machine.rtmr(3) == before
    assert call(server.dstack, "GetQuote").json()["event_log"] == log
    assert call(server.dstack, "EmitEvent", {"event": "kept", "payload": "00"}).status == 200
    assert guest.machine.rtmr(3) != before


def test_an_event_that_was_extended_after_all(guest: System, server: Server) -> None:
    """The kernel says that it failed, the register that it did not: it counts."""
    before = guest.machine.rtmr(3)
    guest.machine.fault("rtmr_extend_lies")
    assert call(server.dstack, "EmitEvent", {"event": "counted", "payload": "00"}).status == 200
    assert guest.machine.rtmr(3) != before
    assert "counted" in call(server.dstack, "GetQuote").json()["event_log"]


# -- while a quote takes its time ------------------------------------------------------------------


# What needs no device.
OTHERS: dict[str, dict[str, str]] = {
    "Version": {},
    "GetKey": {"path": "x"},
    "Sign": {"algorithm": "ed25519", "data": "22" * 32},
}


def keep_asking(server: Server, until: Callable[[], bool]) -> list[tuple[str, float, float]]:
    """Ask for the others again and again; return what, when it was asked, when answered."""
    answers = []
    connection = Connection(server.dstack)
    while not until():
        for method, message in OTHERS.items():
            begin = time.monotonic()
            answer = connection.call(method, message)
            assert answer.status == 200, answer.body
            answers.append((method, begin, time.monotonic()))
        time.sleep(0.01)  # the machine has others to serve
    connection.close()
    return answers


def check_served_meanwhile(
    answers: list[tuple[str, float, float]], begin: float, end: float
) -> None:
    """Check that the others were served all the time, and none of them waited for the quote."""
    during = [answer for answer in answers if begin < answer[1] and answer[2] < end]
    assert {method for method, _, _ in during} == OTHERS.keys()
    moments = [begin, *(answered for _, _, answered in during), end]
    assert max(later - earlier for earlier, later in pairwise(moments)) < (end - begin) / 2


def asked_in_a_thread(
    pool: ThreadPoolExecutor, server: Server, method: str
) -> "Future[tuple[Answer, float, float]]":
    """Ask, and note when it was asked and answered."""

    def ask() -> tuple[Answer, float, float]:
        begin = time.monotonic()
        answer = call(server.dstack, method)
        return answer, begin, time.monotonic()

    return pool.submit(ask)


@pytest.mark.parametrize("method", EVIDENCE)
def test_a_slow_host_keeps_nobody(guest: System, server: Server, method: str) -> None:
    """While one quote is under way, everything that needs no device is answered."""
    guest.machine.fault(f"slow:{SLOW:g}s")
    with ThreadPoolExecutor(1) as pool:
        asked = asked_in_a_thread(pool, server, method)
        answers = keep_asking(server, asked.done)
        answer, begin, end = asked.result()
    assert answer.status == 200
    assert end - begin >= SLOW
    check_served_meanwhile(answers, begin, end)


@pytest.mark.slow
def test_a_device_that_stays_busy(guest: System, server: Server) -> None:
    """After half a minute the request for it is refused; the others were served all the time."""
    guest.machine.fault("ebusy:*")
    with ThreadPoolExecutor(1) as pool:
        asked = asked_in_a_thread(pool, server, "GetQuote")
        answers = keep_asking(server, asked.done)
        answer, begin, end = asked.result()
    assert "an earlier request is still with the host" in error(answer)
    assert 25 < end - begin < PATIENCE
    check_served_meanwhile(answers, begin, end)


def test_requests_wait_in_turn(guest: System, server: Server) -> None:
    """Those that need the device wait for each other, and each gets its own answer."""
    guest.machine.fault("slow:300ms:2", "empty_outblob@1")
    with ThreadPoolExecutor(4) as pool:
        asked = [asked_in_a_thread(pool, server, "GetQuote") for _ in range(4)]
        statuses = sorted(one.result()[0].status for one in asked)
    assert statuses == [200, 200, 200, 500]


def test_a_client_that_leaves(guest: System, server: Server) -> None:
    """Its quote comes to its end without it, and the next one is served."""
    guest.machine.fault("slow:1s")
    connection = Connection(server.dstack)
    connection.request("POST", "/GetQuote", "{}", {"Content-Type": "application/json"})
    connection.close()


def test_a_machine_that_goes() -> None:
    """The emulator is killed: no file answers any more. Keys do, and the server ends as asked."""
    with system() as guest:
        app = AppFiles.make(guest.folder / "app")
        options = ("--backend", "configfs_tsm", "--measure-app", *app.options)
        with guest.serving(*options) as server:
            assert_well(server)
            guest.machine.process.send_signal(signal.SIGKILL)
            guest.machine.process.wait(PATIENCE)
            for method in (*EVIDENCE, "EmitEvent"):
                text = error(call(server.dstack, method, {"event": "x", "payload": ""}))
                assert "Errno" not in text
            assert call(server.dstack, "GetKey", {"path": "x"}).status == 200
            assert server.stop() == 0
            server.check_log()
