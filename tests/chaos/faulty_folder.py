"""A folder on FUSE that shows another one, slow or failing as it is told: for slow and bad disks.

    with faulty_folder() as disk:
        disk.set(delay={"fsync": 2.0}, fail={"write": errno.EIO})

The file system is a process of its own, so that a server that waits for it never waits for us.
"""

import contextlib
import errno
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.rigs.emulator import environment, stop

__all__ = ["Disk", "faulty_folder"]

_STATS = ("st_atime_ns", "st_ctime_ns", "st_mtime_ns")
_CHANGES = frozenset({"write", "create", "rename", "unlink"})
_SAME = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks", "st_ino")


class Disk(NamedTuple):
    """A mounted folder, and what it is told."""

    folder: Path
    process: "subprocess.Popen[str]"
    control: Path

    def set(
        self,
        *,
        delay: Mapping[str, float] | None = None,
        fail: Mapping[str, int] | None = None,
        half: bool = False,
    ) -> None:
        """Say what is wrong from now on; nothing if nothing is said.

        Args:
            delay: Seconds by operation: open, read, write, fsync, rename, getattr.
            fail: Errno by operation, by OPERATION:NAME for one file, or `change` for all changes.
            half: Writes put half of the bytes before they fail.
        """
        new = self.control.with_suffix(".new")
        new.write_text(json.dumps({"delay": delay or {}, "fail": fail or {}, "half": half}))
        new.replace(self.control)


class _Operations:
    """What FUSE asks for, by the names that mfusepy looks for."""

    use_ns = True

    def __init__(self, source: str, control: str) -> None:
        self._source, self._control = source, control

    def init_with_config(self, *_: object) -> None:
        """Say that it is mounted."""
        sys.stdout.write("ready\n")
        sys.stdout.flush()

    def _told(self, operation: str, path: str = "") -> bool:
        """Wait and fail as told; return whether half is to be done before failing."""
        told = json.loads(Path(self._control).read_bytes())
        time.sleep(told["delay"].get(operation, 0))
        fail = told["fail"]
        if operation in _CHANGES:
            self._refuse(fail.get("change"))
        number = fail.get(operation) or fail.get(f"{operation}:{Path(path).name}")
        if not told["half"]:
            self._refuse(number)
        return bool(number)

    @staticmethod
    def _refuse(number: int | None) -> None:
        if number:
            raise OSError(number, os.strerror(number))

    def _path(self, path: str) -> str:
        return self._source + path

    def getattr(self, path: str, _: int | None = None) -> dict[str, Any]:
        """Return what stat says."""
        self._told("getattr")
        found = os.lstat(self._path(path))
        times = {name[:-3]: getattr(found, name) for name in _STATS}
        return {**{name: getattr(found, name) for name in _SAME}, **times}

    def readdir(self, path: str, _: int) -> list[str]:
        """Return all names."""
        return [".", "..", *(found.name for found in Path(self._path(path)).iterdir())]

    def open(self, path: str, flags: int) -> int:
        """Open a file."""
        self._told("open", path)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            self._told("create")
        return os.open(self._path(path), flags & ~os.O_APPEND)

    def create(self, path: str, mode: int) -> int:
        """Make and open a file."""
        self._told("open", path)
        self._told("create")
        return os.open(self._path(path), os.O_RDWR | os.O_CREAT, mode)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        """Read a piece."""
        del path
        self._told("read")
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        """Write a piece, or half of it: the next one then fails."""
        if self._told("write", path):
            if len(data) < 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            data = data[: len(data) // 2]
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, _: int | None = None) -> None:
        """Shorten a file."""
        self._told("write")
        os.truncate(self._path(path), length)

    def fsync(self, path: str, _: int, fh: int) -> None:
        """Wait for the disk."""
        del path
        self._told("fsync")
        os.fsync(fh)

    def fsyncdir(self, *_: object) -> None:
        """Wait for the disk."""
        self._told("fsync")

    def flush(self, *_: object) -> None:
        """Nothing is kept back."""

    def release(self, _: str, fh: int) -> None:
        """Close a file."""
        os.close(fh)

    def rename(self, old: str, new: str) -> None:
        """Give a file another name."""
        self._told("rename")
        Path(self._path(old)).replace(self._path(new))

    def unlink(self, path: str) -> None:
        """Remove a file."""
        self._told("unlink")
        Path(self._path(path)).unlink()

    def mkdir(self, path: str, mode: int) -> None:
        """Make a folder."""
        Path(self._path(path)).mkdir(mode)

    def chmod(self, path: str, mode: int) -> None:
        """Change who may what."""
        Path(self._path(path)).chmod(mode)


@contextlib.contextmanager
def faulty_folder() -> Iterator[Disk]:
    """Mount a folder, with nothing wrong yet, until the end of the block."""
    with tempfile.TemporaryDirectory(prefix="ak") as name:
        top = Path(name)
        for part in ("source", "disk"):
            (top / part).mkdir()
        words = [sys.executable, "-m", "tests.chaos.faulty_folder", name]
        with subprocess.Popen(
            words, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        ) as process:
            disk = Disk(top / "disk", process, top / "control")
            disk.set()
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                yield disk
            finally:
                disk.set()
                stop(process, disk.folder)


def _mount(top: str) -> None:
    import mfusepy  # late: only this process needs it, and libfuse may be missing

    operations = _Operations(f"{top}/source", f"{top}/control")
    with contextlib.suppress(RuntimeError):  # which is how it ends when it is told to
        mfusepy.FUSE(
            operations,
            f"{top}/disk",
            foreground=True,
            attr_timeout=0,
            entry_timeout=0,
            fsname="chaos",
        )


if __name__ == "__main__":
    _mount(sys.argv[1])
