"""A stopped QEMU and its qtest protocol (docs/devel/testing/qtest.rst).

QEMU starts with TCG and stays stopped (-S), so it needs no KVM and runs no guest instruction. The
qtest protocol accesses ports and memory as the firmware would: a line per command, answered by a
line that starts with OK.
"""

import contextlib
import select
import time
from collections.abc import Sequence
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Final

from attestkit._sanitize import one_line, shown
from attestkit.errors import BackendError, ConfigError

if TYPE_CHECKING:
    import subprocess

    from typing_extensions import Self

DEFAULT_SECONDS: Final = 30.0
"""Time limit of a run in seconds; 64 vCPUs with 2 TiB take 0.6 s."""

_QTEST: Final = (
    *("-accel", "tcg", "-S", "-qtest", "stdio", "-qtest-log", "none"),
    *("-monitor", "none", "-display", "none", "-no-user-config"),
)
_READ_SIZE: Final = 1 << 20
_MAX_ANSWER: Final = 1 << 22  # characters; the largest read has 512 KiB in hex
_MAX_COMPLAINT: Final = 600  # characters of QEMU's errors in a message
_TAIL: Final = 8192  # bytes of them that are read
_EXIT_SECONDS: Final = 5.0


class StoppedQemu:
    """A context manager: QEMU runs from enter to exit, and is killed at exit.

    On Linux it is also killed when this process or thread ends, however it ends.

    Methods for ports and memory raise ConfigError if QEMU has exited, with its error output, and
    BackendError at the time limit or after an answer that is not of the protocol.
    """

    def __init__(self, command: Sequence[str], *, seconds: float = DEFAULT_SECONDS) -> None:
        """Prepare a run.

        Args:
            command: QEMU's program and the options of the machine, without accelerator, monitor and
                display.
            seconds: Time limit from enter to exit.
        """
        self._program = command[0]
        self._options = [*command[1:], *_QTEST]
        self._seconds = seconds

    def __enter__(self) -> "Self":
        """Start QEMU.

        Raises:
            ConfigError: If the program is missing or cannot be executed, or a temporary file cannot
                be created.
        """
        import subprocess  # lazy, as in this whole file: only needed for a run
        import tempfile

        # A file, because QEMU blocks on a pipe that is full: it warns about many vCPUs.
        self._errors = tempfile.TemporaryFile()
        try:
            self._process = start_program(
                self._program, self._options, stdin=subprocess.PIPE, stderr=self._errors.fileno()
            )
        except BaseException:
            self._errors.close()
            raise
        self._deadline = time.monotonic() + self._seconds
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        stop_program(self._process)
        self._errors.close()

    def port_write(self, port: int, value: int) -> None:
        """Write the number `value`, 32 bits, to an I/O port of the machine."""
        self._request(f"outl {port:#x} {value:#x}")

    def port_read(self, port: int) -> int:
        """Return the number, 32 bits, that is read from an I/O port of the machine."""
        return _hex_number(self._request(f"inl {port:#x}"))

    def write_memory(self, address: int, data: bytes) -> None:
        """Write `data` to the guest's memory, at a physical address."""
        self._request(f"write {address:#x} {len(data):#x} 0x{data.hex()}")

    def read_memory(self, address: int, size: int) -> bytes:
        """Return `size` bytes, at most 512 KiB, of the guest's memory at a physical address."""
        answer = self._request(f"read {address:#x} {size:#x}")
        try:
            data = bytes.fromhex(answer.removeprefix("0x"))
        except ValueError as error:
            raise _malformed(answer) from error
        if len(data) != size:
            raise _malformed(answer)
        return data

    def _request(self, command: str) -> str:
        """Send a command of the qtest protocol, without newline, and return what follows OK.

        Raises:
            ConfigError: If QEMU has exited; the message has its error output.
            BackendError: At the time limit, or after an answer that is not the protocol's.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(command.encode("ascii") + b"\n")
        except OSError as error:
            raise self._exited() from error
        answer = self._read_line().decode("ascii", "replace").rstrip("\r\n")
        word, _, rest = answer.partition(" ")
        if word != "OK":
            raise _malformed(answer)
        return rest

    def _read_line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            part = wait_for_output(self._process, self._deadline)
            if part is None:
                message = f"{self._program}: no answer within {self._seconds:g} s"
                raise BackendError(message, reason="timed_out", path=self._program)
            if not part:
                raise self._exited()
            line += part
            if len(line) > _MAX_ANSWER:
                raise _malformed(line[:16].decode("ascii", "replace"))
        return line

    def _exited(self) -> ConfigError:
        import subprocess

        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_SECONDS)
        self._errors.seek(max(0, self._errors.seek(0, 2) - _TAIL))
        text = one_line(self._errors.read(_TAIL).decode("utf-8", "replace"), _MAX_COMPLAINT)
        message = f"{self._program}: exited before the machine was read: {text or 'no message'}"
        return ConfigError(message, reason="wrong_value")


def find_program(program: str) -> str:
    """Return the path of a program; a name without a slash is searched for in PATH.

    Raises:
        ConfigError: If the program is missing or not executable.
    """
    import shutil

    found = shutil.which(program)
    if found is None:
        message = f"{program}: not found, or not executable; install QEMU, or name its path"
        raise ConfigError(message, reason="missing")
    return found


def start_program(
    program: str, options: Sequence[str], *, stdin: int, stderr: int
) -> "subprocess.Popen[bytes]":
    """Start QEMU with a pipe from its standard output.

    On Linux QEMU is killed when the thread that starts it ends.

    Args:
        program: Path of the program, or a name to search for in PATH.
        options: Arguments of the program.
        stdin: Standard input, as for Popen: a descriptor, or PIPE or DEVNULL of subprocess.
        stderr: Standard error, likewise.

    Raises:
        ConfigError: If `program` is missing or cannot be executed.
    """
    import subprocess

    found = find_program(program)
    try:
        return subprocess.Popen(  # noqa: S603 - the user's QEMU, without a shell
            [*_die_with_parent(), found, *options],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            bufsize=0,
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"{program}: cannot be executed: {error}", reason="unreadable") from error


def wait_for_output(process: "subprocess.Popen[bytes]", deadline: float) -> bytes | None:
    """Return the next bytes of a process's standard output, b"" at its end; None at `deadline`.

    The deadline is a time of `time.monotonic`, in seconds.
    """
    assert process.stdout is not None
    poll = select.poll()
    poll.register(process.stdout.fileno(), select.POLLIN)
    left = deadline - time.monotonic()
    if left <= 0 or not poll.poll(left * 1000):
        return None
    return process.stdout.read(_READ_SIZE)


def stop_program(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process, wait for its end, and close its pipes."""
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    process.wait()


@cache
def _die_with_parent() -> tuple[str, ...]:
    """Return the words before a command that kill it when the thread that started it ends.

    A process that is killed cannot stop QEMU, and QEMU does not exit at the end of its input.
    setpriv of util-linux sets PR_SET_PDEATHSIG and executes the program; other versions of setpriv
    lack the option.
    """
    import shutil
    import subprocess

    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return ()
    prefix = (setpriv, "--pdeathsig", "KILL", "--")
    try:
        done = subprocess.run(  # noqa: S603 - a program of the system
            [*prefix, "true"], capture_output=True, check=False, timeout=_EXIT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return prefix if done.returncode == 0 else ()


def _hex_number(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError as error:
        raise _malformed(text) from error


def _malformed(answer: str) -> BackendError:
    message = f"QEMU: answer must be of the qtest protocol, not {shown(answer)}"
    return BackendError(message, reason="malformed_response")
