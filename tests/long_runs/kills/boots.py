"""Boots with a simulated KMS that are killed at random moments, and repeated.

A program, because it forks: `boots URL ROOT SEED FOLDER KILLS SECONDS` prints a line of JSON for
each guest: the phases of its kills, and what is wrong after the boot was repeated. It stops after
KILLS kills or SECONDS seconds.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import attestkit
from attestkit.event_log.journal import LOG, PENDING
from tests.kms.boot.booting import EVENTS, SEED, kms_of
from tests.kms.boot.killed_boot import Job, run
from tests.long_runs.records import ROOT

if TYPE_CHECKING:
    from collections import Counter

KEY_FILE: Final = ".appkeys.json"
TEMPORARY: Final = "..appkeys.json.*"
MOST_KILLS: Final = 2  # of one guest, before its boot is repeated


class Expected(NamedTuple):
    """State that each boot must end with."""

    result: list[object]  # of Job.boot: root public key, names of events
    keys: Any  # JSON of the key file


def kill_boots(kills: int, seconds: float, phases: "Counter[str]") -> list[str]:
    """Kill so many boots; count the phases, and return what went wrong."""
    failures: list[str] = []
    with kms_of(SEED) as kms, tempfile.TemporaryDirectory(prefix="ak") as folder:
        words = [kms.url, kms.root.to_json(), SEED.hex(), folder, str(kills), str(seconds)]
        program = [sys.executable, "-m", "tests.long_runs.kills.boots", *words]
        with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                found = json.loads(line)
                phases.update(found["phases"])
                failures += found["failures"]
    if process.returncode:
        failures.append(f"boots: the program ended with {process.returncode}")
    return failures


def phase_of(folder: Path) -> str:
    """Return how far a killed boot had come, by the files that it left."""
    log = (folder / LOG).read_bytes() if (folder / LOG).exists() else b""
    if b'"system-ready"' in log:
        return "boot: complete"
    if b'"key-provider"' in log:
        return "boot: keys measured"
    if (folder / KEY_FILE).exists():
        return "boot: keys stored, not measured"
    return "boot: first events" if log else "boot: before the first event"


def kill_one(job: Job, folder: Path, duration: float, expected: Expected) -> dict[str, list[str]]:
    """Kill the boot of a guest once or more, and repeat it."""
    phases, failures = [], []
    for _ in range(random.randint(1, MOST_KILLS)):
        acknowledged = run(partial(job.boot, folder), random.uniform(0, duration))[1]
        phases.append(phase_of(folder))
        if acknowledged and json.loads(acknowledged) != expected.result:
            failures.append(f"booted with {acknowledged}")
        failures += files_wrong(folder, expected)
    again = json.loads(run(partial(job.boot, folder))[1] or "null")
    if again != expected.result:
        failures.append(f"repeated with {again}")
    failures += files_wrong(folder, expected)
    leftovers = [path.name for path in (*folder.glob(TEMPORARY), *folder.glob(PENDING))]
    if leftovers or not (folder / KEY_FILE).exists():
        failures.append(
            f"files after the repeated boot: {sorted(path.name for path in folder.iterdir())}"
        )
    return {"phases": phases, "failures": [f"{phases}: {failure}" for failure in failures]}


def files_wrong(folder: Path, expected: Expected) -> list[str]:
    """Return what is wrong with the files of a guest, which may have been killed."""
    path = folder / KEY_FILE
    if path.exists():
        try:
            keys = json.loads(path.read_bytes())
        except ValueError as error:
            return [f"key file: {error}"]
        return [] if keys == expected.keys else ["key file: other keys"]
    logs = [folder / name for name in (LOG, PENDING) if (folder / name).exists()]
    is_named = any(b'"key-provider"' in log.read_bytes() for log in logs)
    return ["the log names a provider without keys"] if is_named else []


def main() -> None:
    """Kill and repeat boots until there are enough."""
    url, root, seed, parent, kills, seconds = sys.argv[1:]
    end = time.monotonic() + float(seconds)
    attestkit.open("simulator", seed=bytes.fromhex(seed)).close()  # imports what all boots need
    job = Job(url, root, seed)
    first = Path(parent) / "first"
    begin = time.monotonic()
    result = json.loads(run(partial(job.boot, first))[1])
    duration = time.monotonic() - begin
    assert result[1] == EVENTS, result
    expected = Expected(result, json.loads((first / KEY_FILE).read_bytes()))
    done = number = 0
    while done < int(kills) and time.monotonic() < end:
        number += 1
        found = kill_one(job, Path(parent) / str(number), duration, expected)
        done += len(found["phases"])
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
