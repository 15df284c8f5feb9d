"""The system calls that a server makes, and its behaviour under a filter.

`python -m tests.hardening.syscalls` sends all requests to a server, and prints its system calls.
"""

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.hardening.all_requests import LISTENERS, Driven, drive, scripted_engine, short_folder
from tests.serve import server as servers
from tests.serve.server import PATIENCE, ROOT, Server, environment, running_server

PROFILE: Final = ROOT / "deploy/seccomp.json"
UNIT: Final = ROOT / "deploy/systemd/attestkit.service"
GUIDE: Final = ROOT / "docs/security/hardening.md"
KILL: Final = {"CONFINED_BY": "kill"}
X86_64, AARCH64 = 0xC000003E, 0xC00000B7  # SCMP_ARCH_* of seccomp.h
Wrapper = Callable[..., list[str]]
_CALL = re.compile(r"^\d+ +(?:<\.\.\. )?(\w+)(?:\(| resumed)", re.MULTILINE)
_PROGRAM = re.compile(r'^\d+ +execve\("([^"]*)"', re.MULTILINE)
_FAMILY = re.compile(r"^\d+ +socket\((\w+)", re.MULTILINE)
_CONNECT = re.compile(
    r'^\d+ +connect\(\d+, \{sa_family=(?:AF_UNIX, sun_path="([^"]*)"|(.*?))\}', re.MULTILINE
)


class Trace(NamedTuple):
    """The output of strace for a process and its threads.

    Attributes:
        names: The system calls.
        programs: Executed programs, in order.
        families: Address families of created sockets.
        connected: Addresses: a unix socket's path, otherwise as strace prints it.
    """

    names: frozenset[str]
    programs: list[str]
    families: set[str]
    connected: list[str]

    @classmethod
    def parse(cls, text: str) -> "Trace":
        """Parse the output of `strace -f`."""
        return cls(
            frozenset(_CALL.findall(text)),
            _PROGRAM.findall(text),
            set(_FAMILY.findall(text)),
            [path or other for path, other in _CONNECT.findall(text)],
        )


def serve_and_drive(
    folder: Path,
    wrap: Wrapper,
    environ: Mapping[str, str] | None = None,
    stop: Callable[[Server], int] = Server.stop,
) -> Driven:
    """Run a server under a wrapper command, send all requests, and stop it."""
    plain = servers.command
    with pytest.MonkeyPatch.context() as patch, scripted_engine() as engine:
        patch.setattr(servers, "command", lambda *options: wrap(*plain(*options)))
        options = ("--access-log", "--state-dir", str(folder))
        variables = environment(**engine, **(environ or {}))
        with running_server(*LISTENERS, *options, environ=variables) as server:
            driven = drive(server)
            assert stop(server) == 0
    return driven


def traced(folder: Path) -> tuple[Driven, Trace]:
    """Send all requests to a server under strace."""
    path = folder / "trace"

    def wrap(*words: str) -> list[str]:
        # Python's development mode would add calls.
        return ["strace", "-f", "-qq", "-E", "PYTHONDEVMODE", "-o", str(path), *words]

    def stop(server: Server) -> int:
        pid = server.process.pid  # of strace, which waits for its child and returns its status
        [child] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(int(child), signal.SIGTERM)
        return server.process.wait(PATIENCE)

    driven = serve_and_drive(folder, wrap, stop=stop)
    return driven, Trace.parse(path.read_text())


def confined(profile: Path) -> Wrapper:
    """Return a wrapper that runs a command under a profile."""
    program = str(Path(__file__).with_name("run_under_seccomp.py"))
    return lambda *words: [sys.executable, program, str(profile), *words]


def docker_profile() -> dict[str, Any]:
    """Return deploy/seccomp.json."""
    found: dict[str, Any] = json.loads(PROFILE.read_text())
    return found


def allowed(profile: dict[str, Any]) -> set[str]:
    """Return the names of the calls that a profile allows with any arguments."""
    rules = (rule for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW")
    return {name for rule in rules for name in rule["names"]}


def documented_calls() -> set[str]:
    """Return the calls of a server that docs/security/hardening.md lists."""
    [block] = re.findall(r"```text\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    return set(block.split())


def is_call_of(machine: int, name: str) -> bool:
    """Return whether a machine has a call of that name."""
    resolve = ctypes.CDLL("libseccomp.so.2").seccomp_syscall_resolve_name_arch
    resolve.argtypes = (ctypes.c_uint32, ctypes.c_char_p)
    found: int = resolve(machine, name.encode())  # negative: known, but not available
    return found >= 0


def run_confined(profile: Path, program: str) -> str:
    """Run a Python program under a profile; return its output."""
    done = subprocess.run(
        confined(profile)(sys.executable, "-c", program),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    return done.stdout


# -- systemd ---------------------------------------------------------------------------------------


def unit_profile(lines: Iterable[str] | None = None) -> dict[str, Any]:
    """Return the SystemCallFilter= of the unit as a profile of Docker's format.

    Calls that the unit removes from an allowed set fail with its SystemCallErrorNumber; all other
    calls that it does not allow get the profile's default.
    """
    allow: set[str] = set()
    refuse: set[str] = set()
    for line in UNIT.read_text().splitlines() if lines is None else lines:
        if not line.startswith("SystemCallFilter="):
            continue
        value = line.partition("=")[2]
        names = {name for word in value.lstrip("~").split() for name in _expanded(word)}
        if value.startswith("~"):
            refuse |= names & allow
            allow -= names
        else:
            allow |= names
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [
            {"names": sorted(allow), "action": "SCMP_ACT_ALLOW"},
            {"names": sorted(refuse), "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
        ],
    }


def _expanded(word: str) -> set[str]:
    """Return the calls of a systemd set, or the single call."""
    if not word.startswith("@"):
        return {word}
    done = subprocess.run(
        ["systemd-analyze", "syscall-filter", "--no-pager", word],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    lines = (line.strip() for line in done.stdout.splitlines()[1:])
    found = (line for line in lines if line and not line.startswith("#"))
    return {name for line in found for name in _expanded(line)}


def main() -> None:
    """Print the calls of a server that gets all requests."""
    with short_folder() as folder:
        driven, trace = traced(folder)
    count = len(allowed(docker_profile()))
    sys.stdout.write(
        f"{len(driven.requests)} requests, {len(trace.names)} calls; the profile allows {count}:\n"
    )
    sys.stdout.write(" ".join(sorted(trace.names)) + "\n")


if __name__ == "__main__":
    main()
