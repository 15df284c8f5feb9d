"""The real file operations: whole reads and writes, and no descriptor that stays open."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from attestkit.backends.linux import syscalls
from attestkit.backends.tsm.configfs_files import OsFiles, TsmSystem

FILES = OsFiles()


@contextmanager
def no_descriptor_stays() -> Iterator[None]:
    """Compare what is open before and afterwards."""
    before = sorted(Path("/proc/self/fd").iterdir())
    yield
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def refused(number: int) -> OSError:
    """Return an error as a system call has it."""
    return OSError(number, os.strerror(number))


def test_folders_are_made_listed_and_removed(tmp_path: Path) -> None:
    """With the time at which they were made."""
    folder = str(tmp_path / "entry")
    with no_descriptor_stays():
        FILES.make(folder)
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


def test_only_an_empty_folder_is_removed(tmp_path: Path) -> None:
    """Never what is in it: in configfs that is not ours to do, and elsewhere somebody's file."""
    (tmp_path / "entry").mkdir()
    (tmp_path / "entry/file").touch()
    with pytest.raises(OSError, match="not empty"):
        FILES.remove(str(tmp_path / "entry"))
    assert (tmp_path / "entry/file").exists()


def test_a_name_that_goes_while_it_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left out."""

    class Gone:
        name = "gone"

        def stat(self, *, follow_symlinks: bool) -> os.stat_result:
            raise FileNotFoundError(follow_symlinks)

    @contextmanager
    def scandir(_path: str) -> Iterator[list[Gone]]:
        yield [Gone()]

    monkeypatch.setattr(os, "scandir", scandir)
    assert FILES.list(str(tmp_path)) == []


def test_a_write_is_whole_and_in_place(tmp_path: Path) -> None:
    """The file is neither made nor cut: a kernel's file is what it is."""
    path = tmp_path / "inblob"
    with no_descriptor_stays():
        with pytest.raises(FileNotFoundError):
            FILES.write(str(path), b"x")
        path.write_bytes(b"0123456789")
        FILES.write(str(path), b"abc")
    assert path.read_bytes() == b"abc3456789"


def test_a_write_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a system call leaves over goes into the next."""
    path = tmp_path / "inblob"
    path.touch()
    monkeypatch.setattr(syscalls, "write", lambda fd, data: os.write(fd, data[:7]))
    FILES.write(str(path), bytes(range(64)))
    assert path.read_bytes() == bytes(range(64))


@pytest.mark.parametrize("written", [0, -1, 65])
def test_a_write_that_does_not_count_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """An answer that cannot be is an error, not a loop."""
    path = tmp_path / "inblob"
    path.touch()
    monkeypatch.setattr(syscalls, "write", lambda _fd, _data: written)
    with no_descriptor_stays(), pytest.raises(OSError, match="Input/output") as caught:
        FILES.write(str(path), bytes(64))
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize(("size", "limit"), [(0, 9), (8, 9), (9, 9), (10, 9), (99, 9), (5, 0)])
def test_a_read_goes_to_the_end_or_one_byte_over(tmp_path: Path, size: int, limit: int) -> None:
    """So that too much shows, without being read."""
    (tmp_path / "outblob").write_bytes(bytes(range(size)))
    with no_descriptor_stays():
        assert FILES.read(str(tmp_path / "outblob"), limit) == bytes(range(size))[: limit + 1]


@pytest.mark.parametrize("piece", [1, 7, 64, 100])
def test_a_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    """One descriptor, up to the read that gives nothing."""
    content = bytes(range(250)) * 4
    (tmp_path / "outblob").write_bytes(content)
    asked: list[tuple[int, int]] = []

    def read(fd: int, size: int) -> bytes:
        asked.append((fd, size))
        return os.read(fd, min(size, piece))

    monkeypatch.setattr(syscalls, "read", read)
    assert FILES.read(str(tmp_path / "outblob"), 2000) == content
    assert len({fd for fd, _ in asked}) == 1
    assert FILES.read(str(tmp_path / "outblob"), 120) == content[:121]
    assert asked[-1][1] == 121 - (121 - 1) // piece * piece


def test_a_long_report(tmp_path: Path) -> None:
    """Many times a single read."""
    content = os.urandom(1 << 20)
    (tmp_path / "outblob").write_bytes(content)
    assert FILES.read(str(tmp_path / "outblob"), 16 << 20) == content


@pytest.mark.parametrize("how", [refused(errno.EIO), KeyboardInterrupt(), MemoryError()])
def test_whatever_happens_the_descriptor_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: BaseException
) -> None:
    """Errors and signals in the middle of a call."""

    def fail(_fd: int, _what: object) -> bytes:
        raise how

    (tmp_path / "outblob").write_bytes(b"x")
    for call in ("read", "write"):
        monkeypatch.setattr(syscalls, call, fail)
    with no_descriptor_stays():
        with pytest.raises(type(how)):
            FILES.read(str(tmp_path / "outblob"), 1)
        with pytest.raises(type(how)):
            FILES.write(str(tmp_path / "outblob"), b"x")


def test_no_child_inherits_a_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program started in the middle of a request has nothing of it."""
    (tmp_path / "outblob").write_bytes(b"x")
    inherited: list[bool] = []

    def look(fd: int, _what: object) -> bytes:
        inherited.append(os.get_inheritable(fd))
        return b""

    monkeypatch.setattr(syscalls, "read", look)
    FILES.read(str(tmp_path / "outblob"), 1)
    assert inherited == [False]


