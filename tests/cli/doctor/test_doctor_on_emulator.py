"""The doctor on the emulated kernel: what works is told to work, what is broken is named."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from attestkit.backends.configfs_tsm import ConfigfsTsm
from attestkit.backends.tdx.guest import TdGuest
from attestkit.cli.commands.doctor import findings
from attestkit.event_log.runtime_events import runtime_event
from tests.rigs.emulator import Emulator, emulator, requires_fuse

pytestmark = [pytest.mark.rig, requires_fuse]
RTMR3 = "sys/devices/virtual/misc/tdx_guest/measurements/rtmr3:sha384"


@pytest.fixture(scope="module")
def running() -> Iterator[Emulator]:
    """Run a TDX guest of Linux 6.18."""
    with emulator() as machine:
        yield machine


@pytest.fixture
def machine(running: Emulator) -> Emulator:
    """Return the guest, rebooted, with nothing wrong."""
    running.clear_faults()
    running.reboot()
    return running


def examined(machine: Emulator, *, quote: bool = False) -> dict[str, Any]:
    """Return what the doctor finds."""
    return findings(machine.root, quote=quote)


def advice(found: dict[str, Any]) -> str:
    """Return all advice as one text."""
    return "\n".join(found["advice"])


def emit(machine: Emulator) -> None:
    """Extend and log as a program does."""
    backend = ConfigfsTsm(root=machine.root)
    assert isinstance(backend, TdGuest)
    journal = backend.open_journal()
    journal.emit(runtime_event("doctor", b"", journal.version))
    backend.close()


def test_a_guest_in_order_gives_a_quote(machine: Emulator) -> None:
    """Everything but the app's keys is there, and nothing stays behind."""
    found = examined(machine, quote=True)
    assert (found["tee"], found["backends"]["configfs_tsm"]) == ("TDX", None)
    [trial] = found["quotes"]
    assert (trial["backend"], trial["error"]) == ("configfs_tsm", None)
    assert trial["size"] > 1020
    assert trial["seconds"] > 0
    assert found["boot_log"]["events"] > 5
    assert found["runtime_log"]["state"] == "empty"
    [told] = found["advice"]
    assert ".appkeys.json" in told
    assert machine.entries() == []


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("empty_outblob", ("configfs_tsm gave no quote", "quoting service")),
        ("short_outblob", ("configfs_tsm gave no quote", "1000 bytes")),
        ("eio", ("configfs_tsm gave no quote", "EIO")),
        ("wrong_report_data", ("configfs_tsm gave no quote", "other report data")),
    ],
)
def test_a_quote_that_fails_is_told(machine: Emulator, fault: str, words: tuple[str, ...]) -> None:
    """The backend is usable, and what it then gave is named with its mend."""
    machine.fault(fault)
    found = examined(machine, quote=True)
    assert found["backends"]["configfs_tsm"] is None
    for word in words:
        assert word in advice(found)


def test_a_driver_that_left_is_told(machine: Emulator) -> None:
    """The folder is there, an entry cannot be made: ENXIO, and what to load."""
    machine.fault("provider_leaves")
    found = examined(machine)
    assert "ENXIO" in found["backends"]["configfs_tsm"]
    assert "modprobe tdx-guest" in advice(found)


def test_the_runtime_log_is_held_against_the_register(machine: Emulator) -> None:
    """Agreement, a foreign extend, a kexec and a reboot each have their own words."""
    emit(machine)
    assert examined(machine)["runtime_log"]["state"] == "agrees"
    fd = os.open(machine.root / RTMR3, os.O_WRONLY)
    os.write(fd, b"\x01" * 48)
    os.close(fd)
    found = examined(machine)
    assert found["runtime_log"]["state"] == "foreign"
    assert "something extended it" in advice(found)
    machine.reboot()
    assert examined(machine)["runtime_log"]["state"] == "earlier-boot"
    emit(machine)
    machine.kexec()
    found = examined(machine)
    assert found["runtime_log"]["state"] == "other-boot"
    assert "kexec" in advice(found)


def test_a_leftover_entry_is_named(machine: Emulator) -> None:
    """One of ours, whose process is gone."""
    left = machine.root / "sys/kernel/config/tsm/report/attestkit-999999-00"
    left.mkdir()
    found = examined(machine)
    left.rmdir()
    assert found["report_entries"] == ["attestkit-999999-00"]
    assert "rmdir" in advice(found)


def test_an_older_kernel_has_no_register_files() -> None:
    """The register is read from a report there."""
    with emulator(kernel="6.12") as machine:
        found = examined(machine)
    assert found["doors"]["measurements"]["error"] == "ENOENT"
    assert found["runtime_log"]["state"] == "empty"
    assert "/measurements: it is not there (ENOENT)" in advice(found)


def test_an_snp_guest_gives_a_report() -> None:
    """Registers and boot logs are nobody's concern there."""
    with emulator(provider="sev_guest") as machine:
        found = examined(machine, quote=True)
    assert found["backends"]["configfs_tsm"] is None
    [trial] = found["quotes"]
    assert (trial["size"], trial["error"]) == (1184, None)
    assert found["tee"] in ("SEV-SNP", "unknown")
    [told] = found["advice"]
    assert ".appkeys.json" in told
