"""`--workers`: the supervisor starts, restarts and stops worker processes."""

import contextlib
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import httpx
import pytest

from attestkit.backends.simulator import Simulator
from attestkit.serve.endpoints import BoundAddresses
from attestkit.serve.systemd.notify_watchdog import ServiceEnvironment, ServiceManager
from attestkit.serve.verifier_service.metrics import MetricsAggregator
from attestkit.serve.worker_pool.supervisor import WorkerPool
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
from tests.serve.systemd.activation import activated_command
from tests.serve.systemd.notify import FakeServiceManager
from tests.serve.verifier_service.test_verifier_instances import (
    read_port,
    verifier_options,
    wait_until,
)
from tests.serve.verifier_service.test_verifier_service import running_verifier
from tests.serve.verifier_service.verifying_load import Load, create_cases, list_child_processes

VERIFIER = ("--backend", "none", "--verifier", "127.0.0.1:0")


def get_health(url: str) -> int:
    """Return the status of a verifier's /health."""
    return httpx.get(f"{url}/health", timeout=PATIENCE).status_code


def is_listening(port: int) -> bool:
    """Return whether a port accepts connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_supervisor_lifecycle(tmp_path: Path, manager: FakeServiceManager) -> None:
    """READY=1 is sent once all workers are ready; a killed worker is replaced; all stop."""
    environ = environment(NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="30000000")
    words = command(*VERIFIER, "--workers", "2", "--watchdog")
    with ready_server(words, tmp_path, environ) as server:
        workers = list_child_processes(server.process.pid)
        assert len(workers) == 2
        assert manager.next_but_status() == "READY=1"
        assert get_health(server.ready["verifier"]) == 200
        assert manager.next_but_status() == "WATCHDOG=1"
        os.kill(workers[0], signal.SIGKILL)
        wait_until(
            lambda: len(set(list_child_processes(server.process.pid)) - set(workers)) == 1,
            "no replacement is started",
        )
        assert get_health(server.ready["verifier"]) == 200
        assert server.stop() == 0
        assert manager.next_but_status() == "STOPPING=1"
    assert not is_listening(read_port(server))
    assert not any(map(is_running, workers))
    log_lines = server.log().splitlines()
    assert log_lines[0] == "attestkit serves a verifier, by 2 processes"
    ended = f"(process {workers[0]}) was killed by signal 9; another starts in 0.1 s"
    assert re.fullmatch(rf"WARNING attestkit\.serve: worker [12] {re.escape(ended)}", log_lines[-1])


def log_contains(server: Server, text: str) -> bool:
    """Return whether a server's log contains a text."""
    return text in server.log()


