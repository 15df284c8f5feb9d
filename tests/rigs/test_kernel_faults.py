"""Each fault shows to a program as the errno or the content that the kernel would give it."""

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
from tests.rigs.file_calls import (
    GET_REPORT0,
    MEASUREMENTS,
    NONCE,
    failure,
    generation,
    get,
    new_entry,
    put,
    td_report,
)

pytestmark = [pytest.mark.rig, requires_fuse]

REGISTER = f"{MEASUREMENTS}/rtmr3:sha384"
# What reading outblob says of each errno in the tables of configfs-tsm.
ERRNOS = (
    *("ENOENT", "ENXIO", "EACCES", "EPERM", "EINVAL", "EBUSY", "EINTR", "ETIMEDOUT", "EIO"),
    *("EFBIG", "ENOMEM", "ENOTTY", "ENODEV", "ETXTBSY"),
)


@pytest.fixture(scope="module")
def shared() -> Iterator[Emulator]:
    """Return a machine for the whole module."""
    with emulator(qgs=True) as machine:
        yield machine
        assert machine.errors.read_text() == ""


@pytest.fixture
def machine(shared: Emulator) -> Emulator:
    """Return it, just booted and without faults."""
    shared.clear_faults()
    shared.reboot()
    return shared


def read_once(path: Path) -> str:
    """Read by one system call, not the loop around EINTR of Python's; return its errno's name."""
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
    """Tell whether a process is in FUSE, waiting for an answer."""
    try:
        return b"request_wait_answer" in Path(f"/proc/{pid}/wchan").read_bytes()
    except OSError:
        return False


# -- the general form --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ERRNOS)
def test_outblob_errno(machine: Emulator, name: str) -> None:
    """Any errno of the tables, once; the report is then made as if nothing had been."""
    entry = new_entry(machine, inblob=NONCE)
    machine.fault(f"read:outblob={name}")
    if name == "EINTR":  # which Python's own read would hide
        machine.fault("read:outblob=EBUSY")
        name = "EBUSY"
    assert failure(get, entry / "outblob") == name
    assert Quote.parse(get(entry / "outblob")).report_data == NONCE
    assert machine.armed() == []


@pytest.mark.parametrize(
    "name", ["ENOENT", "ENXIO", "EEXIST", "EACCES", "EPERM", "EROFS", "ENOMEM", "EBUSY"]
)
def test_mkdir_errno(machine: Emulator, name: str) -> None:
    """Mkdir fails, and makes nothing."""
    machine.fault(f"mkdir={name}")
    assert failure(new_entry, machine) == name
    assert machine.entries() == []
    assert generation(new_entry(machine)) == 0


def test_other_calls(machine: Emulator) -> None:
    """Opening, reading, writing and removing fail by the names of their files."""
    entry = new_entry(machine, inblob=NONCE)
    machine.fault("open:inblob=EACCES", "write:inblob=EBUSY", "open:outblob=EPERM")
    machine.fault("read:generation=ENXIO", "read:provider=ENXIO", "rmdir=EBUSY")
    assert failure(put, entry / "inblob", NONCE) == "EACCES"
    assert failure(put, entry / "inblob", NONCE) == "EBUSY"
    assert failure(get, entry / "outblob") == "EPERM"
    assert failure(get, entry / "generation") == "ENXIO"
    assert failure(get, entry / "provider") == "ENXIO"
    assert failure(entry.rmdir) == "EBUSY"
    assert machine.entries() == ["test"]
    entry.rmdir()
    assert machine.armed() == []


@pytest.mark.parametrize("name", ["EINVAL", "EBUSY", "EIO", "EFAULT", "ENOMEM", "ENOTTY", "EINTR"])
def test_ioctl_errno(machine: Emulator, name: str) -> None:
    """The device's command fails; nothing is copied out."""
    machine.fault(f"ioctl:GET_REPORT0={name}")
    fd = os.open(machine.root / "dev/tdx_guest", os.O_RDWR)
    buffer = bytearray(NONCE + bytes(1024))
    assert failure(fcntl.ioctl, fd, GET_REPORT0, buffer) == name
    assert buffer == NONCE + bytes(1024)
    os.close(fd)
    assert td_report(machine, NONCE).report_data == NONCE


@pytest.mark.parametrize("name", ["EINTR", "EBUSY", "EIO", "EACCES", "EPERM", "EROFS"])
def test_register_errno(machine: Emulator, name: str) -> None:
    """An extend fails, and the register is as it was."""
    machine.fault(f"write:rtmr3={name}@1")
    put(machine.root / REGISTER, bytes(48))
    before = machine.rtmr(3)
    if name == "EINTR":
        machine.fault("write:rtmr3=EBUSY")
        name = "EBUSY"
    assert failure(put, machine.root / REGISTER, bytes(48)) == name
    assert machine.rtmr(3) == before


