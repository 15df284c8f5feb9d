"""Servers of attestkit without the packages of the extra `serve`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.cli.program import PATIENCE
from tests.serve.server import environment

POOL: Final = ("--backend", "none", "--verifier", "127.0.0.1:0", "--workers", "1")
# Starts each server, and prints its error. Imports of the package fail.
PROGRAM: Final = """
import json, signal, sys
sys.modules[sys.argv[1]] = None
from attestkit.errors import UsageError
from attestkit.serve import ListenAddresses, serve
from attestkit.serve.app_factory import ServerOptions
from attestkit.testing import AttestedServer, SimulatedTee
from attestkit.verifier import Verifier

def start_kms():
    from attestkit.kms import SimulatedKms
    SimulatedKms(Verifier())

def start_metrics():
    addresses = {"verifier": FREE, "verifier_metrics": FREE}
    serve(None, ListenAddresses(**addresses), ServerOptions(verifier=Verifier()), on_ready=stop)

def stop(_):
    signal.raise_signal(signal.SIGTERM)

FREE = ("127.0.0.1", 0)
found = {}
tee = SimulatedTee()
for name, start in {
    "attested": AttestedServer,
    "kms": start_kms,
    "agent": lambda: tee.url,
    "pccs": lambda: tee.pccs_url,
    "serve": lambda: serve(tee.attester, ListenAddresses(http=FREE), on_ready=stop),
    "metrics": start_metrics,
}.items():
    try:
        start()
    except UsageError as error:
        found[name] = (error.reason, str(error))
print(json.dumps(found))
"""
AGENT: Final = {"agent", "serve"}
EVERY: Final = {"attested", "kms", "pccs", "metrics", *AGENT}
SERVERS: Final = {
    "uvicorn": EVERY,
    "httptools": EVERY - {"attested"},  # which has another parser
    "uvloop": EVERY,
    "aiodocker": AGENT,
    "google.protobuf": {"kms", *AGENT},
    "jinja2": AGENT,
    "prometheus_client": {"metrics", *AGENT},
    "psutil": AGENT,
    "wcwidth": AGENT,
}
"""Servers that need a package, by the package."""


@pytest.mark.slow
@pytest.mark.parametrize("package", SERVERS)
def test_server_without_its_packages_names_the_extra(package: str) -> None:
    """The error at the start of a server has the stable reason, and names what to install."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, package],
        env=environment(),
        capture_output=True,
        timeout=PATIENCE,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found.keys() == SERVERS[package]
    for reason, text in found.values():
        assert reason == "missing_dependency"
        assert package in text
        assert "pip install 'attestkit[serve]'" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "options"),
    [
        ("uvloop", ["--backend", "simulator"]),
        ("psutil", ["--backend", "simulator", "--http", "127.0.0.1:0"]),
        ("uvicorn", [*POOL]),
        ("prometheus_client", [*POOL, "--verifier-metrics", "127.0.0.1:0"]),
    ],
)
def test_program_without_its_packages_names_the_extra(
    package: str, options: list[str], tmp_path: Path
) -> None:
    """The program reports the same in one line, and ends with the code of wrong usage."""
    text = f"import sys; sys.modules[{package!r}] = None; "
    text += "from attestkit.serve.__main__ import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", text, *options],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert b"pip install 'attestkit[serve]'" in done.stderr
    assert package.encode() in done.stderr


def test_attested_client_of_httpx_without_it_names_the_extra() -> None:
    """The transports of RA-TLS name the extra with httpx."""
    text = (
        "import sys; sys.modules['httpx'] = None; from attestkit import ra_tls\n"
        "try:\n    ra_tls.HTTPTransport\n"
        "except Exception as error:\n    print(type(error).__name__, error.reason, error)"
    )
    done = subprocess.run([sys.executable, "-c", text], stdout=subprocess.PIPE, check=True)
    assert done.stdout.startswith(b"UsageError missing_dependency ")
    assert b"pip install 'attestkit[client]'" in done.stdout
