"""Servers of attestkit without the packages of the extra `serve`."""

import json
import subprocess
import sys
from typing import Final

import pytest

from tests.cli.program import PATIENCE
from tests.serve.server import environment

# Starts each server, and prints its error. Imports of the package fail.
PROGRAM: Final = """
import json, sys
sys.modules[sys.argv[1]] = None
from attestkit.errors import UsageError
from attestkit.serve import ListenAddresses, serve
from attestkit.testing import AttestedServer, SimulatedTee
from attestkit.verifier import Verifier

def start_kms():
    from attestkit.kms import SimulatedKms
    SimulatedKms(Verifier())

found = {}
tee = SimulatedTee()
for start in (AttestedServer, start_kms, lambda: tee.url, lambda: tee.pccs_url,
              lambda: serve(tee.attester, ListenAddresses(http=("127.0.0.1", 0)))):
    try:
        start()
    except UsageError as error:
        found[len(found)] = (error.reason, str(error))
print(json.dumps(list(found.values())))
"""


@pytest.mark.parametrize("package", ["uvicorn", "httptools", "uvloop"])
def test_server_without_its_packages_names_the_extra(package: str) -> None:
    """The error of every server has the stable reason, and names what to install."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, package],
        env=environment(),
        capture_output=True,
        timeout=PATIENCE,
        check=True,
    )
    found = json.loads(done.stdout)
    assert len(found) == 5 - (package == "httptools")  # `AttestedServer` does without it
    for reason, text in found:
        assert reason == "missing_dependency"
        assert package in text
        assert "pip install 'attestkit[serve]'" in text


def test_program_without_its_packages_names_the_extra() -> None:
    """The program reports the same in one line, and ends with the code of wrong usage."""
    text = "import sys; sys.modules['uvloop'] = None; from attestkit.serve.__main__ import main; "
    done = subprocess.run(
        [sys.executable, "-c", text + "sys.exit(main(['--backend', 'simulator']))"],
        env=environment(),
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert b"pip install 'attestkit[serve]'" in done.stderr
