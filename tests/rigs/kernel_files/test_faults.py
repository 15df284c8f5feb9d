"""Faults of the emulator: each gives the errno or the content of the kernel."""

import errno
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestkit.backends.simulator.faults.fault_specs import NAMED
from attestkit.quote import Quote
from tests.rigs.emulator import PATIENCE, Emulator, emulator, requires_fuse
from tests.rigs.kernel_files.file_calls import (
    GET_REPORT0,
    MEASUREMENTS,
    NONCE,
    errno_name_of,
    get_td_report,
    new_entry,
    read_generation,
    read_once,
    write_once,
)

pytestmark = [pytest.mark.rig, requires_fuse]

REGISTER = f"{MEASUREMENTS}/rtmr3:sha384"
# Errnos of reading outblob in the tables of configfs-tsm.
ERRNOS = (
    *("ENOENT", "ENXIO", "EACCES", "EPERM", "EINVAL", "EBUSY", "EINTR", "ETIMEDOUT", "EIO"),
    *("EFBIG", "ENOMEM", "ENOTTY", "ENODEV", "ETXTBSY"),
)


@pytest.fixture(scope="module")
def shared() -> Iterator[Emulator]:
    """Run a machine for the module."""
    with emulator(qgs=True) as machine:
        yield machine
        assert machine.errors.read_text() == ""


@pytest.fixture
def machine(shared: Emulator) -> Emulator:
    """Return the rebooted machine without faults."""
    shared.clear_faults()
    shared.reboot()
    return shared


