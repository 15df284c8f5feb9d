"""/dev/tdx_guest: each documented errno and quote status gives one error.

The specification is linux-tee-abi.md, section 1.3 (GET_REPORT0) and 1.5 (GET_QUOTE of out-of-tree
drivers). Statuses that the emulated host does not produce are written into the program's buffer
after the emulated driver has answered.
"""

import ctypes
import errno
import struct
from typing import Final, NamedTuple

import pytest

import attestkit
from attestkit.backends.linux.syscalls import REAL_CALLS
from attestkit.backends.tdx.quote_ioctl import GENERATIONS
from attestkit.errors import (
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
)
from tests.raising import errno_of, raises
from tests.rigs.documented_errors.cases import (
    DEVICE,
    OTHER,
    REPORT_DATA,
    Case,
    FakeClock,
    check_case,
    expect_error,
    needs_spec,
    on_machines,
    request_report_data,
    rows_of,
    spec_table,
)
from tests.rigs.emulator import Emulator, requires_fuse

pytestmark = [pytest.mark.rig, requires_fuse]

MACHINES: Final[dict[str, dict[str, object]]] = {
    "mainline": {"kernel": "6.12", "qgs": True},  # without register files
    "C": {"kernel": "6.12", "driver": "C"},  # exchanges QGS messages
    "D": {"kernel": "6.12", "driver": "D"},  # exchanges the bare report and quote
}
OLD: Final = ("C", "D")

# Section 1.3, in its order. Only EINTR and EBUSY are retried.
REPORT0: Final = (
    Case(("EFAULT",), "ioctl:GET_REPORT0=EFAULT", BackendError, "io_error", DEVICE),
    Case(("ENOMEM",), "ioctl:GET_REPORT0=ENOMEM", BackendError, "io_error", DEVICE),
    Case(("EINVAL",), "ioctl:GET_REPORT0=EINVAL", BackendError, "io_error", DEVICE),
    Case(("EBUSY",), "ioctl:GET_REPORT0=EBUSY", None, reached=2, waits=0.001),
    Case(
        ("EBUSY",),
        "ioctl:GET_REPORT0=EBUSY:99",
        BackendBusyError,
        "device",
        DEVICE,
        reached=6,
        waits=0.361,
    ),
    Case(("EINTR",), "ioctl:GET_REPORT0=EINTR:3", None, reached=4),
    Case(
        ("EINTR",),
        "ioctl:GET_REPORT0=EINTR:999",
        BackendBusyError,
        "interrupted",
        DEVICE,
        reached=101,
    ),
    Case(("EIO",), "ioctl:GET_REPORT0=EIO", BackendError, "io_error", DEVICE),
    Case(
        ("ENOTTY",),
        "ioctl:GET_REPORT0=ENOTTY",
        BackendUnavailableError,
        "unsupported_kernel",
        DEVICE,
    ),
)

# Errors of opening the node; section 7.5 of the specification has the details.
NODE: Final = (
    Case((), "open:tdx_guest=ENOENT", BackendUnavailableError, "missing", DEVICE),
    Case((), "open:tdx_guest=EACCES", BackendUnavailableError, "permission_denied", DEVICE),
    Case((), "open:tdx_guest=EPERM", BackendUnavailableError, "permission_denied", DEVICE),
)

