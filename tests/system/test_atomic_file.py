"""Atomic replacement of files, and the temporary files of killed processes."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from attestkit._system.atomic_file import remove_abandoned, replace_file
from attestkit.keys import AppKeys

_KILLED = """
import os, signal, sys
from pathlib import Path
from attestkit._system.atomic_file import replace_file

def kill(event, arguments):
    if event == "os.rename":
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
replace_file(Path(sys.argv[1]), b"secret", mode=0o600)
"""
_HELD = _KILLED.replace("os.kill(os.getpid(), signal.SIGKILL)", "print(flush=True), input()")


def test_remove_abandoned_deletes_the_file_of_a_killed_writer(tmp_path: Path) -> None:
    """The temporary file of a process that was killed before the rename is deleted."""
    path = tmp_path / ".appkeys.json"
    subprocess.run([sys.executable, "-c", _KILLED, str(path)], check=False, timeout=60)
    assert [one.read_bytes() for one in tmp_path.iterdir()] == [b"secret"]
    with AppKeys.from_seed(bytes(32)) as keys:
        keys.save(path)
    assert list(tmp_path.iterdir()) == [path]


def test_remove_abandoned_leaves_the_file_of_a_live_writer(tmp_path: Path) -> None:
    """A process that is writing the file can finish."""
    path = tmp_path / "file"
    arguments = [sys.executable, "-c", _HELD, str(path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"\n"
        remove_abandoned(path)
        assert len(list(tmp_path.iterdir())) == 1
        writer.communicate(b"\n", timeout=60)
    assert writer.returncode == 0
    assert path.read_bytes() == b"secret"
    assert list(tmp_path.iterdir()) == [path]


def test_remove_abandoned_leaves_other_files(tmp_path: Path) -> None:
    """Names of another form, links, folders and pipes remain; no folder is no error."""
    path = tmp_path / "file"
    for name in (".file.", ".file.toolonger", ".file.ABCDEFGH", ".other.abcdefgh", "file"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / ".file.link0000").symlink_to(path)
    (tmp_path / ".file.folder00").mkdir()
    os.mkfifo(tmp_path / ".file.pipe0000")
    before = sorted(tmp_path.iterdir())
    remove_abandoned(path)
    assert sorted(tmp_path.iterdir()) == before
    remove_abandoned(tmp_path / "missing" / "file")


def test_replace_file_repeats_if_its_temporary_file_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that another process removed before it was locked is made anew."""
    made: list[str] = []
    make = tempfile.mkstemp

    def mkstemp(**options: object) -> tuple[int, str]:
        handle, name = make(prefix=str(options["prefix"]), dir=tmp_path)
        if not made:
            Path(name).unlink()
        made.append(name)
        return handle, name

    monkeypatch.setattr("attestkit._system.atomic_file.tempfile.mkstemp", mkstemp)
    replace_file(tmp_path / "file", b"new", mode=0o600)
    assert len(made) == 2
    assert (tmp_path / "file").read_bytes() == b"new"
