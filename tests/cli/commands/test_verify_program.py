"""`attestkit verify` as a program: many files, a terminal, signals, and a PCCS."""

import os
import pty
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from attestkit.__main__ import main
from tests.cli.evidence_files import Files
from tests.cli.program import closed_pipe, run, wait_until_read
from tests.serve.server import environment
from tests.verifier.platforms import intel

Capture = pytest.CaptureFixture[str]


# -- many --------------------------------------------------------------------------------------


def _fifty(files: Files) -> list[str]:
    paths = [files.put(f"{n:02}.bin", files.evidence.read_bytes()) for n in range(49)]
    return [*map(str, paths), str(files.tampered())]


def test_verify_many_files_shows_progress_bar(files: Files) -> None:
    """A terminal at stderr gets a progress bar; results go to stdout."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "attestkit", "verify", *_fifty(files), *files.trusted],
        stdout=subprocess.PIPE,
        stderr=follower,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    ) as process:
        os.close(follower)
        assert process.stdout is not None
        output, bar = _read_both(process.stdout.fileno(), leader)
        assert process.wait() == 2
    os.close(leader)
    assert "verifying" in bar
    assert "/50" in bar
    assert f"{files.folder}/tampered: " in bar  # errors follow the bar
    assert "49 of 50 accepted, 1 not" in output
    assert output.count("accepted  ") == 49


def _read_both(stdout: int, terminal: int) -> tuple[str, str]:
    """Read both to EOF, which for a terminal is an OSError."""
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
def test_signal_restores_terminal_cursor(number: int, files: Files) -> None:
    """A signal ends the process after the cursor was restored."""
    pipe = files.folder / "pipe"
    os.mkfifo(pipe)
    leader, follower = pty.openpty()
    words = ["verify", *[str(files.evidence)] * 10, str(pipe), *files.trusted]
    with subprocess.Popen(
        [sys.executable, "-m", "attestkit", *words],
        env={**environment(), "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=follower,
    ) as process:
        os.close(follower)
        with wait_until_read(pipe, process):  # with the bar shown
            process.send_signal(number)
        assert process.stdout is not None
        _, bar = _read_both(process.stdout.fileno(), leader)
    os.close(leader)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert bar.rindex("\x1b[?25h") > bar.rindex("\x1b[?25l")


def test_verify_without_terminal_has_no_progress_bar(files: Files, capsys: Capture) -> None:
    """Without a terminal, stderr has only errors."""
    assert main(["verify", *_fifty(files), *files.trusted]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "verifying" not in err


def test_verify_closed_pipe_keeps_exit_code(files: Files) -> None:
    """A closed stdout does not change the exit code."""
    with closed_pipe() as writer:
        done = run("verify", str(files.tampered()), *files.trusted, stdout=writer)
    assert done.returncode == 2


# -- fetching ----------------------------------------------------------------------------------


@pytest.fixture
def pccs() -> Iterator[tuple[str, list[str]]]:
    """A simulated PCCS: its URL, and the requested paths."""
    from attestkit.backends.simulator.pki.pccs import ServedPlatform, SimulatedPccs

    requests: list[str] = []
    platform = intel.PKI.platform()
    service = SimulatedPccs(intel.collateral, [ServedPlatform(platform.qe_id, platform.pck_der)])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            status, headers, body = service.respond(*self.path.partition("?")[::2])
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
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_verify_fetches_collateral_only_on_request(
    pccs: tuple[str, list[str]], files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Collateral is fetched with --pccs or $PCCS_URL, once for many files, never beside a file."""
    url, requests = pccs
    one = str(files.evidence)
    assert main(["verify", one, *files.anchored]) == 3
    assert main(["verify", one, *files.trusted]) == 0
    assert requests == []
    assert (
        main(["verify", *[one] * 12, str(files.certificate), *files.anchored, "--pccs", url]) == 0
    )
    assert 0 < len(requests) < 12
    requests.clear()
    monkeypatch.setenv("PCCS_URL", url)
    assert main(["verify", one, *files.trusted]) == 0
    assert main(["verify", str(files.bundle), *files.own_instant]) == 0
    assert requests == []
    assert main(["verify", one, *files.anchored]) == 0
    assert requests
