"""Isolation of the tests from this machine's app and recordings."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use `tmp_path`/shared as the host-shared directory, and no $ATTESTKIT_RECORDING."""
    monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", str(tmp_path / "shared"))
    monkeypatch.delenv("ATTESTKIT_RECORDING", raising=False)
