"""Schemathesis checks every operation against the OpenAPI document.

It sends examples, boundary values and random values, valid and invalid, in JSON, query and
protobuf. schemathesis.toml lists the disabled checks with reasons. There are 30 random requests for
each operation, in continuous integration ten, and 200 by `make schemathesis`.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.rigs.docker.engine import missing_for_docker, running_engine
from tests.serve.bridge import bridge
from tests.serve.server import ROOT, Server, environment, run_program, running_server
from tests.thorough import unless_limited

PROGRAM: Final = shutil.which("st", path=str(Path(sys.executable).parent))
CONFIG: Final = Path(__file__).with_name("schemathesis.toml")
EXAMPLES: Final = int(os.environ.get("ATTESTKIT_EXAMPLES", unless_limited(30, 10)))
# Hypothesis computes tables of Unicode for seconds, unless they are in its folder.
STORAGE: Final = {"HYPOTHESIS_STORAGE_DIRECTORY": str(ROOT / ".hypothesis")}
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="schemathesis is not installed")


CONTAINER: Final = "dstack-gateway-1"  # the example in the document


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Return a simulator with every listener, and with a container if an engine can run."""
    with ExitStack() as stack:
        environ = {}
        if not missing_for_docker():
            docker = stack.enter_context(running_engine())
            docker.finish(CONTAINER, "seq 100; seq 10 >&2")  # a finished container, whose log ends
            environ["DOCKER_HOST"] = docker.address
        yield stack.enter_context(running_server(environ=environment(**environ)))


@contextmanager
def _url_of(server: Server, listener: str) -> Iterator[str]:
    place = server.ready[listener]
    if place.startswith("http"):
        yield place
    else:
        with bridge(place) as url:
            yield url


def _run(url: str, examples: int, folder: Path, *options: str) -> str:
    """Run schemathesis, which must find nothing; return its summary."""
    assert PROGRAM is not None
    command = [PROGRAM, "--no-color", "--config-file", str(CONFIG), "run", f"{url}/openapi.json"]
    words = [*command, "--max-examples", str(examples), "--generation-deterministic", *options]
    done = run_program(words, cwd=folder, env=environment(**STORAGE), timeout=1800)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    return done.stdout


def _counts(output: str) -> tuple[int, int]:
    """Return the number of tested operations and of requests."""
    tested = re.search(r"Tested: (\d+)", output)
    passed = re.search(r"(\d+) generated, (\d+) passed", output)
    assert tested is not None
    assert passed is not None
    assert passed[1] == passed[2]
    return int(tested[1]), int(passed[2])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("listener", "options", "operations"),
    [
        (
            "http",
            ("--exclude-path-regex", "/logs/") if missing_for_docker() else (),
            17 + (not missing_for_docker()),
        ),
        ("dstack", (), 33),
        ("tappd", ("--include-path-regex", "(Derive|Quote)"), 12),
    ],
)
def test_random_values(
    server: Server, tmp_path: Path, listener: str, options: tuple[str, ...], operations: int
) -> None:
    """Random requests for each operation, besides examples and borders.

    Of tappd.sock the methods that dstack.sock lacks, and two that it has under other paths; of HTTP
    everything, but for the logs where no container engine can run.
    """
    with _url_of(server, listener) as url:
        tested, requests = _counts(_run(url, EXAMPLES, tmp_path, *options))
    assert tested >= operations
    assert requests > 0.45 * EXAMPLES * operations  # operations without input need few requests
