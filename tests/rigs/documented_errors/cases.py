"""Test tables that correspond to the tables of the shared specification linux-tee-abi.md.

Each `Case` cites its row by the row's first cells. A case arms faults in the emulator, counts how
often the affected operation is reached, and states the expected error. `spec_table` reads the
specification's table, so that a test can check that no row is missing.
"""

import contextlib
import errno
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import pytest

import attestkit
from attestkit.backends.simulator.faults.fault_specs import Fault
from attestkit.backends.tsm.configfs_files import TsmSystem
from attestkit.errors import AttestKitError, BackendError
from tests.rigs.emulator import REPORTS, Emulator, emulator
from tests.vectors import SHARED

SPEC: Final = SHARED / "spec/linux-tee-abi.md"
needs_spec = pytest.mark.skipif(not SPEC.is_file(), reason="the shared specification is missing")

REPORT_DATA: Final = bytes(range(64))
OTHER: Final = bytes(range(64, 128))

# Paths of errors, as patterns below the emulator's root.
FOLDER: Final = REPORTS
ENTRY: Final = rf"{REPORTS}/attestkit-\d+-[0-9a-f]{{32}}"
DEVICE: Final = "dev/tdx_guest"

_FAR: Final = 100_000  # skip count of a fault that only counts operations


class Case(NamedTuple):
    """One cause of a row's error, and the expected result."""

    row: tuple[str, ...]  # the row's first cells, verbatim
    armed: str  # faults, with blanks between; the first one's operation is counted, and one that
    # is skipped more often than a request does it (@9) is there to be counted only
    error: type[AttestKitError] | None  # None: the request succeeds
    reason: str = ""  # of the error; empty: not checked, as another package defines it
    path: str = ""  # pattern of the error's path, below the emulator's root; empty: none
    reached: int = 1  # how often the request reaches the operation
    waits: float = 0.0  # seconds that the request sleeps, by the test's clock
    again: bool = True  # the next request succeeds, once the fault is cleared
    on: tuple[str, ...] = ()  # machines of the case; empty: all of the table's
    options: Mapping[str, object] = {}  # of the backend


def case_id(case: Case) -> str:
    """Return the test ID of a case."""
    options = "".join(f"-{name}={value}" for name, value in case.options.items())
    return re.sub(r"\s+", "+", case.armed) + options


def on_machines(cases: tuple[Case, ...], machines: tuple[str, ...]) -> list[object]:
    """Return a parameter with machine and case for each matching pair, in the table's order."""
    return [
        pytest.param(
            machine,
            case,
            id=f"{machine}-{case_id(case)}",
        )
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


# -- machines ----------------------------------------------------------------------------------


class Fleet:
    """Machines by name, each started for the first test that needs it and shared by a module."""

    def __init__(self, options: Mapping[str, Mapping[str, object]]) -> None:
        self._options = options
        self._stack = contextlib.ExitStack()
        self._running: dict[str, Emulator] = {}

    def __getitem__(self, name: str) -> Emulator:
        """Return a machine."""
        if name not in self._running:
            # The keyword arguments of `emulator` are typed; those here come from a table.
            start: Callable[..., contextlib.AbstractContextManager[Emulator]] = emulator
            self._running[name] = self._stack.enter_context(start(**self._options[name]))
        return self._running[name]

    @classmethod
    @contextlib.contextmanager
    def of(cls, options: Mapping[str, Mapping[str, object]]) -> Iterator["Fleet"]:
        """Run machines until the end of the block, and assert that their stderr is empty."""
        fleet = cls(options)
        with fleet._stack:
            yield fleet
            for name, machine in fleet._running.items():
                assert machine.errors.read_text() == "", name


# -- requests ----------------------------------------------------------------------------------


@contextlib.contextmanager
def fresh_machine(machine: Emulator) -> Iterator[Emulator]:
    """Reboot a machine for one test; assert that no fault, entry or descriptor is left."""
    machine.clear_faults()
    machine.reboot()
    before = _descriptors()
    yield machine
    machine.clear_faults()
    assert machine.entries() == []
    assert _descriptors() == before


def _descriptors() -> list[str]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # of the directory itself
            found.append(f"{entry.name} {entry.readlink()}")
    return sorted(found)


def arm_faults(machine: Emulator, *specs: str) -> Callable[[], int]:
    """Arm faults; return a function that counts the operations of the first one since."""
    first = Fault.parse(specs[0])
    machine.fault(*specs, str(first._replace(times=1, skip=_FAR)))

    def left() -> int:
        armed = map(Fault.parse, machine.armed())
        return sum(fault.times + fault.skip for fault in armed if _same(fault, first))

    before = left()
    return lambda: before - left()


def _same(fault: Fault, other: Fault) -> bool:
    return fault.operation == other.operation


def request_report_data(tee: attestkit.Attester, report_data: bytes) -> bytes:
    """Request a quote, or evidence on SEV-SNP; return the report data in it."""
    if tee.has_quotes:
        return tee.get_quote(report_data).report_data
    report = tee.attest(report_data=report_data).snp_report
    assert report is not None
    return report.report_data


def open_tsm(machine: Emulator, clock: FakeClock, **options: object) -> attestkit.Attester:
    """Open configfs-tsm with the fake clock."""
    system = TsmSystem(clock=clock, sleep=clock.sleep)
    return attestkit.open("configfs_tsm", root=machine.root, system=system, **options)


def check_case(
    case: Case,
    machine: Emulator,
    clock: FakeClock,
    request: Callable[[bytes], bytes],
    left: int = 0,
) -> None:
    """Make a request that triggers a case, check its error and attempts, then make a good request.

    Args:
        case: The case.
        machine: Its machine.
        clock: The clock of the request.
        request: Requests evidence over 64 bytes, and returns the report data in it.
        left: Number of report entries that the next request removes.
    """
    began = clock.time
    reached = arm_faults(machine, *case.armed.split())
    with expect_error(case, machine.root):
        assert request(REPORT_DATA) == REPORT_DATA
    assert reached() == case.reached
    assert clock.time - began == pytest.approx(case.waits)
    assert len(machine.entries()) == left
    machine.clear_faults()
    if case.again:
        assert request(OTHER) == OTHER
        assert machine.entries() == []


@contextlib.contextmanager
def expect_error(case: Case, root: Path) -> Iterator[None]:
    """Expect the case's error in the block, or success."""
    if case.error is None:
        yield
        return
    with pytest.raises(AttestKitError) as caught:
        yield
    check_error(caught.value, case, root)


def check_error(error: AttestKitError, case: Case, root: Path) -> None:
    """Check type, reason, errno and path of an error; its text has errno and path."""
    text = str(error)
    assert type(error) is case.error, text
    assert case.reason in {"", error.reason}, (error.reason, text)
    chain = list(_causes(error))
    last = Fault.parse(case.armed.split()[-1]) if case.armed else None
    if last is not None and last.number and not last.skip:
        assert errno.errorcode[last.number] in text
        assert [cause.errno for cause in chain if isinstance(cause, OSError)] == [last.number]
    if case.path:
        pattern = rf"{re.escape(str(root))}/{case.path}"
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