def is_running(pid: int) -> bool:
    """Return whether a process is running, which a zombie is not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1]
    except FileNotFoundError:
        return False
    return state != b"Z"


@pytest.mark.slow
def test_supervisor_invalid_option_is_reported_once(tmp_path: Path) -> None:
    """The supervisor checks the options first: one error line, and no worker is started."""
    done = run_to_end(*VERIFIER, "--workers", "3", "--trust-anchor", "missing", folder=tmp_path)
    [line] = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert line.startswith("attestkit serve: --trust-anchor ")


@pytest.mark.slow
def test_supervisor_worker_failing_at_startup_stops_service(tmp_path: Path) -> None:
    """The worker logs the reason; the exit code is 1 and no process remains."""
    anchor = tmp_path / "root.der"
    with contextlib.closing(Simulator(seed=bytes(32))) as simulator:
        anchor.write_bytes(simulator.trust_anchor)
    options = (*VERIFIER, "--workers", "2", "--trust-anchor", "/dev/stdin")
    with anchor.open("rb") as stdin:  # consumed by the supervisor, so empty for the workers
        done = run_to_end(*options, folder=tmp_path, stdin=stdin)
    assert (done.returncode, done.stdout) == (1, "")
    first, *_, last = done.stderr.splitlines()
    assert first.startswith("attestkit serve: --trust-anchor /dev/stdin")
    assert re.fullmatch(
        r"attestkit serve: worker \(process \d+\) exited with code 1 during startup; see its log",
        last,
    )


@pytest.mark.slow
def test_supervisor_repeated_crash_backs_off(tmp_path: Path) -> None:
    """The restart delay doubles with each crash; SIGTERM stops the service during a delay."""
    with ready_server(command(*VERIFIER, "--workers", "1"), tmp_path, environment()) as server:
        killed = 0
        for pause in ("0.1", "0.2", "0.4", "0.8"):
            wait_until(
                lambda: len(list_child_processes(server.process.pid)) == 1, "no worker is started"
            )
            [worker] = list_child_processes(server.process.pid)
            assert worker != killed
            os.kill(worker, signal.SIGKILL)
            killed = worker
            line = f"(process {worker}) was killed by signal 9; another starts in {pause} s"
            wait_until(partial(log_contains, server, line), line)
        assert server.stop() == 0


@pytest.mark.slow
def test_supervisor_killed_workers_exit(tmp_path: Path) -> None:
    """Workers exit when the supervisor is killed; the port is free."""
    with ready_server(command(*VERIFIER, "--workers", "2"), tmp_path, environment()) as server:
        workers = list_child_processes(server.process.pid)
        server.process.kill()
        server.process.wait(PATIENCE)
        wait_until(lambda: not any(map(is_running, workers)), "a worker is still running")
    assert not is_listening(read_port(server))


@pytest.mark.slow
def test_supervisor_shutdown_under_load_answers_accepted_requests(tmp_path: Path) -> None:
    """Accepted connections are answered; later ones are refused."""
    with running_agent("--pccs-http", "127.0.0.1:0") as agent:
        given = (*verifier_options(agent, tmp_path / "cache"), "--workers", "2")
        with (
            running_verifier(*given) as supervisor,
            Load(supervisor.ready["verifier"], create_cases(agent), 8) as load,
        ):
            load.wait_for_requests(60)
            assert supervisor.stop() == 0
            load.wait_for_requests(8)
    assert load.wrong == []
    assert load.counts["failed"] == 0
    assert load.counts["refused"] > 0


@pytest.mark.slow
def test_supervisor_hung_worker_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    """A worker without heartbeat is killed and replaced."""
    listening = socket.create_server(("127.0.0.1", 0))
    arguments = [*VERIFIER, "--workers", "1"]
    pool = WorkerPool(1, arguments, 10.0, MetricsAggregator(), timeout_seconds=1.0)
    own_pid = os.getpid()
    before = set(list_child_processes(own_pid))
    replaced: list[int] = []

    def hang() -> None:
        try:
            started = set(list_child_processes(own_pid)) - before
            [worker] = [pid for pid in started if b"attestkit.serve" in read_command_line(pid)]
            os.kill(worker, signal.SIGSTOP)
            wait_until(
                lambda: worker not in list_child_processes(own_pid), "the hung worker is not killed"
            )
            replaced.append(worker)
        finally:  # otherwise run_pool() never returns
            os.kill(own_pid, signal.SIGTERM)

    thread = threading.Thread(target=hang)

    def on_ready(_: BoundAddresses) -> None:
        thread.start()

    pool.run(listening, ServiceEnvironment(ServiceManager(None), {}, watchdog=False), on_ready)
    thread.join()
    assert len(replaced) == 1
    assert "worker 1 hangs; killing it" in caplog.text


PAUSED: Final = """
import socket, sys
from attestkit.serve.worker_pool.supervisor import WorkerPool
from attestkit.serve.systemd.notify_watchdog import ServiceManager
from attestkit.serve.systemd.notify_watchdog import ServiceEnvironment
from attestkit.serve.verifier_service.metrics import MetricsAggregator
crew = WorkerPool(2, sys.argv[1:], 10.0, MetricsAggregator(), timeout_seconds=5.5)
supervisor = ServiceEnvironment(ServiceManager(None), {}, watchdog=False)
crew.run(socket.create_server(("127.0.0.1", 0)), supervisor, lambda r: print(r, flush=True))
"""


@pytest.mark.slow
def test_supervisor_suspended_machine_kills_no_worker(tmp_path: Path) -> None:
    """Suspending all processes for longer than the timeout kills no worker."""
    words = [sys.executable, "-c", PAUSED, *VERIFIER, "--workers", "2"]
    with ready_server(words, tmp_path, environment()) as server:
        workers = list_child_processes(server.process.pid)
        all_processes = (server.process.pid, *workers)
        for pid in all_processes:
            os.kill(pid, signal.SIGSTOP)
        threading.Event().wait(6.0)  # longer than the timeout
        for pid in all_processes:  # the supervisor first, which is the hardest case
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: get_health(server.ready["verifier"]) == 200, "no worker answers")
        threading.Event().wait(1.0)  # for an unwanted restart
        later = list_child_processes(server.process.pid)
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
def test_supervisor_workers_inherit_interpreter_flags(tmp_path: Path) -> None:
    """Workers run with the supervisor's isolation flags, so no sitecustomize is imported."""
    sitecustomize = "import sys; print('sitecustomize was imported', file=sys.stderr)"
    (tmp_path / "sitecustomize.py").write_text(sitecustomize)
    flags = ["-I", "-bb", "-Werror::ImportWarning", "-Xutf8", "-Xint_max_str_digits=5000"]
    words = [sys.executable, *flags, "-c", ISOLATED, str(ROOT), *VERIFIER, "--workers", "1"]
    with ready_server(words, tmp_path, environment(PYTHONPATH=str(tmp_path))) as server:
        [worker] = list_child_processes(server.process.pid)
        found = read_command_line(worker).split(b"\0")
        assert server.stop() == 0
    given = [word.decode() for word in found[1 : found.index(b"-c")]]
    assert {"-I", "-bb"} <= set(given)
    for option in ("-Werror::ImportWarning", "-Xutf8", "-Xint_max_str_digits=5000"):
        assert option in given
    assert "sitecustomize was imported" not in server.log()