def test_files_around(machine: Emulator) -> None:
    """Boot log, boot id and device can be unreadable too."""
    names = {
        "ccel_data": "sys/firmware/acpi/tables/data/CCEL",
        "ccel_table": "sys/firmware/acpi/tables/CCEL",
        "boot_id": "proc/sys/kernel/random/boot_id",
        "tdx_guest": "dev/tdx_guest",
        "rtmr3": REGISTER,
    }
    for name, path in names.items():
        machine.fault(f"open:{name}=EACCES")
        assert failure(get, machine.root / path) == "EACCES", name
    assert machine.armed() == []


# -- named faults ------------------------------------------------------------------------------


def test_ebusy_thrice(machine: Emulator) -> None:
    """Named errors strike as often as they count, in the order they were armed."""
    entry = new_entry(machine, inblob=NONCE)
    machine.fault("ebusy:3", "eio", "etimedout")
    said = [failure(get, entry / "outblob") for _ in range(5)]
    assert said == ["EBUSY", "EBUSY", "EBUSY", "EIO", "ETIMEDOUT"]
    assert Quote.parse(get(entry / "outblob")).report_data == NONCE


def test_signal_then_busy(machine: Emulator) -> None:
    """A signal while the host is slow is EINTR, then EBUSY until the host is done; not for ever."""
    entry = new_entry(machine, inblob=NONCE)
    machine.fault("slow:50s")
    began = time.monotonic()
    assert read_once(entry / "outblob") == "EINTR"
    machine.fault("short_outblob")
    assert failure(get, entry / "outblob") == "EBUSY"
    assert machine.armed() == ["short_outblob:1"]
    machine.clear_faults()
    assert td_report(machine, NONCE).report_data == NONCE
    assert time.monotonic() - began < 25
    machine.reboot()
    assert get(new_entry(machine, inblob=NONCE) / "outblob")


def test_slow(machine: Emulator) -> None:
    """A slow host takes its time, once."""
    entry = new_entry(machine, inblob=NONCE)
    machine.fault("slow:300ms")
    began = time.monotonic()
    quote = get(entry / "outblob")
    assert 0.3 <= time.monotonic() - began < 20
    assert Quote.parse(quote).report_data == NONCE


def test_empty_outblob_is_cached(machine: Emulator) -> None:
    """An empty outblob stays empty until the nonce is written again."""
    entry = new_entry(machine, inblob=NONCE)
    machine.fault("empty_outblob")
    assert [get(entry / "outblob") for _ in range(3)] == [b"", b"", b""]
    put(entry / "inblob", NONCE)
    assert Quote.parse(get(entry / "outblob")).report_data == NONCE


def test_short_and_wrong_outblob(machine: Emulator) -> None:
    """A cut quote and one over other report data, each once."""
    machine.fault("short_outblob", "wrong_report_data")
    assert len(get(new_entry(machine, "a", NONCE) / "outblob")) == 1000
    wrong = Quote.parse(get(new_entry(machine, "b", NONCE) / "outblob"))
    assert wrong.report_data == bytes(byte ^ 0xFF for byte in NONCE)
    assert Quote.parse(get(new_entry(machine, "c", NONCE) / "outblob")).report_data == NONCE


def test_generation_race(machine: Emulator) -> None:
    """Somebody else's write shows in the generation alone."""
    machine.fault("generation_race")
    entry = new_entry(machine, inblob=NONCE)
    assert generation(entry) == 2
    put(entry / "inblob", NONCE)
    assert generation(entry) == 3


def test_provider_changes(machine: Emulator) -> None:
    """The provider file names the other platform, after as many good reads as were asked for."""
    machine.fault("provider_changes:2@1")
    entry = new_entry(machine)
    assert [get(entry / "provider") for _ in range(4)] == [
        b"tdx_guest\n",
        b"sev_guest\n",
        b"sev_guest\n",
        b"tdx_guest\n",
    ]


def test_provider_leaves(machine: Emulator) -> None:
    """Once the module is gone nothing works any more, until the machine is started anew."""
    entry = new_entry(machine, inblob=NONCE)
    machine.fault("provider_leaves")
    assert failure(new_entry, machine, "other") == "ENXIO"
    assert failure(new_entry, machine, "other") == "ENXIO"
    assert failure(get, entry / "outblob") == "ENXIO"
    assert failure(get, entry / "provider") == "ENXIO"
    assert generation(entry) == 1
    machine.reboot()
    assert get(new_entry(machine, inblob=NONCE) / "outblob")


