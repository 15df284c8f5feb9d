"""Tests of the figures in docs/security/hardening.md."""

import re

import pytest

from tests.hardening.syscalls import GUIDE, allowed, docker_profile, documented_calls
from tests.hardening.test_forbidden import EXCEPTIONS
from tests.packaging.test_deploy import EXPOSURES
from tests.supply_chain.locks import ROOT

pytestmark = pytest.mark.skipif(not GUIDE.exists(), reason="docs/security/hardening.md is not here")


def test_guide_system_calls_match_profile() -> None:
    """Listed calls are allowed, except those named as refused; the counts are correct."""
    text, measured, profile = GUIDE.read_text(), documented_calls(), docker_profile()
    assert measured - allowed(profile) == {"clone3", "io_uring_enter", "io_uring_setup"}
    assert f"makes {len(measured)} system calls" in text
    assert f"allows {len(allowed(profile))}:" in text
    assert f" {len(allowed(profile))} system calls" in (ROOT / "deploy/README.md").read_text()
    newer = {name for rule in profile["syscalls"] if "errnoRet" in rule for name in rule["names"]}
    assert {name for name in newer - measured if f"`{name}`" not in text} == {"io_uring_register"}


def test_guide_lists_every_source_exception() -> None:
    """The path of each file that test_forbidden.py excepts is in the text."""
    files = {entry.split()[0] for entry in EXCEPTIONS}
    assert {name for name in files if f"`{name}`" not in GUIDE.read_text()} == set()


def test_guide_exposures_match_units() -> None:
    """In the order of the table: no drop-ins, each, both."""
    found = re.findall(r"^\| .*? \| (\d\.\d) \|", GUIDE.read_text(), re.MULTILINE)
    assert found == [f"{exposure / 10:.1f}" for _, exposure in EXPOSURES]
