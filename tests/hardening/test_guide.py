"""The figures of docs/hardening.md are those that are tested."""

import re

import pytest

from tests.hardening.locks import ROOT
from tests.hardening.syscalls import GUIDE, allowed, docker_profile, documented_calls
from tests.hardening.test_forbidden import EXCEPTIONS
from tests.test_deploy import EXPOSURES

pytestmark = pytest.mark.skipif(not GUIDE.exists(), reason="docs/hardening.md is not here")


def test_the_calls_are_those_of_the_profile() -> None:
    """What was measured is allowed, but for what the text says is refused; the counts are right."""
    text, measured, profile = GUIDE.read_text(), documented_calls(), docker_profile()
    assert measured - allowed(profile) == {"clone3", "io_uring_enter", "io_uring_setup"}
    assert f"makes {len(measured)} system calls" in text
    assert f"allows {len(allowed(profile))}:" in text
    assert f" {len(allowed(profile))} system calls" in (ROOT / "deploy/README.md").read_text()
    newer = {name for rule in profile["syscalls"] if "errnoRet" in rule for name in rule["names"]}
    assert {name for name in newer - measured if f"`{name}`" not in text} == {"io_uring_register"}


def test_every_exception_of_the_sources_is_told() -> None:
    """Each file that test_forbidden.py lets pass is in the text, by its path."""
    files = {entry.split()[0] for entry in EXCEPTIONS}
    assert {name for name in files if f"`{name}`" not in GUIDE.read_text()} == set()


def test_the_exposures_are_those_of_the_units() -> None:
    """In the table's order: none of the drop-ins, each, both."""
    found = re.findall(r"^\| .*? \| (\d\.\d) \|", GUIDE.read_text(), re.MULTILINE)
    assert found == [f"{exposure / 10:.1f}" for _, exposure in EXPOSURES]