# The specification has no errno table for GET_QUOTE. After an interrupt the request's effect on the
# host is unknown, so it is repeated once; EBUSY is retried a few times.
QUOTE: Final = (
    Case((), "ioctl:GET_QUOTE=EBUSY:2", None, reached=3, waits=0.011),
    Case(
        (),
        "ioctl:GET_QUOTE=EBUSY:99",
        BackendBusyError,
        "request_in_flight",
        DEVICE,
        reached=6,
        waits=0.361,
    ),
    Case((), "ioctl:GET_QUOTE=EINTR", None, reached=2),
    Case((), "ioctl:GET_QUOTE=EINTR:99", BackendBusyError, "interrupted", DEVICE, reached=2),
    Case((), "ioctl:GET_QUOTE=EIO", QuoteUnavailableError, "quoting_service", DEVICE),
    Case((), "ioctl:GET_QUOTE=ETIMEDOUT", QuoteUnavailableError, "timed_out", DEVICE),
    Case((), "ioctl:GET_QUOTE=EINVAL", BackendError, "io_error", DEVICE),
    Case((), "ioctl:GET_QUOTE=ENOTTY", BackendUnavailableError, "unsupported_kernel", DEVICE),
    Case((), "ioctl:GET_QUOTE=EACCES", BackendUnavailableError, "permission_denied", DEVICE),
    Case((), "ioctl:GET_QUOTE=ENOMEM", BackendError, "io_error", DEVICE),
    Case((), "ioctl:GET_QUOTE=EFAULT", BackendError, "io_error", DEVICE),
    Case((), "quote_fails", QuoteUnavailableError, "quoting_service", DEVICE),
    Case((), "empty_outblob", QuoteUnavailableError, "empty", DEVICE),
)
QUOTES: Final = tuple(
    case._replace(on=(name,), options={"generation": name}) for name in OLD for case in QUOTE
)


class Status(NamedTuple):
    """Row of the table of statuses."""

    row: str
    status: int
    error: type[BackendError] | None
    reason: str


IN_FLIGHT: Final = (1 << 64) - 1
# Section 1.5, in its order; the last row is an unknown status.
STATUSES: Final = (
    Status("0", 0, None, ""),
    Status("0xFFFFFFFFFFFFFFFF", IN_FLIGHT, QuoteUnavailableError, "timed_out"),
    Status("0x8000000000000000", 1 << 63, QuoteUnavailableError, "quoting_service"),
    Status("0x8000000000000001", (1 << 63) + 1, QuoteUnavailableError, "cannot_connect"),
    Status("", 1 << 62, BackendError, "malformed_response"),
)


def open_tdx_ioctl(machine: Emulator, clock: FakeClock, **options: object) -> attestkit.Attester:
    """Open the backend on the machine's device, with the fake clock."""
    source = {} if "generation" in options else {"qgs": machine.qgs}
    times = {"clock": clock, "sleep": clock.sleep}
    return attestkit.open("tdx_ioctl", root=machine.root, **times, **source, **options)


@pytest.mark.parametrize(
    ("machine", "case"),
    on_machines((*REPORT0, *NODE), ("mainline",)) + on_machines(QUOTES, OLD),
    indirect=["machine"],
)
def test_ioctl_case_gives_documented_error(machine: Emulator, case: Case) -> None:
    """Type, reason, path and number of calls; then a good request."""
    clock = FakeClock()
    with open_tdx_ioctl(machine, clock, **case.options) as tee:
        check_case(case, machine, clock, lambda report_data: request_report_data(tee, report_data))


@pytest.mark.parametrize("machine", ["mainline"], indirect=True)
@pytest.mark.parametrize("case", REPORT0, ids=[case.armed for case in REPORT0])
def test_registers_without_files_give_report_errors(machine: Emulator, case: Case) -> None:
    """They are read from reports, by either backend."""
    clock = FakeClock()
    for tee in (open_tdx_ioctl(machine, clock), attestkit.open("configfs_tsm", root=machine.root)):
        with tee:
            machine.fault(case.armed)
            with expect_error(case, machine.root):
                tee.registers()
            machine.clear_faults()
            assert tee.registers() == tee.get_quote(REPORT_DATA).rtmrs


@pytest.mark.parametrize("machine", ["mainline"], indirect=True)
@pytest.mark.parametrize("case", NODE, ids=[case.armed for case in NODE])
def test_open_unusable_node_is_an_error(machine: Emulator, case: Case) -> None:
    """Opening the backend raises the error."""
    machine.fault(case.armed)
    with expect_error(case, machine.root):
        open_tdx_ioctl(machine, FakeClock())


