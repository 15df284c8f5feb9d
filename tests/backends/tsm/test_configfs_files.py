"""File operations on configfs: complete reads and writes, without leaking descriptors."""

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from attestkit.backends.linux import syscalls
from attestkit.backends.tsm.configfs_files import OsFiles, TsmSystem

FILES = OsFiles()


@contextmanager
def assert_no_descriptor_leak() -> Iterator[None]:
    """Assert that the set of open descriptors does not change."""
    before = sorted(Path("/proc/self/fd").iterdir())
    yield
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def os_error(number: int) -> OSError:
    """Return an OSError as a system call raises it."""
    return OSError(number, os.strerror(number))


def test_files_directories_are_created_listed_and_removed(tmp_path: Path) -> None:
    """A listing gives each entry's name and modification time."""
    folder = str(tmp_path / "entry")
    with assert_no_descriptor_leak():
        FILES.make(folder)
        assert abs(TsmSystem().now() - dict(FILES.list(str(tmp_path)))["entry"]) < 60
        os.utime(folder, (5, 7))
        (tmp_path / "link").symlink_to("nowhere")
        listed = dict(FILES.list(str(tmp_path)))
        assert listed["entry"] == 7.0
        assert set(listed) == {"entry", "link"}
        with pytest.raises(FileExistsError):
            FILES.make(folder)
        FILES.remove(folder)
        with pytest.raises(FileNotFoundError):
            FILES.remove(folder)
        with pytest.raises(FileNotFoundError):
            FILES.list(folder)


def test_list_skips_entry_removed_during_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry that disappears during a listing is omitted."""

    class Gone:
        name = "gone"

        def stat(self, *, follow_symlinks: bool) -> os.stat_result:
            raise FileNotFoundError(follow_symlinks)

    @contextmanager
    def scandir(_path: str) -> Iterator[list[Gone]]:
        yield [Gone()]

    monkeypatch.setattr(os, "scandir", scandir)
    assert FILES.list(str(tmp_path)) == []


def test_write_does_not_create_or_truncate(tmp_path: Path) -> None:
    """A write needs an existing file and does not truncate it."""
    path = tmp_path / "inblob"
    with assert_no_descriptor_leak():
        with pytest.raises(FileNotFoundError):
            FILES.write(str(path), b"x")
        path.write_bytes(b"0123456789")
        FILES.write(str(path), b"abc")
    assert path.read_bytes() == b"abc3456789"


def test_write_continues_after_short_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short write is followed by a write of the remaining bytes."""
    path = tmp_path / "inblob"
    path.touch()
    monkeypatch.setattr(syscalls, "write", lambda fd, data: os.write(fd, data[:7]))
    FILES.write(str(path), bytes(range(64)))
    assert path.read_bytes() == bytes(range(64))


@pytest.mark.parametrize("written", [0, -1, 65])
def test_write_impossible_count_raises_eio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """A write count of 0, below 0 or above the size raises EIO."""
    path = tmp_path / "inblob"
    path.touch()
    monkeypatch.setattr(syscalls, "write", lambda _fd, _data: written)
    with assert_no_descriptor_leak(), pytest.raises(OSError, match="Input/output") as caught:
        FILES.write(str(path), bytes(64))
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize(("size", "limit"), [(0, 9), (8, 9), (9, 9), (10, 9), (99, 9), (5, 0)])
def test_read_stops_one_byte_past_the_limit(tmp_path: Path, size: int, limit: int) -> None:
    """One extra byte is read, to detect a file above the limit."""
    (tmp_path / "outblob").write_bytes(bytes(range(size)))
    with assert_no_descriptor_leak():
        assert FILES.read(str(tmp_path / "outblob"), limit) == bytes(range(size))[: limit + 1]


@pytest.mark.parametrize("piece", [1, 7, 64, 100])
def test_read_continues_until_end_of_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    """Short reads continue on one descriptor until a read returns nothing."""
    content = bytes(range(250)) * 4
    (tmp_path / "outblob").write_bytes(content)
    read_calls: list[tuple[int, int]] = []

    def read(fd: int, size: int) -> bytes:
        read_calls.append((fd, size))
        return os.read(fd, min(size, piece))

    monkeypatch.setattr(syscalls, "read", read)
    assert FILES.read(str(tmp_path / "outblob"), 2000) == content
    assert len({fd for fd, _ in read_calls}) == 1
    assert FILES.read(str(tmp_path / "outblob"), 120) == content[:121]
    assert read_calls[-1][1] == 121 - (121 - 1) // piece * piece


@pytest.mark.parametrize("exception", [os_error(errno.EIO), KeyboardInterrupt(), MemoryError()])
def test_descriptor_is_closed_after_any_exception(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exception: BaseException
) -> None:
    """Errors and signals in a system call close the descriptor."""

    def fail(_fd: int, _what: object) -> bytes:
        raise exception

    (tmp_path / "outblob").write_bytes(b"x")
    for call in ("read", "write"):
        monkeypatch.setattr(syscalls, call, fail)
    with assert_no_descriptor_leak():
        with pytest.raises(type(exception)):
            FILES.read(str(tmp_path / "outblob"), 1)
        with pytest.raises(type(exception)):
            FILES.write(str(tmp_path / "outblob"), b"x")


def lock_from_another_process(path: Path) -> bool:
    """Return whether another process can take the lock."""
    code = (
        "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'wb', 0), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    )
    return not subprocess.run([sys.executable, "-c", code, path], check=False).returncode


def test_lock_excludes_other_processes(tmp_path: Path) -> None:
    """The lock is a `flock`, seen by every other process."""
    path = tmp_path / "inblob"
    path.touch(mode=0o200)
    system = TsmSystem()
    with assert_no_descriptor_leak():
        unlock = system.try_lock(str(path))
        assert unlock is not None
        assert system.try_lock(str(path)) is None
        assert not lock_from_another_process(path)
        unlock()
        assert lock_from_another_process(path)
        with pytest.raises(FileNotFoundError):
            system.try_lock(str(tmp_path / "nothing"))


def test_lock_failure_closes_the_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The descriptor is closed if `flock` fails."""

    def flock(_fd: int, _how: int) -> None:
        raise os_error(errno.ENOLCK)

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / "inblob").touch()
    with assert_no_descriptor_leak(), pytest.raises(OSError, match="lock"):
        TsmSystem().try_lock(str(tmp_path / "inblob"))


def test_alive_distinguishes_running_and_ended_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that must not be signalled counts as alive."""
    system = TsmSystem()
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert system.alive(os.getpid())
    assert not system.alive(child.pid)
    assert not system.alive(4194304)  # above the largest possible PID

    def kill(_pid: int, _signal: int) -> None:
        raise os_error(errno.EPERM)

    monkeypatch.setattr(os, "kill", kill)
    assert system.alive(child.pid)
