"""`attestkit doctor` on emulated kernel interfaces."""

from collections.abc import Iterator
from typing import Any

import pytest

from attestkit.cli.commands.doctor import findings
from tests.rigs.emulator import Emulator, emulator, requires_fuse

pytestmark = [pytest.mark.rig, requires_fuse]


@pytest.fixture(scope="module")
def running() -> Iterator[Emulator]:
    """Run a TDX guest of Linux 6.18."""
    with emulator() as machine:
        yield machine


@pytest.fixture
def machine(running: Emulator) -> Emulator:
    """Return the guest, rebooted, without faults."""
    running.clear_faults()
    running.reboot()
    return running


def diagnose(machine: Emulator, *, quote: bool = False) -> dict[str, Any]:
    """Return the diagnosis."""
    return findings(machine.root, quote=quote)


def advice(found: dict[str, Any]) -> str:
    """Return all advice as one text."""
    return "\n".join(found["advice"])


def test_doctor_on_working_guest_gets_quote(machine: Emulator) -> None:
    """A working guest returns a quote, lacks only app keys, and has no leftover entries."""
    found = diagnose(machine, quote=True)
    assert (found["tee"], found["backends"]["configfs_tsm"]) == ("TDX", None)
    [trial] = found["quotes"]
    assert (trial["backend"], trial["error"]) == ("configfs_tsm", None)
    assert trial["size"] > 1020
    assert trial["seconds"] > 0
    assert found["boot_log"]["events"] > 5
    assert found["runtime_log"]["state"] == "empty"
    [sentence] = found["advice"]
    assert ".appkeys.json" in sentence
    assert machine.entries() == []


def test_doctor_on_older_kernel_reads_register_from_report() -> None:
    """Without sysfs registers, RTMR3 is read from a TD report."""
    with emulator(kernel_release="6.12") as machine:
        found = diagnose(machine)
    assert found["paths"]["measurements"]["error"] == "ENOENT"
    assert found["runtime_log"]["state"] == "empty"
    assert "/measurements: not found (ENOENT)" in advice(found)


@pytest.mark.slow
def test_doctor_on_snp_guest_gets_report() -> None:
    """On SEV-SNP a report is requested, and registers and boot log are ignored."""
    with emulator(provider="sev_guest") as machine:
        found = diagnose(machine, quote=True)
    assert found["backends"]["configfs_tsm"] is None
    [trial] = found["quotes"]
    assert (trial["size"], trial["error"]) == (1184, None)
    assert found["tee"] in ("SEV-SNP", "unknown")
    [sentence] = found["advice"]
    assert ".appkeys.json" in sentence
