"""Detection and `attestkit doctor` on the real driver."""

import json
from typing import Any

import pytest

from attestkit import backends
from attestkit.__main__ import main
from attestkit.backends.configfs_tsm import ConfigfsTsm
from tests.rigs.kernel.guest.machine import (
    HAS_REGISTERS,
    LINUX,
    SimulatedSnp,
    SimulatedTd,
    unload_module,
)


def _doctor(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert main(["doctor", "--json", *options]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_doctor_detects_td(td: SimulatedTd, capsys: pytest.CaptureFixture[str]) -> None:
    """The doctor's own requests get a quote of the TD, and one of the machine's TPM."""
    del td
    assert backends.detect() is ConfigfsTsm
    found = _doctor(capsys, "--quote")
    assert found["tee"] == "TDX"
    assert found["linux"]["number"][:2] == list(LINUX)
    assert found["linux"]["features"]["rtmr_files"] is HAS_REGISTERS
    assert found["backends"]["configfs_tsm"] is None
    paths = found["paths"]
    assert paths["report"]["error"] is None
    assert paths["tdx_guest"]["error"] is None
    assert {trial["backend"]: trial["error"] for trial in found["quotes"]} == {
        "configfs_tsm": None,
        "tpm": None,
    }


def test_doctor_names_missing_driver(td: SimulatedTd, capsys: pytest.CaptureFixture[str]) -> None:
    """The platform is still TDX, and the advice is to load the driver."""
    unload_module("tdx_guest")
    found = _doctor(capsys)
    assert found["tee"] == "TDX"
    assert "tdx-guest" in str(found["backends"]["configfs_tsm"])
    assert any("modprobe tdx-guest" in text for text in found["advice"])
    del td


def test_doctor_detects_snp_guest(snp: SimulatedSnp, capsys: pytest.CaptureFixture[str]) -> None:
    """It is detected by the provider: the machine has neither the device nor the CPU flag."""
    snp.boot()
    assert backends.detect() is ConfigfsTsm
    found = _doctor(capsys)
    assert found["backends"]["configfs_tsm"] is None
