"""Faults of the disk below the server's files: full, failing, slow, read-only, missing."""

import contextlib
import errno
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.chaos.clients import app_events
from tests.chaos.faults.faulty_folder import Disk, faulty_folder
from tests.chaos.scenarios import Form, scenario
from tests.chaos.trial import Trial
from tests.rigs.emulator import missing_for_fuse
from tests.serve.client import Connection, call
from tests.serve.server import Server, running_server

_ORDINARY = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")


def is_root() -> str:
    """Return why a server cannot run without root's capabilities here; empty if it can."""
    return "" if os.geteuid() == 0 else "an ordinary user cannot give rights away"


def needs_mount() -> str:
    """Return why no file system can be mounted here; empty if one can."""
    return "" if os.geteuid() == 0 else "only root mounts a tmpfs"


@contextlib.contextmanager
def small_disk() -> Iterator[Path]:
    """Mount a tmpfs of 2 MiB until the end of the block."""
    with tempfile.TemporaryDirectory(prefix="ak") as name:
        _run("mount", "-t", "tmpfs", "-o", "size=2m", "attestkit-chaos", name)
        try:
            yield Path(name)
        finally:
            _run("umount", "-l", name)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@contextlib.contextmanager
def keeping_state(folder: Path) -> Iterator[Server]:
    """Run a simulator that stores registers and runtime log in a folder."""
    with running_server("--state-dir", str(folder)) as server:
        yield server


@contextlib.contextmanager
def trial_on(folder: Path) -> Iterator[Trial]:
    """Try a server with its state in a folder; the next one must find acknowledged events."""
    with keeping_state(folder) as server, Trial(server) as trial:
        yield trial
    with keeping_state(folder) as server:
        answer = call(server.dstack, "GetQuote", {"report_data": "77" * 64})
        assert answer.status == 200, answer.body
        assert trial.check_log(app_events(answer.json())) == trial.notes["undecided"]


def fill(folder: Path) -> Path:
    """Fill the file system; return the file that occupies it."""
    path = folder / "ballast"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 16, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
    return path


@scenario("disk full", "the disk of the state folder has no byte left", needs_mount)
def disk_full(form: Form) -> dict[str, Any]:
    """A tmpfs is full."""
    with (
        small_disk() as folder,
        trial_on(folder) as trial,
        trial.fault(),
    ):
        ballast = fill(folder)
        trial.wait_for("EmitEvent", "No space left", times=3)
        trial.wait_answered("GetQuote", "GetKey", "Info", "/metrics")
        trial.last(form.seconds(0.5, 5))
        ballast.unlink()
    return trial.result({"EmitEvent": create_error_pattern(errno.ENOSPC)})


def create_error_pattern(number: int) -> str:
    """Return the pattern of errors for an errno of the disk.

    Either nothing was changed, or the event is in RTMR3 and the next use of the log completes it.
    """
    message = re.escape(os.strerror(number))
    return (
        rf"runtime log: cannot (write|read): \[Errno {number}\] {message}: '[^']+'(; nothing was "
        r"changed|; RTMR3 was extended, and the next use of the log records the event; do not "
        r"repeat the call)?"
        rf"|\S+: cannot be used: {message}"
    )


@contextlib.contextmanager
def faulty_disk() -> Iterator[tuple[Disk, Trial]]:
    """Try a server while the disk of its state is faulty; the faults end with the block."""
    with faulty_folder() as disk, trial_on(disk.folder) as trial, trial.fault():
        yield disk, trial
        disk.set()


def _failing(name: str, fault: str, operation: str, number: int, *, half: bool = False) -> None:
    """Register a scenario: one operation on the state folder fails with an errno."""

    @scenario(name, fault, missing_for_fuse)
    def run(form: Form) -> dict[str, Any]:
        with faulty_disk() as (disk, trial):
            disk.set(fail={operation: number}, half=half)
            trial.wait_for("EmitEvent", os.strerror(number), times=3)
            trial.wait_answered("GetQuote", "GetKey", "Info", "/metrics")
            trial.last(form.seconds(0.5, 5))
        return trial.result({"EmitEvent": create_error_pattern(number)})


_failing(
    "disk fills in mid-write",
    "a write takes half of its bytes, the next ENOSPC",
    "write",
    errno.ENOSPC,
    half=True,
)
_failing("quota exceeded", "every write to the state folder is EDQUOT", "write", errno.EDQUOT)
# Written data may be lost after a crash.
_failing("disk that cannot sync", "every fsync in the state folder is EIO", "fsync", errno.EIO)


@scenario(
    "log that cannot be written",
    "writing to the runtime log alone is EIO, so that RTMR3 is extended before it fails",
    missing_for_fuse,
)
def no_append(form: Form) -> dict[str, Any]:
    """The append fails after RTMR3 was extended, which cannot be undone."""
    with faulty_disk() as (disk, trial):
        disk.set(fail={"write:runtime_events.log": errno.EIO})
        trial.wait_for("EmitEvent", "do not repeat")
        trial.wait_answered("GetKey")
        trial.last(form.seconds(0.5, 5))
    assert trial.notes["undecided"] >= 1, "what was extended is missing"
    expected = create_error_pattern(errno.EIO)
    failed = (
        r"(Failed to get (quote|attestation): )?runtime log: cannot append an earlier event, which "
        rf"is in RTMR3: \[Errno {errno.EIO}\] .*: '[^']+'; the next use of the log .*"
    )
    return trial.result({"EmitEvent": f"{expected}|{failed}", "GetQuote": failed}, {"Info": failed})


