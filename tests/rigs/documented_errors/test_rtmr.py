"""RTMR files and ioctls: each documented errno gives one error, and events are atomic.

The cases follow the tables that `cases` reads. After an error register and log are unchanged; if
the kernel returns EIO after an extend, the register decides, and the event is in both.
"""

import re
from typing import Final

import pytest

import attestkit
from attestkit.event_log.journal import PENDING, replay_from
from tests.rigs.documented_errors.cases import (
    BUSY,
    DEVICE,
    INTERRUPTED,
    IO_ERROR,
    MISSING,
    OTHER,
    PERMISSION,
    REPORT_DATA,
    Case,
    FakeClock,
    check_case,
    needs_spec,
    on_machines,
    rows_of,
    spec_section,
)
from tests.rigs.emulator import Emulator, requires_fuse
from tests.rigs.kernel_files.file_calls import MEASUREMENTS

pytestmark = [pytest.mark.rig, pytest.mark.slow, requires_fuse]

MACHINES: Final[dict[str, dict[str, object]]] = {
    "files": {"kernel_release": "7.1"},
    "C": {"kernel_release": "6.12", "driver": "C"},  # extends by 0x80315403
    "C'": {"kernel_release": "6.12", "driver": "C'"},  # extends by 0x40315403
}
FILE: Final = f"{MEASUREMENTS}/rtmr3:sha384"
READ: Final = f"{MEASUREMENTS}/rtmr1:sha384"

# Section 3, in its order. EINTR and EBUSY mean "not done", which the register must confirm.
EXTEND: Final = (
    Case(("EINVAL",), "write:rtmr3=EINVAL", *IO_ERROR, FILE),
    Case(("EINTR",), "write:rtmr3=EINTR:3", None, reached=4),
    Case(("EINTR",), "write:rtmr3=EINTR:99", *INTERRUPTED, FILE, reached=6),
    Case(("EBUSY",), "write:rtmr3=EBUSY:2", None, reached=3),
    Case(("EBUSY",), "write:rtmr3=EBUSY:99", *BUSY, FILE, reached=6),
    Case(("EIO",), "write:rtmr3=EIO", *IO_ERROR, FILE),
    Case(("EIO",), "rtmr_extend_fails", *IO_ERROR, FILE),
    Case(("EIO",), "rtmr_extend_lies", None),
    *(
        Case((name,), f"{operation}:rtmr3={name}", *expected, FILE)
        for name, expected in (
            ("EACCES", PERMISSION),
            ("EPERM", PERMISSION),
            ("ENOENT", MISSING),
            ("EROFS", PERMISSION),
        )
        for operation in ("open", "write")
    ),
)

# Errors of reading a register's file, in the same section. Only EINTR is retried.
READING: Final = (
    Case(("EINVAL",), "read:rtmr1=EINVAL", *IO_ERROR, READ),
    Case(("EINTR",), "read:rtmr1=EINTR:3", None, reached=4),
    Case(("EINTR",), "read:rtmr1=EINTR:999", *INTERRUPTED, READ, reached=101),
    Case(("EBUSY",), "read:rtmr1=EBUSY", *BUSY, READ),
    Case(("EIO",), "read:rtmr1=EIO", *IO_ERROR, READ),
    Case(("EACCES",), "open:rtmr1=EACCES", *PERMISSION, READ),
    Case(("EPERM",), "open:rtmr1=EPERM", *PERMISSION, READ),
    Case(("ENOENT",), "open:rtmr1=ENOENT", *MISSING, READ),
)

# The ioctl of kernels without files: EPERM and EINVAL of 1.4, the others of 1.3.
IOCTL: Final = (
    Case((), "ioctl:EXTEND_RTMR=EPERM", *PERMISSION, DEVICE),
    Case((), "ioctl:EXTEND_RTMR=EINVAL", *IO_ERROR, DEVICE),
    Case((), "ioctl:EXTEND_RTMR=EINTR:3", None, reached=4),
    Case((), "ioctl:EXTEND_RTMR=EINTR:99", *INTERRUPTED, DEVICE, reached=6),
    Case((), "ioctl:EXTEND_RTMR=EBUSY:2", None, reached=3),
    Case((), "ioctl:EXTEND_RTMR=EBUSY:99", *BUSY, DEVICE, reached=6),
    Case((), "ioctl:EXTEND_RTMR=EIO", *IO_ERROR, DEVICE),
    Case((), "rtmr_extend_fails", *IO_ERROR, DEVICE),
    Case((), "rtmr_extend_lies", None),
    Case((), "ioctl:EXTEND_RTMR=EFAULT", *IO_ERROR, DEVICE),
    Case((), "ioctl:EXTEND_RTMR=ENOMEM", *IO_ERROR, DEVICE),
    Case((), "ioctl:EXTEND_RTMR=EACCES", *PERMISSION, DEVICE),
)


def emit(tee: attestkit.Attester, payload: bytes) -> bytes:
    """Emit an event; return the payload of the last event in the log."""
    before = len(tee.event_log().runtime)
    tee.emit_event("fault", payload)
    events = tee.event_log().runtime
    assert len(events) == before + 1
    return events[-1].payload


@pytest.mark.parametrize(
    ("machine", "case"),
    on_machines(EXTEND, "files") + on_machines(IOCTL, "C", "C'"),
    indirect=["machine"],
)
def test_rtmr_case_gives_documented_error(machine: Emulator, case: Case) -> None:
    """Type, reason, path and number of attempts; the event is complete or absent."""
    with attestkit.open("configfs_tsm", root=machine.root) as tee:
        assert emit(tee, b"first") == b"first"
        check_case(case, machine, FakeClock(), lambda payload: emit(tee, payload))
        events = tee.event_log().runtime
        emitted = [b"first", *([REPORT_DATA] if case.error is None else []), OTHER]
        assert [event.payload for event in events] == emitted
        assert tee.registers()[3] == replay_from(bytes(48), events)
        assert not (machine.root / "run/log/dstack" / PENDING).exists()
        evidence = tee.attest(report_data=REPORT_DATA)
        assert evidence.quote is not None
        evidence.event_log.check(evidence.quote)


@pytest.mark.parametrize(("machine", "case"), on_machines(READING, "files"), indirect=["machine"])
def test_rtmr_read_case_gives_documented_error(machine: Emulator, case: Case) -> None:
    """The registers are those of a quote, or the error names the file."""
    with attestkit.open("configfs_tsm", root=machine.root) as tee:

        def read(report_data: bytes) -> bytes:
            assert tee.registers() == tee.get_quote(report_data).rtmrs
            return report_data

        check_case(case, machine, FakeClock(), read)


@needs_spec
def test_rtmr_cases_cover_the_specification() -> None:
    """In the order of its list."""
    [listed] = re.findall(r"\* errno: (.*?)\n\*", spec_section("3"), re.DOTALL)
    names = [(name,) for name in re.findall(r"\bE[A-Z]{2,}\b", listed)]
    assert rows_of(EXTEND) == names
    assert set(rows_of(READING)) == {*names} - {("EROFS",)}
