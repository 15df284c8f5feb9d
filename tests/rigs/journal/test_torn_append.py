"""Truncated append to the runtime log, on kernel files."""

from collections.abc import Iterator
from typing import Any

import pytest

import attestkit
from attestkit.errors import JournalError
from attestkit.event_log.journal import LOG, PENDING, replay_from
from attestkit.event_log.runtime_events import runtime_event
from tests.raising import raises
from tests.rigs.emulator import Emulator, emulator, requires_fuse
from tests.rigs.kernel_files.file_calls import MEASUREMENTS, errno_name_of, write_once

pytestmark = [pytest.mark.rig, requires_fuse]

# A kernel with register files, and one that extends by the device.
KINDS: dict[str, dict[str, Any]] = {
    "configfs_tsm": {},
    "tdx_ioctl": {"kernel": "6.12", "driver": "C'", "qgs": True},
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Return the name of a backend."""
    return str(request.param)


@pytest.fixture
def machine(kind: str) -> Iterator[Emulator]:
    """Run the machine of the backend."""
    with emulator(**KINDS[kind]) as machine:
        yield machine
        assert machine.errors.read_text() == ""


def open_backend(machine: Emulator, kind: str) -> attestkit.Attester:
    """Open the machine like a new process."""
    if kind == "configfs_tsm":
        return attestkit.open("configfs_tsm", root=machine.root)
    return attestkit.open("tdx_ioctl", root=machine.root, qgs=machine.qgs)


@pytest.mark.parametrize("again", ["emit", "attest", "another program"])
def test_truncated_line_is_completed_by_next_use(machine: Emulator, kind: str, again: str) -> None:
    """RTMR3 is extended and the log line truncated; then the log has it once."""
    folder = machine.root / "run/log/dstack"
    event = runtime_event("torn", b"\2")
    with open_backend(machine, kind) as tee:
        tee.emit_event("acknowledged", b"\1")
        log, before = (folder / LOG).read_bytes(), tee.registers()[3]
        machine.fault("torn_journal")
        with raises(JournalError, "not_recorded"):
            tee.emit_event(event.name, event.payload)
        assert machine.armed() == []
        pending = (folder / PENDING).read_bytes()
        assert (folder / LOG).read_bytes() == log + pending[: len(pending) // 2]
        assert tee.registers()[3] == replay_from(before, (event,))
        assert tee.get_quote(b"").rtmrs[3] == replay_from(before, (event,))
        names = ["acknowledged", "torn"]
        if again == "attest":
            assert tee.attest(report_data=bytes(64)).event_log.runtime[-1] == event
        elif again == "emit":
            tee.emit_event("next", b"\3")
            names.append("next")
    with open_backend(machine, kind) as tee:
        assert [
            found.name for found in tee.attest(report_data=bytes(64)).event_log.runtime
        ] == names
    completed = (folder / LOG).read_bytes()
    assert completed.startswith(log + pending)
    assert completed.count(b"\n") == len(names)
    assert not (folder / PENDING).exists()


def test_torn_journal_fault_gives_eio_without_a_log() -> None:
    """RTMR3 is extended and no file is created; RTMR2 has no log."""
    with emulator() as machine:
        machine.fault("torn_journal")
        for number, errno_name in ((2, ""), (3, "EIO"), (3, "")):
            file, before = (
                machine.root / MEASUREMENTS / f"rtmr{number}:sha384",
                machine.rtmr(number),
            )
            if errno_name:
                assert errno_name_of(write_once, file, bytes(48)) == errno_name
            else:
                assert write_once(file, bytes(48)) == 48
            assert machine.rtmr(number) != before
        assert list((machine.root / "run/log/dstack").iterdir()) == []
