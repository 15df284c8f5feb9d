"""docs/security/threat-model.md: every promise names tests, and those exist."""

import re
import sys
from pathlib import Path

import pytest

from tests.docs.promises import PAGE, ROOT, nodes, promises, read_tests
from tests.processes import run_program

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason=f"{PAGE} is not here")


def test_every_promise_has_tests_that_exist() -> None:
    """A test that was renamed or moved away leaves a promise that nothing holds."""
    for promise in promises():
        assert promise.tests, promise.number
        for file, name, _ in promise.tests:
            assert (ROOT / file).is_file(), f"{promise.number}: {file}"
            assert Path(file).name.startswith("test_"), f"{promise.number}: {file}"
            assert name in read_tests(file), f"{promise.number}: {file}::{name}"


def test_every_row_is_a_promise() -> None:
    """A row that cannot be read as one would be left out by `make promises` without a word."""
    text = PAGE.read_text()
    numbers = re.findall(r"^\| ([A-Z]\d+) \|", text, re.MULTILINE)
    assert numbers == [promise.number for promise in promises()]
    assert len(set(numbers)) == len(numbers) > 30
    assert text.count("`tests/") == sum(len(promise.tests) for promise in promises())


@pytest.mark.slow
def test_pytest_knows_every_test_of_a_promise() -> None:
    """Those with parameters, whose names are made when they are collected; others are in a file."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:benchmark", "--collect-only"]
    named = [node for node in nodes() if node.endswith("]")]
    done = run_program(*command, *named, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-2000:]
    assert len(named) > 30
