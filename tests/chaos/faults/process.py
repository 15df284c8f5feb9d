"""Faults of the server's process: stopped, out of descriptors or memory, sockets moved."""

import contextlib
import os
import resource
import signal
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.chaos.scenarios import Form, scenario
from tests.chaos.trial import Size, Trial
from tests.serve.client import Connection
from tests.serve.server import running_server


@scenario("stopped", "SIGSTOP for a minute, then SIGCONT")
def stopped(form: Form) -> dict[str, Any]:
    """Pending requests are answered late; timers and idle connections continue."""
    seconds = form.seconds(2, 60)
    with running_server() as server, Trial(server) as trial:
        with trial.fault():
            os.kill(trial.pid, signal.SIGSTOP)
            trial.last(seconds)
            os.kill(trial.pid, signal.SIGCONT)
        begin = time.monotonic()
        trial.wait_answered("GetQuote", "EmitEvent", "GetKey", since=begin)
    # Connections idle for longer than the limit may be closed, which a client sees as an end.
    return trial.result({}, {"*": "no answer: (RemoteDisconnected|ConnectionResetError)"})


@scenario("storm of signals", "SIGSTOP and SIGCONT by turns, and ignored signals between them")
def storm(form: Form) -> dict[str, Any]:
    """System calls are interrupted repeatedly."""
    with running_server() as server, Trial(server) as trial, trial.fault():
        end = time.monotonic() + form.seconds(1, 10)
        while time.monotonic() < end:
            for number in (signal.SIGSTOP, signal.SIGCONT, signal.SIGWINCH, signal.SIGURG):
                os.kill(trial.pid, number)
            time.sleep(0.001)
        trial.wait_answered("GetQuote", "EmitEvent", "GetKey", "Info", "/metrics")
    return trial.result({})


@scenario("out of descriptors", "the server may open no more files, and strangers take the last")
def no_descriptors(form: Form) -> dict[str, Any]:
    """Connected clients are served; accepting sleeps instead of spinning."""
    with tempfile.TemporaryDirectory(prefix="ak") as state, contextlib.ExitStack() as stack:
        server = stack.enter_context(running_server("--state-dir", state))
        trial = stack.enter_context(Trial(server))
        limits = resource.prlimit(trial.pid, resource.RLIMIT_NOFILE)
        with trial.fault(), contextlib.ExitStack() as connections:
            room = Size(trial.pid).descriptors + 2
            resource.prlimit(trial.pid, resource.RLIMIT_NOFILE, (room, limits[1]))
            for _ in range(20):
                sock = connections.enter_context(socket.socket(socket.AF_UNIX))
                sock.settimeout(1)
                with contextlib.suppress(OSError):
                    sock.connect(server.dstack)
                    sock.send(b"GET ")
            trial.wait_answered("GetQuote", "GetKey")
            trial.last(form.seconds(2, 20))
            resource.prlimit(trial.pid, resource.RLIMIT_NOFILE, limits)
        stack.pop_all().close()
    full = r"runtime log: cannot [\w ]+: \[Errno 24\] Too many open files: '[^']+'.*"
    ends = "no answer: (RemoteDisconnected|ConnectionResetError|BrokenPipeError)"
    result = trial.result(
        {}, {"EmitEvent": f"{full}|{ends}", "*": f".*Too many open files.*|{ends}"}
    )
    assert result["cpu_share"] < 0.5, f"{result['cpu_share']} of a processor while it has no files"
    return result


@scenario("close to its memory limit", "RLIMIT_AS a little above what it has, and large requests")
def no_memory(form: Form) -> dict[str, Any]:
    """A request that does not fit in memory is refused, and others are served."""
    with running_server() as server, Trial(server, memory=64) as trial:
        limits = resource.prlimit(trial.pid, resource.RLIMIT_AS)
        with trial.fault():
            status = Path(f"/proc/{trial.pid}/status").read_text()
            has = int(status.partition("VmSize:")[2].split()[0]) * 1024
            resource.prlimit(trial.pid, resource.RLIMIT_AS, (has + (4 << 20), limits[1]))
            outcomes: list[str] = []
            end = time.monotonic() + form.seconds(1, 10)
            while not outcomes or time.monotonic() < end:
                outcomes.append(_send_8_mib(server.dstack))
            trial.wait_answered("GetQuote", "EmitEvent", "GetKey", "Info", "/metrics")
            resource.prlimit(trial.pid, resource.RLIMIT_AS, limits)
        trial.notes["large_requests"] = {
            text: outcomes.count(text) for text in sorted(set(outcomes))
        }
        assert _send_8_mib(server.dstack) == "400"
    return trial.result({}, {"*": "no answer: RemoteDisconnected|[Ii]nternal .*"})


def _send_8_mib(place: str) -> str:
    """Send 8 MiB of arbitrary data; return the status, or how the connection ended."""
    connection = Connection(place)
    try:
        headers = {"Content-Type": "application/json"}
        return str(connection.send_request("POST", "/GetKey", bytes(8 << 20), headers).status)
    except OSError as error:
        return type(error).__name__
    finally:
        connection.close()


@scenario("socket moved away", "dstack.sock has another name, and then its own again")
def socket_moved(form: Form) -> dict[str, Any]:
    """Existing connections continue; new ones fail until the socket is back."""
    with running_server() as server, Trial(server) as trial:
        path = Path(server.dstack)
        away = path.with_name("away.sock")
        with trial.fault():
            path.rename(away)
            with contextlib.suppress(FileNotFoundError), socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                raise AssertionError("another program listens")
            trial.wait_answered("GetQuote", "EmitEvent", "GetKey", "Info")
            trial.last(form.seconds(0.5, 5))
            away.rename(path)
    return trial.result({})


@scenario("nobody reads stdout", "the program that started the server closes its end")
def no_reader(form: Form) -> dict[str, Any]:
    """No output follows the ready line."""
    with running_server("--access-log") as server, Trial(server) as trial, trial.fault():
        assert server.process.stdout is not None
        server.process.stdout.close()
        trial.wait_answered("GetQuote", "EmitEvent", "GetKey", "Info", "/metrics")
        trial.last(form.seconds(0.5, 2))
    return trial.result({})
