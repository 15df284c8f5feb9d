"""Program of test_killed_boot: boot a simulated guest with a KMS, and kill it at one step.

A step is a call of the file system that changes something, or the start of a connection. For each
folder in the arguments, a forked process boots in it and kills itself at the step with the number
of the folder. Then, another process boots in it without being killed. A line of JSON reports both.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

import attestkit
from attestkit.errors import AttestKitError
from attestkit.event_log.journal import LOG, PENDING
from attestkit.kms import KmsRoot

_STEPS = {"os.mkdir", "os.rename", "os.remove", "os.chmod", "os.truncate", "socket.connect"}


class Job:
    """A KMS, and the guest that boots with it."""

    def __init__(self, url: str, root: str, seed: str) -> None:
        self.url, self.roots, self.seed = url, [KmsRoot.from_json(root)], bytes.fromhex(seed)

    def boot(self, folder: Path) -> tuple[str, list[str]]:
        """Boot; return the root public key and the names of the runtime events."""
        with attestkit.open(
            "simulator", seed=self.seed, state_dir=folder, kms=self.url, kms_roots=self.roots
        ) as tee:
            derived = tee.keys.derive("path", "secp256k1")
            tee.attest(report_data=bytes(64))  # checks that the log replays
            return derived.public_key.hex(), [one.name for one in tee.event_log().runtime]


def kill_at(step: int) -> None:
    """Kill this process at a step."""
    seen = 0

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_ACCMODE
        if is_write or event in _STEPS:
            seen += 1
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def run(work: Callable[[], object], kill_after: float | None = None) -> tuple[int, str]:
    """Run `work` in a forked process; return its wait status and its result in JSON.

    With `kill_after` the process is killed after so many seconds, unless it is done.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _report(work, writing)
    os.close(writing)
    if kill_after is not None:
        select.select([reading], [], [], kill_after)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    return os.waitpid(child, 0)[1], text


def _report(work: Callable[[], object], writing: int) -> NoReturn:
    try:
        try:
            found = work()
        except AttestKitError as error:
            found = f"{type(error).__name__} {error.reason}: {error}"
        os.write(writing, json.dumps(found).encode())
    finally:
        os._exit(0)


def import_as(job: Job, folder: Path) -> None:
    """Import what a boot imports, which takes each forked process as long as the boot itself."""
    _, names = run(lambda: (job.boot(folder), [*sys.modules])[1])
    for name in json.loads(names):
        with contextlib.suppress(ModuleNotFoundError):  # part of another one's library
            importlib.import_module(name)


def main() -> None:
    """Run each step, in a folder of its own."""
    url, root, seed, parent, *steps = sys.argv[1:]
    job = Job(url, root, seed)
    import_as(job, Path(parent) / "imports")
    for step in map(int, steps):
        folder = Path(parent) / str(step)

        def killed(step: int = step, folder: Path = folder) -> object:
            kill_at(step)
            return job.boot(folder)

        status, _ = run(killed)
        is_killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        has_file = (folder / ".appkeys.json").exists()
        logs = [folder / name for name in (LOG, PENDING) if (folder / name).exists()]
        is_named = any(b'"key-provider"' in path.read_bytes() for path in logs)
        _, again = run(partial(job.boot, folder))
        sys.stdout.write(
            json.dumps([step, is_killed, has_file, is_named, json.loads(again)]) + "\n"
        )
        if not is_killed:  # the boot has fewer steps
            return


if __name__ == "__main__":
    main()
