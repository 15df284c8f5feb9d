"""States of containers from nerdctl, a program that a test replaces by a script."""

import asyncio
import json
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import uvloop

from attestkit.errors import BackendError, BackendUnavailableError
from attestkit.serve.docker import responses
from attestkit.serve.health.app_health import COMMAND, check_nerdctl
from attestkit.serve.health.monitor import HEALTHY, HealthVerdict, unhealthy
from tests.raising import raises
from tests.serve.health.test_containers import NONE_CREATED, inspected
from tests.untyped import untyped

Runner: TypeAlias = Callable[[Coroutine[Any, Any, HealthVerdict]], HealthVerdict]
RUNNERS = pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])  # the server has uvloop
IDS = ("0123456789ab", "ba9876543210")


def check(
    folder: Path, listed: str, found: object = (), runner: Runner = asyncio.run
) -> HealthVerdict:
    """Return the verdict with a program that prints these outputs."""
    (folder / "ps").write_text(listed)
    (folder / "inspect").write_text(found if isinstance(found, str) else json.dumps(found))
    return run(folder, 'echo "$@" >> asked; [ "$3" = ps ] && cat ps || cat inspect', runner)


def run(folder: Path, script: str, runner: Runner = asyncio.run) -> HealthVerdict:
    """Return the verdict with a program that runs this script in the folder."""
    program = folder / "nerdctl"
    program.write_text(f"#!/bin/sh\ncd {folder}\n{script}\n")
    program.chmod(0o755)
    return runner(asyncio.wait_for(check_nerdctl([str(program), *COMMAND[1:]]), 60))


@RUNNERS
def test_check_nerdctl_inspects_all_containers(tmp_path: Path, runner: Runner) -> None:
    """All containers of the namespace are listed, then inspected; names have no slash."""
    found = [inspected("web", "healthy", "running"), inspected("db", "healthy", "exited")]
    found[1]["Name"] = "db"
    assert check(tmp_path, "\n".join(IDS) + "\n", found, runner) == unhealthy(
        "db", "exited (last health check: healthy)"
    )
    assert (tmp_path / "asked").read_text().splitlines() == [
        "--namespace dstack ps -a -q",
        f"--namespace dstack inspect {IDS[0]} {IDS[1]}",
    ]
    assert check(tmp_path, IDS[0], found[:1]) == HEALTHY


def test_check_nerdctl_without_containers(tmp_path: Path) -> None:
    """Without containers nothing is inspected."""
    assert check(tmp_path, "\n") == NONE_CREATED
    assert "inspect" not in (tmp_path / "asked").read_text()


@pytest.mark.parametrize(
    ("listed", "found", "reason"),
    [
        ("--help", [], "malformed_response"),
        ("0123 \xe9", [], "malformed_response"),
        ("0123 " * 257, [], "too_large"),
        ("0123", "no JSON", "malformed_response"),
        ("0123", {}, "malformed_response"),
        ("0123", [{"Id": "1", "State": {"Status": 1}}], "malformed_response"),
    ],
)
def test_check_nerdctl_malformed_output(
    tmp_path: Path, listed: str, found: object, reason: str
) -> None:
    """Output that is not a list of containers is an error, and is never an option of nerdctl."""
    with raises(BackendError, reason):
        check(tmp_path, listed, found)


@RUNNERS
def test_check_nerdctl_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runner: Runner
) -> None:
    """A missing program, an exit status and endless output are errors."""
    with raises(BackendUnavailableError, "missing"):
        runner(check_nerdctl([str(tmp_path / "nothing")]))
    with raises(BackendError, "io_error", part="exit status 3"):
        run(tmp_path, "echo 0123; exit 3", runner)
    monkeypatch.setattr(responses, "MAX_LIST", 100_000)
    with raises(BackendError, "too_large"):
        run(tmp_path, "exec yes", runner)


@RUNNERS
def test_check_nerdctl_is_killed_when_cancelled(tmp_path: Path, runner: Runner) -> None:
    """A program that does not end is killed at the time limit of the check."""
    program, pipe = tmp_path / "nerdctl", tmp_path / "pipe"
    os.mkfifo(pipe)
    program.write_text(f"#!/bin/sh\nexec 3> {pipe}\necho started >&3\nexec sleep 100\n")
    program.chmod(0o755)

    async def main() -> None:
        check = asyncio.create_task(check_nerdctl([str(program)]))
        with await asyncio.to_thread(pipe.open, "rb") as opened:  # waits for the program
            assert await asyncio.to_thread(opened.readline) == b"started\n"
            check.cancel()
            assert await asyncio.to_thread(opened.read) == b""  # the program has ended
        with pytest.raises(asyncio.CancelledError):
            await check

    untyped(runner)(asyncio.wait_for(main(), 60))
