"""Simulated faults: clients receive the error, and later requests succeed."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from attestkit.event_log.journal import LOG, PENDING
from tests.serve.client import Answer, Connection, call, read_runtime_events
from tests.serve.server import Server, running_server

pytestmark = pytest.mark.slow  # its tests start programs

SLOW = 2.0  # seconds of the slow host


def read_error(answer: Answer) -> str:
    """Return the text of a 500."""
    assert answer.status == 500, answer.body
    assert answer.headers["content-type"].startswith("application/json")
    found = answer.json()
    assert list(found) == ["error"]
    text = str(found["error"])
    assert "\n" not in text
    return text


def read_emitted_names(server: Server) -> list[str]:
    """Return the names of the app's events in a log that replays to its quote."""
    names = [name for name, _ in read_runtime_events(server.dstack)]
    return names[names.index("system-ready") + 1 :]


def emit_event(server: Server, name: str) -> Answer:
    """Emit an event."""
    return call(server.dstack, "EmitEvent", {"event": name, "payload": "00"})


# -- evidence --------------------------------------------------------------------------------------


def test_fault_is_reported_by_every_interface() -> None:
    """Tappd, protobuf, certificates and Info return a 500 with the fault."""
    with running_server("--fault", "eio:5") as server:
        assert "simulated fault eio" in read_error(
            call(server.tappd, "prpc/Tappd.TdxQuote", {"report_data": "00"})
        )
        connection = Connection(server.dstack)
        headers = {"Content-Type": "application/octet-stream"}
        answer = connection.send_request("POST", "/GetQuote", b"", headers)
        assert (answer.status, b"simulated fault eio" in answer.body) == (500, True)
        connection.close()
        message = {"subject": "x", "usage_ra_tls": True}
        assert "simulated fault eio" in read_error(call(server.dstack, "GetTlsKey", message))
        assert "simulated fault eio" in read_error(call(server.dstack, "Attest"))
        assert "simulated fault eio" in read_error(call(server.dstack, "Info"))
        assert call(server.dstack, "GetTlsKey", message).status == 200
        assert "faults: eio:5" in server.log()
        server.check_log()


def test_slow_host_does_not_delay_others() -> None:
    """Other listeners and methods answer while a client waits for its quote."""
    with (
        running_server("--fault", f"slow:{SLOW:g}s", "--dev-http", "127.0.0.1:0") as server,
        ThreadPoolExecutor(1) as pool,
    ):
        call(server.url, "metrics")  # imports its libraries
        begin = time.monotonic()
        slow = pool.submit(call, server.dstack, "GetQuote", {"report_data": "77"})
        connection = Connection(server.url)
        metrics = ""
        while "attestkit" not in metrics or not slow.running():
            metrics = connection.send_request("GET", "/metrics").body.decode()
        for endpoint, method in (
            (server.dstack, "Version"),
            (server.url, "prpc/Worker.Version"),
            (server.dev_url, "Version"),
            (server.dstack, "GetKey"),
        ):
            assert call(endpoint, method).status == 200
        assert connection.send_request("GET", "/metrics").status == 200
        connection.close()
        assert not slow.done()
        assert time.monotonic() - begin < SLOW
        assert slow.result().status == 200
        assert time.monotonic() - begin >= SLOW
        assert call(server.dstack, "GetQuote").status == 200


# -- events ----------------------------------------------------------------------------------------


def check_repaired_log(server: Server) -> None:
    """Check that the log is completed, and that another event can be emitted."""
    assert read_emitted_names(server) == ["first", "torn"]
    assert emit_event(server, "second").status == 200
    assert read_emitted_names(server) == ["first", "torn", "second"]


@pytest.mark.parametrize("killed", [False, True])
def test_torn_journal_is_repaired(folder: Path, *, killed: bool) -> None:
    """The next request or the next server completes the log; the event occurs once."""
    with running_server("--fault", "torn_journal@1", folder=folder) as server:
        assert emit_event(server, "first").status == 200
        log = (folder / LOG).read_bytes()
        text = read_error(emit_event(server, "torn"))
        assert "torn_journal" in text
        assert "RTMR3 was extended" in text
        assert "do not repeat" in text
        pending = (folder / PENDING).read_bytes()
        assert (folder / LOG).read_bytes() == log + pending[: len(pending) // 2]
        if killed:
            server.process.kill()
            server.process.wait()
        else:
            check_repaired_log(server)
    if killed:
        with running_server(folder=folder) as server:
            check_repaired_log(server)
    assert (folder / LOG).read_bytes().startswith(log + pending)
    assert not (folder / PENDING).exists()


def test_foreign_extend_fails_until_reset(folder: Path) -> None:
    """No response contains a log that does not match its quote; --reset repairs both."""
    with running_server("--fault", "foreign_extend", folder=folder) as server:
        for method in ("GetQuote", "Attest", "GetQuote"):
            assert "RTMR3" in read_error(call(server.dstack, method))
        assert "does not match RTMR3" in read_error(emit_event(server, "never"))
    with running_server("--reset", folder=folder) as server:
        assert read_emitted_names(server) == []
