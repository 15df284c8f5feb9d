"""`attestkit verify` as a program: many files, a terminal, signals, and a PCCS to ask."""

import os
import pty
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from attestkit.__main__ import main
from tests.cli import evidence_files
from tests.cli.evidence_files import Files
from tests.cli.pipes import being_read
from tests.serve.server import environment
from tests.verifier import parcels

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Good evidence in every form, and what it takes to believe it."""
    return evidence_files.write(tmp_path)


# -- many --------------------------------------------------------------------------------------


def _fifty(files: Files) -> list[str]:
    paths = [files.put(f"{n:02}.bin", files.evidence.read_bytes()) for n in range(49)]
    return [*map(str, paths), str(files.tampered())]


def test_fifty_files_show_progress_on_a_terminal(files: Files) -> None:
    """On stderr a bar moves; verdicts go to stdout, and the one bad file decides the exit code."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "attestkit", "verify", *_fifty(files), *files.trusted],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    ) as process:
        os.close(theirs)
        assert process.stdout is not None
        told, bar = _both(process.stdout.fileno(), ours)
        assert process.wait() == 2
    os.close(ours)
    assert "verifying" in bar
    assert "/50" in bar
    assert f"{files.folder}/tampered: " in bar  # what went wrong is there after the bar
    assert "49 of 50 accepted, 1 not" in told
    assert told.count("accepted  ") == 49


def _both(stdout: int, terminal: int) -> tuple[str, str]:
    """Read both to their ends; that of a terminal is an error of the system's."""
    found: dict[int, bytes] = {stdout: b"", terminal: b""}
    unread = set(found)
    while unread:
        for ready in select.select(unread, [], [], 60)[0]:
            try:
                got = os.read(ready, 65536)
            except OSError:
                got = b""
            found[ready] += got
            if not got:
                unread.discard(ready)
    return found[stdout].decode(), found[terminal].decode(errors="replace")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_the_terminal_with_its_cursor(number: int, files: Files) -> None:
    """The bar has hidden it; the signal ends the process all the same."""
    pipe = files.folder / "pipe"
    os.mkfifo(pipe)
    ours, theirs = pty.openpty()
    words = ["verify", *[str(files.evidence)] * 10, str(pipe), *files.trusted]
    with subprocess.Popen(
        [sys.executable, "-m", "attestkit", *words],
        env={**environment(), "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        with being_read(pipe, process):  # which is with the bar shown
            process.send_signal(number)
        assert process.stdout is not None
        _, bar = _both(process.stdout.fileno(), ours)
    os.close(ours)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert bar.rindex("\x1b[?25h") > bar.rindex("\x1b[?25l")


def test_without_a_terminal_there_is_no_bar(files: Files, capsys: Capture) -> None:
    """Then stderr has the refusals and nothing else."""
    assert main(["verify", *_fifty(files), *files.trusted]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "verifying" not in err


def test_a_closed_pipe_does_not_turn_a_rejection_into_good(files: Files) -> None:
    """Whoever stops reading the verdicts still gets the exit code."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "attestkit", "verify", str(files.tampered()), *files.trusted],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert done.returncode == 2


# -- fetching ----------------------------------------------------------------------------------


@pytest.fixture
def pccs() -> Iterator[tuple[str, list[str]]]:
    """A PCCS of the simulator's on a socket: its URL, and the paths that it was asked for."""
    from attestkit.backends.simulator.pki.pccs import ServedPlatform, SimulatedPccs

    asked: list[str] = []
    platform = parcels.PKI.platform()
    service = SimulatedPccs(parcels.collateral, [ServedPlatform(platform.qe_id, platform.pck_der)])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            status, headers, body = service.answer(*self.path.partition("?")[::2])
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_collateral_is_fetched_where_that_is_asked_for(
    pccs: tuple[str, list[str]], files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By option or by $PCCS_URL; once for many files; and never beside a file that is given."""
    url, asked = pccs
    one = str(files.evidence)
    assert main(["verify", one, *files.anchored]) == 3
    assert main(["verify", one, *files.trusted]) == 0
    assert asked == []
    assert (
        main(["verify", *[one] * 12, str(files.certificate), *files.anchored, "--pccs", url]) == 0
    )
    assert 0 < len(asked) < 12
    asked.clear()
    monkeypatch.setenv("PCCS_URL", url)
    assert main(["verify", one, *files.trusted]) == 0
    assert main(["verify", str(files.bundle), *files.own_instant]) == 0
    assert asked == []
    assert main(["verify", one, *files.anchored]) == 0
    assert asked
