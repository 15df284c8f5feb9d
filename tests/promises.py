"""The promises of docs/threat-model.md and the tests that hold them; `make promises` runs those."""

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "threat-model.md"
_ROW = re.compile(r"\| ([A-Z]\d+) \| (.+?) \| (.*`.+`) \|")
_NODE = re.compile(r"`(tests/[\w/]+\.py)::(\w+)(\[[^`]+\])?`")


class Promise(NamedTuple):
    """A line of the page: its number and words; of each test the file, function and parameters."""

    number: str
    words: str
    tests: list[tuple[str, str, str]]


def promises() -> list[Promise]:
    """Return the promises in their order on the page."""
    rows = (_ROW.fullmatch(line) for line in PAGE.read_text().splitlines())
    return [Promise(row[1], row[2], _NODE.findall(row[3])) for row in rows if row]


def nodes() -> list[str]:
    """Return what pytest calls the tests of all promises, each once."""
    every = (test for promise in promises() for test in promise.tests)
    return list(dict.fromkeys(f"{file}::{name}{parameters}" for file, name, parameters in every))


def main() -> int:
    """Run each test of a promise once, in as many processes as there are cores; return the status.

    What was skipped held nothing, so it is told with its reason, and the status says so.
    """
    command = [sys.executable, "-m", "pytest", "-n", "auto", "-p", "no:benchmark", *sys.argv[1:]]
    done = subprocess.run(
        [*command, *nodes()], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    sys.stdout.write(done.stdout)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
    sys.stdout.write(f"{len(promises())} promises, {len(nodes())} tests: {last.strip('= ')}\n")
    return done.returncode or int("skipped" in last)


if __name__ == "__main__":
    sys.exit(main())
