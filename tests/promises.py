"""The promises of docs/threat-model.md and the tests that hold them; `make promises` runs those."""

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "threat-model.md"
_ROW = re.compile(r"\| ([A-Z]\d+) \| (.+?) \| (.*`.+`) \|")
_NODE = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


class Promise(NamedTuple):
    """A line of the page: its number, its words, and file and function of each test."""

    number: str
    words: str
    tests: list[tuple[str, str]]


def promises() -> list[Promise]:
    """Return the promises in their order on the page."""
    rows = (_ROW.fullmatch(line) for line in PAGE.read_text().splitlines())
    return [Promise(row[1], row[2], _NODE.findall(row[3])) for row in rows if row]


def main() -> int:
    """Run each test of a promise once, in as many processes as there are cores; return the status.

    What was skipped held nothing, so it is told with its reason, and the status says so.
    """
    nodes = {f"{file}::{name}": None for each in promises() for file, name in each.tests}
    command = [sys.executable, "-m", "pytest", "-n", "auto", "-p", "no:benchmark", *sys.argv[1:]]
    done = subprocess.run(  # noqa: S603 - our own tests
        [*command, *nodes], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    sys.stdout.write(done.stdout)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
    print(f"{len(promises())} promises, {len(nodes)} tests: {last.strip('= ')}")  # noqa: T201 - a program
    return done.returncode or int("skipped" in last)


if __name__ == "__main__":
    sys.exit(main())
