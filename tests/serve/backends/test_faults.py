"""Simulated faults: clients receive the error, and later requests succeed."""

import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from attestkit import EventLog, Quote
from attestkit.event_log.journal import LOG, PENDING
from tests.serve.client import Answer, Connection, call
from tests.serve.server import Server, command, environment, refusal, running_server

SIMULATOR = ("--backend", "simulator", "--http", "127.0.0.1:0")
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
    answer = call(server.dstack, "GetQuote")
    assert answer.status == 200, answer.body
    log = EventLog.from_json(answer.json()["event_log"])
    log.check(Quote.parse(bytes.fromhex(answer.json()["quote"])))
    found = [event.name for event in log.runtime]
    return found[found.index("system-ready") + 1 :]


def emit_event(server: Server, name: str) -> Answer:
    """Emit an event."""
    return call(server.dstack, "EmitEvent", {"event": name, "payload": "00"})


# -- evidence --------------------------------------------------------------------------------------


def test_busy_device_fails_given_number_of_times() -> None:
    """ebusy:3 fails three requests of any method; the fourth succeeds."""
    with running_server("--fault", "ebusy:3") as server:
        connection = Connection(server.dstack)
        for method, operation in (
            ("GetQuote", "quote"),
            ("Attest", "attestation"),
            ("GetQuote", "quote"),
        ):
            text = read_error(connection.call(method, {"report_data": "77"}))
            assert text.startswith(
                f"Failed to get {operation}: simulated fault ebusy: the host has "
            )
        answer = connection.call("GetQuote", {"report_data": "77" * 64})
        assert answer.status == 200
        assert Quote.parse(bytes.fromhex(answer.json()["quote"])).report_data == b"\x77" * 64
        connection.close()
        assert "faults: ebusy:3" in server.log()
        server.check_log()


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


def test_failed_event_changes_nothing() -> None:
    """A failed event is not in the log, earlier ones remain, the next one succeeds."""
    with running_server("--fault", "rtmr_extend_fails@1") as server:
        assert emit_event(server, "first").status == 200
        text = read_error(emit_event(server, "failed"))
        assert text.startswith("simulated fault rtmr_extend_fails: ")
        assert read_emitted_names(server) == ["first"]
        assert emit_event(server, "second").status == 200
        assert read_emitted_names(server) == ["first", "second"]


def test_extended_event_is_success_despite_error() -> None:
    """If the register was extended, the error of the device is not returned."""
    with running_server("--fault", "rtmr_extend_lies") as server:
        assert emit_event(server, "counted").status == 200
        assert read_emitted_names(server) == ["counted"]


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
            assert read_emitted_names(server) == ["first", "torn"]
    with running_server(folder=folder) as server:
        assert read_emitted_names(server) == ["first", "torn"]
        assert emit_event(server, "second").status == 200
        assert read_emitted_names(server) == ["first", "torn", "second"]
    assert (folder / LOG).read_bytes().startswith(log + pending)
    assert not (folder / PENDING).exists()


def test_foreign_extend_fails_until_reset(folder: Path) -> None:
    """No response contains a log that does not match its quote; --reset repairs both."""
    with running_server("--fault", "foreign_extend", folder=folder) as server:
        for method in ("GetQuote", "Attest", "GetQuote"):
            assert "RTMR3" in read_error(call(server.dstack, method))
        assert "does not match RTMR3" in read_error(emit_event(server, "never"))
    with running_server(folder=folder) as server:
        assert "RTMR3" in read_error(call(server.dstack, "GetQuote"))
    with running_server("--reset", folder=folder) as server:
        assert read_emitted_names(server) == []


# -- options ---------------------------------------------------------------------------------------


def test_quote_version_option() -> None:
    """--quote-version 5 gives a quote with a TDX 1.5 body."""
    for options, version in (((), 4), (("--quote-version", "5"), 5)):
        with running_server(*options) as server:
            quote = call(server.dstack, "GetQuote").json()["quote"]
            assert Quote.parse(bytes.fromhex(quote)).version == version


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fault", "qgs_error"), "fault qgs_error: needs an emulated kernel"),
        (("--platform", "snp", "--quote-version", "5"), "quote_version: does not apply"),
        (
            ("--platform", "snp", "--scenario", "td-debug"),
            "scenario: for the platform tdx, not snp",
        ),
    ],
)
def test_invalid_fault_options_fail_startup(
    folder: Path, options: tuple[str, ...], message: str
) -> None:
    """Combinations that the simulator refuses print one line and exit with code 1."""
    line = refusal(*SIMULATOR, "--dir", str(folder), *options, folder=folder, code=1)
    assert message in line


def test_list_faults_ignores_closed_stdout(folder: Path) -> None:
    """--list-faults succeeds even with a closed stdout, and creates no file."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        command("--list-faults"),
        cwd=folder,
        env=environment(),
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
    assert list(folder.iterdir()) == []
