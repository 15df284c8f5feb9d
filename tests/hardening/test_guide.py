"""The figures of docs/hardening.md are those that are tested."""

import re

import pytest

from tests.hardening.locks import ROOT
from tests.hardening.test_syscalls import allowed, docker_profile
from tests.test_deploy import EXPOSURES

GUIDE = ROOT / "docs/hardening.md"

pytestmark = pytest.mark.skipif(not GUIDE.exists(), reason="docs/hardening.md is not here")


def test_the_calls_are_those_of_the_profile() -> None:
    """What was measured is allowed, but for what the text says is refused; the counts are right."""
    text = GUIDE.read_text()
    [block] = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    measured = set(block.split())
    assert measured - allowed(docker_profile()) == {"clone3", "io_uring_enter", "io_uring_setup"}
    assert f"makes {len(measured)} system calls" in text
    assert f"allows {len(allowed(docker_profile()))}:" in text


def test_the_exposures_are_those_of_the_units() -> None:
    """In the table's order: none of the drop-ins, each, both."""
    found = re.findall(r"^\| .*? \| (\d\.\d) \|", GUIDE.read_text(), re.MULTILINE)
    assert found == [f"{exposure / 10:.1f}" for _, exposure in EXPOSURES]
