"""`attestkit run` on a terminal: job control, signals and hangup work as without it."""

import contextlib
import os
import pty
import re
import signal
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.rigs.emulator import PATIENCE, environment
from tests.rigs.ordinary_user import requires_nobody, run_tests_as_nobody
from tests.rigs.run.attestkit_run import RUN, requires_run

pytestmark = [pytest.mark.rig, pytest.mark.slow, requires_run]

INTERRUPT, SUSPEND = b"\x03", b"\x1a"


class Terminal(NamedTuple):
    """Terminal with a program."""

    fd: int
    process: "subprocess.Popen[bytes]"

    def type(self, text: str | bytes) -> None:
        """Write to the terminal."""
        os.write(self.fd, text.encode() if isinstance(text, str) else text)

    def until(self, text: str) -> str:
        """Return the output up to a line that starts with `text`."""
        shown = b""
        while not re.search(rf"(^|\n){re.escape(text)}".encode(), shown):
            try:
                piece = os.read(self.fd, 1024)
            except OSError:  # the other end is closed
                piece = b""
            assert piece, shown
            shown += piece
        return shown.decode()

    def rest(self) -> str:
        """Return the output until the terminal is closed by all processes."""
        shown = b""
        with contextlib.suppress(OSError):
            while piece := os.read(self.fd, 1024):
                shown += piece
        return shown.decode()


@contextlib.contextmanager
def open_terminal(*words: str) -> Iterator[Terminal]:
    """Start a program as the session leader of a terminal."""
    master, slave = pty.openpty()
    settings = termios.tcgetattr(slave)
    settings[3] &= ~termios.ECHO  # no echo of the input
    termios.tcsetattr(slave, termios.TCSANOW, settings)
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *words],
        env={**environment(), "PS1": "", "PS2": "", "ENV": "", "TERM": "dumb"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    timer = threading.Timer(PATIENCE, process.kill)  # ends the session, so that reads return
    timer.start()
    try:
        yield Terminal(master, process)
    finally:
        timer.cancel()
        timer.join()
        os.close(master)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        process.kill()
        process.wait()


def test_run_interactive_shell_has_job_control() -> None:
    """The shell controls its jobs, survives ^C and ^Z, and its exit code is returned."""
    with open_terminal(*RUN, "sh", "-i") as screen:
        screen.type("echo ready $((40 + 2))\n")
        first = screen.until("ready 42")
        assert "job control" not in first  # a shell without job control prints a warning
        screen.type("trap : INT; sleep 4000; echo interrupted $?\n")
        _wait_for_foreground(screen, "sleep")
        screen.type(INTERRUPT)
        screen.until("interrupted 130")
        screen.type("sleep 4001; echo suspended $?\n")
        _wait_for_foreground(screen, "sleep")
        screen.type(SUSPEND)
        screen.until("suspended 148")
        screen.type("kill -KILL %1; wait\nexit 5\nexit 5\n")
        screen.rest()
        assert screen.process.wait(PATIENCE) == 5


def _wait_for_foreground(screen: Terminal, name: str) -> None:
    """Wait until the terminal's foreground process has that name."""
    end = time.monotonic() + PATIENCE
    while True:
        group = os.tcgetpgrp(screen.fd)
        with contextlib.suppress(OSError):
            if Path(f"/proc/{group}/comm").read_text().strip() == name:
                return
        assert time.monotonic() < end, f"{name} is not in the foreground"
        time.sleep(0.01)


def test_run_interrupt_reaches_the_program_once() -> None:
    """^C affects nothing else."""
    script = "trap 'echo got' INT; echo go; read x; read x; cat /proc/sys/kernel/random/boot_id"
    with open_terminal(*RUN, "sh", "-c", script) as screen:
        screen.until("go")
        screen.type(INTERRUPT)
        screen.until("got")
        screen.type("one\ntwo\nthree\n")
        assert not re.search("got", screen.rest())
        assert screen.process.wait(PATIENCE) == 0


def test_run_interrupted_program_exits_with_130() -> None:
    """The exit code is that of a shell."""
    with open_terminal(*RUN, "sh", "-c", "echo go; exec sleep 4000") as screen:
        screen.until("go")
        screen.type(INTERRUPT)
        screen.rest()
        assert screen.process.wait(PATIENCE) == 130


def _wait_until_stopped(pid: int) -> None:
    """Wait until a process is stopped; before that it may still read the terminal."""
    end = time.monotonic() + PATIENCE
    while not Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("T"):
        assert time.monotonic() < end, f"process {pid} is not stopped"
        time.sleep(0.01)


def test_run_can_be_suspended_and_continued() -> None:
    """^Z stops all its processes, and fg continues them."""
    inner = "echo $$; echo go; read x; echo came $x; exit 3"
    with open_terminal("sh", "-i") as screen:
        screen.type(f"{' '.join(RUN)} sh -c '{inner}'; echo code $?\n")
        shown = re.search(r"(\d+)\r\ngo", screen.until("go"))
        assert shown
        screen.type(SUSPEND)
        screen.until("code 148")
        _wait_until_stopped(int(shown[1]))
        screen.type("fg; echo code $?\n")
        screen.type("back\n")
        screen.until("came back")
        screen.until("code 3")
        screen.type("exit\n")
        screen.rest()


def test_run_hangup_ends_the_program() -> None:
    """Closing the terminal ends all processes."""
    with open_terminal(*RUN, "sh", "-c", "echo go $$; exec sleep 4000") as screen:
        screen.until("go")
    assert screen.process.returncode == 128 + signal.SIGHUP


@requires_nobody
def test_run_terminal_as_ordinary_user() -> None:
    """All tests of this file pass for an ordinary user."""
    run_tests_as_nobody(Path(__file__), without="ordinary_user")
