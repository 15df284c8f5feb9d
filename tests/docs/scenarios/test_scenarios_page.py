"""The page of scenarios is made from the registry, whose faults are executed where they apply."""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import attestkit
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.faults import injection
from attestkit.backends.simulator.faults.fault_specs import NAMED
from attestkit.backends.simulator.scenarios.named_case import NamedCase
from attestkit.errors import AttestKitError, UsageError
from tests.docs.scenarios import scenario_tables
from tests.rigs.emulator import Emulator, emulator, requires_fuse
from tests.serve.client import Answer, call
from tests.serve.server import Server, refusal, running_server
from tests.untyped import untyped

REFUSED = "refused"
ASKED = bytes(range(64))
# Results of attestkit's backends on the kernel's files that are not those of the simulator.
ON_KERNEL_FILES = {
    **dict.fromkeys(("ebusy", "eintr", "generation_race"), "evidence"),  # retried
    "provider_leaves": "BackendUnavailableError until a reboot",
}


class Row(NamedTuple):
    """A fault of a simulated TEE, and what its registry says."""

    name: str
    case: NamedCase

    @property
    def armed(self) -> str:
        """The fault to arm."""
        return f"{self.name}:50ms" if self.case.argument else self.name

    @property
    def is_event(self) -> bool:
        """Whether it affects an event, not a report."""
        return self.case.operation in {"extend", "tear"}

    @property
    def simulator(self) -> str:
        """The result of the simulator."""
        return REFUSED if self.case.subject == "qgs" else self.case.outcome

    @property
    def kernel(self) -> str:
        """The result of a backend on the kernel's files."""
        return ON_KERNEL_FILES.get(self.name, self.case.outcome)

    @property
    def status(self) -> int:
        """The status of the server."""
        return 500 if "Error" in self.case.outcome else 200


ROWS = [Row(name, case) for name, case in NAMED.items() if case.subject in {"tee", "tdx", "qgs"}]
ATTESTER_ERRORS = {"wrong_report_data", "foreign_extend"}  # raised by the Attester
each_row = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])


def error_of(outcome: str) -> type[AttestKitError] | None:
    """Return the error class at the start of an outcome; None if the call succeeds."""
    if re.match(r"evidence|an event", outcome):
        return None
    kind: type[AttestKitError] = getattr(attestkit.errors, outcome.split(maxsplit=1)[0].rstrip(","))
    assert issubclass(kind, AttestKitError)
    return kind


def act(tee: Attester, row: Row) -> None:
    """Call the operation that the fault affects."""
    if row.is_event:
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
        lost = row.is_event and "nothing is logged" in cell
        assert names.count("event") == (row.is_event) * (1 if lost else 2)


# -- contents of the page --------------------------------------------------------------------------


def test_page_has_the_rows_of_the_registry() -> None:
    """`python -m tests.docs.scenarios.scenario_tables` changes nothing; no subject is left out."""
    assert scenario_tables.make_page() == scenario_tables.PAGE.read_text()
    found = {(case.kind, case.subject) for case in scenario_tables.all_cases().values()}
    assert sorted(scenario_tables.subjects()) == sorted(found)


def test_operations_match_table() -> None:
    """The table lists the operations that the simulator lets fail."""
    table = scenario_tables.PAGE.read_text().partition("### Faults by operation")[2]
    found = [
        operation
        for cells in re.findall(r"^\| (`[a-z:0-9` ]*`) \| [^|]* \|$", table, re.MULTILINE)
        for operation in re.findall(r"`([^`]+)`", cells)
    ]
    assert sorted(found) == sorted(injection._OPERATIONS["tdx"])


def test_snp_unsupported_faults_are_named() -> None:
    """The sentence about SEV-SNP names the faults that are unsupported there."""
    text = scenario_tables.PAGE.read_text()
    [sentence] = re.findall(r"SEV-SNP has no registers: (.*?) are refused", text, re.DOTALL)
    missing = set(injection.fault_names("tdx")) - set(injection.fault_names("snp"))
    assert set(re.findall(r"`(\w+)`", sentence)) == missing


# -- each row where it applies ---------------------------------------------------------------------


@pytest.mark.slow
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


def ask(server: Server, row: Row, method: str) -> Answer:
    """Call the affected operation over HTTP."""
    if row.is_event:
        return call(server.dstack, "EmitEvent", {"event": "event", "payload": ""})
    return call(server.dstack, method, {"report_data": "00"})


@pytest.mark.slow
@each_row
def test_server_fault_matches_row(row: Row, tmp_path: Path) -> None:
    """The status, the fixed text, and the result of the next request match the row."""
    if row.simulator == REFUSED:
        options = ("--backend", "simulator", "--dir", str(tmp_path), "--http", "none")
        refused = refusal(*options, "--fault", row.armed, folder=tmp_path, code=1)
        assert row.name in refused
        return
    status = row.status
    with running_server("--fault", row.armed) as server:
        answer = ask(server, row, "GetQuote")
        assert answer.status == status, answer.body
        if status != 200:
            assert list(answer.json()) == ["error"]
            if row.name not in ATTESTER_ERRORS:
                assert f"simulated fault {row.name}" in answer.json()["error"]
        until = "until" in row.simulator
        assert ask(server, row, "Attest").status == (status if until else 200)
        server.check_log()


@pytest.fixture(scope="module")
def machines() -> Iterator[Callable[[str], Emulator]]:
    """Return a function that gives each backend its machine, one per module."""
    kinds = {
        "configfs_tsm": {},
        "tdx_ioctl": {"kernel_release": "6.12", "driver": "C'", "qgs": True},
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


@pytest.mark.slow
@pytest.mark.rig
@requires_fuse
@each_row
def test_kernel_files_fault_matches_row(row: Row, machines: Callable[[str], Emulator]) -> None:
    """The error's class, the next call and the log match the row with both backends."""
    kind = "tdx_ioctl" if row.case.subject == "qgs" else "configfs_tsm"
    machine = machines(kind)
    qgs = {"qgs": machine.qgs} if kind == "tdx_ioctl" else {}
    with attestkit.open(kind, root=machine.root, **qgs) as tee:
        machine.fault(row.armed)
        check(tee, row, row.kernel)
        assert machine.armed() == []
