"""`--workers`: who is started, who is started again, and how all of it ends."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import httpx
import pytest

from attestkit.backends.simulator import Simulator
from attestkit.serve.endpoints import Ready
from attestkit.serve.systemd.notify_watchdog import ServiceManager
from attestkit.serve.systemd.service import Supervisor
from attestkit.serve.worker_pool.supervisor import Crew, serve_by
from tests.serve.server import (
    PATIENCE,
    ROOT,
    Server,
    command,
    environment,
    ready_server,
    run_to_end,
)
from tests.serve.server import running_server as running_agent
from tests.serve.systemd.notify import Manager
from tests.serve.verifier_service.test_verifier_instances import (
    eventually,
    options,
    port_of,
    verifier,
)
from tests.serve.verifier_service.verifying_load import Load, children, questions

VERIFIER = ("--backend", "none", "--verifier", "127.0.0.1:0")


def health(url: str) -> int:
    """Ask a verifier whether it is well."""
    return httpx.get(f"{url}/health", timeout=PATIENCE).status_code


def is_there(port: int) -> bool:
    """Tell whether somebody listens."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    """A service manager that expects signs of life."""
    found = Manager(tmp_path / "notify")
    yield found
    found.close()


def test_the_life_of_a_service(tmp_path: Path, manager: Manager) -> None:
    """Ready once, when all are; a worker that dies is replaced; then all end, and none is left."""
    environ = environment(NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="30000000")
    words = command(*VERIFIER, "--workers", "2", "--watchdog")
    with ready_server(words, tmp_path, environ) as server:
        workers = children(server.process.pid)
        assert len(workers) == 2
        assert manager.next_but_status() == "READY=1"
        assert health(server.ready["verifier"]) == 200
        assert manager.next_but_status() == "WATCHDOG=1"
        os.kill(workers[0], signal.SIGKILL)
        eventually(
            lambda: workers[1] in children(server.process.pid) not in ([workers[1]], workers),
            "no other worker is started",
        )
        assert health(server.ready["verifier"]) == 200
        assert server.stop() == 0
        assert manager.next_but_status() == "STOPPING=1"
    assert not is_there(port_of(server))
    assert not any(map(lives, workers))
    said = server.log().splitlines()
    assert said[0] == "attestkit serves a verifier, by 2 processes"
    ended = f"(process {workers[0]}) was ended by signal 9; another starts in 0.1 s"
    assert re.fullmatch(rf"WARNING attestkit\.serve: worker [12] {re.escape(ended)}", said[-1])


def is_said(server: Server, text: str) -> bool:
    """Tell whether a text is in a server's log."""
    return text in server.log()


