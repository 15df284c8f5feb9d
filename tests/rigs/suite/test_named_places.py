"""Configured paths: they are used, and an invalid one is an error without a fallback.

The guest has Linux 6.18, whose default paths all exist.
"""

from pathlib import Path

import pytest

import attestkit
from attestkit import backends
from attestkit.attester import Attester
from attestkit.backends.configfs_tsm import ConfigfsTsm
from attestkit.errors import UsageError
from tests.raising import raises
from tests.rigs.emulator import requires_fuse
from tests.rigs.suite.guests import Guest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.rig,
    requires_fuse,
    pytest.mark.parametrize("running", ["configfs-6.18"], indirect=True),
    pytest.mark.usefixtures("guest"),
]

ENTRY = "DCAP_TDX_QUOTE_CONFIGFS_PATH"
REGISTERS = "DCAP_TDX_RTMR_SYSFS_PATH"
LOG = "DSTACK_CCEL_FILE"
NONCE = bytes(range(2, 66))


def test_configured_paths_are_used(
    guest: Guest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A container may have an entry, registers at another path, and a copy of the boot log only."""
    entry, registers = guest.paths.tsm_report / "com.intel.dcap", tmp_path / "measurements"
    entry.mkdir()
    registers.symlink_to(guest.paths.measurements)
    log = tmp_path / "ccel"
    log.write_bytes(guest.paths.ccel_data.read_bytes())
    for variable, path in ((ENTRY, entry), (REGISTERS, registers), (LOG, log)):
        monkeypatch.setenv(variable, str(path))
    with Attester(ConfigfsTsm()) as tee:
        event = tee.emit_event("in a container", b"")
        assert tee.registers() == tee.get_quote(NONCE).rtmrs
        assert tee.backend.read_event_log() == log.read_bytes()
        evidence = tee.attest(report_data=NONCE, pad=True)
    assert evidence.event_log.runtime == (event,)
    assert guest.emulator.entries() == [entry.name]
    assert (entry / "generation").read_text() == "2\n"
    entry.rmdir()


@pytest.mark.parametrize(
    ("variable", "text", "reason"),
    [
        *((name, "relative/path", "wrong_value") for name in (ENTRY, REGISTERS, LOG)),
        (LOG, "~/entry", "wrong_value"),
        (ENTRY, "/" + "x" * 239, "too_large"),  # Intel's library supports less than 240 bytes
    ],
)
def test_configured_path_invalid_is_rejected(
    guest: Guest, monkeypatch: pytest.MonkeyPatch, variable: str, text: str, reason: str
) -> None:
    """The error names the variable, in all ways to open the guest."""
    monkeypatch.setenv(variable, text)
    leave_out = ("dstack_agent",) if guest.elsewhere else ()
    for opener in (
        ConfigfsTsm,
        ConfigfsTsm.probe,
        lambda: backends.detect(leave_out=leave_out),
        lambda: attestkit.open("configfs_tsm"),
    ):
        with raises(UsageError, reason, part=variable):
            opener()
    assert guest.emulator.entries() == []


def test_empty_variable_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the same as an unset one."""
    for variable in (ENTRY, REGISTERS, LOG):
        monkeypatch.setenv(variable, "")
    with Attester(ConfigfsTsm()) as tee:
        assert tee.attest(report_data=NONCE, pad=True).report_data == NONCE
