"""`attestkit mount`: it says that it is ready, ends cleanly, and refuses in one line."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from attestkit.emulator import fuse_mount
from attestkit.errors import BackendUnavailableError
from tests.rigs.emulator import (
    PATIENCE,
    command,
    emulator,
    environment,
    requires_fuse,
    stop,
)
from tests.rigs.file_calls import MEASUREMENTS, put
from tests.thorough import slow

pytestmark = [pytest.mark.rig, requires_fuse]


def test_ready_line_and_end() -> None:
    """It says once that it is ready; a signal ends it, with its mount gone and nothing said."""
    with emulator() as machine:
        assert (
            machine.line
            == f"ready {machine.root} trust-anchor={machine.root}/attestkit/trust-anchor.der\n"
        )
        log = (machine.root / "run/log/dstack").resolve()
        assert log.is_dir()
        machine.process.terminate()
        assert machine.process.wait(PATIENCE) == 0
        assert not os.path.ismount(machine.root)
        assert list(machine.root.iterdir()) == []
        assert not log.exists()
        assert machine.errors.read_text() == ""


def test_ready_in_json(tmp_path: Path) -> None:
    """With --json it says in one object where everything is, and who answers."""
    (tmp_path / "mount").mkdir()
    with subprocess.Popen(
        command(tmp_path / "mount", "--json"), env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert told.pop("pid") == process.pid
        assert told.pop("folder") == str(tmp_path / "mount")
        assert Path(told.pop("control"), "collateral.json").is_file()
        assert Path(told.pop("trust_anchor")).is_file()
        assert told == {}
        assert stop(process, tmp_path / "mount") == 0


@pytest.mark.parametrize("how", ["full", "closed pipe"])
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_ready_line_that_cannot_be_told(how: str, more: list[str], tmp_path: Path) -> None:
    """Whoever waits for it would wait for ever: the mount ends, with exit code 1 and one line."""
    (tmp_path / "mount").mkdir()
    reader, writer = os.pipe()
    os.close(reader)
    if how == "full":
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    done = subprocess.run(
        command(tmp_path / "mount", *more),
        env=environment(),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    os.close(writer)
    why = "No space left on device" if how == "full" else "Broken pipe"
    assert (done.returncode, done.stderr) == (1, f"attestkit: stdout cannot be written: {why}\n")
    assert not os.path.ismount(tmp_path / "mount")


def test_every_way_to_give_a_seed(tmp_path: Path) -> None:
    """Hex with and without 0x, and files, which keep it from who sees command lines."""
    raw, text = tmp_path / "raw", tmp_path / "text"
    raw.write_bytes(b"\x11" * 32)
    text.write_text("11" * 32 + "\n")
    ways = (f"0x{'11' * 32}", f"0X{'11' * 32}", f"@{raw}", f"@{text}")
    with emulator(seed="11" * 32) as machine:
        root = machine.trust_anchor
    for way in ways:
        with emulator(seed=way) as machine:
            assert machine.trust_anchor == root, way
    for file in (raw, text):
        with emulator(seed=None, seed_file=file) as machine:
            assert machine.trust_anchor == root, file


EARLY = """
import os, signal, sys
from attestkit.emulator.fuse_mount import serve

def random(size):  # asked for when temporary files are there, and the mount is not
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    return os.urandom(size)

serve(sys.argv[1], seed=bytes(32), random=random)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take a mount away")
def test_signal_where_the_mount_is_gone() -> None:
    """A mount that no path leads to any more, and that somebody still uses, ends all the same."""
    with emulator() as machine, (machine.root / "attestkit/trust-anchor.der").open("rb"):
        subprocess.run(["umount", "-l", str(machine.root)], check=True)
        machine.process.terminate()
        assert machine.process.wait(PATIENCE) == 0


