"""System calls on devices: one call each, signals seen, other threads running, buffers checked."""

import array
import ctypes
import errno
import os
import signal
import subprocess
import sys
import threading
from mmap import mmap
from pathlib import Path

import pytest

from attestkit.backends.linux import syscalls
from attestkit.backends.linux.syscalls import DeviceCalls, ior, read_file
from attestkit.errors import UsageError
from tests.untyped import untyped

PATIENCE = 30  # seconds that a loaded machine may take for what takes none
FIONREAD_LIKE = ior("T", 1, 4)


def pipe_with(data: bytes = b"") -> tuple[int, int]:
    """Return both ends of a pipe that holds `data`."""
    ours, theirs = os.pipe()
    os.write(theirs, data)
    return ours, theirs


def close(*fds: int) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)


# -- one call each -----------------------------------------------------------------------------


def test_bytes_come_and_go() -> None:
    """A read returns what there is, a write says how much it took."""
    ours, theirs = pipe_with()
    assert syscalls.write(theirs, b"with a \0 inside") == 15
    assert syscalls.read(ours, 100) == b"with a \0 inside"
    assert syscalls.write(theirs, b"abc") == 3
    assert syscalls.read(ours, 2) == b"ab"
    assert syscalls.read(ours, 0) == b""
    os.close(theirs)
    assert syscalls.read(ours, 100) == b"c"
    assert syscalls.read(ours, 100) == b""
    os.close(ours)


def test_a_write_may_stop_early() -> None:
    """It is one call: what did not fit is the caller's to see."""
    ours, theirs = pipe_with()
    os.set_blocking(theirs, False)
    taken = syscalls.write(theirs, bytes(1 << 20))
    assert 0 < taken < 1 << 20
    close(ours, theirs)


@pytest.mark.parametrize("size", [-1, 1 << 31])
def test_an_absurd_read_is_refused(size: int) -> None:
    """Before memory for it is taken."""
    with pytest.raises(UsageError):
        syscalls.read(0, size)


def test_only_bytes_are_written() -> None:
    """What another thread could change meanwhile is not taken."""
    with pytest.raises(UsageError):
        syscalls.write(1, untyped(bytearray(b"x")))


def test_failures_are_os_errors_with_their_number() -> None:
    """The caller can tell them apart."""
    ours, theirs = pipe_with()
    os.close(theirs)
    for call in (
        lambda: syscalls.read(-1, 1),
        lambda: syscalls.write(ours, b"x"),
        lambda: syscalls.ioctl(-1, FIONREAD_LIKE, bytearray(4)),
    ):
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            call()
        assert caught.value.errno == errno.EBADF
    with pytest.raises(OSError, match="Inappropriate ioctl") as caught:
        syscalls.ioctl(ours, FIONREAD_LIKE, bytearray(4))
    assert caught.value.errno == errno.ENOTTY
    os.close(ours)


# -- buffers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "buffer",
    [
        bytearray(3),
        bytearray(5),
        bytearray(),
        bytes(4),
        array.array("B", bytes(4)),
        memoryview(bytearray(4)),
        None,
    ],
)
def test_a_buffer_that_does_not_fit_the_number_never_reaches_the_kernel(buffer: object) -> None:
    """Shorter, longer, or of another kind: the descriptor is bad, and nobody noticed."""
    with pytest.raises(UsageError, match="bytearray of 4 bytes"):
        syscalls.ioctl(-1, FIONREAD_LIKE, untyped(buffer))


@pytest.mark.parametrize("number", [0x5401, 0, 1 << 40 | FIONREAD_LIKE])
def test_a_number_without_a_size_is_refused(number: int) -> None:
    """Nobody could tell how long its buffer has to be."""
    with pytest.raises(UsageError, match="known size"):
        syscalls.ioctl(-1, number, bytearray(4))


def test_the_kernel_writes_into_the_buffer(tmp_path: Path) -> None:
    """A real ioctl that answers in its argument; the buffer stays the caller's afterwards."""
    version = ior("v", 1, ctypes.sizeof(ctypes.c_long))  # FS_IOC_GETVERSION
    file = tmp_path / "file"
    file.touch()
    fd = syscalls.open_file(file, os.O_RDONLY)
    buffer = bytearray(b"\xee" * 8)
    try:
        result = syscalls.ioctl(fd, version, buffer)
    except OSError as error:
        pytest.skip(f"the file system of {tmp_path} has no generations: {error}")
    finally:
        os.close(fd)
    assert result == 0
    assert buffer[:4] != b"\xee" * 4
    buffer.append(0)  # nobody holds it any more


def test_an_address_is_where_the_memory_is() -> None:
    """What is written there is seen in the mapping, which can be closed afterwards."""
    with mmap(-1, 4096) as pages:
        where = syscalls.address_of(pages)
        assert where % 4096 == 0
        ctypes.memmove(where + 5, b"here", 4)
        assert pages[:10] == b"\0\0\0\0\0here\0"


