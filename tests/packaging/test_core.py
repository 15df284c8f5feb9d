"""The core in this tree requires no newer C library than the wheel's tag states."""

import re
import shutil
import subprocess

import pytest

from tests.docs.blocks import ROOT

CORE = ROOT / "attestkit/_native/_lib.abi3.so"


def test_core_needs_glibc_2_17_at_most() -> None:
    """Each versioned symbol is of glibc 2.17 or older, and only the C library is linked."""
    if shutil.which("readelf") is None or not CORE.exists():
        pytest.skip("readelf or the compiled core is not here")
    words = ["readelf", "--wide", "--version-info", "--dynamic", str(CORE)]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    libraries = set(re.findall(r"\(NEEDED\).*\[(.+)\]", said))
    if any("asan" in name for name in libraries):
        pytest.skip("this core has the sanitizers")
    assert libraries == {"libc.so.6"}
    versions = [tuple(map(int, found)) for found in re.findall(r"GLIBC_(\d+)\.(\d+)", said)]
    assert versions
    assert max(versions) <= (2, 17)
