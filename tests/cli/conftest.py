"""Fixtures of the tests of commands."""

from pathlib import Path

import pytest

from tests.cli import evidence_files
from tests.cli.evidence_files import Files


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Valid evidence in every format, with trust anchor and collateral."""
    return evidence_files.write(tmp_path)
