"""Plain file calls on an emulator's files, without attestkit's backends."""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from attestkit.td_report import TdReport
from tests.rigs.emulator import REPORTS, Emulator

NONCE = bytes(range(64))
OTHER = bytes(range(64, 128))
GET_REPORT0 = 0xC4405401
MEASUREMENTS = "sys/devices/virtual/misc/tdx_guest/measurements"


def write_once(path: Path, data: bytes, flags: int = 0) -> int:
    """Write in one call, and close."""
    fd = os.open(path, os.O_WRONLY | flags)
    try:
        return os.write(fd, data)
    finally:
        os.close(fd)


def read_once(path: Path, size: int = 1 << 20) -> bytes:
    """Read in one call."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, size)
    finally:
        os.close(fd)


def errno_name_of(call: Callable[..., object], *words: object) -> str:
    """Return the name of the errno of a failing call."""
    with pytest.raises(OSError, match=r"\[Errno") as caught:
        call(*words)
    return errno.errorcode[caught.value.errno or 0]


def make_entry(reports: Path, name: str, inblob: bytes = b"") -> Path:
    """Create a report entry; write its inblob, unless it is empty."""
    entry = reports / name
    entry.mkdir()
    if inblob:
        write_once(entry / "inblob", inblob)
    return entry


def new_entry(machine: Emulator, name: str = "test", inblob: bytes = b"") -> Path:
    """Create a report entry of a machine."""
    return make_entry(machine.root / REPORTS, name, inblob)


def read_generation(entry: Path) -> int:
    """Return an entry's generation."""
    return int(read_once(entry / "generation"))


def get_td_report(machine: Emulator, report_data: bytes) -> TdReport:
    """Return a TD report of the device."""
    fd = os.open(machine.root / "dev/tdx_guest", os.O_RDWR)
    try:
        buffer = bytearray(report_data + bytes(1024))
        assert fcntl.ioctl(fd, GET_REPORT0, buffer) == 0
    finally:
        os.close(fd)
    assert buffer[:64] == report_data
    return TdReport.parse(bytes(buffer[64:]))
