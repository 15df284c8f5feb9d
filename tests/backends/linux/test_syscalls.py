"""System calls on devices: single calls, signals, released GIL, checked buffers."""

import array
import ctypes
import errno
import os
import signal
import subprocess
import sys
from mmap import mmap
from pathlib import Path

import pytest

from attestkit.backends.linux import device_errors, syscalls
from attestkit.backends.linux.syscalls import DeviceCalls, ior, read_file
from attestkit.errors import UsageError
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped

PATIENCE = 30  # seconds before a call counts as hung
FIONREAD_LIKE = ior("T", 1, 4)


def make_pipe(data: bytes = b"") -> tuple[int, int]:
    """Return both ends of a pipe that contains `data`."""
    reader, writer = os.pipe()
    os.write(writer, data)
    return reader, writer


def close(*fds: int) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)


# -- one call each -----------------------------------------------------------------------------


def test_read_and_write_make_one_call() -> None:
    """A read returns available data, a write the number of bytes written."""
    reader, writer = make_pipe()
    assert syscalls.write(writer, b"with a \0 inside") == 15
    assert syscalls.read(reader, 100) == b"with a \0 inside"
    assert syscalls.write(writer, b"abc") == 3
    assert syscalls.read(reader, 2) == b"ab"
    assert syscalls.read(reader, 0) == b""
    os.close(writer)
    assert syscalls.read(reader, 100) == b"c"
    assert syscalls.read(reader, 100) == b""
    os.close(reader)


@pytest.mark.parametrize("size", [-1, 1 << 31])
def test_read_invalid_size_is_rejected(size: int) -> None:
    """It is rejected before memory is allocated."""
    with pytest.raises(UsageError):
        syscalls.read(0, size)


def test_write_takes_bytes_only() -> None:
    """Buffers that another thread could change are rejected."""
    with pytest.raises(UsageError):
        syscalls.write(1, untyped(bytearray(b"x")))


def test_failures_raise_os_error_with_errno() -> None:
    """The errno tells the failures apart."""
    reader, writer = make_pipe()
    os.close(writer)
    for call in (
        lambda: syscalls.read(-1, 1),
        lambda: syscalls.write(reader, b"x"),
        lambda: syscalls.ioctl(-1, FIONREAD_LIKE, bytearray(4)),
    ):
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            call()
        assert caught.value.errno == errno.EBADF
    with pytest.raises(OSError, match="Inappropriate ioctl") as caught:
        syscalls.ioctl(reader, FIONREAD_LIKE, bytearray(4))
    assert caught.value.errno == errno.ENOTTY
    os.close(reader)


# -- buffers -----------------------------------------------------------------------------------


@every_case(
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
def test_ioctl_buffer_must_match_the_number(buffer: object) -> None:
    """A buffer of another size or type does not reach the kernel."""
    reason = "wrong_size" if type(buffer) is bytearray else "wrong_type"
    with raises(UsageError, reason):
        syscalls.ioctl(-1, FIONREAD_LIKE, untyped(buffer))


@pytest.mark.parametrize("number", [0x5401, 0, 1 << 40 | FIONREAD_LIKE])
def test_ioctl_number_without_size_is_rejected(number: int) -> None:
    """The buffer size must be encoded in the number."""
    with raises(UsageError, "wrong_value"):
        syscalls.ioctl(-1, number, bytearray(4))


def test_ioctl_writes_into_the_buffer(tmp_path: Path) -> None:
    """A real ioctl fills the buffer, which stays usable."""
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
    buffer.append(0)  # not exported any more


def test_address_of_is_the_mapping_address() -> None:
    """Data written there is visible in the mapping, which can be closed afterwards."""
    with mmap(-1, 4096) as pages:
        address = syscalls.address_of(pages)
        assert address % 4096 == 0
        ctypes.memmove(address + 5, b"here", 4)
        assert pages[:10] == b"\0\0\0\0\0here\0"


# -- threads and signals -----------------------------------------------------------------------


def run_python(*words: str) -> str:
    """Return the output of a Python process; a process that hangs fails the test."""
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


def test_call_releases_the_gil() -> None:
    """Another thread can run while a call blocks; a process with the GIL held would hang."""
    code = """
import os, threading, time
from attestkit.backends.linux import syscalls
reader, writer = os.pipe()
thread = threading.Thread(target=lambda: print(syscalls.read(reader, 10)))
thread.start()
time.sleep(0.2)  # the thread is in the call now
os.write(writer, b"awake")
thread.join()
"""
    assert run_python("-c", code) == "b'awake'\n"


@pytest.fixture
def alarm() -> object:
    """Record SIGALRM in a list during one test."""
    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: seen.append(number))
    yield seen
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_read_interrupted_by_signal_raises(alarm: list[int]) -> None:
    """EINTR is raised, after the signal handler has run."""
    reader, writer = make_pipe()
    signal.setitimer(
        signal.ITIMER_REAL, 0.01, 0.05
    )  # repeat, in case the first signal arrives too early
    with pytest.raises(InterruptedError):
        syscalls.read(reader, 1)
    assert alarm
    close(reader, writer)


