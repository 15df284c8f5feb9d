"""RTMR files and ioctls: each documented errno gives one error, and events are atomic.

The specification is linux-tee-abi.md, section 3, and 1.4 and 8 for the ioctl. After an error
register and log are unchanged; if the kernel returns EIO after an extend, the register decides,
and the event is in both.
"""

import contextlib
import errno
import os
import re
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
from tests.rigs.documented_errors.cases import (
    DEVICE,
    OTHER,
    REPORT_DATA,
    Case,
    FakeClock,
    case_id,
    check_case,
    expect_error,
    needs_spec,
    on_machines,
    rows_of,
    spec_section,
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

_BUSY: Final = (BackendBusyError, "device")
_INTERRUPTED: Final = (BackendBusyError, "interrupted")
_IO_ERROR: Final = (BackendError, "io_error")
_MISSING: Final = (BackendUnavailableError, "missing")
_PERMISSION: Final = (BackendUnavailableError, "permission_denied")

# Section 3, in its order. EINTR and EBUSY mean "not done", which the register must confirm.
EXTEND: Final = (
    Case(("EINVAL",), "write:rtmr3=EINVAL", *_IO_ERROR, FILE),
    Case(("EINTR",), "write:rtmr3=EINTR:3", None, reached=4),
    Case(("EINTR",), "write:rtmr3=EINTR:99", *_INTERRUPTED, FILE, reached=6),
    Case(("EBUSY",), "write:rtmr3=EBUSY:2", None, reached=3),
    Case(("EBUSY",), "write:rtmr3=EBUSY:99", *_BUSY, FILE, reached=6),
    Case(("EIO",), "write:rtmr3=EIO", *_IO_ERROR, FILE),
    Case(("EIO",), "rtmr_extend_fails", *_IO_ERROR, FILE),
    Case(("EIO",), "rtmr_extend_lies", None),
    *(
        Case((name,), f"{operation}:rtmr3={name}", *expected, FILE)
        for name, expected in (
            ("EACCES", _PERMISSION),
            ("EPERM", _PERMISSION),
            ("ENOENT", _MISSING),
            ("EROFS", _PERMISSION),
        )
        for operation in ("open", "write")
    ),
)

# Errors of reading a register's file, in the same section.
READING: Final = (
    Case(("EINVAL",), "read:rtmr1=EINVAL", *_IO_ERROR, READ),
    Case(("EINTR",), "read:rtmr1=EINTR:3", None),
    Case(("EINTR",), "read:rtmr1=EINTR:999", *_INTERRUPTED, READ),
    Case(("EBUSY",), "read:rtmr1=EBUSY", *_BUSY, READ),
    Case(("EIO",), "read:rtmr1=EIO", *_IO_ERROR, READ),
    Case(("EACCES",), "open:rtmr1=EACCES", *_PERMISSION, READ),
    Case(("EPERM",), "open:rtmr1=EPERM", *_PERMISSION, READ),
    Case(("ENOENT",), "open:rtmr1=ENOENT", *_MISSING, READ),
)

# The ioctl of kernels without files: EPERM and EINVAL of 1.4, the others of 1.3.
IOCTL: Final = (
    Case((), "ioctl:EXTEND_RTMR=EPERM", *_PERMISSION, DEVICE),
    Case((), "ioctl:EXTEND_RTMR=EINVAL", *_IO_ERROR, DEVICE),
    Case((), "ioctl:EXTEND_RTMR=EINTR:3", None, reached=4),
    Case((), "ioctl:EXTEND_RTMR=EINTR:99", *_INTERRUPTED, DEVICE, reached=6),
    Case((), "ioctl:EXTEND_RTMR=EBUSY:2", None, reached=3),
    Case((), "ioctl:EXTEND_RTMR=EBUSY:99", *_BUSY, DEVICE, reached=6),
    Case((), "ioctl:EXTEND_RTMR=EIO", *_IO_ERROR, DEVICE),
    Case((), "rtmr_extend_fails", *_IO_ERROR, DEVICE),
    Case((), "rtmr_extend_lies", None),
    Case((), "ioctl:EXTEND_RTMR=EFAULT", *_IO_ERROR, DEVICE),
    Case((), "ioctl:EXTEND_RTMR=ENOMEM", *_IO_ERROR, DEVICE),
    Case((), "ioctl:EXTEND_RTMR=EACCES", *_PERMISSION, DEVICE),
)


on_files = pytest.mark.parametrize("machine", ["files"], indirect=True)


class EventChecker:
    """Events of an Attester, in the register and the files."""

    def __init__(self, machine: Emulator, tee: attestkit.Attester) -> None:
        self._machine = machine
        self._tee = tee

    def emit(self, payload: bytes) -> bytes:
        """Emit an event; return the payload of the last event in the log."""
        before = len(self._tee.event_log().runtime)
        self._tee.emit_event("fault", payload)
        events = self._tee.event_log().runtime
        assert len(events) == before + 1
        return events[-1].payload

    def check(self, payloads: list[bytes]) -> None:
        """Check that these events are in log and register, and that none is pending."""
        events = self._tee.event_log().runtime
        assert [event.payload for event in events] == payloads
        assert self._tee.registers()[3] == replay_from(bytes(48), events)
        assert not (self._machine.root / LOG / PENDING).exists()


@pytest.mark.parametrize(
    ("machine", "case"),
    on_machines(EXTEND, ("files",)) + on_machines(IOCTL, ("C", "C'")),
    indirect=["machine"],
)
def test_rtmr_case_gives_documented_error(machine: Emulator, case: Case) -> None:
    """Type, reason, path and number of attempts; the event is complete or absent."""
    with attestkit.open("configfs_tsm", root=machine.root) as tee:
        log = EventChecker(machine, tee)
        assert log.emit(b"first") == b"first"
        check_case(case, machine, FakeClock(), log.emit)
        log.check([b"first", *([REPORT_DATA] if case.error is None else []), OTHER])
        evidence = tee.attest(report_data=REPORT_DATA)
        assert evidence.quote is not None
        evidence.event_log.check(evidence.quote)


@on_files
@pytest.mark.parametrize("case", READING, ids=case_id)
def test_rtmr_read_case_gives_documented_error(machine: Emulator, case: Case) -> None:
    """Only EINTR is retried."""
    with attestkit.open("configfs_tsm", root=machine.root) as tee:
        machine.fault(case.armed)
        with expect_error(case, machine.root):
            assert tee.registers()
        machine.clear_faults()
        assert tee.registers() == tee.get_quote(REPORT_DATA).rtmrs


# -- the register decides ----------------------------------------------------------------------


@on_files
@pytest.mark.parametrize("number", [errno.EINTR, errno.EBUSY])
def test_rtmr_applied_write_is_not_repeated(machine: Emulator, number: int) -> None:
    """The register is read before a retry."""
    written: list[bytes] = []

    def write(fd: int, data: bytes) -> int:
        written.append(data)
        REAL_CALLS.write(fd, data)
        raise OSError(number, os.strerror(number))

    calls = REAL_CALLS._replace(write=write)
    with attestkit.open("tdx_ioctl", root=machine.root, generation="D", calls=calls) as tee:
        log = EventChecker(machine, tee)
        assert log.emit(REPORT_DATA) == REPORT_DATA
        log.check([REPORT_DATA])
        assert len(written) == 1


@on_files
@pytest.mark.parametrize("skip", [0, 1])
def test_rtmr_unreadable_before_extend_prevents_it(machine: Emulator, skip: int) -> None:
    """Nothing is pending."""
    case = Case((), "ioctl:GET_REPORT0=EIO", *_IO_ERROR, DEVICE)
    with attestkit.open("configfs_tsm", root=machine.root) as tee:
        log = EventChecker(machine, tee)
        assert log.emit(b"first") == b"first"
        machine.fault(f"{case.armed}@{skip}")
        with expect_error(case, machine.root):
            tee.emit_event("fault", REPORT_DATA)
        assert machine.armed() == []
        log.check([b"first"])
        assert log.emit(OTHER) == OTHER
        log.check([b"first", OTHER])


@on_files
@pytest.mark.parametrize("write", ["rtmr_extend_lies", "rtmr_extend_fails"])
def test_rtmr_unreadable_after_extend_is_decided_later(machine: Emulator, write: str) -> None:
    """The next use of the log reads the register."""
    case = Case((), "ioctl:GET_REPORT0=EIO", JournalError, path=DEVICE)
    with attestkit.open("configfs_tsm", root=machine.root) as tee:
        log = EventChecker(machine, tee)
        assert log.emit(b"first") == b"first"
        machine.fault(write, f"{case.armed}@2")
        with expect_error(case, machine.root):
            tee.emit_event("fault", REPORT_DATA)
        assert (machine.root / LOG / PENDING).exists()
        assert machine.armed() == []
        done = [b"first", *([REPORT_DATA] if write == "rtmr_extend_lies" else [])]
        assert [
            event.payload for event in tee.attest(report_data=REPORT_DATA).event_log.runtime
        ] == done
        log.check(done)
        assert log.emit(OTHER) == OTHER
        log.check([*done, OTHER])


@on_files
def test_rtmr_foreign_extend_during_emit_is_detected(machine: Emulator) -> None:
    """JournalError has both values, attest raises ReplayError, and quotes can be made."""
    with attestkit.open("configfs_tsm", root=machine.root) as tee:
        log = EventChecker(machine, tee)
        assert log.emit(b"first") == b"first"
        before = tee.registers()[3]
        machine.fault("write:rtmr3=EBUSY", "foreign_extend@2")
        with pytest.raises(JournalError) as caught:
            tee.emit_event("fault", REPORT_DATA)
        after = tee.registers()[3]
        assert after != before
        assert after.hex() in str(caught.value)
        assert isinstance(caught.value.__cause__, BackendError)
        assert caught.value.__cause__.reason == "register_conflict"
        with pytest.raises(JournalError, match=after.hex()):
            tee.emit_event("fault", OTHER)
        with pytest.raises(ReplayError, match="RTMR3"):
            tee.attest(report_data=REPORT_DATA)
        assert tee.get_quote(REPORT_DATA).rtmrs[3] == after


# -- kernels without the files -----------------------------------------------------------------


def extend_ioctls(machine: Emulator, armed: str) -> list[int]:
    """Emit an event; return the numbers of its extending ioctls."""
    numbers: list[int] = []

    def ioctl(fd: int, number: int, buffer: bytearray) -> int:
        numbers.append(number)
        return REAL_CALLS.ioctl(fd, number, buffer)

    calls = REAL_CALLS._replace(ioctl=ioctl)
    with attestkit.open("tdx_ioctl", root=machine.root, generation="C", calls=calls) as tee:
        machine.fault(*armed.split())
        with contextlib.suppress(BackendError, UnsupportedError):
            tee.emit_event("fault", REPORT_DATA)
    return [number for number in numbers if number != GET_REPORT0]


@pytest.mark.parametrize(
    ("machine", "armed", "numbers"),
    [
        ("files", "write:rtmr3=EACCES", []),
        ("files", "open:rtmr3=ENOENT", []),  # the directory exists
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
def test_rtmr_second_ioctl_is_tried_after_enotty_only(
    machine: Emulator, armed: str, numbers: list[int]
) -> None:
    """No ioctl is tried on a kernel with files."""
    assert extend_ioctls(machine, armed) == numbers


@pytest.mark.parametrize("machine", ["neither"], indirect=True)
def test_rtmr_unsupported_kernel_rejects_events(machine: Emulator) -> None:
    """Mainline before 6.16: evidence without events can be made."""
    case = Case((), "", UnsupportedError, "no_registers", DEVICE)
    with attestkit.open("configfs_tsm", root=machine.root) as tee:
        with expect_error(case, machine.root):
            tee.emit_event("fault", REPORT_DATA)
        EventChecker(machine, tee).check([])
        assert tee.attest(report_data=REPORT_DATA).report_data == REPORT_DATA


@needs_spec
def test_rtmr_cases_cover_the_specification() -> None:
    """In the order of the list in section 3."""
    [listed] = re.findall(r"\* errno: (.*?)\n\*", spec_section("3"), re.DOTALL)
    names = [(name,) for name in re.findall(r"\bE[A-Z]{2,}\b", listed)]
    assert rows_of(EXTEND) == names
    assert set(rows_of(READING)) == {*names} - {("EROFS",)}
