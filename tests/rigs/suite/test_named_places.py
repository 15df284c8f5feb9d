"""Places that the environment names: they count, and a wrong one is an error, never another way.

On the guest of Linux 6.18, whose own places are all there and would do as well.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import attestkit
from attestkit import EventLog, backends
from attestkit.attester import Attester
from attestkit.backends.configfs_tsm import ConfigfsTsm
from attestkit.errors import AttestKitError, BackendBusyError, BackendUnavailableError, UsageError
from tests.rigs.emulator import requires_fuse
from tests.rigs.suite.guests import Guest

pytestmark = [
    pytest.mark.rig,
    requires_fuse,
    pytest.mark.parametrize("running", ["configfs-6.18"], indirect=True),
    pytest.mark.usefixtures("guest"),
]

ENTRY = "DCAP_TDX_QUOTE_CONFIGFS_PATH"
REGISTERS = "DCAP_TDX_RTMR_SYSFS_PATH"
LOG = "DSTACK_CCEL_FILE"
NONCE = bytes(range(2, 66))


@pytest.fixture
def entry(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make an entry, as an administrator does for a container, and name it."""
    path = guest.paths.tsm_report / "com.intel.dcap"
    path.mkdir()
    monkeypatch.setenv(ENTRY, str(path))
    yield path
    path.rmdir()


