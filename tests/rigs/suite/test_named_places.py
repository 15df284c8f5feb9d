"""Configured paths: they are used, and an invalid one is an error without a fallback.

The guest has Linux 6.18, whose default paths all exist.
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
from tests.raising import raises
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
    """Create an entry, like an administrator for a container, and configure it."""
    path = guest.paths.tsm_report / "com.intel.dcap"
    path.mkdir()
    monkeypatch.setenv(ENTRY, str(path))
    yield path
    path.rmdir()


@pytest.fixture
def folder(guest: Guest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Configure the directory of the registers, by another path."""
    link = tmp_path / "measurements"
    link.symlink_to(guest.paths.measurements)
    monkeypatch.setenv(REGISTERS, str(link))
    return link


@pytest.fixture
def log(guest: Guest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Configure a copy of the firmware's log."""
    copy = tmp_path / "ccel"
    copy.write_bytes(guest.paths.ccel_data.read_bytes())
    monkeypatch.setenv(LOG, str(copy))
    return copy


def open_guest() -> Attester:
    """Open the guest with the paths of the environment."""
    return Attester(ConfigfsTsm())


# -- valid paths -----------------------------------------------------------------------------------


def test_configured_entry_is_used(guest: Guest, entry: Path) -> None:
    """Each request uses it, no other is created, and it stays."""
    generation = entry / "generation"
    with open_guest() as tee:
        for number in range(1, 3):
            assert tee.get_quote(NONCE).report_data == NONCE
            assert generation.read_text() == f"{number}\n"
        assert guest.emulator.entries() == [entry.name]
        assert tee.attest(report_data=NONCE, pad=True).report_data == NONCE
    assert generation.read_text() == "3\n"


def test_configured_entry_detects_unlocked_writes(guest: Guest, entry: Path) -> None:
    """A process may ignore the lock."""
    with open_guest() as tee:
        guest.emulator.fault("generation_race:3")
        with raises(BackendBusyError, "device", path=f"{entry}/generation"):
            tee.get_quote(NONCE)
        assert tee.get_quote(NONCE).report_data == NONCE


@pytest.mark.usefixtures("folder")
def test_configured_register_directory_is_used() -> None:
    """Reads and extends use it."""
    with open_guest() as tee:
        event = tee.emit_event("by another path", b"")
        assert tee.registers() == tee.get_quote(NONCE).rtmrs
        assert tee.event_log().runtime == (event,)
        assert tee.registers()[3] != bytes(48)


def test_configured_boot_log_is_used(log: Path) -> None:
    """A modified log does not replay to the quote."""
    with open_guest() as tee:
        assert tee.backend.read_event_log() == log.read_bytes()
        assert tee.attest(report_data=NONCE, pad=True).report_data == NONCE
    data = bytearray(log.read_bytes())
    first = EventLog.from_ccel(bytes(data)).events[0].digest
    data[data.index(first)] ^= 1
    log.write_bytes(data)
    with (
        open_guest() as tee,
        pytest.raises(attestkit.errors.ReplayError, match="RTMR0"),
    ):
        tee.attest(report_data=NONCE, pad=True)


@pytest.mark.usefixtures("entry", "folder", "log")
def test_all_configured_paths_work_together() -> None:
    """A container may have these three paths only."""
    with open_guest() as tee:
        tee.emit_event("in a container", b"")
        evidence = tee.attest(report_data=NONCE, pad=True)
    assert [event.event for event in evidence.evidence.stack.runtime_events] == ["in a container"]


# -- invalid paths ---------------------------------------------------------------------------------


def open_errors(guest: Guest) -> list[AttestKitError]:
    """Return the errors of all ways to open the guest."""
    found = []
    leave_out = ("dstack_agent",) if guest.elsewhere else ()
    for opener in (
        ConfigfsTsm,
        ConfigfsTsm.probe,
        lambda: backends.detect(leave_out=leave_out),
        lambda: attestkit.open("configfs_tsm"),
    ):
        with pytest.raises(AttestKitError) as refused:
            opener()
        found.append(refused.value)
    return found


def test_configured_entry_missing_is_an_error(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither an entry is created nor another backend selected."""
    missing = guest.paths.tsm_report / "missing"
    monkeypatch.setenv(ENTRY, str(missing))
    for error in open_errors(guest):
        assert isinstance(error, (BackendUnavailableError, UsageError))
        assert str(missing) in str(error)
        assert ENTRY in str(error)
    assert guest.emulator.entries() == []


def test_configured_entry_removed_later_is_an_error(entry: Path, guest: Guest) -> None:
    """No fallback is tried."""
    with open_guest() as tee:
        entry.rmdir()
        with raises(BackendUnavailableError, "missing", path=str(entry), part=ENTRY):
            tee.get_quote(NONCE)
        assert guest.emulator.entries() == []
        entry.mkdir()
        assert tee.get_quote(NONCE).report_data == NONCE


@pytest.mark.parametrize("variable", [ENTRY, REGISTERS, LOG])
@pytest.mark.parametrize("text", ["relative/path", "./", "~/entry"])
def test_configured_relative_path_is_rejected(
    guest: Guest, monkeypatch: pytest.MonkeyPatch, variable: str, text: str
) -> None:
    """The error names the variable."""
    monkeypatch.setenv(variable, text)
    for error in open_errors(guest):
        assert type(error) is UsageError
        assert error.reason == "wrong_value"
        assert f"${variable}: not an absolute path: {text!r}" in str(error)
    assert guest.emulator.entries() == []


def test_configured_entry_path_is_limited(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Intel's library supports paths of less than 240 bytes."""
    monkeypatch.setenv(ENTRY, "/" + "x" * 239)
    for error in open_errors(guest):
        assert (type(error), error.reason) == (UsageError, "too_large")
        assert ENTRY in str(error)


def test_empty_variable_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the same as an unset one."""
    for variable in (ENTRY, REGISTERS, LOG):
        monkeypatch.setenv(variable, "")
    with open_guest() as tee:
        assert tee.attest(report_data=NONCE, pad=True).report_data == NONCE


def test_configured_register_directory_missing_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither default files nor the device are used; quotes can be made."""
    for wrong in (tmp_path / "missing", tmp_path):
        monkeypatch.setenv(REGISTERS, str(wrong))
        with open_guest() as tee:
            before = tee.get_quote(NONCE).rtmrs
            for use in (tee.registers, lambda: tee.emit_event("lost", b"")):
                with raises(BackendUnavailableError, "missing") as caught:
                    use()
                assert caught.value.path.startswith(str(wrong))
            assert tee.get_quote(NONCE).rtmrs == before
            assert tee.event_log().runtime == ()


def test_configured_boot_log_missing_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Evidence cannot be made; quotes can."""
    monkeypatch.setenv(LOG, str(tmp_path / "missing"))
    with open_guest() as tee:
        assert tee.get_quote(NONCE).report_data == NONCE
        for use in (tee.event_log, lambda: tee.attest(report_data=NONCE, pad=True)):
            with raises(BackendUnavailableError, "missing", path=f"{tmp_path}/missing", part=LOG):
                use()
    empty = tmp_path / "empty"
    os.mknod(empty)
    monkeypatch.setenv(LOG, str(empty))
    with (
        open_guest() as tee,
        raises(attestkit.errors.BackendError, "truncated", path=str(empty)),
    ):
        tee.attest(report_data=NONCE, pad=True)