def test_ready_line_that_cannot_be_told_where_signals_are_ignored(tmp_path: Path) -> None:
    """It ends by itself then, not by a signal."""
    words = ["/bin/sh", "-c", 'trap "" TERM; exec "$@" >/dev/full', "sh", *command(tmp_path)]
    done = subprocess.run(
        words, env=environment(), timeout=PATIENCE, check=False, stderr=subprocess.PIPE, text=True
    )
    assert (done.returncode, "stdout cannot be written" in done.stderr) == (1, True)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT", "SIGTERM"])
def test_early_signal(tmp_path: Path, name: str) -> None:
    """A signal that comes before the mount answers leaves neither a mount nor a temporary file."""
    folder, temporary = tmp_path / "mount", tmp_path / "temporary"
    folder.mkdir()
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", EARLY, str(folder), name],
        env={**environment(), "TMPDIR": str(temporary)},
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0
    assert not os.path.ismount(folder)
    assert list(temporary.iterdir()) == []


def test_signals_without_end() -> None:
    """Who says it again and again does not keep it from cleaning up."""
    with emulator() as machine:
        log = (machine.root / "run/log/dstack").resolve()
        while machine.process.poll() is None:
            machine.process.terminate()
        assert not log.exists()
        assert not os.path.ismount(machine.root)


def test_ignored_signal(tmp_path: Path) -> None:
    """What whoever started it ignores, as nohup does, does not end it."""
    words = command(tmp_path)
    with subprocess.Popen(
        ["/bin/sh", "-c", 'trap "" HUP; exec "$@"', "sh", *words],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready")
        process.send_signal(signal.SIGHUP)
        for _ in range(3):  # a request would be the last one
            assert (tmp_path / "proc/sys/kernel/random/boot_id").read_text()
        assert stop(process, tmp_path) == 0


def test_killed() -> None:
    """The fixture leaves no mount behind, also of an emulator that was killed."""
    with emulator() as machine:
        machine.process.kill()
        machine.process.wait(PATIENCE)
        assert str(machine.root) in Path("/proc/self/mounts").read_text()
    assert str(machine.root) not in Path("/proc/self/mounts").read_text()
    assert not machine.root.parent.exists()


def test_same_seed_same_root() -> None:
    """The root follows from the seed; without one it is random."""
    with emulator() as one, emulator() as two, emulator(seed=None) as other:
        assert one.trust_anchor == two.trust_anchor
        assert one.trust_anchor != other.trust_anchor
        assert one.boot_id != two.boot_id


def test_state_dir_keeps_seed_and_log(tmp_path: Path) -> None:
    """With a folder of its own the machine comes back, switched on anew; two cannot share it."""
    state = str(tmp_path / "state")
    with emulator(state_dir=state, seed=None) as machine:
        root, boot_id = machine.trust_anchor, machine.boot_id
        (machine.root / "run/log/dstack/kept").touch()
        put(machine.root / MEASUREMENTS / "rtmr3:sha384", bytes(48))
        assert refusal(tmp_path, f"--state-dir={state}", code=3).startswith("another program runs")
    with emulator(state_dir=state, seed=None) as machine:
        assert machine.trust_anchor == root
        assert machine.boot_id != boot_id
        assert machine.rtmr(3) == bytes(48)
        assert (machine.root / "run/log/dstack/kept").exists()


def refusal(tmp_path: Path, *options: str, code: int = 1, folder: Path | None = None) -> str:
    """Run an emulator that must refuse; return its one line."""
    if folder is None:
        folder = tmp_path / "mount"
        folder.mkdir(exist_ok=True)
    done = subprocess.run(
        command(folder, *options),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (code, "")
    [line] = done.stderr.splitlines()
    return line.removeprefix("attestkit: ")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        # A program each. These are a number, a file, and the names of two parts.
        ("--seed=11", "--seed is 32 bytes in hex"),
        ("--seed-file=none", "none: No such file or directory"),
        ("--fault=bad", "no fault is called 'bad'; write it as"),
        ("--qgs=vsock:x", "want vsock:PORT"),
        *slow(
            ("--seed=0xzz", "--seed is not hex"),
            ("--seed=@none", "none: No such file or directory"),
            ("--seed-file=", "the path is empty"),
            ("--mr-config-id=0X00", "--mr-config-id is 48 bytes in hex"),
            ("--host-data=0x00", "--host-data is 32 bytes in hex"),
            ("--mr-config-id=00", "--mr-config-id is 48 bytes in hex"),
            ("--provider=tdx", "no provider is called 'tdx': tdx_guest, sev_guest, none"),
            ("--kernel=six", "a kernel release is like 6.12 or 6.12.80, not 'six'"),
            ("--driver=E", "no driver is called 'E'"),
            ("--quote-version=3", "quotes of version 4 and 5, not 3"),
            ("--vmpl=4", "vmpl is 0 to 3"),
        ),
    ],
)
def test_wrong_options(tmp_path: Path, option: str, words: str) -> None:
    """A wrong option is one line that says what is wanted."""
    assert words in refusal(tmp_path, option)


