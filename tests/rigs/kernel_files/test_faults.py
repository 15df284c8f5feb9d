"""Faults of the emulator: arming, and those that tests/rigs/documented_errors does not have."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.rigs.emulator import PATIENCE, Emulator, requires_fuse
from tests.rigs.kernel_files.file_calls import (
    MEASUREMENTS,
    NONCE,
    errno_name_of,
    get_td_report,
    new_entry,
    read_once,
    write_once,
)

pytestmark = [pytest.mark.slow, pytest.mark.rig, requires_fuse]


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


def test_other_files_have_errno_faults(machine: Emulator) -> None:
    """Boot log, boot ID, device and registers can be unreadable."""
    names = {
        "ccel_data": "sys/firmware/acpi/tables/data/CCEL",
        "ccel_table": "sys/firmware/acpi/tables/CCEL",
        "boot_id": "proc/sys/kernel/random/boot_id",
        "tdx_guest": "dev/tdx_guest",
        "rtmr3": f"{MEASUREMENTS}/rtmr3:sha384",
    }
    for name, path in names.items():
        machine.fault(f"open:{name}=EACCES")
        assert errno_name_of(read_once, machine.root / path) == "EACCES", name
    assert machine.armed() == []


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