def read_with_one_call(path: Path) -> str:
    """Make one read(2), without Python's retry after EINTR; return its errno's name."""
    program = f"""
import ctypes, os, signal, sys
signal.signal(signal.SIGALRM, lambda *_: None)
signal.siginterrupt(signal.SIGALRM, True)
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open({str(path)!r}, os.O_RDONLY)
print("opened", flush=True)
sys.stdin.readline()
buffer = ctypes.create_string_buffer(8192)
print(libc.read(fd, buffer, 8192), ctypes.get_errno(), flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        assert client.stdout.readline() == "opened\n"
        client.stdin.write("go\n")
        client.stdin.flush()
        while client.poll() is None and not _is_waiting(client.pid):
            pass
        client.send_signal(signal.SIGALRM)
        count, number = map(int, client.stdout.readline().split())
    return errno.errorcode[number] if count < 0 else str(count)


def _is_waiting(pid: int) -> bool:
    """Return whether a process waits for a FUSE response."""
    try:
        return b"request_wait_answer" in Path(f"/proc/{pid}/wchan").read_bytes()
    except OSError:
        return False


# -- errno faults ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ERRNOS)
def test_outblob_errno_fault_is_raised_once(machine: Emulator, name: str) -> None:
    """The next read makes the report."""
    entry = new_entry(machine, inblob=NONCE)
    machine.fault(f"read:outblob={name}")
    if name == "EINTR":  # hidden by Python's own read
        machine.fault("read:outblob=EBUSY")
        name = "EBUSY"
    assert errno_name_of(read_once, entry / "outblob") == name
    assert Quote.parse(read_once(entry / "outblob")).report_data == NONCE
    assert machine.armed() == []


@pytest.mark.parametrize(
    "name", ["ENOENT", "ENXIO", "EEXIST", "EACCES", "EPERM", "EROFS", "ENOMEM", "EBUSY"]
)
def test_mkdir_errno_fault_creates_nothing(machine: Emulator, name: str) -> None:
    """The next mkdir succeeds."""
    machine.fault(f"mkdir={name}")
    assert errno_name_of(new_entry, machine) == name
    assert machine.entries() == []
    assert read_generation(new_entry(machine)) == 0


def test_other_operations_have_errno_faults(machine: Emulator) -> None:
    """open, read, write and rmdir fail by the names of their files."""
    entry = new_entry(machine, inblob=NONCE)
    machine.fault("open:inblob=EACCES", "write:inblob=EBUSY", "open:outblob=EPERM")
    machine.fault("read:generation=ENXIO", "read:provider=ENXIO", "rmdir=EBUSY")
    assert errno_name_of(write_once, entry / "inblob", NONCE) == "EACCES"
    assert errno_name_of(write_once, entry / "inblob", NONCE) == "EBUSY"
    assert errno_name_of(read_once, entry / "outblob") == "EPERM"
    assert errno_name_of(read_once, entry / "generation") == "ENXIO"
    assert errno_name_of(read_once, entry / "provider") == "ENXIO"
    assert errno_name_of(entry.rmdir) == "EBUSY"
    assert machine.entries() == ["test"]
    entry.rmdir()
    assert machine.armed() == []


@pytest.mark.parametrize("name", ["EINVAL", "EBUSY", "EIO", "EFAULT", "ENOMEM", "ENOTTY", "EINTR"])
def test_ioctl_errno_fault_leaves_the_buffer(machine: Emulator, name: str) -> None:
    """Nothing is copied to the caller."""
    machine.fault(f"ioctl:GET_REPORT0={name}")
    fd = os.open(machine.root / "dev/tdx_guest", os.O_RDWR)
    buffer = bytearray(NONCE + bytes(1024))
    assert errno_name_of(fcntl.ioctl, fd, GET_REPORT0, buffer) == name
    assert buffer == NONCE + bytes(1024)
    os.close(fd)
    assert get_td_report(machine, NONCE).report_data == NONCE


@pytest.mark.parametrize("name", ["EINTR", "EBUSY", "EIO", "EACCES", "EPERM", "EROFS"])
def test_register_errno_fault_leaves_the_register(machine: Emulator, name: str) -> None:
    """A failed extend has no effect."""
    machine.fault(f"write:rtmr3={name}@1")
    write_once(machine.root / REGISTER, bytes(48))
    before = machine.rtmr(3)
    if name == "EINTR":
        machine.fault("write:rtmr3=EBUSY")
        name = "EBUSY"
    assert errno_name_of(write_once, machine.root / REGISTER, bytes(48)) == name
    assert machine.rtmr(3) == before


def test_other_files_have_errno_faults(machine: Emulator) -> None:
    """Boot log, boot ID, device and registers can be unreadable."""
    names = {
        "ccel_data": "sys/firmware/acpi/tables/data/CCEL",
        "ccel_table": "sys/firmware/acpi/tables/CCEL",
        "boot_id": "proc/sys/kernel/random/boot_id",
        "tdx_guest": "dev/tdx_guest",
        "rtmr3": REGISTER,
    }
    for name, path in names.items():
        machine.fault(f"open:{name}=EACCES")
        assert errno_name_of(read_once, machine.root / path) == "EACCES", name
    assert machine.armed() == []


# -- named faults ------------------------------------------------------------------------------


def test_named_faults_are_raised_in_order(machine: Emulator) -> None:
    """Each is raised as often as its count."""
    entry = new_entry(machine, inblob=NONCE)
    machine.fault("ebusy:3", "eio", "etimedout")
    errnos = [errno_name_of(read_once, entry / "outblob") for _ in range(5)]
    assert errnos == ["EBUSY", "EBUSY", "EBUSY", "EIO", "ETIMEDOUT"]
    assert Quote.parse(read_once(entry / "outblob")).report_data == NONCE


def test_slow_fault_signal_gives_eintr_then_ebusy(machine: Emulator) -> None:
    """EBUSY lasts until the host has answered."""
    entry = new_entry(machine, inblob=NONCE)
    machine.fault("slow:50s")
    began = time.monotonic()
    assert read_with_one_call(entry / "outblob") == "EINTR"
    machine.fault("short_outblob")
    assert errno_name_of(read_once, entry / "outblob") == "EBUSY"
    assert machine.armed() == ["short_outblob:1"]
    machine.clear_faults()
    assert get_td_report(machine, NONCE).report_data == NONCE
    assert time.monotonic() - began < 25
    machine.reboot()
    assert read_once(new_entry(machine, inblob=NONCE) / "outblob")


def test_slow_fault_delays_the_report_once(machine: Emulator) -> None:
    """The quote is valid."""
    entry = new_entry(machine, inblob=NONCE)
    machine.fault("slow:300ms")
    began = time.monotonic()
    quote = read_once(entry / "outblob")
    assert 0.3 <= time.monotonic() - began < 20
    assert Quote.parse(quote).report_data == NONCE


def test_empty_outblob_fault_is_cached_until_next_write(machine: Emulator) -> None:
    """The report is made again after a write to inblob."""
    entry = new_entry(machine, inblob=NONCE)
    machine.fault("empty_outblob")
    assert [read_once(entry / "outblob") for _ in range(3)] == [b"", b"", b""]
    write_once(entry / "inblob", NONCE)
    assert Quote.parse(read_once(entry / "outblob")).report_data == NONCE


def test_short_and_wrong_outblob_faults_are_raised_once(machine: Emulator) -> None:
    """A truncated quote, and one over other report data."""
    machine.fault("short_outblob", "wrong_report_data")
    assert len(read_once(new_entry(machine, "a", NONCE) / "outblob")) == 1000
    wrong = Quote.parse(read_once(new_entry(machine, "b", NONCE) / "outblob"))
    assert wrong.report_data == bytes(byte ^ 0xFF for byte in NONCE)
    assert Quote.parse(read_once(new_entry(machine, "c", NONCE) / "outblob")).report_data == NONCE


def test_generation_race_fault_changes_the_generation_only(machine: Emulator) -> None:
    """The write of another process is simulated."""
    machine.fault("generation_race")
    entry = new_entry(machine, inblob=NONCE)
    assert read_generation(entry) == 2
    write_once(entry / "inblob", NONCE)
    assert read_generation(entry) == 3


def test_provider_changes_fault_follows_its_count(machine: Emulator) -> None:
    """The provider file names the other platform."""
    machine.fault("provider_changes:2@1")
    entry = new_entry(machine)
    assert [read_once(entry / "provider") for _ in range(4)] == [
        b"tdx_guest\n",
        b"sev_guest\n",
        b"sev_guest\n",
        b"tdx_guest\n",
    ]


def test_provider_leaves_fault_lasts_until_reboot(machine: Emulator) -> None:
    """All operations fail with ENXIO."""
    entry = new_entry(machine, inblob=NONCE)
    machine.fault("provider_leaves")
    assert errno_name_of(new_entry, machine, "other") == "ENXIO"
    assert errno_name_of(new_entry, machine, "other") == "ENXIO"
    assert errno_name_of(read_once, entry / "outblob") == "ENXIO"
    assert errno_name_of(read_once, entry / "provider") == "ENXIO"
    assert read_generation(entry) == 1
    machine.reboot()
    assert read_once(new_entry(machine, inblob=NONCE) / "outblob")


def test_extend_faults_fail_with_and_without_effect(machine: Emulator) -> None:
    """Both return EIO."""
    machine.fault("rtmr_extend_fails", "rtmr_extend_lies")
    before = machine.rtmr(3)
    assert errno_name_of(write_once, machine.root / REGISTER, bytes(48)) == "EIO"
    assert machine.rtmr(3) == before
    assert errno_name_of(write_once, machine.root / REGISTER, bytes(48)) == "EIO"
    assert machine.rtmr(3) != before


def test_foreign_extend_fault_applies_to_both_interfaces(machine: Emulator) -> None:
    """RTMR3 is extended before a report."""
    before = machine.rtmr(3)
    machine.fault("foreign_extend")
    first = Quote.parse(read_once(new_entry(machine, inblob=NONCE) / "outblob")).rtmrs[3]
    assert first == machine.rtmr(3) != before
    machine.fault("foreign_extend")
    assert get_td_report(machine, NONCE).rtmrs[3] == machine.rtmr(3) != first


@pytest.mark.parametrize(("kernel", "errno_name"), [("7.0", ""), ("7.1", "EIO")])
def test_quote_fails_fault_depends_on_kernel_version(kernel: str, errno_name: str) -> None:
    """EIO from 7.1 on, before that an empty outblob, which is cached."""
    with emulator(kernel=kernel, faults=["quote_fails"]) as machine:
        entry = new_entry(machine, inblob=NONCE)
        if errno_name:
            assert errno_name_of(read_once, entry / "outblob") == errno_name
        else:
            assert [read_once(entry / "outblob") for _ in range(2)] == [b"", b""]
            write_once(entry / "inblob", NONCE)
        assert Quote.parse(read_once(entry / "outblob")).report_data == NONCE


@pytest.mark.parametrize(("kernel", "size"), [("6.12.79", 8169), ("6.12.80", 0)])
def test_oversized_outblob_fault_depends_on_kernel_version(kernel: str, size: int) -> None:
    """EFBIG, if the kernel checks the host's length."""
    with emulator(kernel=kernel, faults=["oversized_outblob"]) as machine:
        entry = new_entry(machine, inblob=NONCE)
        if size:
            assert len(read_once(entry / "outblob")) == size
        else:
            assert errno_name_of(read_once, entry / "outblob") == "EFBIG"