@pytest.mark.slow
def test_supervisor_second_signal_stops_immediately(tmp_path: Path) -> None:
    """A second SIGTERM stops all processes despite a pending request."""
    words = command(*VERIFIER, "--workers", "1", "--limit", "drain_seconds=3600")
    with ready_server(words, tmp_path, environment()) as server:
        [worker] = list_child_processes(server.process.pid)
        with socket.create_connection(("127.0.0.1", read_port(server)), PATIENCE) as client:
            client.sendall(b"GET /health HTTP/1.1\r\n")

            def is_over() -> bool:
                server.process.terminate()
                return server.process.poll() is not None

            try:
                wait_until(is_over, "the supervisor is still running")
                client.settimeout(5)
                with contextlib.suppress(ConnectionResetError):
                    assert client.recv(1) == b""
                wait_until(lambda: not is_running(worker), "the worker is still running")
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
    assert server.process.returncode == -signal.SIGTERM


def read_command_line(pid: int) -> bytes:
    """Return the command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@contextlib.contextmanager
def serve_on_inherited_socket(
    name: str, words: list[str], folder: Path
) -> Iterator[tuple[Server, int]]:
    """Run a server on an inherited socket; yield the server and the port.

    After the server ends, the socket still accepts connections for the next server.
    """
    with socket.create_server(("127.0.0.1", 0)) as listening:
        activated, given = activated_command(words, name, [listening])
        with ready_server(activated, folder, environment(), pass_fds=given) as server:
            os.close(given[0])
            yield server, listening.getsockname()[1]
        with socket.create_connection(listening.getsockname()) as later:
            accepted, where = listening.accept()
            assert where == later.getsockname()
            accepted.close()


@pytest.mark.slow
def test_supervisor_inherited_socket_is_shared(tmp_path: Path) -> None:
    """Workers share an inherited socket, which stays open after they stop."""
    serving = command(*VERIFIER, "--workers", "2")
    with serve_on_inherited_socket("verifier", serving, tmp_path) as (server, port):
        assert read_port(server) == port
        assert get_health(server.ready["verifier"]) == 200
        assert server.stop() == 0
