"""Run the tests in the source package of an official Python client against a simulator.

Usage: python -m tests.clients.own_tests SDIST.tar.gz [OPTIONS OF THE SERVER]. The client itself is
the installed one. The tests run over the sockets, over HTTP, and over HTTP with v0 below its path.
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from tests.serve.server import environment, running_server

# The client's timeout is 0.5 s before 0.5.2, which is too short on a busy machine.
_CONFTEST: Final = """
import httpx

for client in (httpx.Client, httpx.AsyncClient):
    def patched(self, *args, original=client.__init__, **options):
        original(self, *args, **{**options, "timeout": 60})

    client.__init__ = patched
"""


def main(package: str, *options: str) -> int:
    """Return pytest's exit code: that of the first endpoint with a failure, else 0."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _extract_tests(package, folder)
        with running_server("--dev-http", "127.0.0.1:0", *options) as server:
            for dstack, tappd in (
                (server.dstack, server.tappd),
                (server.dev_url, server.dev_url),
                (f"{server.dev_url}/v0", server.dev_url),
            ):
                endpoints = {"DSTACK_SIMULATOR_ENDPOINT": dstack, "TAPPD_SIMULATOR_ENDPOINT": tappd}
                words = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
                done = subprocess.run(words, cwd=folder, env=environment(**endpoints), check=False)
                if done.returncode:
                    return done.returncode
            server.check_log()
    return 0


def _extract_tests(package: str, folder: Path) -> None:
    with tarfile.open(package) as archive:
        for member in archive.getmembers():
            _, *inner = Path(member.name).parts
            if member.isfile() and inner[:1] == ["tests"] and inner[-1].endswith(".py"):
                found = archive.extractfile(member)
                assert found is not None
                path = folder.joinpath("tests", inner[-1])
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(found.read())
    (folder / "conftest.py").write_text(_CONFTEST)
    # Its own configuration of pytest, and not that of a folder above.
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = asyncio\n")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
