"""Test tables that correspond to the tables of the shared specification of Linux's TEE interfaces.

Each `Case` cites its row by the row's first cells. A case arms faults in the emulator, counts how
often the affected operation is reached, and states the expected error. `spec_table` reads the
specification's table, so that a test can check that no row is missing.
"""

import errno
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import pytest

import attestkit
from attestkit.backends.simulator.faults.fault_specs import Fault
from attestkit.errors import (
    AttestKitError,
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
)
from tests.rigs.emulator import Emulator
from tests.vectors import SHARED

SPEC: Final = SHARED / "spec/linux-tee-abi.md"
needs_spec = pytest.mark.skipif(not SPEC.is_file(), reason="the shared specification is missing")

REPORT_DATA: Final = bytes(range(64))
OTHER: Final = bytes(range(64, 128))
DEVICE: Final = "dev/tdx_guest"

# Expected errors: type and reason.
BUSY: Final = (BackendBusyError, "device")
INTERRUPTED: Final = (BackendBusyError, "interrupted")
IO_ERROR: Final = (BackendError, "io_error")
MISSING: Final = (BackendUnavailableError, "missing")
NO_QUOTE: Final = (QuoteUnavailableError, "quoting_service")
PENDING: Final = (BackendBusyError, "request_in_flight")
PERMISSION: Final = (BackendUnavailableError, "permission_denied")
TIMED_OUT: Final = (QuoteUnavailableError, "timed_out")
UNSUPPORTED: Final = (BackendUnavailableError, "unsupported_kernel")

_FAR: Final = 100_000  # skip count of a fault that only counts operations


class Case(NamedTuple):
    """One cause of a row's error, and the expected result."""

    row: tuple[str, ...]  # the row's first cells, verbatim
    armed: str  # faults, with blanks between; the first one's operation is counted
    error: type[AttestKitError] | None  # None: the request succeeds
    reason: str = ""  # of the error; empty: not checked, as another package defines it
    path: str = ""  # pattern of the error's path, below the emulator's root; empty: none
    reached: int = 1  # how often the request reaches the operation
    waits: float = 0.0  # seconds that the request sleeps, by the test's clock
    again: bool = True  # the next request succeeds, once the fault is cleared
    on: tuple[str, ...] = ()  # machines of the case; empty: all of the table's
    options: Mapping[str, object] = {}  # of the backend


def on_machines(cases: tuple[Case, ...], *machines: str) -> list[Any]:
    """Return a parameter with machine and case for each matching pair, in the table's order."""
    return [
        pytest.param(machine, case, id=f"{machine}-{case.armed.replace(' ', '+')}")
        for machine in machines
        for case in cases
        if machine in (case.on or machines)
    ]


class FakeClock:
    """Clock that advances only in sleep()."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.time

    def sleep(self, seconds: float) -> None:
        """Advance the time."""
        self.time += seconds


# -- requests ----------------------------------------------------------------------------------


def arm_and_count(machine: Emulator, specs: list[str]) -> Callable[[], int]:
    """Arm faults; return a function that counts the operations of the first one since."""
    first = Fault.parse(specs[0])
    machine.fault(*specs, str(first._replace(times=1, skip=_FAR)))

    def left() -> int:
        armed = map(Fault.parse, machine.armed())
        same = (fault for fault in armed if fault.operation == first.operation)
        return sum(fault.times + fault.skip for fault in same)

    before = left()
    return lambda: before - left()


def request_report_data(tee: attestkit.Attester, report_data: bytes) -> bytes:
    """Request a quote, or evidence on SEV-SNP; return the report data in it."""
    if tee.has_quotes:
        return tee.get_quote(report_data).report_data
    report = tee.attest(report_data=report_data).snp_report
    assert report is not None
    return report.report_data


def check_case(
    case: Case, machine: Emulator, clock: FakeClock, request: Callable[[bytes], bytes]
) -> None:
    """Make a request that triggers a case, check its error and attempts, then make a good request.

    Args:
        case: The case.
        machine: Its machine.
        clock: The clock of the request.
        request: Requests evidence over 64 bytes, and returns the report data in it.
    """
    began = clock.time
    reached = arm_and_count(machine, case.armed.split())
    if case.error is None:
        assert request(REPORT_DATA) == REPORT_DATA
    else:
        with pytest.raises(AttestKitError) as caught:
            request(REPORT_DATA)
        check_error(caught.value, case, machine)
    assert reached() == case.reached
    assert clock.time - began == pytest.approx(case.waits)
    assert len(machine.entries()) == case.armed.startswith("rmdir=")
    machine.clear_faults()
    if case.again:
        assert request(OTHER) == OTHER
        assert machine.entries() == []


def check_error(error: AttestKitError, case: Case, machine: Emulator) -> None:
    """Check type, reason, errno and path of an error; its text has errno and path."""
    text = str(error)
    assert type(error) is case.error, text
    assert case.reason in {"", error.reason}, (error.reason, text)
    if number := Fault.parse(case.armed.split()[-1]).number:
        assert errno.errorcode[number] in text
        causes = [cause.errno for cause in _causes(error) if isinstance(cause, OSError)]
        assert causes == [number]
    if case.path:
        pattern = rf"{re.escape(str(machine.root))}/{case.path}"
        if isinstance(error, BackendError):
            assert re.fullmatch(pattern, error.path), error.path
        assert re.search(rf"{pattern}(?![\w/])", text), text


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


# -- the specification -------------------------------------------------------------------------


def spec_section(number: str) -> str:
    """Return the text of section `2.5` or `3`, without its subsections."""
    _, _, rest = SPEC.read_text().partition(f"{'#' * (number.count('.') + 2)} {number}")
    assert rest, f"there is no section {number}"
    return re.split(r"^#", rest, maxsplit=1, flags=re.MULTILINE)[0]


def spec_table(number: str, head: str, cells: int) -> list[tuple[str, ...]]:
    """Return the first cells of each row of a section's table whose first column is `head`."""
    rows = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in spec_section(number).splitlines()
        if line.startswith("|")
    ]
    [start] = [at for at, row in enumerate(rows) if row[0] == head]
    return [row[:cells] for row in rows[start + 2 :]]


def rows_of(cases: tuple[Case, ...]) -> list[tuple[str, ...]]:
    """Return the distinct rows of cases, in order."""
    return list(dict.fromkeys(case.row for case in cases))
