"""Run the tests in the source package of an official Python client against a simulator.

Usage: python -m tests.clients.own_tests SDIST.tar.gz [OPTIONS OF PYTEST]. The client itself is the
installed one.
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.serve.server import environment, running_server


def main(package: str, *options: str) -> int:
    """Extract the tests, start a server that their clients find, and return pytest's exit code."""
    with tempfile.TemporaryDirectory() as name, tarfile.open(package) as archive:
        folder = Path(name)
        for member in archive.getmembers():
            _, *inner = Path(member.name).parts
            if member.isfile() and inner[:1] == ["tests"] and inner[-1].endswith(".py"):
                found = archive.extractfile(member)
                assert found is not None
                path = folder.joinpath("tests", inner[-1])
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(found.read())
        # Its own configuration of pytest, and not that of a folder above.
        (folder / "pytest.ini").write_text("[pytest]\nmarkers = asyncio\n")
        with running_server() as server:
            variables = environment(
                DSTACK_SIMULATOR_ENDPOINT=server.dstack, TAPPD_SIMULATOR_ENDPOINT=server.tappd
            )
            words = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options)
            done = subprocess.run([*words, "tests"], cwd=folder, env=variables, check=False)
            server.check_log()
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