# -- files -------------------------------------------------------------------------------------


def test_read_file_stops_one_byte_past_the_limit(tmp_path: Path) -> None:
    """The extra byte reveals a file above the limit."""
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * 500)
    whole = file.read_bytes()
    assert read_file(file, len(whole)) == whole
    assert read_file(file, len(whole) + 1) == whole
    assert read_file(file, len(whole) - 1) == whole
    assert read_file(file, 10) == whole[:11]


def test_read_file_is_relative_to_directory_descriptor(tmp_path: Path) -> None:
    """A renamed directory stays usable."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old/file").write_bytes(b"here")
    folder = syscalls.open_file(tmp_path / "old", os.O_RDONLY | os.O_DIRECTORY)
    (tmp_path / "old").rename(tmp_path / "new")
    assert read_file("file", 10, folder=folder) == b"here"
    os.close(folder)


def test_read_file_continues_after_short_reads_and_eintr(tmp_path: Path) -> None:
    """Interrupted reads are retried, up to a limit."""
    file = tmp_path / "file"
    file.write_bytes(b"0123456789")
    counter = iter(range(1000))

    def read(fd: int, size: int) -> bytes:
        if next(counter) % 2:
            raise InterruptedError(errno.EINTR, "")
        return syscalls.read(fd, min(size, 3))

    assert read_file(file, 100, calls=DeviceCalls(read=read)) == b"0123456789"

    def never(fd: int, size: int) -> bytes:
        del fd, size
        raise InterruptedError(errno.EINTR, "")

    with pytest.raises(InterruptedError):
        read_file(file, 100, calls=DeviceCalls(read=never))


def test_open_file_sets_close_on_exec(tmp_path: Path) -> None:
    """O_CLOEXEC is always added."""
    fd = syscalls.open_file(tmp_path, os.O_RDONLY)
    assert not os.get_inheritable(fd)
    os.close(fd)


# -- error texts -------------------------------------------------------------------------------


def test_error_name_has_symbol_and_meaning() -> None:
    """An errno without a symbol is given as a number."""
    assert device_errors.error_name(OSError(errno.EACCES, "")) == "EACCES, permission denied"
    assert device_errors.error_name(OSError(9999, "")).startswith("errno 9999, ")


def test_permissions_describe_file_and_process(tmp_path: Path) -> None:
    """The text has mode, owner and group of the file, and the process's IDs."""
    file = tmp_path / "file"
    file.touch()
    file.chmod(0o604)
    owner = file.stat()
    output = device_errors.permissions(file)
    assert output.startswith(f"{file} has mode 0604, owner uid {owner.st_uid}, ")
    assert f"this process has uid {os.geteuid()}, groups " in output
    assert str(os.getegid()) in output.rpartition("groups ")[2].split(",")
    assert "failed (ENOENT" in device_errors.permissions(tmp_path / "none")


@pytest.mark.parametrize(
    ("imports", "heavy"),
    [
        ("attestkit, attestkit.backends", {"ctypes"}),
        ("attestkit.keys; attestkit.keys.AgentKeys", {"attestkit.backends"}),
        ("attestkit.backends.dstack_agent", {"http", "http.client", "ssl", "asyncio"}),
    ],
)
def test_import_does_not_load_heavy_modules(imports: str, heavy: set[str]) -> None:
    """Importing the package, its registry and the agent's client stays cheap."""
    code = f"import sys, {imports}; print(sorted({heavy} & set(sys.modules)))"
    assert run_python("-c", code) == "[]\n"
