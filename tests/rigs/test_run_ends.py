"""How `attestkit run` ends: by its program, by a signal, killed; nothing of it is left.

`test_run` runs these as an ordinary user too.
"""

import os
import signal
import threading
from pathlib import Path

import pytest

from tests.rigs.attestkit_run import requires_run, run, said, start
from tests.rigs.emulator import PATIENCE, environment

pytestmark = [pytest.mark.rig, pytest.mark.slow, requires_run]


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


def mounts() -> list[str]:
    """Return what is mounted here as `attestkit run` does it; other tests mount elsewhere."""
    found = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        source, place, _ = line.split(" ", 2)
        top = place.split("/")[1]
        if source == "attestkit" and (
            place == f"/{top}" or place.startswith("/run/attestkit") or top in {"proc", "sys"}
        ):
            found.append(line)
    return found


def children(pid: int) -> list[int]:
    """Return a process's children."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount in there")
def test_a_program_that_covers_the_files() -> None:
    """It ends as any other does, though no path leads to the machine any more."""
    done = run("sh", "-c", "mount -t tmpfs x /run; echo covered")
    assert (done.returncode, done.stdout) == (0, "covered\n")


def test_nothing_outside(tmp_path: Path) -> None:
    """Neither meanwhile nor afterwards is there a mount, a file or a temporary folder outside."""
    before = mounts()
    made = "/run/log/dstack/made-by-test-run-ends"  # a real machine may have such folders itself
    with start("sh", "-c", f"touch {made}; echo go; read x") as process:
        assert said(process) == "go"
        assert mounts() == before
        assert not os.access("/run/attestkit/machine", os.F_OK)
        assert not os.access(made, os.F_OK)
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


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_emulator_killed(number: signal.Signals) -> None:
    """Without its emulator the program is ended, kindly at first, and the line says why."""
    script = "trap 'echo asked; exit' TERM; sleep 4000 & echo $$; while :; do sleep 0.1; done"
    with start("sh", "-c", f"exec 2>/dev/null; {script}") as process:
        program = int(said(process))
        os.kill(min(children(process.pid)), number)
        timer = threading.Timer(PATIENCE, os.kill, (program, signal.SIGKILL))
        timer.start()
        output = process.communicate()  # to their end: nobody has them open any more
        timer.cancel()
        timer.join()
        assert output == (
            "asked\n",
            "attestkit: the emulator was ended, and the program with it: its files were gone\n",
        )
    assert process.returncode == 3
