"""A FUSE folder that mirrors another one, with injectable delays and errors.

    with faulty_folder() as disk:
        disk.set(delay={"fsync": 2.0}, fail={"write": errno.EIO})

The file system is a separate process, so that a blocked server does not block the test.
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

_STATS = ("st_atime_ns", "st_ctime_ns", "st_mtime_ns")
_CHANGES = frozenset({"write", "create", "rename", "unlink"})
_SAME = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks", "st_ino")


class Disk(NamedTuple):
    """A mounted folder, and the control file of its faults."""

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
        """Replace the current faults; without arguments, remove them.

        Args:
            delay: Seconds by operation: open, read, write, fsync, rename, getattr.
            fail: Errno by operation, by OPERATION:NAME for one file, or `change` for all changes.
            half: Writes store half of the bytes before they fail.
        """
        new = self.control.with_suffix(".new")
        new.write_text(json.dumps({"delay": delay or {}, "fail": fail or {}, "half": half}))
        new.replace(self.control)


class _Operations:
    """FUSE operations, by mfusepy's names."""

    use_ns = True

    def __init__(self, source: str, control: str) -> None:
        self._source, self._control = source, control

    def init_with_config(self, *_: object) -> None:
        """Report that the folder is mounted."""
        sys.stdout.write("ready\n")
        sys.stdout.flush()

    def _apply_fault(self, operation: str, path: str = "") -> bool:
        """Wait and fail as configured; return whether to write half before failing."""
        faults = json.loads(Path(self._control).read_bytes())
        time.sleep(faults["delay"].get(operation, 0))
        fail = faults["fail"]
        if operation in _CHANGES:
            self._refuse(fail.get("change"))
        number = fail.get(operation) or fail.get(f"{operation}:{Path(path).name}")
        if not faults["half"]:
            self._refuse(number)
        return bool(number)

    @staticmethod
    def _refuse(number: int | None) -> None:
        if number:
            raise OSError(number, os.strerror(number))

    def _path(self, path: str) -> str:
        return self._source + path

    def getattr(self, path: str, _: int | None = None) -> dict[str, Any]:
        """Return the file's status."""
        self._apply_fault("getattr")
        found = os.lstat(self._path(path))
        times = {name[:-3]: getattr(found, name) for name in _STATS}
        return {**{name: getattr(found, name) for name in _SAME}, **times}

    def readdir(self, path: str, _: int) -> list[str]:
        """Return all names."""
        return [".", "..", *(found.name for found in Path(self._path(path)).iterdir())]

    def open(self, path: str, flags: int) -> int:
        """Open a file."""
        self._apply_fault("open", path)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            self._apply_fault("create")
        return os.open(self._path(path), flags & ~os.O_APPEND)

    def create(self, path: str, mode: int) -> int:
        """Create and open a file."""
        self._apply_fault("open", path)
        self._apply_fault("create")
        return os.open(self._path(path), os.O_RDWR | os.O_CREAT, mode)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        """Read from a file."""
        del path
        self._apply_fault("read")
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        """Write to a file, or half of the data: the next write then fails."""
        if self._apply_fault("write", path):
            if len(data) < 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            data = data[: len(data) // 2]
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, _: int | None = None) -> None:
        """Truncate a file."""
        self._apply_fault("write")
        os.truncate(self._path(path), length)

    def fsync(self, path: str, _: int, fh: int) -> None:
        """Synchronize a file."""
        del path
        self._apply_fault("fsync")
        os.fsync(fh)

    def fsyncdir(self, *_: object) -> None:
        """Synchronize a folder."""
        self._apply_fault("fsync")

    def flush(self, *_: object) -> None:
        """Do nothing: writes are not buffered."""

    def release(self, _: str, fh: int) -> None:
        """Close a file."""
        os.close(fh)

    def rename(self, old: str, new: str) -> None:
        """Rename a file."""
        self._apply_fault("rename")
        Path(self._path(old)).replace(self._path(new))

    def unlink(self, path: str) -> None:
        """Remove a file."""
        self._apply_fault("unlink")
        Path(self._path(path)).unlink()

    def mkdir(self, path: str, mode: int) -> None:
        """Create a folder."""
        Path(self._path(path)).mkdir(mode)

    def chmod(self, path: str, mode: int) -> None:
        """Change a file's mode."""
        Path(self._path(path)).chmod(mode)


@contextlib.contextmanager
def faulty_folder() -> Iterator[Disk]:
    """Mount a folder without faults, until the end of the block."""
    with tempfile.TemporaryDirectory(prefix="ak") as name:
        top = Path(name)
        for part in ("source", "disk"):
            (top / part).mkdir()
        words = [sys.executable, "-m", "tests.chaos.faults.faulty_folder", name]
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
    import mfusepy  # lazy: only this process needs it, and libfuse may be missing

    operations = _Operations(f"{top}/source", f"{top}/control")
    with contextlib.suppress(RuntimeError):  # raised at unmount
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
