"""A server whose simulator fails: clients get our texts, and what comes next is a good answer."""

import contextlib
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from attestkit import EventLog, Quote
from attestkit.backends.simulator.faults.injection import simulator_faults
from attestkit.event_log.journal import LOG, PENDING
from tests.serve.client import Answer, Connection, call
from tests.serve.server import Server, command, environment, refusal, run_to_end, running_server

SIMULATOR = ("--backend", "simulator", "--http", "127.0.0.1:0")
SLOW = 2.0  # seconds that the host takes, in a test of what does not wait for it


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, for a socket's path has little room."""
    with tempfile.TemporaryDirectory(prefix="ak") as name:
        yield Path(name)


def error(answer: Answer) -> str:
    """Return the text of an error that is the machine's."""
    assert answer.status == 500, answer.body
    assert answer.headers["content-type"].startswith("application/json")
    found = answer.json()
    assert list(found) == ["error"]
    text = str(found["error"])
    assert "\n" not in text
    return text


def names(server: Server) -> list[str]:
    """Return the names of what the app emitted, of a log that replays to its quote."""
    answer = call(server.dstack, "GetQuote")
    assert answer.status == 200, answer.body
    log = EventLog.from_json(answer.json()["event_log"])
    log.check(Quote.parse(bytes.fromhex(answer.json()["quote"])))
    found = [event.name for event in log.runtime]
    return found[found.index("system-ready") + 1 :]


def emit(server: Server, name: str) -> Answer:
    """Emit an event."""
    return call(server.dstack, "EmitEvent", {"event": name, "payload": "00"})


