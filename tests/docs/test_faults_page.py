"""docs/faults.md describes the effect of every fault: each row is executed where it applies."""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import attestkit
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.faults import injection
from attestkit.backends.simulator.faults.fault_specs import NAMED
from attestkit.errors import AttestKitError, UsageError
from tests.rigs.emulator import Emulator, emulator, requires_fuse
from tests.serve.client import Answer, call
from tests.serve.server import Server, refusal, running_server
from tests.untyped import untyped

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "faults.md"
REFUSED = "refused"
ASKED = bytes(range(64))

pytestmark = [
    pytest.mark.skipif(not GUIDE.exists(), reason="docs/faults.md is not here"),
    pytest.mark.slow,
]


class Row(NamedTuple):
    """A row of the table of names."""

    fault: str
    strikes: str
    what: str
    kernel: str
    simulator: str
    server: str

    @property
    def name(self) -> str:
        """The fault's name."""
        return self.fault.partition(":")[0]

    @property
    def armed(self) -> str:
        """The fault to arm, with its seconds shortened."""
        return self.fault.replace("2s", "50ms")


def text() -> str:
    """Return the guide; without the file, an empty text."""
    return GUIDE.read_text() if GUIDE.exists() else ""


def rows() -> list[Row]:
    """Return the table of names."""
    found = re.findall(r"^\| `([\w:]+)` \|(.*)\|$", text(), re.MULTILINE)
    cells = [(name, *(cell.strip() for cell in rest.split("|"))) for name, rest in found]
    return [Row(*row) for row in cells if len(row) == len(Row._fields)]


ROWS = rows()
ATTESTER_ERRORS = {"wrong_report_data", "foreign_extend"}  # raised by the Attester
each_row = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])


def error_of(cell: str) -> type[AttestKitError] | None:
    """Return the error class at the start of a cell; None if the call succeeds."""
    if re.match(r"evidence|an event", cell):
        return None
    found = re.match(r"(?:the same: )?`(\w+Error)`", cell)
    assert found, cell
    kind: type[AttestKitError] = getattr(attestkit.errors, found[1])
    assert issubclass(kind, AttestKitError)
    return kind


def act(tee: Attester, row: Row) -> None:
    """Call the operation that the fault affects."""
    if row.strikes == "event":
        tee.emit_event("event", b"")
    else:
        tee.attest(report_data=ASKED, pad=True)


def check(tee: Attester, row: Row, cell: str) -> None:
    """Call, compare with the cell, and check whether the next call succeeds."""
    expected = error_of(cell)
    with contextlib.ExitStack() as stack:
        if expected is not None:
            caught = stack.enter_context(pytest.raises(AttestKitError))
        act(tee, row)
    if expected is not None:
        assert type(caught.value) is expected
    until = pytest.raises(expected) if expected and "until" in cell else contextlib.nullcontext()
    with until:
        act(tee, row)
    if expected is None or "until" not in cell:
        names = [event.name for event in tee.attest(report_data=ASKED, pad=True).event_log.runtime]
        lost = row.strikes == "event" and "nothing is logged" in cell
        assert names.count("event") == (row.strikes == "event") * (1 if lost else 2)


# -- contents of the table -------------------------------------------------------------------------


def test_every_fault_has_a_row() -> None:
    """The rows have the order of --list-faults, and name no unknown fault."""
    clouds = re.findall(r"^\| `(\w+)` \|(?: [^|]+\|){3}$", text(), re.MULTILINE)
    assert [*(row.name for row in ROWS), *clouds] == list(NAMED)
    assert {row.strikes for row in ROWS} == {"report", "event"}


def test_operations_match_table() -> None:
    """The table lists the operations that the simulator lets fail."""
    table = text().partition("## By operation")[2]
    found = [
        operation
        for cells in re.findall(r"^\| (`.*`) \|", table, re.MULTILINE)
        for operation in re.findall(r"`([^`]+)`", cells)
    ]
    assert sorted(found) == sorted(injection._OPERATIONS["tdx"])


