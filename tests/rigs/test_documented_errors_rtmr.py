"""RTMR files and the ioctl before them: every error comes out as one, and no event is half done.

The specification is linux-tee-abi.md, section 3, and for the ioctl what 1.4 and 8 say. After an
error the register is what it was and the log too; where the kernel says EIO and has extended all
the same, the register is believed, and the event is in both.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from typing import Final

import pytest

import attestkit
from attestkit.backends.linux.syscalls import REAL_CALLS
from attestkit.backends.tdx.device import GET_REPORT0
from attestkit.backends.tdx.rtmr import EXTEND_RTMR, EXTEND_RTMR_V3
from attestkit.errors import (
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    JournalError,
    ReplayError,
    UnsupportedError,
)
from attestkit.event_log.journal import PENDING, replay_from
from tests.rigs.documented_errors import (
    ASKED,
    DEVICE,
    OTHER,
    Case,
    Clock,
    Fleet,
    label,
    meet,
    needs_spec,
    on_machines,
    rows_of,
    spec_section,
    told,
    undisturbed,
)
from tests.rigs.emulator import Emulator, requires_fuse

pytestmark = [pytest.mark.rig, requires_fuse]

MACHINES: Final[dict[str, dict[str, object]]] = {
    "files": {"kernel": "7.1"},
    "C": {"kernel": "6.12", "driver": "C"},  # extends by 0x80315403
    "C'": {"kernel": "6.12", "driver": "C'"},  # extends by 0x40315403
    "neither": {"kernel": "6.12"},
}
REGISTERS: Final = "sys/devices/virtual/misc/tdx_guest/measurements"
FILE: Final = f"{REGISTERS}/rtmr3:sha384"
READ: Final = f"{REGISTERS}/rtmr1:sha384"
LOG: Final = "run/log/dstack"

_PERMISSION: Final = r"has mode 0644, .*we are uid \d+.*; only root may extend"
_NOT_READ: Final = r"has mode 0644, .*we are uid \d+.*; everybody may read"
_MISSING: Final = "its folder is there"
_READ_ONLY: Final = f"read-only .*container; bind-mount .*{REGISTERS} read-write"

# Section 3, in its order. EINTR and EBUSY mean "not done", which the register has to confirm.
EXTEND: Final = (
    Case(("EINVAL",), "write:rtmr3=EINVAL", BackendError, FILE, "no register's file"),
    Case(("EINTR",), "write:rtmr3=EINTR:3", None, reached=4),
    Case(("EINTR",), "write:rtmr3=EINTR:99", BackendBusyError, FILE, "try again later", reached=6),
    Case(("EBUSY",), "write:rtmr3=EBUSY:2", None, reached=3),
    Case(("EBUSY",), "write:rtmr3=EBUSY:99", BackendBusyError, FILE, "try again later", reached=6),
    Case(("EIO",), "write:rtmr3=EIO", BackendError, FILE, "dmesg"),
    Case(("EIO",), "rtmr_extend_fails", BackendError, FILE, "EIO.*dmesg"),
    Case(("EIO",), "rtmr_extend_lies", None),
    *(
        Case((name,), f"{operation}:rtmr3={name}", BackendUnavailableError, FILE, words)
        for name, words in (
            ("EACCES", _PERMISSION),
            ("EPERM", _PERMISSION),
            ("ENOENT", _MISSING),
            ("EROFS", _READ_ONLY),
        )
        for operation in ("open", "write")
    ),
)

# Reading a register's file, whose errors the same section lists.
READING: Final = (
    Case(("EINVAL",), "read:rtmr1=EINVAL", BackendError, READ, "no register's file"),
    Case(("EINTR",), "read:rtmr1=EINTR:3", None),
    Case(("EINTR",), "read:rtmr1=EINTR:999", BackendBusyError, READ, "try again later"),
    Case(("EBUSY",), "read:rtmr1=EBUSY", BackendBusyError, READ, "try again later"),
    Case(("EIO",), "read:rtmr1=EIO", BackendError, READ, "dmesg"),
    Case(("EACCES",), "open:rtmr1=EACCES", BackendUnavailableError, READ, _NOT_READ),
    Case(("EPERM",), "open:rtmr1=EPERM", BackendUnavailableError, READ, _NOT_READ),
    Case(("ENOENT",), "open:rtmr1=ENOENT", BackendUnavailableError, READ, _MISSING),
)

# The ioctl of kernels without the files: 1.4 has EPERM and EINVAL, the rest is as 1.3 has it.
IOCTL: Final = (
    Case((), "ioctl:EXTEND_RTMR=EPERM", BackendUnavailableError, DEVICE, "keeps this register"),
    Case((), "ioctl:EXTEND_RTMR=EINVAL", BackendError, DEVICE, "no such register"),
    Case((), "ioctl:EXTEND_RTMR=EINTR:3", None, reached=4),
    Case((), "ioctl:EXTEND_RTMR=EINTR:99", BackendBusyError, DEVICE, "try again later", reached=6),
    Case((), "ioctl:EXTEND_RTMR=EBUSY:2", None, reached=3),
    Case((), "ioctl:EXTEND_RTMR=EBUSY:99", BackendBusyError, DEVICE, "try again later", reached=6),
    Case((), "ioctl:EXTEND_RTMR=EIO", BackendError, DEVICE, "TDX module failed.*dmesg"),
    Case((), "rtmr_extend_fails", BackendError, DEVICE, "TDX module failed.*dmesg"),
    Case((), "rtmr_extend_lies", None),
    Case((), "ioctl:EXTEND_RTMR=EFAULT", BackendError, DEVICE, "report it to attestkit"),
    Case((), "ioctl:EXTEND_RTMR=ENOMEM", BackendError, DEVICE, "no memory"),
    Case((), "ioctl:EXTEND_RTMR=EACCES", BackendUnavailableError, DEVICE, "seccomp, LSM"),
)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """Have MACHINES for all tests."""
    with Fleet.of(MACHINES) as machines:
        yield machines


@pytest.fixture
def machine(fleet: Fleet, request: pytest.FixtureRequest) -> Iterator[Emulator]:
    """Return one of them, just booted; an entry or a descriptor that is left fails the test."""
    with undisturbed(fleet[request.param]) as machine:
        yield machine


on_files = pytest.mark.parametrize("machine", ["files"], indirect=True)


class Log:
    """What an Attester has emitted, as the register and the files have it."""

    def __init__(self, machine: Emulator, tee: attestkit.Attester) -> None:
        self._machine = machine
        self._tee = tee

    def emit(self, payload: bytes) -> bytes:
        """Emit an event; return the payload of the last one in the log."""
        before = len(self._tee.event_log().runtime)
        self._tee.emit_event("fault", payload)
        events = self._tee.event_log().runtime
        assert len(events) == before + 1
        return events[-1].payload

    def check(self, payloads: list[bytes]) -> None:
        """Check that these are in the log, and in the register, and that nothing is pending."""
        events = self._tee.event_log().runtime
        assert [event.payload for event in events] == payloads
        assert self._tee.registers()[3] == replay_from(bytes(48), events)
        assert not (self._machine.root / LOG / PENDING).exists()


@pytest.mark.parametrize(
    ("machine", "case"),
    on_machines(EXTEND, ("files",)) + on_machines(IOCTL, ("C", "C'")),
    indirect=["machine"],
)
def test_the_documented_error(machine: Emulator, case: Case) -> None:
    """Its class and its text, after exactly as many tries; the event is done, or not at all."""
    with attestkit.open("configfs_tsm", root=machine.root) as tee:
        log = Log(machine, tee)
        assert log.emit(b"first") == b"first"
        meet(case, machine, Clock(), log.emit)
        log.check([b"first", *([ASKED] if case.error is None else []), OTHER])
        evidence = tee.attest(ASKED)
        assert evidence.quote is not None
        evidence.event_log.check(evidence.quote)


@on_files
@pytest.mark.parametrize("case", READING, ids=label)
def test_reading_a_register(machine: Emulator, case: Case) -> None:
    """The same errors; only a signal is tried again, for nothing else passes by in a moment."""
    with attestkit.open("configfs_tsm", root=machine.root) as tee:
        machine.fault(case.armed)
        with told(case, machine.root):
            assert tee.registers()
        machine.clear_faults()
        assert tee.registers() == tee.get_quote(ASKED).rtmrs


# -- the register decides ----------------------------------------------------------------------


@on_files
@pytest.mark.parametrize("number", [errno.EINTR, errno.EBUSY])
def test_a_write_that_was_done_is_not_done_again(machine: Emulator, number: int) -> None:
    """A kernel that says "not done" and did it: the register is read before another try."""
    written: list[bytes] = []

    def write(fd: int, data: bytes) -> int:
        written.append(data)
        REAL_CALLS.write(fd, data)
        raise OSError(number, os.strerror(number))

    calls = REAL_CALLS._replace(write=write)
    with attestkit.open("tdx_ioctl", root=machine.root, generation="D", calls=calls) as tee:
        log = Log(machine, tee)
        assert log.emit(ASKED) == ASKED
        log.check([ASKED])
        assert len(written) == 1


@on_files
@pytest.mark.parametrize("skip", [0, 1])
def test_a_register_that_cannot_be_read_before(machine: Emulator, skip: int) -> None:
    """Nothing is extended, and nothing is pending."""
    case = Case((), "ioctl:GET_REPORT0=EIO", BackendError, DEVICE, "TDX module failed.*dmesg")
    with attestkit.open("configfs_tsm", root=machine.root) as tee:
        log = Log(machine, tee)
        assert log.emit(b"first") == b"first"
        machine.fault(f"{case.armed}@{skip}")
        with told(case, machine.root):
            tee.emit_event("fault", ASKED)
        assert machine.armed() == []
        log.check([b"first"])
        assert log.emit(OTHER) == OTHER
        log.check([b"first", OTHER])


@on_files
@pytest.mark.parametrize("write", ["rtmr_extend_lies", "rtmr_extend_fails"])
def test_a_register_that_cannot_be_read_behind(machine: Emulator, write: str) -> None:
    """What became of the event is not known; the next use of the log decides, by the register."""
    case = Case((), "ioctl:GET_REPORT0=EIO", JournalError, DEVICE, "pending, and the next use.*")
    with attestkit.open("configfs_tsm", root=machine.root) as tee:
        log = Log(machine, tee)
        assert log.emit(b"first") == b"first"
        machine.fault(write, f"{case.armed}@2")
        with told(case, machine.root):
            tee.emit_event("fault", ASKED)
        assert (machine.root / LOG / PENDING).exists()
        assert machine.armed() == []
        done = [b"first", *([ASKED] if write == "rtmr_extend_lies" else [])]
        assert [event.payload for event in tee.attest(ASKED).event_log.runtime] == done
        log.check(done)
        assert log.emit(OTHER) == OTHER
        log.check([*done, OTHER])


@on_files
def test_somebody_else_extends_in_between(machine: Emulator) -> None:
    """Decision 7: an error with both values on emit, ReplayError on attest; a quote is a quote."""
    with attestkit.open("configfs_tsm", root=machine.root) as tee:
        log = Log(machine, tee)
        assert log.emit(b"first") == b"first"
        before = tee.registers()[3]
        machine.fault("write:rtmr3=EBUSY", "foreign_extend@2")
        with pytest.raises(JournalError) as caught:
            tee.emit_event("fault", ASKED)
        after = tee.registers()[3]
        assert after != before
        assert after.hex() in str(caught.value)
        assert isinstance(caught.value.__cause__, BackendError)
        assert "extended by somebody else" in str(caught.value.__cause__)
        with pytest.raises(JournalError, match=after.hex()):
            tee.emit_event("fault", OTHER)
        with pytest.raises(ReplayError, match="RTMR3"):
            tee.attest(ASKED)
        assert tee.get_quote(ASKED).rtmrs[3] == after


# -- kernels without the files -----------------------------------------------------------------


def made(machine: Emulator, armed: str) -> list[int]:
    """Emit an event; return the numbers of the extending ioctls that were made for it."""
    numbers: list[int] = []

    def ioctl(fd: int, number: int, buffer: bytearray) -> int:
        numbers.append(number)
        return REAL_CALLS.ioctl(fd, number, buffer)

    calls = REAL_CALLS._replace(ioctl=ioctl)
    with attestkit.open("tdx_ioctl", root=machine.root, generation="C", calls=calls) as tee:
        machine.fault(*armed.split())
        with contextlib.suppress(BackendError, UnsupportedError):
            tee.emit_event("fault", ASKED)
    return [number for number in numbers if number != GET_REPORT0]


@pytest.mark.parametrize(
    ("machine", "armed", "numbers"),
    [
        ("files", "write:rtmr3=EACCES", []),
        ("files", "open:rtmr3=ENOENT", []),  # the folder is there
        ("C", "", [EXTEND_RTMR]),
        ("C", "ioctl:EXTEND_RTMR=EIO", [EXTEND_RTMR]),
        ("C", "ioctl:EXTEND_RTMR=EINVAL", [EXTEND_RTMR]),
        ("C", "ioctl:EXTEND_RTMR=EPERM", [EXTEND_RTMR]),
        ("C", "ioctl:EXTEND_RTMR=EINTR", [EXTEND_RTMR, EXTEND_RTMR]),
        ("C", "ioctl:EXTEND_RTMR=ENOTTY", [EXTEND_RTMR, EXTEND_RTMR_V3]),
        ("C'", "", [EXTEND_RTMR, EXTEND_RTMR_V3]),
        ("C'", "ioctl:EXTEND_RTMR=EIO", [EXTEND_RTMR, EXTEND_RTMR_V3]),
        ("neither", "", [EXTEND_RTMR, EXTEND_RTMR_V3]),
    ],
    indirect=["machine"],
)
def test_the_other_number_only_after_enotty(
    machine: Emulator, armed: str, numbers: list[int]
) -> None:
    """Once a number worked, or may have, no other is tried; and none where there are files."""
    assert made(machine, armed) == numbers


@pytest.mark.parametrize("machine", ["neither"], indirect=True)
def test_a_kernel_that_extends_nothing(machine: Emulator) -> None:
    """Mainline before 6.16: an event cannot be, evidence without events can."""
    case = Case(
        (), "", UnsupportedError, DEVICE, "Linux 6.16.*extends no register: update the kernel"
    )
    with attestkit.open("configfs_tsm", root=machine.root) as tee:
        with told(case, machine.root):
            tee.emit_event("fault", ASKED)
        Log(machine, tee).check([])
        assert tee.attest(ASKED).report_data == ASKED


@needs_spec
def test_no_errno_of_the_section_is_missing() -> None:
    """One by one, in the order of the list in section 3."""
    [listed] = re.findall(r"\* errno: (.*?)\n\*", spec_section("3"), re.DOTALL)
    names = [(name,) for name in re.findall(r"\bE[A-Z]{2,}\b", listed)]
    assert rows_of(EXTEND) == names
    assert set(rows_of(READING)) == {*names} - {("EROFS",)}