@contextlib.contextmanager
def closed_pipe() -> Iterator[int]:
    """Return an end to write to, which nobody reads from."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


# -- evidence --------------------------------------------------------------------------------------


def test_a_busy_device_is_told_as_often_as_it_is_busy() -> None:
    """Three times, by whatever method; the fourth request is a good one, on one connection."""
    with running_server("--fault", "ebusy:3") as server:
        connection = Connection(server.dstack)
        for method, what in (
            ("GetQuote", "quote"),
            ("Attest", "attestation"),
            ("GetQuote", "quote"),
        ):
            text = error(connection.call(method, {"report_data": "77"}))
            assert text.startswith(f"Failed to get {what}: simulated fault ebusy: an earlier ")
        answer = connection.call("GetQuote", {"report_data": "77" * 64})
        assert answer.status == 200
        assert Quote.parse(bytes.fromhex(answer.json()["quote"])).report_data == b"\x77" * 64
        connection.close()
        assert "what will go wrong: ebusy:3" in server.log()
        server.check_log()


def test_every_door_tells_it() -> None:
    """Older clients, the protobuf form, certificates and Info too; never as a status of success."""
    with running_server("--fault", "eio:5") as server:
        assert "simulated fault eio" in error(
            call(server.tappd, "prpc/Tappd.TdxQuote", {"report_data": "00"})
        )
        connection = Connection(server.dstack)
        headers = {"Content-Type": "application/octet-stream"}
        answer = connection.send_request("POST", "/GetQuote", b"", headers)
        assert (answer.status, b"simulated fault eio" in answer.body) == (500, True)
        connection.close()
        message = {"subject": "x", "usage_ra_tls": True}
        assert "simulated fault eio" in error(call(server.dstack, "GetTlsKey", message))
        assert "simulated fault eio" in error(call(server.dstack, "Attest"))
        assert "simulated fault eio" in error(call(server.dstack, "Info"))
        assert call(server.dstack, "GetTlsKey", message).status == 200


def test_what_needs_no_device_never_fails() -> None:
    """Keys, versions and signatures are given while there is no quote at all."""
    with running_server("--fault", "provider_leaves:*") as server:
        assert "provider_leaves" in error(call(server.dstack, "GetQuote"))
        assert call(server.dstack, "Version").status == 200
        assert call(server.dstack, "GetKey", {"path": "x"}).status == 200
        assert "provider_leaves" in error(call(server.dstack, "GetQuote"))


def test_a_slow_host_holds_up_nobody_else() -> None:
    """While one waits for its quote, other listeners and methods answer; then it gets its quote."""
    with (
        running_server("--fault", f"slow:{SLOW:g}s", "--dev-http", "127.0.0.1:0") as server,
        ThreadPoolExecutor(1) as pool,
    ):
        call(server.url, "metrics")  # loads what it needs
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


def test_an_event_that_failed_lost_nothing() -> None:
    """It is not there, what was there stays, and the next one is taken."""
    with running_server("--fault", "rtmr_extend_fails@1") as server:
        assert emit(server, "first").status == 200
        text = error(emit(server, "failed"))
        assert text.startswith("simulated fault rtmr_extend_fails: ")
        assert names(server) == ["first"]
        assert emit(server, "second").status == 200
        assert names(server) == ["first", "second"]


def test_an_event_that_happened_in_spite_of_the_answer() -> None:
    """The register decides at once: the client is not told of an error that was none."""
    with running_server("--fault", "rtmr_extend_lies") as server:
        assert emit(server, "counted").status == 200
        assert names(server) == ["counted"]


@pytest.mark.parametrize("killed", [False, True])
def test_a_torn_journal_is_mended_at_the_next_call(folder: Path, *, killed: bool) -> None:
    """By the next request, or by the next server: what was extended is in the log, once."""
    with running_server("--fault", "torn_journal@1", folder=folder) as server:
        assert emit(server, "first").status == 200
        log = (folder / LOG).read_bytes()
        text = error(emit(server, "torn"))
        assert "torn_journal" in text
        assert "RTMR3 was extended" in text
        assert "do not repeat" in text
        pending = (folder / PENDING).read_bytes()
        assert (folder / LOG).read_bytes() == log + pending[: len(pending) // 2]
        if killed:
            server.process.kill()
            server.process.wait()
        else:
            assert names(server) == ["first", "torn"]
    with running_server(folder=folder) as server:
        assert names(server) == ["first", "torn"]
        assert emit(server, "second").status == 200
        assert names(server) == ["first", "torn", "second"]
    assert (folder / LOG).read_bytes().startswith(log + pending)
    assert not (folder / PENDING).exists()


def test_somebody_elses_extend_is_told_until_a_reboot(folder: Path) -> None:
    """No answer carries a log that does not explain its quote; --reset starts both anew."""
    with running_server("--fault", "foreign_extend", folder=folder) as server:
        for method in ("GetQuote", "Attest", "GetQuote"):
            assert "RTMR3" in error(call(server.dstack, method))
        assert "disagree" in error(emit(server, "never"))
    with running_server(folder=folder) as server:
        assert "RTMR3" in error(call(server.dstack, "GetQuote"))
    with running_server("--reset", folder=folder) as server:
        assert names(server) == []


# -- options ---------------------------------------------------------------------------------------


def test_the_version_of_quotes() -> None:
    """--quote-version 5 is a quote with the body of TDX 1.5."""
    for options, version in (((), 4), (("--quote-version", "5"), 5)):
        with running_server(*options) as server:
            quote = call(server.dstack, "GetQuote").json()["quote"]
            assert Quote.parse(bytes.fromhex(quote)).version == version


def test_a_configuration_arms_faults(folder: Path) -> None:
    """As the command line does, which goes before it."""
    (folder / "agent.toml").write_text('[default.attestkit]\nfault = ["eio", "ebusy"]\n')
    with running_server("-c", "agent.toml", "--http", "127.0.0.1:0", folder=folder) as server:
        assert "what will go wrong: eio:1 ebusy:1" in server.log()
        texts = [error(call(server.dstack, "GetQuote")) for _ in range(2)]
        assert ["fault eio" in texts[0], "fault ebusy" in texts[1]] == [True, True]
    options = ("-c", "agent.toml", "--http", "127.0.0.1:0", "--fault", "eintr")
    with running_server(*options, folder=folder) as server:
        assert "what will go wrong: eintr:1\n" in server.log()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--fault", "ebsuy"), "--fault ebsuy: no fault is called 'ebsuy'; did you mean ebusy"),
        (("--fault", ""), "--fault: the value is empty"),
        (("--fault", "qgs_error"), "qgs_error cannot go wrong on the simulator"),
        (("--quote-version", "3"), "--quote-version"),
        (("--platform", "sgx"), "--platform"),
        (("--platform", "snp", "--quote-version", "5"), "no version of quotes is chosen"),
        (("--platform", "snp", "--fault", "torn_journal"), "torn_journal cannot go wrong"),
        (("--platform", "snp", "--scenario", "td-debug"), "of platform tdx, not snp"),
        (
            ("--scenario", "nope"),
            "--scenario nope: no scenario is called 'nope'; attestkit",
        ),
    ],
)
def test_what_cannot_go_wrong_is_one_line(
    folder: Path, options: tuple[str, ...], told: str
) -> None:
    """A wrong name is told, and nothing is served."""
    line = refusal(*SIMULATOR, "--dir", str(folder), *options, folder=folder, code=1)
    assert told in line


def test_on_hardware_nothing_is_made_to_fail(folder: Path) -> None:
    """The options are the simulator's alone."""
    for option, value in (
        ("--fault", "ebusy"),
        ("--quote-version", "5"),
        ("--platform", "tdx"),
        ("--scenario", "td-debug"),
    ):
        options = ("--backend", "configfs_tsm", "--dir", str(folder), option, value)
        line = refusal(*options, folder=folder, code=1)
        assert line.endswith(f"{option} is for the simulator only")


def test_the_list(folder: Path) -> None:
    """--list-faults prints a line for each and stops; nothing is made in the folder."""
    done = run_to_end("--list-faults", folder=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == list(simulator_faults())
    with closed_pipe() as end:
        unread = subprocess.run(
            command("--list-faults"),
            env=environment(),
            stdout=end,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (unread.returncode, unread.stderr) == (0, b"")
    assert list(folder.iterdir()) == []
    assert re.search(r"^ebusy +reading outblob fails with EBUSY$", done.stdout, re.MULTILINE)