def test_extend_fails_and_lies(machine: Emulator) -> None:
    """EIO leaves the register as it was, or, by the other fault, extends it all the same."""
    machine.fault("rtmr_extend_fails", "rtmr_extend_lies")
    before = machine.rtmr(3)
    assert failure(put, machine.root / REGISTER, bytes(48)) == "EIO"
    assert machine.rtmr(3) == before
    assert failure(put, machine.root / REGISTER, bytes(48)) == "EIO"
    assert machine.rtmr(3) != before


def test_foreign_extend(machine: Emulator) -> None:
    """Somebody else extends RTMR3 right before a report; both ways of asking can be hit."""
    before = machine.rtmr(3)
    machine.fault("foreign_extend")
    first = Quote.parse(get(new_entry(machine, inblob=NONCE) / "outblob")).rtmrs[3]
    assert first == machine.rtmr(3) != before
    machine.fault("foreign_extend")
    assert td_report(machine, NONCE).rtmrs[3] == machine.rtmr(3) != first


@pytest.mark.parametrize(("kernel", "says"), [("7.0", ""), ("7.1", "EIO")])
def test_failed_quote(kernel: str, says: str) -> None:
    """A host without a quoting service: EIO from 7.1 on, before that an empty outblob, cached."""
    with emulator(kernel=kernel, faults=["quote_fails"]) as machine:
        entry = new_entry(machine, inblob=NONCE)
        if says:
            assert failure(get, entry / "outblob") == says
        else:
            assert [get(entry / "outblob") for _ in range(2)] == [b"", b""]
            put(entry / "inblob", NONCE)
        assert Quote.parse(get(entry / "outblob")).report_data == NONCE


@pytest.mark.parametrize(("kernel", "size"), [("6.12.79", 8169), ("6.12.80", 0)])
def test_length_beyond_the_buffer(kernel: str, size: int) -> None:
    """A host's length beyond the buffer is EFBIG where the kernel checks it."""
    with emulator(kernel=kernel, faults=["oversized_outblob"]) as machine:
        entry = new_entry(machine, inblob=NONCE)
        if size:
            assert len(get(entry / "outblob")) == size
        else:
            assert failure(get, entry / "outblob") == "EFBIG"


# -- the quote generation service --------------------------------------------------------------


def ask_qgs(machine: Emulator) -> bytes:
    """Send a request with a fresh report; return everything that comes back."""
    assert machine.qgs is not None
    report = td_report(machine, NONCE).raw
    message = struct.pack("<HHIIIII", 1, 0, 0, 1048, 0, 1024, 0) + report
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(machine.qgs)
        client.sendall(struct.pack(">I", len(message)) + message)
        answer = b""
        while chunk := client.recv(65536):
            answer += chunk
    return answer


def test_qgs(machine: Emulator) -> None:
    """The service makes a quote of a report; each fault of its own breaks the answer once."""
    good = ask_qgs(machine)
    quote = Quote.parse(good[4 + 24 + 16 :])
    assert quote.rtmrs == td_report(machine, NONCE).rtmrs
    machine.fault("qgs_error", "qgs_closes", "qgs_truncates")
    assert ask_qgs(machine)[4:] == struct.pack("<HHIIIII", 1, 0, 1, 24, 0x12001, 0, 0)
    assert ask_qgs(machine) == b""
    assert len(ask_qgs(machine)) == len(good) // 2
    assert len(ask_qgs(machine)) == len(good)


# -- arming ------------------------------------------------------------------------------------


def test_shell_arms_and_disarms(machine: Emulator) -> None:
    """`>` replaces what is armed, `>>` adds, a line each; reading shows what is left."""
    file = machine.root / "attestkit/faults"
    script = "printf 'ebusy:3\\neintr\\n' > $1; echo mkdir=EIO@2 >> $1; cat $1; : > $1; cat $1"
    words = ["sh", "-euc", script, "sh", str(file)]
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == "ebusy:3\neintr:1\nmkdir=EIO:1@2\n"
    assert machine.armed() == []


def test_wrong_fault(machine: Emulator) -> None:
    """A wrong line is EINVAL, and nothing of that write is armed."""
    file = machine.root / "attestkit/faults"
    assert failure(put, file, b"ebusy:3\nwhat\n", os.O_APPEND) == "EINVAL"
    assert failure(put, file, b"\xff\n", os.O_APPEND) == "EINVAL"
    assert machine.armed() == []


def test_every_name_can_be_armed() -> None:
    """The command line and the file take every name."""
    names = [f"{name}:1s" if named.argument else name for name, named in NAMED.items()]
    with emulator(faults=names) as machine:
        machine.fault(*names)
        assert len(machine.armed()) == 2 * len(names)
