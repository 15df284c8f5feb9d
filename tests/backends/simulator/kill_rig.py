"""Kill processes that emit events at random moments, and check the log and the register.

Run by a test as a separate process, because it forks: `kill_rig.py FOLDER ROUNDS`. Prints one line
of JSON: the number of acknowledged events, of further events found, and errors.
"""

import json
import os
import random
import select
import signal
import sys
from itertools import count

from attestkit.factory import open as open_attester


def emit_until_killed(folder: str, round_number: int, pipe: int) -> None:
    """Emit events until killed; report each acknowledged event."""
    tee = open_attester("simulator", state_dir=folder)
    for number in count():
        name = f"event-{round_number}-{number}"
        tee.emit_event(name, os.urandom(20))
        os.write(pipe, f"{name}\n".encode())


def run_and_kill(folder: str, round_number: int) -> list[str]:
    """Kill a process at a random moment, and return its acknowledged events."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        try:
            emit_until_killed(folder, round_number, write)
        finally:
            os._exit(1)
    os.close(write)
    # Sometimes during the start, mostly while it emits.
    start = random.choice([0, 0.01, 10, 10, 10])
    select.select([read], [], [], start)
    select.select([], [], [], random.uniform(0, 0.006))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(read, "rb") as pipe:
        return pipe.read().decode().splitlines()


def main(folder: str, rounds: int) -> None:
    """Run the rounds; each acknowledged event must be logged once, in order."""
    acknowledged: list[str] = []
    beyond = 0
    errors: list[str] = []
    for round_number in range(rounds):
        new = run_and_kill(folder, round_number)
        with open_attester("simulator", state_dir=folder) as tee:
            quote, log = tee.evidence_source.quote_and_log(bytes(64))
            log.check(quote)
            names = [event.name for event in log.runtime]
            emitted = names[names.index("system-ready") + 1 :]
            if emitted[: len(acknowledged) + len(new)] != acknowledged + new:
                errors.append(f"round {round_number}: {new} acknowledged, found {emitted}")
            beyond += (extra := len(emitted) - len(acknowledged) - len(new))
            if extra not in (0, 1):
                errors.append(f"round {round_number}: {extra} events too many")
            acknowledged = emitted
    found = {"emitted": len(acknowledged), "beyond": beyond, "errors": errors}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
