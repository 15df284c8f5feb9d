"""A runtime log torn in the middle of an append, on the kernel's files: what is in which file."""

from collections.abc import Iterator
from typing import Any

import pytest

import attestkit
from attestkit.errors import JournalError
from attestkit.event_log.journal import LOG, PENDING, replay_from
from attestkit.event_log.runtime_events import runtime_event
from tests.rigs.emulator import Emulator, emulator, requires_fuse
from tests.rigs.file_calls import MEASUREMENTS, failure, put

pytestmark = [pytest.mark.rig, requires_fuse]

# A kernel with register files, and one that extends by the device.
KINDS: dict[str, dict[str, Any]] = {
    "configfs_tsm": {},
    "tdx_ioctl": {"kernel": "6.12", "driver": "C'", "qgs": True},
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Name a backend."""
    return str(request.param)


@pytest.fixture
def machine(kind: str) -> Iterator[Emulator]:
    """Run the machine that the backend is for."""
    with emulator(**KINDS[kind]) as machine:
        yield machine
        assert machine.errors.read_text() == ""


def opened(machine: Emulator, kind: str) -> attestkit.Attester:
    """Open the machine as a program that starts now does."""
    if kind == "configfs_tsm":
        return attestkit.open("configfs_tsm", root=machine.root)
    return attestkit.open("tdx_ioctl", root=machine.root, qgs=machine.qgs)


@pytest.mark.parametrize("again", ["emit", "attest", "another program"])
def test_the_next_use_mends_the_torn_line(machine: Emulator, kind: str, again: str) -> None:
    """The register has the event and the log half of its line; then the log has it whole, once."""
    folder = machine.root / "run/log/dstack"
    event = runtime_event("torn", b"\2")
    with opened(machine, kind) as tee:
        tee.emit_event("acknowledged", b"\1")
        log, before = (folder / LOG).read_bytes(), tee.registers()[3]
        machine.fault("torn_journal")
        with pytest.raises(JournalError, match=r"RTMR3 was extended.*do not repeat"):
            tee.emit_event(event.name, event.payload)
        assert machine.armed() == []
        pending = (folder / PENDING).read_bytes()
        assert (folder / LOG).read_bytes() == log + pending[: len(pending) // 2]
        assert tee.registers()[3] == replay_from(before, (event,))
        assert tee.get_quote(b"").rtmrs[3] == replay_from(before, (event,))
        names = ["acknowledged", "torn"]
        if again == "attest":
            assert tee.attest(b"").event_log.runtime[-1] == event
        elif again == "emit":
            tee.emit_event("next", b"\3")
            names.append("next")
    with opened(machine, kind) as tee:
        assert [found.name for found in tee.attest(b"").event_log.runtime] == names
    mended = (folder / LOG).read_bytes()
    assert mended.startswith(log + pending)
    assert mended.count(b"\n") == len(names)
    assert not (folder / PENDING).exists()


def test_a_program_that_keeps_no_log_sees_an_eio() -> None:
    """The register is extended, the answer is EIO, no file is made; RTMR2 has no such log."""
    with emulator() as machine:
        machine.fault("torn_journal")
        for number, says in ((2, ""), (3, "EIO"), (3, "")):
            file, before = (
                machine.root / MEASUREMENTS / f"rtmr{number}:sha384",
                machine.rtmr(number),
            )
            if says:
                assert failure(put, file, bytes(48)) == says
            else:
                assert put(file, bytes(48)) == 48
            assert machine.rtmr(number) != before
        assert list((machine.root / "run/log/dstack").iterdir()) == []
