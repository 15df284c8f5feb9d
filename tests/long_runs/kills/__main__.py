"""Kill boots and servers at random moments, and check that nothing is lost: `make kills`.

Half of the kills are in boots of simulated guests with a simulated KMS, half in servers to which
clients emit events, or that start. After each, no acknowledged event is lost, the log replays to
the register, the keys are the same, and boot or start can be repeated. The record,
docs/records/kills.json, has the kills by phase; with --seconds or fewer runs none is written.
"""

import argparse
import math
import sys
import time
from collections import Counter

from tests.long_runs.kills.boots import kill_boots
from tests.long_runs.kills.servers import kill_servers
from tests.long_runs.records import write_record

RUNS = 1000


def main() -> int:
    """Return 0 if nothing was lost."""
    parser = argparse.ArgumentParser(description="Kill processes, and see what they lose.")
    parser.add_argument("--runs", type=int, default=RUNS, help="kills; fewer write no record")
    parser.add_argument("--seconds", type=float, help="stop after so many, and record nothing")
    options = parser.parse_args()
    phases: Counter[str] = Counter()
    events: Counter[str] = Counter()
    half = math.inf if options.seconds is None else options.seconds / 2
    begin = time.monotonic()
    failures = kill_boots(options.runs // 2, half, phases)
    failures += kill_servers(options.runs - phases.total(), half, phases, events)
    figures = {
        "command": f"python -m tests.long_runs.kills --runs {options.runs}",
        "kills": phases.total(),
        "by_phase": dict(sorted(phases.items())),
        "events": dict(events),
        "failures": failures,
        "seconds": round(time.monotonic() - begin),
    }
    sys.stdout.write("".join(f"{name}: {value}\n" for name, value in figures.items()))
    if options.seconds is None and options.runs >= RUNS:
        write_record("kills", figures)
    is_half = any(not any(phase.startswith(part) for phase in phases) for part in ("boot", "Emit"))
    return 1 if failures or is_half else 0


if __name__ == "__main__":
    sys.exit(main())
