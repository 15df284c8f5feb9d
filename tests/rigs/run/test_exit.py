"""End of `attestkit run`: exit codes, signals and cleanup.

`test_run` runs these tests as an ordinary user, too.
"""

import os
import signal
import threading
from pathlib import Path

import pytest

from tests.rigs.emulator import PATIENCE, environment
from tests.rigs.run.attestkit_run import read_line, requires_run, run, start

pytestmark = [pytest.mark.rig, pytest.mark.slow, requires_run]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_run_forwards_signals(number: signal.Signals) -> None:
    """The program may handle them and continue."""
    script = f"trap 'echo got' {number.name[3:]}; echo go; read line; read line; exit 9"
    with start("sh", "-c", script) as process:
        assert read_line(process) == "go"
        process.send_signal(number)
        assert read_line(process) == "got"
        output = process.communicate("one\ntwo\n", PATIENCE)
    assert (process.returncode, *output) == (9, "", "")
    with start("sh", "-c", "echo go; exec cat") as process:
        assert read_line(process) == "go"
        process.send_signal(number)
        assert process.wait(PATIENCE) == 128 + number


def list_mounts() -> list[str]:
    """Return the mounts of `attestkit run` on this machine."""
    found = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        source, place, _ = line.split(" ", 2)
        top = place.split("/")[1]
        if source == "attestkit" and (
            place == f"/{top}" or place.startswith("/run/attestkit") or top in {"proc", "sys"}
        ):
            found.append(line)
    return found


def list_children(pid: int) -> list[int]:
    """Return a process's children."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount in there")
def test_run_program_may_hide_the_files() -> None:
    """It ends normally, even if no path leads to the machine."""
    done = run("sh", "-c", "mount -t tmpfs x /run; echo covered")
    assert (done.returncode, done.stdout) == (0, "covered\n")


def test_run_leaves_nothing_outside(tmp_path: Path) -> None:
    """There is no mount, file or temporary directory outside, at any time."""
    before = list_mounts()
    made = "/run/log/dstack/made-by-test-run-ends"  # a real machine may have such directories
    with start("sh", "-c", f"touch {made}; echo go; read x") as process:
        assert read_line(process) == "go"
        assert list_mounts() == before
        assert not os.access("/run/attestkit/machine", os.F_OK)
        assert not os.access(made, os.F_OK)
        emulator = min(list_children(process.pid))
        process.communicate("\n", PATIENCE)
    assert process.returncode == 0
    assert not Path(f"/proc/{emulator}").exists()
    environ = {**environment(), "TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    assert run("true", environ=environ, cwd=tmp_path).returncode == 0
    assert list(tmp_path.iterdir()) == []
    assert list_mounts() == before


@pytest.mark.parametrize(
    ("trap", "answer"),
    [("echo terminated; exit", "terminated"), ("", "")],
    ids=["handles SIGTERM", "ignores SIGTERM"],
)
def test_run_ends_remaining_processes(trap: str, answer: str) -> None:
    """They get SIGTERM, then SIGKILL, before the exit code is returned."""
    loop = f"exec 2>/dev/null; trap '{trap}' TERM; echo go; while :; do sleep 0.1; done"
    with start("sh", "-c", f"({loop}) & read x; exit 5") as process:
        assert read_line(process) == "go"
        output, errors = process.communicate("\n", timeout=PATIENCE)
    assert (process.returncode, output.strip(), errors) == (5, answer, "")


def test_run_killed_leaves_nothing() -> None:
    """After SIGKILL all its processes end, and with them its files and mounts."""
    before = list_mounts()
    script = """
        exec 2>/dev/null # where a shell may say what ended
        sleep 4000 & (trap '' INT HUP; sleep 4000; sleep 4000) & echo go; sleep 4000; true
    """
    with start("sh", "-c", script) as process:
        assert read_line(process) == "go"
        process.kill()
        # read up to the end: no process has them open
        assert process.communicate(timeout=PATIENCE) == ("", "")
    assert process.returncode == -signal.SIGKILL
    assert list_mounts() == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_run_ends_program_without_emulator(number: signal.Signals) -> None:
    """If the emulator is killed, the program gets SIGTERM, and the error states the reason."""
    script = "trap 'echo terminated; exit' TERM; sleep 4000 & echo $$; while :; do sleep 0.1; done"
    with start("sh", "-c", f"exec 2>/dev/null; {script}") as process:
        program = int(read_line(process))
        os.kill(min(list_children(process.pid)), number)
        timer = threading.Timer(PATIENCE, os.kill, (program, signal.SIGKILL))
        timer.start()
        output = process.communicate()  # read up to the end: no process has them open
        timer.cancel()
        timer.join()
        assert output == (
            "terminated\n",
            "attestkit: emulator: terminated, and the program with it\n",
        )
    assert process.returncode == 3
