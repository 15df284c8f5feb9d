"""openai's own tests of errors, retries and answers pass over connections that are proven.

They come from the source distribution on PyPI, and use a server of attestkit in place of mocks.
"""

import hashlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from pathlib import Path
from typing import Final

import pytest

from tests.rigs.apt import cache_folder

pytestmark = pytest.mark.slow

VERSION: Final = "3.57.0"
URL: Final = (
    "https://files.pythonhosted.org/packages/90/b2/97780581dab39384d1de4bc15f1f6cbaff26ce965a46c23a1"
    f"0bd948b71a8/openai-{VERSION}.tar.gz"
)
SHA256: Final = "5a0a89d6a542efc85e2a8cec701ca9265b795d578c777828e10fafdf80e333b6"
LEAST: Final = 80
"""Tests that send requests with a client that is given to them."""


def source() -> Path:
    """Return the unpacked source distribution, in the folder of downloads."""
    folder = cache_folder() / f"openai-{VERSION}"
    if not folder.is_dir():
        with urllib.request.urlopen(URL, timeout=60) as answer:
            archive = answer.read()
        assert hashlib.sha256(archive).hexdigest() == SHA256
        packed = folder.with_suffix(".tar.gz")
        packed.write_bytes(archive)
        with tarfile.open(packed) as file:
            file.extractall(cache_folder(), filter="data")
    return folder


@pytest.mark.slow
def test_own_tests_of_openai_pass(tmp_path: Path) -> None:
    """All of its tests that send requests by a given client pass with one of an endpoint."""
    if importlib.metadata.version("openai") != VERSION:
        pytest.skip(f"the tests are those of openai {VERSION}")
    folder = tmp_path / "openai"
    shutil.copytree(source(), folder, ignore=shutil.ignore_patterns("src", "examples"))
    own = folder / "tests" / "attested"
    own.mkdir()
    (own / "__init__.py").touch()
    (own / "utils.py").write_text("from tests.utils import *\n")
    shutil.copy(Path(__file__).with_name("attested_conftest.py"), own / "conftest.py")
    shutil.copy(folder / "tests" / "test_client.py", own)
    words = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*words, "-p", "no:benchmark", "tests/attested/test_client.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    found = re.search(r"(\d+) passed", done.stdout)
    assert found is not None, done.stdout[-500:]
    assert int(found[1]) >= LEAST