# -- the quote generation service --------------------------------------------------------------


def request_qgs(machine: Emulator) -> bytes:
    """Send a request with a fresh report; return the response."""
    assert machine.qgs is not None
    report = get_td_report(machine, NONCE).raw
    message = struct.pack("<HHIIIII", 1, 0, 0, 1048, 0, 1024, 0) + report
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(machine.qgs)
        client.sendall(struct.pack(">I", len(message)) + message)
        answer = b""
        while chunk := client.recv(65536):
            answer += chunk
    return answer


def test_qgs_faults_affect_one_response_each(machine: Emulator) -> None:
    """The service quotes a report otherwise."""
    good = request_qgs(machine)
    quote = Quote.parse(good[4 + 24 + 16 :])
    assert quote.rtmrs == get_td_report(machine, NONCE).rtmrs
    machine.fault("qgs_error", "qgs_closes", "qgs_truncates")
    assert request_qgs(machine)[4:] == struct.pack("<HHIIIII", 1, 0, 1, 24, 0x12001, 0, 0)
    assert request_qgs(machine) == b""
    assert len(request_qgs(machine)) == len(good) // 2
    assert len(request_qgs(machine)) == len(good)


# -- arming ------------------------------------------------------------------------------------


def test_fault_file_is_written_by_shell(machine: Emulator) -> None:
    """`>` replaces faults, `>>` adds them, one per line; reading shows the rest."""
    file = machine.root / "attestkit/faults"
    script = "printf 'ebusy:3\\neintr\\n' > $1; echo mkdir=EIO@2 >> $1; cat $1; : > $1; cat $1"
    words = ["sh", "-euc", script, "sh", str(file)]
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == "ebusy:3\neintr:1\nmkdir=EIO:1@2\n"
    assert machine.armed() == []


def test_fault_file_rejects_invalid_lines(machine: Emulator) -> None:
    """EINVAL, and nothing of the write is armed."""
    file = machine.root / "attestkit/faults"
    assert errno_name_of(write_once, file, b"ebusy:3\nwhat\n", os.O_APPEND) == "EINVAL"
    assert errno_name_of(write_once, file, b"\xff\n", os.O_APPEND) == "EINVAL"
    assert machine.armed() == []


def test_all_named_faults_can_be_armed() -> None:
    """The command line and the file accept each name."""
    names = [f"{name}:1s" if named.argument else name for name, named in NAMED.items()]
    with emulator(faults=names) as machine:
        machine.fault(*names)
        assert len(machine.armed()) == 2 * len(names)