# -- threads and signals -----------------------------------------------------------------------


def in_another_process(*words: str) -> str:
    """Return what a Python process prints; one that hangs on a held GIL fails the test."""
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the rig is written for x86-64")
@pytest.mark.parametrize("call", ["read", "ioctl"])
def test_others_run_while_a_call_waits(call: str) -> None:
    """The GIL is let go: what a thread waits for in the call is done by another thread."""
    said = in_another_process("-m", "tests.backends.linux.gil_rig", call)
    if said.startswith("skip: "):
        pytest.skip(said.strip())
    assert said == "ran\n"


@pytest.fixture
def alarm() -> object:
    """Let SIGALRM call a list's append, for one test."""
    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: seen.append(number))
    yield seen
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_a_signal_ends_a_call_and_is_handled(alarm: list[int]) -> None:
    """EINTR comes out, where os.read would go on waiting; the handler has run by then."""
    ours, theirs = pipe_with()
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.05)  # again, should it come too early
    with pytest.raises(InterruptedError):
        syscalls.read(ours, 1)
    assert alarm
    close(ours, theirs)


def test_ctrl_c_ends_a_call() -> None:
    """A handler that raises is seen at once."""
    ours, theirs = pipe_with()
    done = threading.Event()

    def interrupt() -> None:
        while not done.wait(0.02):
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    interrupted = False
    try:
        thread.start()
        syscalls.read(ours, 1)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        while True:
            try:
                done.set()
                thread.join()
                break
            except KeyboardInterrupt:  # one more was on its way
                continue
        signal.signal(signal.SIGINT, before)
        close(ours, theirs)
    assert interrupted


# -- files -------------------------------------------------------------------------------------


def test_a_file_is_read_to_its_end_or_one_byte_over_the_limit(tmp_path: Path) -> None:
    """The caller sees that there is more, and no more than that is kept."""
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * 500)
    whole = file.read_bytes()
    assert read_file(file, len(whole)) == whole
    assert read_file(file, len(whole) + 1) == whole
    assert read_file(file, len(whole) - 1) == whole
    assert read_file(file, 10) == whole[:11]


def test_a_file_can_be_named_from_a_folder_on(tmp_path: Path) -> None:
    """By a descriptor of the folder, whatever became of its name."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old/file").write_bytes(b"here")
    folder = syscalls.open_file(tmp_path / "old", os.O_RDONLY | os.O_DIRECTORY)
    (tmp_path / "old").rename(tmp_path / "new")
    assert read_file("file", 10, folder=folder) == b"here"
    os.close(folder)


def test_small_pieces_and_signals_do_not_shorten_a_file(tmp_path: Path) -> None:
    """Reading on changes nothing, so an interrupted read is made again; not for ever."""
    file = tmp_path / "file"
    file.write_bytes(b"0123456789")
    turn = iter(range(1000))

    def read(fd: int, size: int) -> bytes:
        if next(turn) % 2:
            raise InterruptedError(errno.EINTR, "")
        return syscalls.read(fd, min(size, 3))

    assert read_file(file, 100, calls=DeviceCalls(read=read)) == b"0123456789"

    def never(fd: int, size: int) -> bytes:
        del fd, size
        raise InterruptedError(errno.EINTR, "")

    with pytest.raises(InterruptedError):
        read_file(file, 100, calls=DeviceCalls(read=never))


def test_no_child_program_inherits_what_is_opened(tmp_path: Path) -> None:
    """O_CLOEXEC is always added."""
    fd = syscalls.open_file(tmp_path, os.O_RDONLY)
    assert not os.get_inheritable(fd)
    os.close(fd)


# -- words -------------------------------------------------------------------------------------


def test_errors_have_the_name_that_people_look_up() -> None:
    """The symbol, and what it means."""
    assert syscalls.error_name(OSError(errno.EACCES, "")) == "EACCES, permission denied"
    assert syscalls.error_name(OSError(9999, "")).startswith("errno 9999, ")


def test_permissions_tell_who_may_and_who_we_are(tmp_path: Path) -> None:
    """Mode, owner and group of the file; ours."""
    file = tmp_path / "file"
    file.touch()
    file.chmod(0o604)
    owner = file.stat()
    said = syscalls.permissions(file)
    assert said.startswith(f"{file} has mode 0604, owner uid {owner.st_uid}, ")
    assert f"we are uid {os.geteuid()}, groups " in said
    assert str(os.getegid()) in said.rpartition("groups ")[2].split(",")
    assert "cannot be looked at (ENOENT" in syscalls.permissions(tmp_path / "none")


def test_looking_for_a_backend_does_not_load_ctypes() -> None:
    """`import attestkit` and its registry pay for none of this."""
    code = "import sys, attestkit, attestkit.backends; print(sorted({'ctypes'} & set(sys.modules)))"
    assert in_another_process("-c", code) == "[]\n"
