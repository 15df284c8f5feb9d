"""Fixtures of the TDX tests."""

from pathlib import Path

import pytest

from tests.backends.tdx.fake_td import FakeTd


@pytest.fixture
def td(tmp_path: Path) -> FakeTd:
    """Return a TD of Linux 6.16 or later: it has register files."""
    return FakeTd(tmp_path)
