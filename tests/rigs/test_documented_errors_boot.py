"""Boot log and boot id: a file that is not there or cannot be read is one error, and quotes go on.

The specification is linux-tee-abi.md, section 5 (CCEL), and 7.5 for what a container hides; of the
boot id the decision that the runtime log is a boot's own.
"""

from collections.abc import Iterator
from typing import Final

import pytest

import attestkit
from attestkit.errors import BackendError, BackendUnavailableError, ReplayError
from tests.rigs.documented_errors import (
    ASKED,
    OTHER,
    Case,
    Fleet,
    label,
    told,
    undisturbed,
)
from tests.rigs.emulator import Emulator, requires_fuse

pytestmark = [pytest.mark.rig, requires_fuse]

MACHINES: Final[dict[str, dict[str, object]]] = {
    "new": {"kernel": "7.1"},
    "old": {"kernel": "6.3", "qgs": True},  # has the table, and no file of the log
}
TABLE: Final = "sys/firmware/acpi/tables/CCEL"
AREA: Final = "sys/firmware/acpi/tables/data/CCEL"
BOOT_ID: Final = "proc/sys/kernel/random/boot_id"

_PERMISSION: Final = r"has mode 0400, .*we are uid \d+.*only root"

# Both files of section 5, whose modes are 0400.
BOOT_LOG: Final = (
    *(
        Case((), f"{operation}:{name}={error}", kind, where, words)
        for operation in ("open", "read")
        for name, where in (("ccel_table", TABLE), ("ccel_data", AREA))
        for error, kind, words in (
            ("EACCES", BackendUnavailableError, _PERMISSION),
            ("EPERM", BackendUnavailableError, _PERMISSION),
            ("EIO", BackendError, "firmware's log cannot be read"),
        )
    ),
    Case((), "open:ccel_data=ENOENT", BackendUnavailableError, AREA, "Linux 6.4.*DSTACK_CCEL_FILE"),
)
# Without it nobody can tell of which boot the runtime log is.
NO_BOOT_ID: Final = tuple(
    Case((), f"{operation}:boot_id={error}", BackendUnavailableError, BOOT_ID, "is /proc mounted")
    for operation in ("open", "read")
    for error in ("EACCES", "EPERM", "ENOENT", "EIO")
)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """Have MACHINES for all tests."""
    with Fleet.of(MACHINES) as machines:
        yield machines


@pytest.fixture
def machine(fleet: Fleet) -> Iterator[Emulator]:
    """Return the new one, just booted; an entry or a descriptor that is left fails the test."""
    with undisturbed(fleet["new"]) as machine:
        yield machine


@pytest.mark.parametrize("case", [*BOOT_LOG, *NO_BOOT_ID], ids=label)
def test_the_documented_error(machine: Emulator, case: Case) -> None:
    """Whatever needs the file says so, and changes nothing; a quote alone does not need it."""
    with attestkit.open("configfs_tsm", root=machine.root) as tee:
        before = tee.registers()
        for request in (
            lambda: tee.attest(ASKED),
            tee.event_log,
            lambda: tee.emit_event("event", b""),
        ):
            machine.fault(case.armed)
            with told(case, machine.root):
                request()
            assert machine.armed() == []
        machine.fault(case.armed)
        assert tee.get_quote(ASKED).rtmrs == tee.registers() == before
        assert len(machine.armed()) == 1
        machine.clear_faults()
        tee.emit_event("event", b"")
        assert tee.attest(OTHER).report_data == OTHER


@pytest.mark.parametrize("operation", ["open", "read"])
def test_a_table_that_is_not_there(machine: Emulator, operation: str) -> None:
    """Then there is no boot log, and evidence without one does not explain the registers."""
    with attestkit.open("configfs_tsm", root=machine.root) as tee:
        machine.fault(f"{operation}:ccel_table=ENOENT:*")
        assert tee.event_log().events == ()
        with pytest.raises(ReplayError, match="RTMR0 replays to 00"):
            tee.attest(ASKED)
        machine.clear_faults()
        assert tee.attest(OTHER).report_data == OTHER


def test_a_kernel_before_the_file(fleet: Fleet) -> None:
    """Linux 6.3 has the table alone, so there is a log that nobody can read."""
    machine = fleet["old"]
    case = Case((), "", BackendUnavailableError, AREA, "log of 65536 bytes.*Linux 6.4 or later")
    with attestkit.open("tdx_ioctl", root=machine.root, qgs=machine.qgs) as tee:
        with told(case, machine.root):
            tee.attest(ASKED)
        assert tee.get_quote(ASKED).report_data == ASKED
