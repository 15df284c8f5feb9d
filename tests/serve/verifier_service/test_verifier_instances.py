"""Verifiers behind a proxy, and one of several processes, when one of them is killed under load.

No verdict is wrong, no request is lost but those that were in flight on the killed one, and what
takes its place is used.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.serve import server as servers
from tests.serve.server import PATIENCE, ROOT, Server, environment, ready_server, running_server
from tests.serve.verifier_service.verifying_load import Load, children, kill_at_work, questions

pytestmark = pytest.mark.slow

CLIENTS = 8
_PROXY_LINE = re.compile(r" verifiers/(\S+) \S+ (\d+) \d+ \S+ \S+ (\S\S)")


@pytest.fixture
def agent() -> Iterator[Server]:
    """A simulator that serves its collateral, and is not asked by anybody else."""
    with running_server("--pccs", "127.0.0.1:0") as server:
        yield server


def options(agent: Server, cache: Path) -> tuple[str, ...]:
    """Return the options of a verifier that believes an agent, and fetches from it."""
    anchor = str(agent.folder / "trust-anchor.pem")
    fetching = ("--verifier-pccs", agent.ready["pccs"], "--verifier-cache", str(cache))
    return ("--backend", "none", "--trust-anchor", anchor, *fetching)


@contextlib.contextmanager
def verifier(port: int, *options: str) -> Iterator[Server]:
    """Run a verifier service at a port, 0 is any."""
    words = servers.command("--verifier", f"127.0.0.1:{port}", *options)
    with tempfile.TemporaryDirectory(prefix="ak") as folder:
        with ready_server(words, Path(folder), environment()) as server:
            try:
                yield server
            finally:
                server.process.send_signal(signal.SIGCONT)
                server.process.terminate()
                server.process.wait(PATIENCE)
        server.check_log()


def port_of(server: Server) -> int:
    """Return where a verifier listens."""
    return int(server.ready["verifier"].rpartition(":")[2])


def asked_of_pccs(agent: Server) -> int:
    """Return how many requests an agent's PCCS has answered."""
    text = httpx.get(f"{agent.url}/metrics", timeout=PATIENCE).text
    lines = re.findall(r'^attestkit_requests_total\{listener="pccs".*\} (\S+)$', text, re.MULTILINE)
    return int(sum(map(float, lines)))


def eventually(holds: Callable[[], bool], what: str) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


class Proxy:
    """haproxy with the configuration of deploy/, before three verifiers."""

    def __init__(self, log: Path, url: str) -> None:
        self._log, self.url = log, url

    def answers(self) -> list[tuple[str, int, str]]:
        """Return the server, the status and how it ended of each request so far."""
        found = _PROXY_LINE.findall(self._log.read_text())
        return [(name, int(status), ended) for name, status, ended in found]


@contextlib.contextmanager
def proxy(ports: list[int], folder: Path) -> Iterator[Proxy]:
    """Run the proxy of deploy/ on a socket of ours."""
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


def test_one_of_three_behind_a_proxy_is_killed(agent: Server, tmp_path: Path) -> None:
    """The proxy's log names who had each request: what failed was on the killed one alone."""
    with contextlib.ExitStack() as stack:
        given = options(agent, tmp_path / "cache")
        three = [stack.enter_context(verifier(0, *given)) for _ in range(3)]
        ports = [port_of(server) for server in three]
        front = stack.enter_context(proxy(ports, tmp_path))
        with Load(front.url, questions(agent), CLIENTS) as load:
            load.until(150)
            assert {name for name, *_ in front.answers()} == {"verifier1", "verifier2", "verifier3"}
            kill_at_work(three[0].process.pid, ports[0])
            three[0].process.wait(PATIENCE)
            load.until(150)
            before = len(front.answers())
            stack.enter_context(verifier(ports[0], *given))

            def is_used_again() -> bool:
                later = front.answers()[before:]
                return any((name, status) == ("verifier1", 200) for name, status, _ in later)

            eventually(is_used_again, "the proxy does not come back to the verifier")
            load.until(100)
        eventually(
            lambda: len(front.answers()) >= load.told.total(), "lines of the log are missing"
        )
        failed = [(name, ended) for name, status, ended in front.answers() if status != 200]
    assert load.wrong == []
    assert min(load.told["valid"], load.told["altered"]) > 100
    # What waited in its queue was connected to it as well; no client has two requests at a time.
    assert (len(failed), load.told["refused"]) == (load.told["failed"], 0)
    assert len(failed) <= CLIENTS
    assert set(failed) <= {("verifier1", "SH")}
    assert asked_of_pccs(agent) == 4  # TCB info, QE identity and two CRLs, once for all


def test_one_of_three_workers_is_killed(agent: Server, tmp_path: Path) -> None:
    """From one queue the others serve on, and no more fails than the dead one had taken."""
    with contextlib.ExitStack() as stack:
        given = (*options(agent, tmp_path / "cache"), "--workers", "3")
        foreman = stack.enter_context(verifier(0, *given))
        port, workers = port_of(foreman), children(foreman.process.pid)
        assert len(workers) == 3
        asked = questions(agent)
        with Load(foreman.ready["verifier"], asked, CLIENTS) as load:
            load.until(150)
            most = kill_at_work(workers[0], port)
            load.until(150)
            eventually(
                lambda: len(set(children(foreman.process.pid)) - set(workers)) == 1,
                "no other worker is started",
            )
            load.until(100)
        assert load.wrong == []
        assert load.told["failed"] <= most <= CLIENTS
        assert load.told["refused"] == 0
        assert min(load.told["valid"], load.told["altered"]) > 100
        for worker in workers[1:]:  # so that the new one alone answers
            os.kill(worker, signal.SIGSTOP)
        with Load(foreman.ready["verifier"], asked, 2) as alone:
            alone.until(40)
        for worker in workers[1:]:
            os.kill(worker, signal.SIGCONT)
        assert set(alone.told) == {"valid", "altered"}
        assert foreman.stop() == 0
        assert f"worker 1 (process {workers[0]}) was ended by signal 9" in foreman.log()
    assert asked_of_pccs(agent) == 4
