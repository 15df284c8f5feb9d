"""`attestkit verify` as a program: many files, a terminal, and signals."""

import os
import pty
import signal

import pytest

from attestkit.__main__ import main
from tests.cli.evidence_files import Files
from tests.cli.program import closed_pipe, read_to_end, run, start, wait_until_read
from tests.serve.server import environment
from tests.thorough import slow

Capture = pytest.CaptureFixture[str]


# -- many --------------------------------------------------------------------------------------


def _fifty(files: Files) -> list[str]:
    paths = [files.put(f"{n:02}.bin", files.evidence.read_bytes()) for n in range(49)]
    return [*map(str, paths), str(files.tampered())]


def test_verify_many_files_shows_progress_bar(files: Files) -> None:
    """A terminal at stderr gets a progress bar; results go to stdout."""
    leader, follower = pty.openpty()
    env = environment(TERM="xterm", COLUMNS="100")
    words = ["verify", "--any-freshness", *_fifty(files), *files.trusted]
    with start(*words, stderr=follower, env=env) as process:
        os.close(follower)
        assert process.stdout is not None
        output, bar = read_to_end(process.stdout.fileno(), leader)
        assert process.wait() == 2
    os.close(leader)
    assert "verifying" in bar
    assert "/50" in bar
    assert f"{files.folder}/tampered: " in bar  # errors follow the bar
    assert "49 of 50 accepted, 1 not" in output
    assert output.count("accepted  ") == 49


@pytest.mark.parametrize("number", [signal.SIGINT, *slow((signal.SIGTERM,), (signal.SIGHUP,))])
def test_signal_restores_terminal_cursor(number: int, files: Files) -> None:
    """A signal ends the process after the cursor was restored."""
    pipe = files.folder / "pipe"
    os.mkfifo(pipe)
    leader, follower = pty.openpty()
    words = ["verify", "--any-freshness", *[str(files.evidence)] * 10, str(pipe), *files.trusted]
    with start(*words, stderr=follower, env=environment(TERM="xterm")) as process:
        os.close(follower)
        with wait_until_read(pipe, process):  # with the bar shown
            process.send_signal(number)
        assert process.stdout is not None
        _, bar = read_to_end(process.stdout.fileno(), leader)
    os.close(leader)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert bar.rindex("\x1b[?25h") > bar.rindex("\x1b[?25l")


def test_verify_without_terminal_has_no_progress_bar(files: Files, capsys: Capture) -> None:
    """Without a terminal, stderr has only errors."""
    assert main(["verify", "--any-freshness", *_fifty(files), *files.trusted]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "verifying" not in err


def test_verify_closed_pipe_keeps_exit_code(files: Files) -> None:
    """A closed stdout does not change the exit code."""
    with closed_pipe() as writer:
        done = run(
            "verify", "--any-freshness", str(files.tampered()), *files.trusted, stdout=writer
        )
    assert done.returncode == 2
