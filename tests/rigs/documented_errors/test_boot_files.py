"""Boot log and boot ID: an unreadable file gives one error, and quotes can still be made.

The specification is linux-tee-abi.md, section 5 (CCEL), and 7.5 for masked files; the runtime log
belongs to one boot ID.
"""

from collections.abc import Iterator
from typing import Final

import pytest

import attestkit
from attestkit.errors import BackendError, BackendUnavailableError, ReplayError
from tests.raising import raises
from tests.rigs.documented_errors.cases import (
    OTHER,
    REPORT_DATA,
    Case,
    Fleet,
    case_id,
    expect_error,
    fresh_machine,
)
from tests.rigs.emulator import Emulator, requires_fuse

pytestmark = [pytest.mark.rig, requires_fuse]

MACHINES: Final[dict[str, dict[str, object]]] = {
    "new": {"kernel": "7.1"},
    "old": {"kernel": "6.3", "qgs": True},  # has the table, but not the log
}
TABLE: Final = "sys/firmware/acpi/tables/CCEL"
AREA: Final = "sys/firmware/acpi/tables/data/CCEL"
BOOT_ID: Final = "proc/sys/kernel/random/boot_id"

# Both files of section 5, whose modes are 0400.
BOOT_LOG: Final = (
    *(
        Case((), f"{operation}:{name}={error}", kind, reason, path)
        for operation in ("open", "read")
        for name, path in (("ccel_table", TABLE), ("ccel_data", AREA))
        for error, kind, reason in (
            ("EACCES", BackendUnavailableError, "permission_denied"),
            ("EPERM", BackendUnavailableError, "permission_denied"),
            ("EIO", BackendError, "io_error"),
        )
    ),
    Case((), "open:ccel_data=ENOENT", BackendUnavailableError, "missing", AREA),
)
# Without it the boot of the runtime log is unknown.
NO_BOOT_ID: Final = tuple(
    Case((), f"{operation}:boot_id={error}", BackendUnavailableError, "unreadable", BOOT_ID)
    for operation in ("open", "read")
    for error in ("EACCES", "EPERM", "ENOENT", "EIO")
)


@pytest.fixture
def machine(fleet: Fleet) -> Iterator[Emulator]:
    """Return the rebooted new machine; a leftover entry or descriptor fails the test."""
    with fresh_machine(fleet["new"]) as machine:
        yield machine


@pytest.mark.parametrize("case", [*BOOT_LOG, *NO_BOOT_ID], ids=case_id)
def test_boot_file_case_gives_documented_error(machine: Emulator, case: Case) -> None:
    """Calls that need the file fail without side effects; a quote alone does not need it."""
    with attestkit.open("configfs_tsm", root=machine.root) as tee:
        before = tee.registers()
        for request in (
            lambda: tee.attest(report_data=REPORT_DATA),
            tee.event_log,
            lambda: tee.emit_event("event", b""),
        ):
            machine.fault(case.armed)
            with expect_error(case, machine.root):
                request()
            assert machine.armed() == []
        machine.fault(case.armed)
        assert tee.get_quote(REPORT_DATA).rtmrs == tee.registers() == before
        assert len(machine.armed()) == 1
        machine.clear_faults()
        tee.emit_event("event", b"")
        assert tee.attest(report_data=OTHER, pad=True).report_data == OTHER


@pytest.mark.parametrize("operation", ["open", "read"])
def test_missing_ccel_table_gives_empty_boot_log(machine: Emulator, operation: str) -> None:
    """Evidence without a boot log does not explain the registers."""
    with attestkit.open("configfs_tsm", root=machine.root) as tee:
        machine.fault(f"{operation}:ccel_table=ENOENT:*")
        assert tee.event_log().events == ()
        with raises(ReplayError, "rtmr_mismatch"):
            tee.attest(report_data=REPORT_DATA)
        machine.clear_faults()
        assert tee.attest(report_data=OTHER, pad=True).report_data == OTHER


def test_ccel_table_without_data_is_unavailable(fleet: Fleet) -> None:
    """Linux 6.3 has the table only."""
    machine = fleet["old"]
    case = Case((), "", BackendUnavailableError, "missing", AREA)
    with attestkit.open("tdx_ioctl", root=machine.root, qgs=machine.qgs) as tee:
        with expect_error(case, machine.root):
            tee.attest(report_data=REPORT_DATA)
        assert tee.get_quote(REPORT_DATA).report_data == REPORT_DATA
