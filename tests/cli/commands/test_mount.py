"""`attestkit mount`: ready line, clean end, and one line per error."""

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
from tests.cli.program import closed_pipe, run
from tests.raising import raises
from tests.rigs.emulator import (
    PATIENCE,
    command,
    emulator,
    environment,
    requires_fuse,
    stop,
)
from tests.rigs.kernel_files.file_calls import MEASUREMENTS, write_once
from tests.thorough import slow

pytestmark = [pytest.mark.rig, requires_fuse, pytest.mark.slow]


def test_mount_prints_ready_line_and_unmounts_on_signal() -> None:
    """One ready line is printed, and a signal ends the mount cleanly."""
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


def test_mount_json_ready_object_has_paths(tmp_path: Path) -> None:
    """With --json the ready object has the paths and the process id."""
    (tmp_path / "mount").mkdir()
    with subprocess.Popen(
        command(tmp_path / "mount", "--json"), env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready.pop("pid") == process.pid
        assert ready.pop("folder") == str(tmp_path / "mount")
        assert Path(ready.pop("control"), "collateral.json").is_file()
        assert Path(ready.pop("trust_anchor")).is_file()
        assert ready == {}
        assert stop(process, tmp_path / "mount") == 0


@pytest.mark.parametrize(
    ("stdout", "more"),
    [("full", []), *slow(("full", ["--json"]), ("closed pipe", []), ("closed pipe", ["--json"]))],
)
def test_mount_unwritable_stdout_ends_mount(stdout: str, more: list[str], tmp_path: Path) -> None:
    """If the ready line cannot be written, the mount ends with exit code 1 and one line."""
    (tmp_path / "mount").mkdir()
    with closed_pipe() as writer, Path("/dev/full").open("w") as full:
        done = run(
            "mount", str(tmp_path / "mount"), *more, stdout=full if stdout == "full" else writer
        )
    reason = "No space left on device" if stdout == "full" else "Broken pipe"
    assert (done.returncode, done.stderr) == (1, f"attestkit: stdout: cannot write: {reason}\n")
    assert not os.path.ismount(tmp_path / "mount")


@pytest.mark.slow  # five machines
def test_mount_accepts_seed_as_hex_or_file(tmp_path: Path) -> None:
    """The seed is hex, or a file with its bytes or hex, and random without the option."""
    raw, text = tmp_path / "raw", tmp_path / "text"
    raw.write_bytes(b"\x11" * 32)
    text.write_text("11" * 32 + "\n")
    with emulator(seed="11" * 32) as machine, emulator(seed=None) as other:
        root = machine.trust_anchor
        assert other.trust_anchor != root
    for file in (raw, text):
        with emulator(seed=None, seed_file=file) as machine:
            assert machine.trust_anchor == root, file


EARLY = """
import os, signal, sys
from attestkit.emulator.fuse_mount import serve

def random(size):  # called after temporary files are created, before the mount
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    return os.urandom(size)

serve(sys.argv[1], seed=bytes(32), random=random)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take a mount away")
def test_mount_signal_after_lazy_unmount_ends_process() -> None:
    """A signal ends the process after a lazy unmount with an open file."""
    with emulator() as machine, (machine.root / "attestkit/trust-anchor.der").open("rb"):
        subprocess.run(["umount", "-l", str(machine.root)], check=True)
        machine.process.terminate()
        assert machine.process.wait(PATIENCE) == 0


def test_mount_unwritable_stdout_with_ignored_signals_ends(tmp_path: Path) -> None:
    """The mount also ends if SIGTERM is ignored."""
    wrapper = ["/bin/sh", "-c", 'trap "" TERM; exec "$@" >/dev/full', "sh"]
    done = run("mount", str(tmp_path), wrapper=wrapper)
    assert (done.returncode, "stdout: cannot write" in done.stderr) == (1, True)


@pytest.mark.parametrize("name", ["SIGTERM", *slow(("SIGHUP",), ("SIGINT",))])
def test_mount_early_signal_leaves_no_files(tmp_path: Path, name: str) -> None:
    """A signal before the mount is ready leaves neither a mount nor temporary files."""
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


def test_mount_repeated_signals_do_not_prevent_cleanup() -> None:
    """Repeated signals do not prevent the cleanup."""
    with emulator() as machine:
        log = (machine.root / "run/log/dstack").resolve()
        while machine.process.poll() is None:
            machine.process.terminate()
        assert not log.exists()
        assert not os.path.ismount(machine.root)


def test_mount_keeps_ignored_signal_ignored(tmp_path: Path) -> None:
    """A signal that the parent ignores, as nohup does, does not end the mount."""
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
        for _ in range(3):  # a pending end would be served after one request
            assert (tmp_path / "proc/sys/kernel/random/boot_id").read_text()
        assert stop(process, tmp_path) == 0


def test_mount_state_dir_keeps_seed_and_log(tmp_path: Path) -> None:
    """A state folder keeps seed and log over a restart, and cannot be shared."""
    state = str(tmp_path / "state")
    with emulator(state_dir=state, seed=None) as machine:
        root, boot_id = machine.trust_anchor, machine.boot_id
        (machine.root / "run/log/dstack/kept").touch()
        write_once(machine.root / MEASUREMENTS / "rtmr3:sha384", bytes(48))
        assert refusal(tmp_path, f"--state-dir={state}", code=3).startswith(
            f"{state}: another process runs"
        )
    with emulator(state_dir=state, seed=None) as machine:
        assert machine.trust_anchor == root
        assert machine.boot_id != boot_id
        assert machine.rtmr(3) == bytes(48)
        assert (machine.root / "run/log/dstack/kept").exists()


def refusal(tmp_path: Path, *options: str, code: int = 1, folder: Path | None = None) -> str:
    """Run an emulator that must fail; return its one line."""
    if folder is None:
        folder = tmp_path / "mount"
        folder.mkdir(exist_ok=True)
    done = run("mount", str(folder), *options)
    assert (done.returncode, done.stdout) == (code, "")
    [line] = done.stderr.splitlines()
    return str(line.removeprefix("attestkit: "))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        # Each starts a program, so most are slow: a number, a file, and two names.
        ("--seed=11", "--seed: must be 32 bytes (64 hex digits), not 1"),
        ("--seed-file=none", "none: No such file or directory"),
        ("--fault=bad", "unknown fault 'bad'; write it as"),
        ("--qgs=vsock:x", "'vsock:x': must be vsock:PORT"),
        *slow(
            ("--seed=0xzz", "--seed: not valid hex"),
            ("--seed=@none", "--seed: not valid hex"),
            ("--seed-file=", "the path is empty"),
            ("--mr-config-id=0X0", "--mr-config-id: not hex"),
            ("--host-data=0x00", "host_data: must be 32 bytes"),
            ("--mr-config-id=00", "mr_config_id: must be 48 bytes"),
            ("--provider=tdx", "must be one of tdx_guest, sev_guest, none, not 'tdx'"),
            ("--kernel-release=six", "must be like 6.12 or 6.12.80, not 'six'"),
            ("--driver=E", "not 'E'"),
            ("--platform=azure", "platform: must be one of tdx, snp, azure-snp,"),
            ("--quote-version=3", "quote_version: must be 4 or 5, not 3"),
            ("--vmpl=4", "vmpl: must be 0 to 3"),
        ),
    ],
)
def test_mount_invalid_option_is_one_line(tmp_path: Path, option: str, words: str) -> None:
    """An invalid option is one line that names the problem."""
    assert words in refusal(tmp_path, option)


def test_mount_folder_must_exist_and_be_empty(tmp_path: Path) -> None:
    """The folder must exist and be empty."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    assert "must be an empty directory" in refusal(tmp_path, folder=tmp_path / "full")
    assert "cannot be mounted on" in refusal(tmp_path, folder=tmp_path / "none")
    assert "cannot be mounted on" in refusal(tmp_path, folder=tmp_path / "full/file")
    with emulator() as machine:
        assert "must be an empty directory" in refusal(tmp_path, folder=machine.root)


def test_mount_qgs_listen_error_is_code_3(tmp_path: Path) -> None:
    """A QGS address that cannot be used is an error."""
    error = refusal(tmp_path, f"--qgs={tmp_path}/none/socket", code=3)
    assert "cannot listen" in error


def test_mount_libfuse_error_is_one_line(tmp_path: Path) -> None:
    """An error of libfuse is one line."""
    if os.geteuid():
        pytest.skip("only root can take the right to mount away")
    (tmp_path / "mount").mkdir()
    done = run("mount", str(tmp_path / "mount"), wrapper=["unshare", "--user"])
    assert (done.returncode, done.stdout) == (3, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(f"attestkit: {tmp_path}/mount: mount failed: fuse")


def test_serve_without_fuse_names_requirement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each missing requirement of FUSE is named with a remedy."""
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "mfusepy", None)
        with raises(
            BackendUnavailableError, "missing_dependency", part="pip install 'attestkit[fuse]'"
        ):
            fuse_mount.serve(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(fuse_mount, "DEVICE", tmp_path / "none")
        with raises(BackendUnavailableError, "missing", path=str(tmp_path / "none")):
            fuse_mount.serve(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(fuse_mount, "os", SimpleNamespace(**{**vars(os), "geteuid": lambda: 1000}))
        patch.setenv("PATH", str(tmp_path))
        with raises(BackendUnavailableError, "missing_dependency", part="install fuse3"):
            fuse_mount.serve(tmp_path)


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
def test_load_fuse_rejects_wrong_device(
    make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file or folder in place of /dev/fuse is reported."""
    make(tmp_path / "fuse")
    monkeypatch.setattr(fuse_mount, "DEVICE", tmp_path / "fuse")
    with raises(BackendUnavailableError, "unreadable", path=str(tmp_path / "fuse")):
        fuse_mount.load_fuse()