@pytest.fixture
def folder(guest: Guest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Name the registers' folder, by a path that is not the usual one."""
    link = tmp_path / "measurements"
    link.symlink_to(guest.paths.measurements)
    monkeypatch.setenv(REGISTERS, str(link))
    return link


@pytest.fixture
def log(guest: Guest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Name a copy of the firmware's log."""
    copy = tmp_path / "ccel"
    copy.write_bytes(guest.paths.ccel_data.read_bytes())
    monkeypatch.setenv(LOG, str(copy))
    return copy


def opened() -> Attester:
    """Open the guest where the environment says, not below a root."""
    return Attester(ConfigfsTsm())


# -- good ones -------------------------------------------------------------------------------------


def test_the_named_entry_is_used(guest: Guest, entry: Path) -> None:
    """Every request goes through it, none is made beside it, and it stays."""
    generation = entry / "generation"
    with opened() as tee:
        for number in range(1, 3):
            assert tee.get_quote(NONCE).report_data == NONCE
            assert generation.read_text() == f"{number}\n"
        assert guest.emulator.entries() == [entry.name]
        assert tee.attest(NONCE).report_data == NONCE
    assert generation.read_text() == "3\n"


def test_the_named_entry_without_its_lock(guest: Guest, entry: Path) -> None:
    """Who writes in spite of the lock, between every two steps, is told of."""
    with opened() as tee:
        guest.emulator.fault("generation_race:3")
        with pytest.raises(BackendBusyError, match=f"{entry}/generation.*somebody else writes"):
            tee.get_quote(NONCE)
        assert tee.get_quote(NONCE).report_data == NONCE


@pytest.mark.usefixtures("folder")
def test_the_named_folder_of_registers_is_used() -> None:
    """Reading and extending go through it."""
    with opened() as tee:
        event = tee.emit_event("by another path", b"")
        assert tee.registers() == tee.get_quote(NONCE).rtmrs
        assert tee.event_log().runtime == (event,)
        assert tee.registers()[3] != bytes(48)


def test_the_named_log_is_used(log: Path) -> None:
    """In place of the firmware's: a log of other events does not replay to the quote."""
    with opened() as tee:
        assert tee.backend.read_event_log() == log.read_bytes()
        assert tee.attest(NONCE).report_data == NONCE
    data = bytearray(log.read_bytes())
    first = EventLog.from_ccel(bytes(data)).events[0].digest
    data[data.index(first)] ^= 1
    log.write_bytes(data)
    with (
        opened() as tee,
        pytest.raises(attestkit.errors.ReplayError, match="RTMR0"),
    ):
        tee.attest(NONCE)


@pytest.mark.usefixtures("entry", "folder", "log")
def test_all_of_them_together() -> None:
    """As in a container that was given these three, and knows no other."""
    with opened() as tee:
        tee.emit_event("in a container", b"")
        evidence = tee.attest(NONCE)
    assert [event.event for event in evidence.evidence.stack.runtime_events] == ["in a container"]


# -- wrong ones ------------------------------------------------------------------------------------


def refusals(guest: Guest) -> list[AttestKitError]:
    """Return what each way to open the guest says."""
    found = []
    leave_out = ("dstack_agent",) if guest.elsewhere else ()
    for way in (
        ConfigfsTsm,
        ConfigfsTsm.probe,
        lambda: backends.detect(leave_out=leave_out),
        lambda: attestkit.open("configfs_tsm"),
    ):
        with pytest.raises(AttestKitError) as refused:
            way()
        found.append(refused.value)
    return found


def test_an_entry_that_is_not_there(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is neither made, nor is one made beside it, nor is another backend taken."""
    missing = guest.paths.tsm_report / "missing"
    monkeypatch.setenv(ENTRY, str(missing))
    for error in refusals(guest):
        assert isinstance(error, (BackendUnavailableError, UsageError))
        assert str(missing) in str(error)
        assert ENTRY in str(error)
    assert guest.emulator.entries() == []


def test_an_entry_that_goes(entry: Path, guest: Guest) -> None:
    """While the backend is open: told, and nothing else is tried."""
    with opened() as tee:
        entry.rmdir()
        with pytest.raises(BackendUnavailableError, match=f"{entry}.*{ENTRY}"):
            tee.get_quote(NONCE)
        assert guest.emulator.entries() == []
        entry.mkdir()
        assert tee.get_quote(NONCE).report_data == NONCE


@pytest.mark.parametrize("variable", [ENTRY, REGISTERS, LOG])
@pytest.mark.parametrize("text", ["relative/path", "./", "~/entry"])
def test_a_relative_path(
    guest: Guest, monkeypatch: pytest.MonkeyPatch, variable: str, text: str
) -> None:
    """Refused by every way to open the guest, the variable named."""
    monkeypatch.setenv(variable, text)
    for error in refusals(guest):
        assert type(error) is UsageError
        assert f"${variable} is {text!r}: want an absolute path" in str(error)
    assert guest.emulator.entries() == []


def test_a_path_that_intels_library_could_not_hold(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry's path has below 240 bytes."""
    monkeypatch.setenv(ENTRY, "/" + "x" * 239)
    for error in refusals(guest):
        assert type(error) is UsageError
        assert ENTRY in str(error)


def test_an_empty_variable_names_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were not set."""
    for variable in (ENTRY, REGISTERS, LOG):
        monkeypatch.setenv(variable, "")
    with opened() as tee:
        assert tee.attest(NONCE).report_data == NONCE


def test_a_folder_without_registers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the usual files nor the device take its place; quotes come all the same."""
    for wrong in (tmp_path / "missing", tmp_path):
        monkeypatch.setenv(REGISTERS, str(wrong))
        with opened() as tee:
            before = tee.get_quote(NONCE).rtmrs
            with pytest.raises(BackendUnavailableError, match=str(wrong)):
                tee.registers()
            with pytest.raises(BackendUnavailableError, match=str(wrong)):
                tee.emit_event("lost", b"")
            assert tee.get_quote(NONCE).rtmrs == before
            assert tee.event_log().runtime == ()


def test_a_log_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The firmware's own does not take its place, so there is no evidence; there are quotes."""
    monkeypatch.setenv(LOG, str(tmp_path / "missing"))
    with opened() as tee:
        assert tee.get_quote(NONCE).report_data == NONCE
        for ask in (tee.event_log, lambda: tee.attest(NONCE)):
            with pytest.raises(BackendUnavailableError, match=f"{tmp_path}/missing.*{LOG}"):
                ask()
    empty = tmp_path / "empty"
    os.mknod(empty)
    monkeypatch.setenv(LOG, str(empty))
    with (
        opened() as tee,
        pytest.raises(attestkit.errors.BackendError, match="is empty"),
    ):
        tee.attest(NONCE)
