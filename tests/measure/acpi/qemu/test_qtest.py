"""Tests of StoppedQemu: the protocol, the time limit, and the end of the process."""

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attestkit.errors import BackendError, ConfigError
from attestkit.measure.acpi.qemu.qemu_command import DEFAULT_PROGRAM
from attestkit.measure.acpi.qemu.qemu_machine import read_build, read_version
from attestkit.measure.acpi.qemu.qtest import StoppedQemu
from tests.measure.acpi.machines import needs_qemu
from tests.measure.acpi.qemu.fake_qemu import write_answers, write_program
from tests.raising import raises

COMMAND = [DEFAULT_PROGRAM, "-nodefaults", "-machine", "q35", "-m", "64M"]

# Starts a program whose input and output are this process's, and prints its process id.
PARENT = """
import signal, sys
from attestkit.measure.acpi.qemu.qtest import StoppedQemu
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job ignores
with StoppedQemu([{program!r}]) as qemu:
    print(qemu._process.pid, flush=True)
    sys.stdin.read()
"""


def is_running(pid: int) -> bool:
    """Return whether a process exists, and is not a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@needs_qemu
def test_memory_and_ports_are_those_of_a_machine() -> None:
    """Memory reads what was written, and the host bridge of q35 is found."""
    with StoppedQemu(COMMAND) as qemu:
        qemu.write_memory(0x5000, b"attested")
        assert qemu.read_memory(0x5000, 8) == b"attested"
        qemu.port_write(0xCF8, 1 << 31)
        assert qemu.port_read(0xCFC) == 0x29C08086


@needs_qemu
def test_qemu_is_killed_at_exit() -> None:
    """The process is gone after the block, also after an exception."""
    qemu = StoppedQemu(COMMAND)
    with pytest.raises(KeyboardInterrupt), qemu:
        raise KeyboardInterrupt
    assert qemu._process.poll() == -signal.SIGKILL


@needs_qemu
def test_error_output_of_qemu_is_in_the_message() -> None:
    """If QEMU refuses its options, the error has QEMU's reason."""
    with (
        StoppedQemu([*COMMAND, "-device", "no-such-device"]) as qemu,
        raises(ConfigError, "wrong_value", part="no-such-device"),
    ):
        qemu.read_memory(0, 1)


def test_program_that_exits_gives_its_error_output(tmp_path: Path) -> None:
    """Much error output does not block the program, and its end is in the message on one line."""
    body = "sys.stderr.write('warning: many vCPUs\\n' * 50_000 + 'end\\x1b of it')\nsys.exit(1)\n"
    with (
        StoppedQemu([write_program(tmp_path, body)]) as qemu,
        raises(ConfigError, "wrong_value") as caught,
    ):
        qemu.read_memory(0, 1)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 1000


def test_program_without_answer_ends_at_time_limit(tmp_path: Path) -> None:
    """A program that does not answer is given up at the time limit, and killed."""
    program = write_program(tmp_path, "time.sleep(600)\n")
    with (
        StoppedQemu([program], seconds=0.2) as qemu,
        raises(BackendError, "timed_out", path=program),
    ):
        qemu.read_memory(0, 1)
    assert qemu._process.poll() == -signal.SIGKILL


def test_time_limit_covers_the_whole_run(tmp_path: Path) -> None:
    """Answers do not extend the time limit."""
    program = write_answers(tmp_path, "'OK\\n'")
    with StoppedQemu([program], seconds=0.5) as qemu, raises(BackendError, "timed_out"):
        while True:
            qemu.port_write(0, 0)


@pytest.mark.parametrize(
    "answer",
    [
        "'FAIL no such command\\n'",
        "'OK 0xzz\\n'",
        "'OK 0x00\\n'",
        "'\\n'",
        "'\\xff\\n'",
        "'x' * (1 << 23)",
    ],
)
def test_answers_outside_of_the_protocol_are_refused(tmp_path: Path, answer: str) -> None:
    """An answer must start with OK, and have as many bytes as requested."""
    with (
        StoppedQemu([write_answers(tmp_path, answer)]) as qemu,
        raises(BackendError, "malformed_response"),
    ):
        qemu.read_memory(0, 2)


def test_port_read_rejects_answer_without_number(tmp_path: Path) -> None:
    """A port's value is a hexadecimal number."""
    with (
        StoppedQemu([write_answers(tmp_path, "'OK x\\n'")]) as qemu,
        raises(BackendError, "malformed_response"),
    ):
        qemu.port_read(0)


def test_missing_program_is_reported(tmp_path: Path) -> None:
    """A program that is not there is an error of the configuration."""
    for start in (lambda name: StoppedQemu([name]).__enter__(), read_version):
        with raises(ConfigError, "missing"):
            start(str(tmp_path / "none"))


def test_file_that_is_no_program_is_reported(tmp_path: Path) -> None:
    """A file that the system cannot execute is an error of the configuration."""
    path = tmp_path / "qemu"
    path.write_bytes(b"\x7fELF nothing")
    path.chmod(0o700)
    with raises(ConfigError, "unreadable", "wrong_value"):
        read_version(str(path))


def test_read_version_rejects_other_program(tmp_path: Path) -> None:
    """A program that does not print QEMU's version is refused."""
    with raises(ConfigError, "wrong_value"):
        read_version(write_program(tmp_path, "print('something else 9.2.1')\n"))


def test_read_version_of_program_that_prints_without_end_is_limited(tmp_path: Path) -> None:
    """The output is read up to a limit, not until the program ends."""
    start = time.monotonic()
    with raises(ConfigError, "wrong_value"):
        read_version(write_program(tmp_path, "while True: print('y' * 4000)\n"))
    assert time.monotonic() - start < 9


def test_read_version_returns_printed_version(tmp_path: Path) -> None:
    """The version is that of QEMU's first line."""
    program = write_program(tmp_path, "print('QEMU emulator version 9.2.1 (x)\\nCopyright')\n")
    assert read_version(program) == (9, 2, 1)


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv of util-linux is missing")
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_program_ends_with_killed_parent(tmp_path: Path, sent: signal.Signals) -> None:
    """However this process ends, QEMU does not stay."""
    program = write_program(tmp_path, "print(flush=True)\ntime.sleep(600)\n")
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(program=program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert is_running(pid)
    watch = os.pidfd_open(pid)
    try:
        parent.send_signal(sent)
        parent.wait(30)
        poll = select.poll()
        poll.register(watch, select.POLLIN)
        assert poll.poll(30_000), "the program still runs"
    finally:
        os.close(watch)
        parent.communicate()


def test_read_build_depends_on_file_and_printed_text(tmp_path: Path) -> None:
    """Two builds of a version differ in their file, or in what they print."""
    program = write_program(tmp_path, "print('QEMU emulator version 9.2.1 (x)')\n")
    first = read_build(program)
    assert first == read_build(program)
    assert first.version == (9, 2, 1)
    assert first.digest is not None
    write_program(tmp_path, "print('QEMU emulator version 9.2.1 (x)')  # patched\n")
    patched = read_build(program)
    text = "print(f'QEMU emulator version 9.2.1 ({len(sys.argv[0])}{time.time_ns()})')\n"
    write_program(tmp_path, text)
    assert len({first.digest, patched.digest, *(read_build(program).digest for _ in "ab")}) == 4
