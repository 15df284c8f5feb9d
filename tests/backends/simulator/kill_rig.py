"""Kill programs that emit events, at random moments, and look at what they leave.

Run by a test as a program of its own, because it forks: `kill_rig.py FOLDER ROUNDS`. Prints one
line of JSON: how many events were acknowledged, how many were found beyond those, and errors.
"""

import json
import os
import random
import select
import signal
import sys
from itertools import count

from attestkit.factory import open as open_attester


def emit_for_ever(folder: str, round_number: int, pipe: int) -> None:
    """Emit events until killed; tell each one that was acknowledged."""
    tee = open_attester("simulator", state_dir=folder)
    for number in count():
        name = f"event-{round_number}-{number}"
        tee.emit_event(name, os.urandom(20))
        os.write(pipe, f"{name}\n".encode())


def run_and_kill(folder: str, round_number: int) -> list[str]:
    """Run a program, kill it at some moment, and return what it had acknowledged."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        try:
            emit_for_ever(folder, round_number, write)
        finally:
            os._exit(1)
    os.close(write)
    # Now and then while it starts, mostly once it emits.
    start = random.choice([0, 0.01, 10, 10, 10])
    select.select([read], [], [], start)
    select.select([], [], [], random.uniform(0, 0.006))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(read, "rb") as pipe:
        return pipe.read().decode().splitlines()


def main(folder: str, rounds: int) -> None:
    """Do the rounds; every event that was acknowledged must be there, in order, once."""
    acknowledged: list[str] = []
    beyond = 0
    errors: list[str] = []
    for round_number in range(rounds):
        new = run_and_kill(folder, round_number)
        with open_attester("simulator", state_dir=folder) as tee:
            quote, log = tee.quote_and_log(bytes(64))
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
