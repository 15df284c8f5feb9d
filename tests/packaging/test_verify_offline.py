"""A wheel without extras verifies a hardware quote offline, in an environment of its own."""

from pathlib import Path

import pytest

from tests.docs.blocks import ROOT
from tests.packaging.conftest import Dist
from tests.packaging.environments import (
    base_python,
    install,
    new_environment,
    run,
    without_network,
)
from tests.vectors import SHARED, needs_shared

QUOTES = SHARED / "data" / "quotes" / "dcap-qvl"
PROGRAM = ROOT / "tests" / "packaging" / "verify_offline.py"
NOW = 1752000000  # the collateral is valid


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "pure"])
def test_wheel_verifies_hardware_quote_offline(kind: str, dist: Dist, tmp_path: Path) -> None:
    """A TDX quote and its collateral verify under Intel's root, and an altered quote does not."""
    offline = without_network(tmp_path)
    python = new_environment(tmp_path, base_python())
    install(python, getattr(dist, kind))
    files = QUOTES / "tdx_quote", QUOTES / "tdx_quote_collateral.json"
    found = run(*offline, python, PROGRAM, *files, f"{NOW}", folder=tmp_path)
    assert found == "UpToDate"
