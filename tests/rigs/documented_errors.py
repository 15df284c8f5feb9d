"""Tables of tests that can be laid beside those of linux-tee-abi.md, the shared specification.

Each `Case` cites the row that it is of by its first cells. A case arms faults in the emulator,
counts how often the operation they strike is reached, and knows the one error that must come of it.
`spec_table` reads the specification's own table, so that a test can say that no row was forgotten.
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
from attestkit.errors import AttestKitError
from tests.rigs.emulator import REPORTS, Emulator, emulator
from tests.vectors import SHARED

SPEC: Final = SHARED / "spec/linux-tee-abi.md"
needs_spec = pytest.mark.skipif(not SPEC.is_file(), reason="the shared specification is not here")

ASKED: Final = bytes(range(64))
OTHER: Final = bytes(range(64, 128))

# Where an error says that it was, as patterns below the emulator's root.
FOLDER: Final = REPORTS
ENTRY: Final = rf"{REPORTS}/attestkit-\d+-[0-9a-f]{{32}}"
DEVICE: Final = "dev/tdx_guest"

_FAR: Final = 100_000  # how often an operation may go well before a fault that only counts


class Case(NamedTuple):
    """One way into a row of a table, and what comes of it."""

    row: tuple[str, ...]  # the row's first cells, to the letter
    armed: str  # faults, with blanks between; the first one's operation is counted, and one that
    # is skipped more often than a request does it (@9) is there to be counted only
    error: type[AttestKitError] | None  # None: the request is good all the same
    where: str = ""  # pattern of the path in the error's text; empty: it names none
    words: str = ""  # pattern of what else the text says: what to do
    reached: int = 1  # how often the operation was, in this request
    waits: float = 0.0  # seconds that the request slept, by a clock of the test's
    again: bool = True  # the next request is good, once the fault is gone
    on: tuple[str, ...] = ()  # the machines that it is for; none: all of the table's
    options: Mapping[str, object] = {}  # of the backend


def label(case: Case) -> str:
    """Return the name of a case's test."""
    options = "".join(f"-{name}={value}" for name, value in case.options.items())
    return re.sub(r"\s+", "+", case.armed) + options


def on_machines(cases: tuple[Case, ...], machines: tuple[str, ...]) -> list[object]:
    """Return machine and case for each pair that belongs together, the table's order kept."""
    return [
        pytest.param(
            machine,
            case,
            id=f"{machine}-{label(case)}",
        )
        for machine in machines
        for case in cases
        if machine in (case.on or machines)
    ]


class Clock:
    """Seconds that pass only when somebody sleeps."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.time

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.time += seconds


# -- machines ----------------------------------------------------------------------------------


class Fleet:
    """Machines by name, each started for the first test that wants it, for all of a module's."""

    def __init__(self, options: Mapping[str, Mapping[str, object]]) -> None:
        self._options = options
        self._stack = contextlib.ExitStack()
        self._running: dict[str, Emulator] = {}

    def __getitem__(self, name: str) -> Emulator:
        """Return a machine."""
        if name not in self._running:
            # What `emulator` takes by name is typed there; here it is a table of tests.
            start: Callable[..., contextlib.AbstractContextManager[Emulator]] = emulator
            self._running[name] = self._stack.enter_context(start(**self._options[name]))
        return self._running[name]

    @classmethod
    @contextlib.contextmanager
    def of(cls, options: Mapping[str, Mapping[str, object]]) -> Iterator["Fleet"]:
        """Have machines until the end of the block; none of them may have complained."""
        fleet = cls(options)
        with fleet._stack:
            yield fleet
            for name, machine in fleet._running.items():
                assert machine.errors.read_text() == "", name


# -- asking ------------------------------------------------------------------------------------


@contextlib.contextmanager
def undisturbed(machine: Emulator) -> Iterator[Emulator]:
    """Give a machine, just booted, to one test; nothing is armed, left or open behind it."""
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
        with contextlib.suppress(FileNotFoundError):  # the folder's own
            found.append(f"{entry.name} {entry.readlink()}")
    return sorted(found)


