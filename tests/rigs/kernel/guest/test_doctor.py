"""What is found where nobody says what to look for: detection, and `attestkit doctor`."""

import json
from typing import Any

import pytest

from attestkit import backends
from attestkit.__main__ import main
from attestkit.backends.configfs_tsm import ConfigfsTsm
from tests.rigs.kernel.guest.machine import HAS_REGISTERS, LINUX, MadeUpSnp, MadeUpTd, remove


def _doctor(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert main(["doctor", "--json", *options]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_td_is_found(td: MadeUpTd, capsys: pytest.CaptureFixture[str]) -> None:
    """The driver is detected, and the doctor's own request gets a quote."""
    del td
    assert backends.detect() is ConfigfsTsm
    found = _doctor(capsys, "--quote")
    assert found["tee"] == "TDX"
    assert found["linux"]["number"][:2] == list(LINUX)
    assert found["linux"]["features"]["rtmr_files"] is HAS_REGISTERS
    assert found["backends"]["configfs_tsm"] is None
    doors = found["doors"]
    assert doors["report"]["error"] is None
    assert doors["tdx_guest"]["error"] is None
    assert [trial["error"] for trial in found["quotes"]] == [None]
    assert [trial["backend"] for trial in found["quotes"]] == ["configfs_tsm"]


def test_a_missing_driver_is_named(td: MadeUpTd, capsys: pytest.CaptureFixture[str]) -> None:
    """A TD whose driver is not loaded is still a TD, and the advice is to load it."""
    remove("tdx_guest")
    found = _doctor(capsys)
    assert found["tee"] == "TDX"
    assert "tdx-guest" in str(found["backends"]["configfs_tsm"])
    assert any("modprobe tdx-guest" in text for text in found["advice"])
    del td


def test_an_snp_guest_is_found(snp: MadeUpSnp, capsys: pytest.CaptureFixture[str]) -> None:
    """By the provider alone: this machine has neither the device nor the CPU's flag."""
    snp.boot()
    assert backends.detect() is ConfigfsTsm
    found = _doctor(capsys)
    assert found["backends"]["configfs_tsm"] is None