@pytest.mark.parametrize("machine", ["mainline"], indirect=True)
@pytest.mark.parametrize("generation", list(GENERATIONS))
def test_mainline_driver_rejects_other_generations(machine: Emulator, generation: str) -> None:
    """ENOTTY is final: neither another ioctl nor a QGS is tried."""
    with (
        open_tdx_ioctl(machine, FakeClock(), generation=generation) as tee,
        raises(
            BackendUnavailableError, "unsupported_kernel", path=str(machine.root / DEVICE)
        ) as caught,
    ):
        request_report_data(tee, REPORT_DATA)
    assert errno_of(caught.value) == errno.ENOTTY


# -- statuses ----------------------------------------------------------------------------------


class AlteredHost:
    """System calls of a host that leaves another status or length in the buffer."""

    def __init__(self, at: int, layout: str, value: int) -> None:
        self.calls = REAL_CALLS._replace(ioctl=self._ioctl)
        self.made = 0  # GET_QUOTE ioctls
        self._at = at
        self._packed = struct.pack(layout, value)
        self._address = 0
        self._before = b""

    def _ioctl(self, fd: int, number: int, buffer: bytearray) -> int:
        result = REAL_CALLS.ioctl(fd, number, buffer)
        if number in {generation.number for generation in GENERATIONS.values()}:
            self.made += 1
            self._address = struct.unpack("=QQ", buffer)[0] + self._at
            self._before = ctypes.string_at(self._address, len(self._packed))
            ctypes.memmove(self._address, self._packed, len(self._packed))
        return result

    def restore(self) -> None:
        """Restore the original bytes, while the buffer exists."""
        ctypes.memmove(self._address, self._before, len(self._before))


each_generation = pytest.mark.parametrize(
    ("machine", "generation"), [(name, name) for name in OLD], ids=OLD, indirect=["machine"]
)


@each_generation
@pytest.mark.parametrize("row", STATUSES, ids=[row.row or "unknown" for row in STATUSES])
def test_quote_status_gives_documented_error(
    machine: Emulator, generation: str, row: Status
) -> None:
    """One ioctl is made; the next request succeeds."""
    clock = FakeClock()
    host = AlteredHost(8, "<Q", row.status)
    with open_tdx_ioctl(machine, clock, generation=generation, calls=host.calls) as tee:
        case = Case((), "", row.error, row.reason, DEVICE)
        with expect_error(case, machine.root):
            assert request_report_data(tee, REPORT_DATA) == REPORT_DATA
        assert clock.time == pytest.approx(30 if row.status == IN_FLIGHT else 0)
        assert host.made == 1
    with open_tdx_ioctl(machine, clock, generation=generation) as tee:
        assert request_report_data(tee, OTHER) == OTHER


@each_generation
def test_in_flight_status_is_polled(machine: Emulator, generation: str) -> None:
    """No other ioctl is made until the host has answered."""
    clock = FakeClock()
    host = AlteredHost(8, "<Q", IN_FLIGHT)

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.time > 20:
            host.restore()

    tee = attestkit.open(
        "tdx_ioctl",
        root=machine.root,
        generation=generation,
        calls=host.calls,
        clock=clock,
        sleep=sleep,
    )
    with tee:
        assert request_report_data(tee, REPORT_DATA) == REPORT_DATA
    assert 20 < clock.time < 21
    assert host.made == 1


@each_generation
def test_length_beyond_buffer_is_malformed(machine: Emulator, generation: str) -> None:
    """Nothing beyond the buffer is read."""
    host = AlteredHost(20, "<I", 1 << 20)
    with (
        open_tdx_ioctl(machine, FakeClock(), generation=generation, calls=host.calls) as tee,
        raises(BackendError, "malformed_response", path=str(machine.root / DEVICE)),
    ):
        request_report_data(tee, REPORT_DATA)


@needs_spec
def test_ioctl_cases_cover_the_specification() -> None:
    """Row by row, in the order of sections 1.3 and 1.5."""
    assert rows_of(REPORT0) == spec_table("1.3", "errno", 1)
    named = [(row.row,) for row in STATUSES if row.row]
    assert named == spec_table("1.5", "Status", 1)