def test_wrong_folder(tmp_path: Path) -> None:
    """The folder must be there, and empty; the rest of the machine is not for hiding."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    assert "is not empty" in refusal(tmp_path, folder=tmp_path / "full")
    assert "is no folder to mount on" in refusal(tmp_path, folder=tmp_path / "none")
    assert "is no folder to mount on" in refusal(tmp_path, folder=tmp_path / "full/file")
    with emulator() as machine:
        assert "is not empty" in refusal(tmp_path, folder=machine.root)


def test_qgs_that_cannot_listen(tmp_path: Path) -> None:
    """A quote generation service that cannot listen is an error, not a machine without one."""
    said = refusal(tmp_path, f"--qgs={tmp_path}/none/socket", code=3)
    assert "cannot listen on" in said


def test_refused_mount(tmp_path: Path) -> None:
    """What libfuse says of a mount that it cannot make is one line of ours."""
    if os.geteuid():
        pytest.skip("only root can take the right to mount away")
    (tmp_path / "mount").mkdir()
    done = subprocess.run(
        ["unshare", "--user", *command(tmp_path / "mount")],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (3, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(f"attestkit: cannot mount on {tmp_path}/mount: fuse")


def test_list_of_faults() -> None:
    """The command line lists what can go wrong, without a folder."""
    words = [sys.executable, "-m", "attestkit", "mount", "--list-faults"]
    done = subprocess.run(
        words, env=environment(), check=True, capture_output=True, text=True, timeout=PATIENCE
    )
    assert [line.split()[0] for line in done.stdout.splitlines()][:2] == ["ebusy", "eintr"]
    assert [line.split()[0] for line in done.stdout.splitlines()[-3:]] == [
        *("OPERATION=ERRNO", "OPERATION", "ERRNO")
    ]
    done = subprocess.run(
        words[:-1], env=environment(), check=False, capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stderr) == (1, "attestkit: which folder? attestkit mount DIR\n")


def test_fuse_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thing that FUSE needs is named when it is missing, with what to do."""
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "mfusepy", None)
        with pytest.raises(BackendUnavailableError, match=r"mfusepy: pip install .*\[fuse\]"):
            fuse_mount.serve(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(fuse_mount, "DEVICE", tmp_path / "none")
        with pytest.raises(BackendUnavailableError, match="is not here: load the kernel module"):
            fuse_mount.serve(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(fuse_mount, "os", SimpleNamespace(**{**vars(os), "geteuid": lambda: 1000}))
        patch.setenv("PATH", str(tmp_path))
        with pytest.raises(BackendUnavailableError, match="fusermount3 is not here: install fuse3"):
            fuse_mount.serve(tmp_path)


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
def test_what_is_no_fuse_device_is_told_with_what_to_do(
    make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel says no more than that an argument is invalid."""
    make(tmp_path / "fuse")
    monkeypatch.setattr(fuse_mount, "DEVICE", tmp_path / "fuse")
    with pytest.raises(BackendUnavailableError, match=r"fuse is no device: remove it, .* --device"):
        fuse_mount.load_fuse()
