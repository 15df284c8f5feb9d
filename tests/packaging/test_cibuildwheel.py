"""cibuildwheel accepts its configuration, and would build one wheel per platform."""

from pathlib import Path

import pytest

from tests.docs.blocks import ROOT
from tests.packaging.environments import (
    VERSIONS,
    Installer,
    interpreter,
    run,
)

pytestmark = pytest.mark.slow


def test_wheels_to_build_cover_platforms(uv: Installer, tmp_path: Path) -> None:
    """Linux has two architectures with either C library, macOS two; building needs docker."""
    python = uv.new_environment(tmp_path / "env", interpreter(VERSIONS[-1]))
    uv.install(python, "cibuildwheel")
    found = []
    for platform in ("linux", "macos"):
        words = ("--print-build-identifiers", "--platform", platform, ROOT)
        found += run(python.parent / "cibuildwheel", *words, folder=tmp_path).split()
    machines = ("manylinux_x86_64", "musllinux_x86_64", "manylinux_aarch64", "musllinux_aarch64")
    wanted = {f"cp310-{name}" for name in (*machines, "macosx_x86_64", "macosx_arm64")}
    assert set(found) == wanted