def test_snp_unsupported_faults_are_named() -> None:
    """The sentence about SEV-SNP names the faults that are unsupported there."""
    [sentence] = re.findall(r"SEV-SNP has no registers: (.*?) are refused", text(), re.DOTALL)
    missing = set(injection._NAMES["tdx"]) - set(injection._NAMES["snp"])
    assert set(re.findall(r"`(\w+)`", sentence)) == missing


# -- each row where it applies ---------------------------------------------------------------------


@each_row
def test_simulator_fault_matches_row(row: Row, tmp_path: Path) -> None:
    """The error's class, the result of the next call, and the log match the row."""
    if row.simulator == REFUSED:
        with pytest.raises(UsageError, match=row.name):
            Simulator(faults=row.armed)
        return
    with attestkit.open("simulator", state_dir=tmp_path, faults=row.armed) as tee:
        check(tee, row, row.simulator)
        assert isinstance(tee.backend, Simulator)
        assert not tee.backend.faults.any
        tee.backend.reset()
        tee.attest(report_data=ASKED, pad=True)


def quick_and_slow() -> list[Any]:
    """Return the rows; of those with equal effects on a server, only the first is quick.

    A server takes 0.25 s; the simulator's test above covers the differences of the others.
    """
    first = {(row.strikes, row.server, row.name in ATTESTER_ERRORS): row for row in reversed(ROWS)}
    quick = first.values()
    return [
        pytest.param(row, id=row.name, marks=() if row in quick else pytest.mark.slow)
        for row in ROWS
    ]


def ask(server: Server, row: Row, method: str) -> Answer:
    """Call the affected operation over HTTP."""
    if row.strikes == "event":
        return call(server.dstack, "EmitEvent", {"event": "event", "payload": ""})
    return call(server.dstack, method, {"report_data": "00"})


@pytest.mark.parametrize("row", quick_and_slow())
def test_server_fault_matches_row(row: Row, tmp_path: Path) -> None:
    """The status, the fixed text, and the result of the next request match the row."""
    if row.server == REFUSED:
        options = ("--backend", "simulator", "--dir", str(tmp_path), "--http", "none")
        refused = refusal(*options, "--fault", row.armed, folder=tmp_path, code=1)
        assert row.name in refused
        return
    status = int(row.server[:3])
    with running_server("--fault", row.armed) as server:
        answer = ask(server, row, "GetQuote")
        assert answer.status == status, answer.body
        if status != 200:
            assert list(answer.json()) == ["error"]
            if row.name not in ATTESTER_ERRORS:
                assert f"simulated fault {row.name}" in answer.json()["error"]
        until = "until" in row.server
        assert ask(server, row, "Attest").status == (status if until else 200)
        server.check_log()


@pytest.fixture(scope="module")
def machines() -> Iterator[Callable[[str], Emulator]]:
    """Return a function that gives each backend its machine, one per module."""
    kinds = {
        "configfs_tsm": {},
        "tdx_ioctl": {"kernel": "6.12", "driver": "C'", "qgs": True},
    }
    running: dict[str, Emulator] = {}
    with contextlib.ExitStack() as stack:

        def get(kind: str) -> Emulator:
            if kind not in running:
                running[kind] = stack.enter_context(emulator(**untyped(kinds[kind])))
            running[kind].clear_faults()
            running[kind].reboot()
            return running[kind]

        yield get


@pytest.mark.rig
@requires_fuse
@each_row
def test_kernel_files_fault_matches_row(row: Row, machines: Callable[[str], Emulator]) -> None:
    """The error's class, the next call and the log match the row with both backends."""
    kind = "tdx_ioctl" if "tdx_ioctl" in row.kernel else "configfs_tsm"
    machine = machines(kind)
    qgs = {"qgs": machine.qgs} if kind == "tdx_ioctl" else {}
    with attestkit.open(kind, root=machine.root, **qgs) as tee:
        machine.fault(row.armed)
        check(tee, row, row.kernel)
        assert machine.armed() == []