@scenario(
    "slow disk", "each open, write and fsync in the state folder takes 0.3 s", missing_for_fuse
)
def slow_disk(form: Form) -> dict[str, Any]:
    """An event takes seconds; keys and metrics do not wait for it."""
    delay = form.seconds(0.1, 0.3)
    with faulty_disk() as (disk, trial):
        disk.set(delay=dict.fromkeys(("open", "write", "fsync"), delay))
        trial.wait_answered("EmitEvent", times=2)
        trial.wait_answered("GetQuote", "GetKey", "Info", "/metrics")
    result = trial.result({})
    event, key = (result["seen"][name]["worst_ms"] for name in ("EmitEvent", "GetKey"))
    assert event > 10 * delay * 1000
    assert key < event / 4, f"GetKey waited {key} ms, while an event took {event} ms"
    assert not disk.process.poll()
    return result


@scenario(
    "slow disk while it stops",
    "as above, and SIGTERM while an event is under way",
    missing_for_fuse,
)
def slow_stop(form: Form) -> dict[str, Any]:
    """The pending event is answered, and is in the log after the next start."""
    delay = form.seconds(0.05, 0.2)
    with faulty_folder() as disk:
        with keeping_state(disk.folder) as server:
            disk.set(delay=dict.fromkeys(("open", "write", "fsync"), delay))
            connection = Connection(server.dstack)
            body = json.dumps({"event": "last", "payload": "00"})
            begin = time.monotonic()
            connection.request("POST", "/EmitEvent", body, {"Content-Type": "application/json"})
            while not (disk.folder / "runtime_event.pending").exists():
                assert time.monotonic() < begin + 60
            server.process.terminate()
            status = connection.getresponse().status
            assert server.process.wait(60) == 0
            seconds = time.monotonic() - begin
        disk.set()
        with keeping_state(disk.folder) as server:
            answer = call(server.dstack, "GetQuote", {"report_data": "77" * 64})
            events = app_events(answer.json())
    assert status == 200
    assert set(events) <= {"last"}
    seen = {"statuses": {"200": 1}, "errors": {}, "worst_ms": round(seconds * 1000)}
    return {
        "seconds": round(seconds, 1),
        "seen": {"EmitEvent": seen},
        "acknowledged": 1,
        "lost": 1 - len(events),
    }


# The state of a disk after errors; a mount with open files cannot be made read-only.
_failing(
    "read-only state folder", "whatever changes the state folder is EROFS", "change", errno.EROFS
)


@scenario(
    "rights taken away",
    "the server may neither write in the state folder nor open the log",
    is_root,
)
def no_rights(form: Form) -> dict[str, Any]:
    """A server without the capability to override file modes."""
    with tempfile.TemporaryDirectory(prefix="ak") as name:
        folder = Path(name) / "state"
        options = ("--state-dir", str(folder))
        with running_server(*options, prefix=_ORDINARY) as server, Trial(server) as trial:
            log = folder / "runtime_events.log"
            with trial.fault():
                log.chmod(0o000)
                folder.chmod(0o500)
                trial.wait_for("EmitEvent", "Permission denied", times=3)
                trial.wait_answered("GetKey", "/metrics")
                trial.last(form.seconds(0.5, 5))
                folder.chmod(0o700)
                log.chmod(0o600)
    expected = create_error_pattern(errno.EACCES)
    failed = rf"Failed to get (quote|attestation): ({expected})"
    # A chmod while an event is emitted is a change of the locked log, too.
    changed = r"runtime log: another process wrote to the locked log; RTMR3 was extended, .*"
    return trial.result(
        {"EmitEvent": f"{expected}|{changed}", "GetQuote": failed}, {"Info": failed}
    )


_GONE = (
    r"runtime log \S+ \(missing\): does not match RTMR3: .*, then restore the log as it was, or "
    r"reboot"
)
_NOT_WRITTEN = (  # the folder disappeared between check and write
    r"runtime log: cannot write: \[Errno 2\] No such file or directory: \S+; nothing was changed"
)


@scenario("state folder moved away", "the state folder has another name, and then its own again")
def moved(form: Form) -> dict[str, Any]:
    """Names in the folder do not exist any more; open files stay open."""
    with tempfile.TemporaryDirectory(prefix="ak") as name:
        folder, away = Path(name) / "state", Path(name) / "away"
        with trial_on(folder) as trial, trial.fault():
            folder.rename(away)
            trial.wait_for("EmitEvent", "(missing)", times=3)
            trial.wait_answered("GetKey", "/metrics")
            trial.last(form.seconds(0.5, 5))
            if folder.exists():
                shutil.rmtree(folder)
            away.rename(folder)
    failed = r"Failed to get (quote|attestation): RTMR3: the log replays to .*"
    emit = f"{_GONE}|{_NOT_WRITTEN}"
    return trial.result({"EmitEvent": emit, "GetQuote": failed}, {"Info": failed})


@scenario(
    "log of the server fills its disk", "stderr and the access log lead to a full disk", needs_mount
)
def log_disk_full(form: Form) -> dict[str, Any]:
    """Log lines that cannot be written are dropped; no request fails for it."""
    with small_disk() as folder, tempfile.TemporaryDirectory(prefix="ak") as state:
        options = ("--state-dir", state, "--access-log")
        with (
            running_server(*options, folder=folder) as server,
            Trial(server) as trial,
            trial.fault(),
        ):
            ballast = fill(folder)
            trial.wait_answered("GetQuote", "EmitEvent", "GetKey", "Info", "/metrics", times=9)
            trial.last(form.seconds(0.5, 5))
            ballast.unlink()
    return trial.result({})
