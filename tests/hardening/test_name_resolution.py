"""Tests of name resolution under the filters, for host names of PCCS and container engine.

Tests of the whole server use addresses only.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from ctypes.util import find_library
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.hardening.all_requests import short_folder
from tests.hardening.syscalls import docker_profile, unit_profile
from tests.hardening.test_syscalls import needs_seccomp, needs_systemd
from tests.serve.server import PATIENCE

UNSHARE = ("unshare", "--mount", "--net", *(() if os.geteuid() == 0 else ("--map-root-user",)))
# Over UDP, and over TCP after truncation; both by libc, the second as asyncio and uvloop do it.
PROGRAM = """
import asyncio, socket
async def looked_up(name):
    found = await asyncio.get_running_loop().getaddrinfo(name, 8081, type=socket.SOCK_STREAM)
    return sorted(place[0] for *_, place in found)
for name in ("pccs.test", "long.test"):
    print(*asyncio.run(looked_up(name)))
"""


@cache
def missing() -> str:
    """Return why a network namespace is unavailable; empty if it is available."""
    if shutil.which("unshare") is None:
        return "no unshare (Debian: apt install util-linux)"
    done = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else ""


def looked_up(profile: dict[str, Any]) -> "subprocess.CompletedProcess[str]":
    """Resolve names under a profile, in a network with a name server only."""
    if why := missing():
        pytest.skip(why)
    program = str(Path(__file__).with_name("resolve_under_seccomp.py"))
    with short_folder() as folder:
        path = folder / "profile.json"
        path.write_text(json.dumps(profile))
        return subprocess.run(
            [*UNSHARE, sys.executable, program, str(path), PROGRAM],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )


@pytest.mark.slow
@needs_seccomp
@pytest.mark.parametrize(
    "profile", [docker_profile, pytest.param(unit_profile, marks=needs_systemd)]
)
def test_name_is_resolved_under_filter(profile: Callable[[], dict[str, Any]]) -> None:
    """Both addresses of a name are resolved, over UDP and TCP."""
    done = looked_up(profile())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["192.0.2.7 2001:db8::7"] * 2


@needs_seccomp
@pytest.mark.skipif(find_library("c") != "libc.so.6", reason="another libc than glibc")
def test_name_resolution_without_sendmmsg_fails() -> None:
    """Without sendmmsg resolution fails, for glibc sends both queries with one call."""
    profile = docker_profile()
    for rule in profile["syscalls"]:
        rule["names"] = [name for name in rule["names"] if name != "sendmmsg"]
    done = looked_up(profile)
    assert done.returncode != 0
    assert "Temporary failure in name resolution" in done.stderr