def arm(machine: Emulator, *specs: str) -> Callable[[], int]:
    """Arm faults; return what tells how often the operation of the first was reached since."""
    first = Fault.parse(specs[0])
    machine.fault(*specs, str(first._replace(times=1, skip=_FAR)))

    def left() -> int:
        armed = map(Fault.parse, machine.armed())
        return sum(fault.times + fault.skip for fault in armed if _same(fault, first))

    before = left()
    return lambda: before - left()


def _same(fault: Fault, other: Fault) -> bool:
    return fault.operation == other.operation


def ask(tee: attestkit.Attester, report_data: bytes) -> bytes:
    """Ask for a quote, or where there are none for evidence; return the report data in it."""
    if tee.has_quotes:
        return tee.get_quote(report_data).report_data
    report = tee.attest(report_data).snp_report
    assert report is not None
    return report.report_data


def open_tsm(machine: Emulator, clock: Clock, **options: object) -> attestkit.Attester:
    """Open configfs-tsm; nobody sleeps in earnest."""
    system = TsmSystem(clock=clock, sleep=clock.sleep)
    return attestkit.open("configfs_tsm", root=machine.root, system=system, **options)


def meet(
    case: Case, machine: Emulator, clock: Clock, request: Callable[[bytes], bytes], left: int = 0
) -> None:
    """Make a request into a case: its error, after so many tries; then a good one, nothing left.

    Args:
        case: What goes wrong.
        machine: Where.
        clock: By which the request waits.
        request: Asks for something over 64 bytes and returns those in the answer.
        left: How many report entries the first request leaves for the next one to remove.
    """
    began = clock.time
    reached = arm(machine, *case.armed.split())
    with told(case, machine.root):
        assert request(ASKED) == ASKED
    assert reached() == case.reached
    assert clock.time - began == pytest.approx(case.waits)
    assert len(machine.entries()) == left
    machine.clear_faults()
    if case.again:
        assert request(OTHER) == OTHER
        assert machine.entries() == []


@contextlib.contextmanager
def told(case: Case, root: Path) -> Iterator[None]:
    """Expect the case's error, and its text, of the block; of a case without one, nothing."""
    if case.error is None:
        yield
        return
    with pytest.raises(AttestKitError) as caught:
        yield
    check(caught.value, case, root)


def check(error: AttestKitError, case: Case, root: Path) -> None:
    """Check what an error is, and that it says what was wrong, where, and what to do."""
    text = str(error)
    assert type(error) is case.error, text
    last = Fault.parse(case.armed.split()[-1]) if case.armed else None
    if last is not None and last.number and not last.skip:
        assert errno.errorcode[last.number] in text
        assert isinstance(error.__cause__, (OSError, AttestKitError))
    if case.where:
        assert re.search(rf"{re.escape(str(root))}/{case.where}(?![\w/])", text), text
    assert re.search(case.words, text), text


# -- the specification -------------------------------------------------------------------------


def spec_section(number: str) -> str:
    """Return the text of a section, `2.5` or `3`, without those below it."""
    _, _, rest = SPEC.read_text().partition(f"{'#' * (number.count('.') + 2)} {number}")
    assert rest, f"there is no section {number}"
    return re.split(r"^#", rest, maxsplit=1, flags=re.MULTILINE)[0]


def spec_table(number: str, head: str, cells: int) -> list[tuple[str, ...]]:
    """Return the first cells of each row of the table in a section whose first column is `head`."""
    rows = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in spec_section(number).splitlines()
        if line.startswith("|")
    ]
    [start] = [at for at, row in enumerate(rows) if row[0] == head]
    return [row[:cells] for row in rows[start + 2 :]]


def rows_of(cases: tuple[Case, ...]) -> list[tuple[str, ...]]:
    """Return the rows that cases are of, each once, in their order."""
    return list(dict.fromkeys(case.row for case in cases))