def lives(pid: int) -> bool:
    """Tell whether a process runs; one that waits for its parent to see its end does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1]
    except FileNotFoundError:
        return False
    return state != b"Z"


@pytest.mark.slow
def test_what_is_wrong_is_said_once(tmp_path: Path) -> None:
    """The foreman looks first: one line, and no worker is started."""
    done = run_to_end(*VERIFIER, "--workers", "3", "--trust-anchor", "missing", folder=tmp_path)
    [line] = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert line.startswith("attestkit serve: --trust-anchor ")


@pytest.mark.slow
def test_a_worker_that_does_not_start_ends_the_service(tmp_path: Path) -> None:
    """It says why itself; the exit code is that of a wrong configuration, and nothing is left."""
    anchor = tmp_path / "root.der"
    with contextlib.closing(Simulator(seed=bytes(32))) as simulator:
        anchor.write_bytes(simulator.trust_anchor)
    words = command(*VERIFIER, "--workers", "2", "--trust-anchor", "/dev/stdin")
    with anchor.open("rb") as stdin:  # the foreman's; its workers have none
        done = subprocess.run(
            words,
            stdin=stdin,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert (done.returncode, done.stdout) == (1, "")
    first, *_, last = done.stderr.splitlines()
    assert first.startswith("attestkit serve: --trust-anchor /dev/stdin")
    assert re.fullmatch(
        r"attestkit serve: a worker \(process \d+\) ended with code 1 before all were ready: "
        r"its own line says why",
        last,
    )


@pytest.mark.slow
def test_who_dies_again_and_again_is_waited_for_longer(tmp_path: Path) -> None:
    """Twice as long each time, and the service stops at once also while it waits."""
    with ready_server(command(*VERIFIER, "--workers", "1"), tmp_path, environment()) as server:
        killed = 0
        for pause in ("0.1", "0.2", "0.4", "0.8"):
            eventually(lambda: len(children(server.process.pid)) == 1, "nobody is started")
            [worker] = children(server.process.pid)
            assert worker != killed
            os.kill(worker, signal.SIGKILL)
            killed = worker
            line = f"(process {worker}) was ended by signal 9; another starts in {pause} s"
            eventually(partial(is_said, server, line), line)
        assert server.stop() == 0


@pytest.mark.slow
def test_a_foreman_that_is_killed_leaves_nobody(tmp_path: Path) -> None:
    """Its workers see that it is gone, and stop; the port is free."""
    with ready_server(command(*VERIFIER, "--workers", "2"), tmp_path, environment()) as server:
        workers = children(server.process.pid)
        server.process.kill()
        server.process.wait(PATIENCE)
        eventually(lambda: not any(map(lives, workers)), "a worker goes on")
    assert not is_there(port_of(server))


@pytest.mark.slow
def test_stopped_under_load_it_answers_everybody(tmp_path: Path) -> None:
    """Who had connected has an answer; who comes later finds nobody."""
    with running_agent("--pccs", "127.0.0.1:0") as agent:
        given = (*options(agent, tmp_path / "cache"), "--workers", "2")
        with (
            verifier(0, *given) as foreman,
            Load(foreman.ready["verifier"], questions(agent), 8) as load,
        ):
            load.until(60)
            assert foreman.stop() == 0
            load.until(8)
    assert load.wrong == []
    assert load.told["failed"] == 0
    assert load.told["refused"] > 0


@pytest.mark.slow
def test_a_worker_that_hangs_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    """Without a sign of life it counts as dead, and another takes its place."""
    listening = socket.create_server(("127.0.0.1", 0))
    crew = Crew(1, [*VERIFIER, "--workers", "1"], 10.0, silent_seconds=1.0)
    us = os.getpid()
    before = set(children(us))
    replaced: list[int] = []

    def hang() -> None:
        try:
            started = set(children(us)) - before
            [worker] = [pid for pid in started if b"attestkit.serve" in command_of(pid)]
            os.kill(worker, signal.SIGSTOP)
            eventually(lambda: worker not in children(us), "the worker goes on hanging")
            replaced.append(worker)
        finally:  # else we would serve for ever
            os.kill(us, signal.SIGTERM)

    thread = threading.Thread(target=hang)

    def on_ready(_: Ready) -> None:
        thread.start()

    serve_by(crew, listening, Supervisor(ServiceManager(None), {}, watchdog=False), on_ready)
    thread.join()
    assert len(replaced) == 1
    assert "worker 1 hangs: it is killed" in caplog.text


PAUSED: Final = """
import socket, sys
from attestkit.serve.worker_pool.supervisor import Crew, serve_by
from attestkit.serve.systemd.notify_watchdog import ServiceManager
from attestkit.serve.systemd.service import Supervisor
crew = Crew(2, sys.argv[1:], 10.0, silent_seconds=5.5)
supervisor = Supervisor(ServiceManager(None), {}, watchdog=False)
serve_by(crew, socket.create_server(("127.0.0.1", 0)), supervisor, lambda r: print(r, flush=True))
"""


@pytest.mark.slow
def test_a_pause_of_everything_kills_nobody(tmp_path: Path) -> None:
    """As long as the silence that counts as a hang: all wake at once, and the workers are well."""
    words = [sys.executable, "-c", PAUSED, *VERIFIER, "--workers", "2"]
    with ready_server(words, tmp_path, environment()) as server:
        workers = children(server.process.pid)
        everybody = (server.process.pid, *workers)
        for pid in everybody:
            os.kill(pid, signal.SIGSTOP)
        threading.Event().wait(6.0)  # what is tested is this time
        for pid in everybody:  # the foreman first, which is the hardest
            os.kill(pid, signal.SIGCONT)
        eventually(lambda: health(server.ready["verifier"]) == 200, "nobody answers")
        threading.Event().wait(1.0)  # for what must not happen
        later = children(server.process.pid)
        assert server.stop() == 0
        assert later == workers
        assert "hangs" not in server.log()


ISOLATED: Final = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from attestkit.serve.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_workers_have_the_flags_of_the_interpreter(tmp_path: Path) -> None:
    """Isolated as the foreman is: nothing that the environment names runs before our program."""
    stranger = "import sys; print('a stranger', file=sys.stderr)"
    (tmp_path / "sitecustomize.py").write_text(stranger)
    flags = [
        "-I",
        "-bb",
        "-W",
        "error::ImportWarning",
        "-X",
        "utf8",
        "-X",
        "int_max_str_digits=5000",
    ]
    words = [sys.executable, *flags, "-c", ISOLATED, str(ROOT), *VERIFIER, "--workers", "1"]
    with ready_server(words, tmp_path, environment(PYTHONPATH=str(tmp_path))) as server:
        [worker] = children(server.process.pid)
        found = command_of(worker).split(b"\0")
        assert server.stop() == 0
    given = [word.decode() for word in found[1 : found.index(b"-c")]]
    assert {"-I", "-bb"} <= set(given)
    for option in ("-Werror::ImportWarning", "-Xutf8", "-Xint_max_str_digits=5000"):
        assert option in given
    assert "a stranger" not in server.log()


@pytest.mark.slow
def test_a_second_signal_ends_all_of_them(tmp_path: Path) -> None:
    """At once, though somebody is half way through a request and has an hour to finish."""
    words = command(*VERIFIER, "--workers", "1", "--limit", "drain_seconds=3600")
    with ready_server(words, tmp_path, environment()) as server:
        [worker] = children(server.process.pid)
        with socket.create_connection(("127.0.0.1", port_of(server)), PATIENCE) as client:
            client.sendall(b"GET /health HTTP/1.1\r\n")

            def is_over() -> bool:
                server.process.terminate()
                return server.process.poll() is not None

            try:
                eventually(is_over, "the foreman goes on")
                client.settimeout(5)
                with contextlib.suppress(ConnectionResetError):
                    assert client.recv(1) == b""
                eventually(lambda: not lives(worker), "the worker goes on")
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
    assert server.process.returncode == -signal.SIGTERM


def command_of(pid: int) -> bytes:
    """Return the command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes()