def test_a_signal_ends_a_read(tmp_path: Path) -> None:
    """It is told and not waited out, since the driver's next answer depends on it."""
    path = tmp_path / "outblob"
    os.mkfifo(path)
    done = threading.Event()

    def write_nothing() -> None:
        with path.open("wb"):
            done.wait(30)

    seen: list[int] = []
    old = signal.signal(signal.SIGALRM, lambda number, _frame: seen.append(number))
    writer = threading.Thread(target=write_nothing)
    writer.start()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)  # again, should it come too early
        with pytest.raises(InterruptedError):
            FILES.read(str(path), 99)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        done.set()
        writer.join()
    assert signal.SIGALRM in seen


def another_program_locks(path: Path) -> bool:
    """Tell whether another program gets the lock."""
    code = (
        "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'wb', 0), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    )
    return not subprocess.run([sys.executable, "-c", code, path], check=False).returncode


def test_a_lock_is_one_programs(tmp_path: Path) -> None:
    """As `flock` of any other program sees it."""
    path = tmp_path / "inblob"
    path.touch(mode=0o200)
    system = TsmSystem()
    with no_descriptor_stays():
        unlock = system.try_lock(str(path))
        assert unlock is not None
        assert system.try_lock(str(path)) is None
        assert not another_program_locks(path)
        unlock()
        assert another_program_locks(path)
        with pytest.raises(FileNotFoundError):
            system.try_lock(str(tmp_path / "nothing"))


def test_a_lock_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The descriptor is closed again."""

    def flock(_fd: int, _how: int) -> None:
        raise refused(errno.ENOLCK)

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / "inblob").touch()
    with no_descriptor_stays(), pytest.raises(OSError, match="lock"):
        TsmSystem().try_lock(str(tmp_path / "inblob"))


def test_who_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process, one that is not ours to signal, and not one that has ended."""
    system = TsmSystem()
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert system.alive(os.getpid())
    assert not system.alive(child.pid)
    assert not system.alive(4194304)  # one more than there can be

    def kill(_pid: int, _signal: int) -> None:
        raise refused(errno.EPERM)

    monkeypatch.setattr(os, "kill", kill)
    assert system.alive(child.pid)


def test_the_clocks_are_the_machines(tmp_path: Path) -> None:
    """One for waiting, one that entries are dated with."""
    system = TsmSystem()
    assert system.clock() <= system.clock()
    FILES.make(str(tmp_path / "entry"))
    ((_, made_at),) = FILES.list(str(tmp_path))
    assert abs(system.now() - made_at) < 60
