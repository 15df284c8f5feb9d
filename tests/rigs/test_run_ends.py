"""How `attestkit run` ends: by its program, by a signal, killed; nothing of it is left.

`test_run` runs these as an ordinary user too.
"""

import os
import signal
from pathlib import Path

import pytest

from tests.rigs.attestkit_run import requires_run, run, said, start
from tests.rigs.emulator import PATIENCE, environment

pytestmark = [pytest.mark.rig, requires_run]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_passed_on(number: signal.Signals) -> None:
    """What another process says to it is said to the program, which may go on."""
    script = f"trap 'echo got' {number.name[3:]}; echo go; read line; read line; exit 9"
    with start("sh", "-c", script) as process:
        assert said(process) == "go"
        process.send_signal(number)
        assert said(process) == "got"
        output = process.communicate("one\ntwo\n", PATIENCE)
    assert (process.returncode, *output) == (9, "", "")
    with start("sh", "-c", "echo go; exec cat") as process:
        assert said(process) == "go"
        process.send_signal(number)
        assert process.wait(PATIENCE) == 128 + number


def mounts() -> str:
    """Return what is mounted here."""
    return Path("/proc/self/mounts").read_text()


def children(pid: int) -> list[int]:
    """Return a process's children."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def test_nothing_outside(tmp_path: Path) -> None:
    """Neither meanwhile nor afterwards is there a mount, a file or a temporary folder outside."""
    before = mounts()
    with start("sh", "-c", "touch /run/log/dstack/x; echo go; read x") as process:
        assert said(process) == "go"
        assert mounts() == before
        assert not Path("/run/attestkit").exists()
        assert not Path("/run/log/dstack").exists()
        emulator = min(children(process.pid))
        process.communicate("\n", PATIENCE)
    assert process.returncode == 0
    assert not Path(f"/proc/{emulator}").exists()
    environ = {**environment(), "TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    assert run("true", environ=environ, cwd=tmp_path).returncode == 0
    assert list(tmp_path.iterdir()) == []
    assert mounts() == before


@pytest.mark.parametrize(
    ("trap", "answer"), [("echo asked; exit", "asked"), ("", "")], ids=["kind", "stubborn"]
)
def test_what_is_left_running(trap: str, answer: str) -> None:
    """What the program leaves behind is asked to end, then ended, before its exit code is told."""
    loop = f"exec 2>/dev/null; trap '{trap}' TERM; echo go; while :; do sleep 0.1; done"
    with start("sh", "-c", f"({loop}) & read x; exit 5") as process:
        assert said(process) == "go"
        output, errors = process.communicate("\n", timeout=PATIENCE)
    assert (process.returncode, output.strip(), errors) == (5, answer, "")


def test_killed() -> None:
    """SIGKILL leaves nothing: all of its processes end, and with them their files and mounts."""
    before = mounts()
    script = """
        exec 2>/dev/null # where a shell may say what ended
        sleep 4000 & (trap '' INT HUP; sleep 4000; sleep 4000) & echo go; sleep 4000; true
    """
    with start("sh", "-c", script) as process:
        assert said(process) == "go"
        process.kill()
        # To their end: nobody has them open any more.
        assert process.communicate(timeout=PATIENCE) == ("", "")
    assert process.returncode == -signal.SIGKILL
    assert mounts() == before


def test_emulator_killed() -> None:
    """Without its emulator the program goes on; it is told, and the end is as clean."""
    script = "echo go; read x; cat /proc/sys/kernel/random/boot_id; sleep 4000 & exit 6"
    with start("sh", "-c", script) as process:
        assert said(process) == "go"
        os.kill(min(children(process.pid)), signal.SIGKILL)
        assert process.stderr is not None
        assert process.stderr.readline() == (
            "attestkit: the emulator ended: the files that it showed do not work any more\n"
        )
        output, errors = process.communicate("\n", PATIENCE)
    assert (process.returncode, output) == (6, "")
    assert "not connected" in errors
