"""Verifiers behind a proxy, and a worker pool, when one process is killed under load.

No response is wrong, only the requests in flight on the killed process fail, and its replacement
receives requests.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.serve.server import PATIENCE, ROOT, Server, running_server
from tests.serve.verifier_service.test_verifier_service import running_verifier
from tests.serve.verifier_service.verifying_load import (
    Load,
    create_cases,
    kill_with_requests_in_flight,
    list_child_processes,
)

pytestmark = pytest.mark.slow

CLIENTS = 8
_PROXY_LINE = re.compile(r" verifiers/(\S+) \S+ (\d+) \d+ \S+ \S+ (\S\S)")


@pytest.fixture
def agent() -> Iterator[Server]:
    """Return a simulator that serves its collateral to this test only."""
    with running_server("--pccs-http", "127.0.0.1:0") as server:
        yield server


def verifier_options(agent: Server, cache: Path) -> tuple[str, ...]:
    """Return the options of a verifier that trusts an agent and fetches from its PCCS."""
    anchor = str(agent.folder / "trust-anchor.pem")
    fetching = ("--verifier-pccs", agent.ready["pccs"], "--verifier-cache", str(cache))
    return ("--trust-anchor", anchor, *fetching)


def read_port(server: Server) -> int:
    """Return the port of a verifier."""
    return int(server.ready["verifier"].rpartition(":")[2])


def count_pccs_requests(agent: Server) -> int:
    """Return how many requests an agent's PCCS has answered."""
    text = httpx.get(f"{agent.url}/metrics", timeout=PATIENCE).text
    lines = re.findall(r'^attestkit_requests_total\{listener="pccs".*\} (\S+)$', text, re.MULTILINE)
    return int(sum(map(float, lines)))


def wait_until(condition: Callable[[], bool], message: str) -> None:
    """Poll until a condition holds; fail with a message after the deadline."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, message
        time.sleep(0.01)


class Proxy:
    """haproxy with the configuration of deploy/, in front of three verifiers."""

    def __init__(self, log: Path, url: str) -> None:
        self._log, self.url = log, url

    def read_responses(self) -> list[tuple[str, int, str]]:
        """Return server, status and termination state of each logged request."""
        found = _PROXY_LINE.findall(self._log.read_text())
        return [(name, int(status), ended) for name, status, ended in found]


@contextlib.contextmanager
def run_proxy(ports: list[int], folder: Path) -> Iterator[Proxy]:
    """Run the proxy of deploy/ on a new socket."""
    haproxy = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if haproxy is None:
        pytest.skip("no haproxy (Debian: apt install haproxy)")
    log = folder / "proxy.log"
    with socket.create_server(("127.0.0.1", 0)) as front, log.open("w") as output:
        places = {f"VERIFIER_{at + 1}": f"127.0.0.1:{port}" for at, port in enumerate(ports)}
        process = subprocess.Popen(
            [haproxy, "-db", "-f", str(ROOT / "deploy" / "haproxy-verifier.cfg")],
            env={**places, "VERIFIER_FRONT": f"fd@{front.fileno()}"},
            pass_fds=[front.fileno()],
            stdout=output,
            stderr=output,
        )
        try:
            yield Proxy(log, f"http://127.0.0.1:{front.getsockname()[1]}")
        finally:
            process.terminate()
            process.wait(PATIENCE)


def test_killed_instance_fails_only_its_requests(agent: Server, tmp_path: Path) -> None:
    """According to the proxy's log, only requests on the killed verifier failed."""
    with contextlib.ExitStack() as stack:
        given = verifier_options(agent, tmp_path / "cache")
        three = [stack.enter_context(running_verifier(*given)) for _ in range(3)]
        ports = [read_port(server) for server in three]
        front = stack.enter_context(run_proxy(ports, tmp_path))
        with Load(front.url, create_cases(agent), CLIENTS) as load:
            load.wait_for_requests(150)
            assert {name for name, *_ in front.read_responses()} == {
                "verifier1",
                "verifier2",
                "verifier3",
            }
            kill_with_requests_in_flight(three[0].process.pid, ports[0])
            three[0].process.wait(PATIENCE)
            load.wait_for_requests(150)
            before = len(front.read_responses())
            stack.enter_context(running_verifier(*given, port=ports[0]))

            def is_used_again() -> bool:
                later = front.read_responses()[before:]
                return any((name, status) == ("verifier1", 200) for name, status, _ in later)

            wait_until(is_used_again, "the proxy does not come back to the verifier")
            load.wait_for_requests(100)
        wait_until(
            lambda: len(front.read_responses()) >= load.counts.total(),
            "lines of the log are missing",
        )
        failed = [(name, ended) for name, status, ended in front.read_responses() if status != 200]
    assert load.wrong == []
    assert min(load.counts["valid"], load.counts["altered"]) > 100
    # Queued connections count as well; each client has one request at a time.
    assert (len(failed), load.counts["refused"]) == (load.counts["failed"], 0)
    assert len(failed) <= CLIENTS
    assert set(failed) <= {("verifier1", "SH")}
    assert (
        count_pccs_requests(agent) == 4
    )  # TCB info, QE identity and two CRLs, once for all verifiers


def test_killed_worker_fails_only_its_requests(agent: Server, tmp_path: Path) -> None:
    """The other workers serve the shared queue, and the replacement answers correctly."""
    with contextlib.ExitStack() as stack:
        given = (*verifier_options(agent, tmp_path / "cache"), "--workers", "3")
        supervisor = stack.enter_context(running_verifier(*given))
        port, workers = read_port(supervisor), list_child_processes(supervisor.process.pid)
        assert len(workers) == 3
        cases = create_cases(agent)
        with Load(supervisor.ready["verifier"], cases, CLIENTS) as load:
            load.wait_for_requests(150)
            most = kill_with_requests_in_flight(workers[0], port)
            load.wait_for_requests(150)
            wait_until(
                lambda: len(set(list_child_processes(supervisor.process.pid)) - set(workers)) == 1,
                "no other worker is started",
            )
            load.wait_for_requests(100)
        assert load.wrong == []
        assert load.counts["failed"] <= most <= CLIENTS
        assert load.counts["refused"] == 0
        assert min(load.counts["valid"], load.counts["altered"]) > 100
        for worker in workers[1:]:  # so that only the new worker answers
            os.kill(worker, signal.SIGSTOP)
        with Load(supervisor.ready["verifier"], cases, 2) as alone:
            alone.wait_for_requests(40)
        for worker in workers[1:]:
            os.kill(worker, signal.SIGCONT)
        assert set(alone.counts) == {"valid", "altered"}
        assert supervisor.stop() == 0
        assert f"worker 1 (process {workers[0]}) was killed by signal 9" in supervisor.log()
    assert count_pccs_requests(agent) == 4