HANDING: Final = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


@contextlib.contextmanager
def handed_over(name: str, words: list[str], folder: Path) -> Iterator[tuple[Server, int]]:
    """Run a server on a socket of the service manager's; yield it and the port.

    The block stops it. Whoever comes then waits in the socket's queue, for the next server.
    """
    with socket.create_server(("127.0.0.1", 0)) as listening:
        given = os.dup(listening.fileno())
        environ = environment(LISTEN_FDS="1", LISTEN_FDNAMES=name)
        handing = [sys.executable, "-c", HANDING, str(given), *words]
        try:
            os.set_inheritable(given, True)
            with ready_server(handing, folder, environ, pass_fds=[given]) as server:
                yield server, listening.getsockname()[1]
        finally:
            os.close(given)
        with socket.create_connection(listening.getsockname()) as later:
            accepted, where = listening.accept()
            assert where == later.getsockname()
            accepted.close()


@pytest.mark.slow
def test_a_socket_that_was_handed_over(tmp_path: Path) -> None:
    """The workers share the service manager's; when they stop who comes waits in its queue."""
    serving = command(*VERIFIER, "--workers", "2")
    with handed_over("verifier", serving, tmp_path) as (server, port):
        assert port_of(server) == port
        assert health(server.ready["verifier"]) == 200
        assert server.stop() == 0
