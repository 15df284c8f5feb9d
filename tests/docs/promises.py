"""The promises of docs/security/threat-model.md and their tests; `make promises` runs those."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/security/threat-model.md"
_ROW = re.compile(r"\| ([A-Z]\d+) \| (.+?) \| (.*`.+`) \|")
NODE = re.compile(r"`(tests/[\w/]+\.py)::(\w+)(\[[^`]+\])?`")


class Promise(NamedTuple):
    """A line of the page: number, text, and the file, function and parameters of each test."""

    number: str
    words: str
    tests: list[tuple[str, str, str]]


@cache
def read_tests(file: str) -> set[str]:
    """Return the names of a file's tests: functions and classes at the top level."""
    body = ast.parse((ROOT / file).read_text()).body
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {
        node.name
        for node in body
        if (isinstance(node, functions) and node.name.startswith("test_"))
        or (isinstance(node, ast.ClassDef) and node.name.startswith("Test"))
    }


def promises() -> list[Promise]:
    """Return the promises in the page's order."""
    rows = (_ROW.fullmatch(line) for line in PAGE.read_text().splitlines())
    return [Promise(row[1], row[2], NODE.findall(row[3])) for row in rows if row]


def nodes() -> list[str]:
    """Return the pytest node ids of all promises' tests, without duplicates."""
    every = (test for promise in promises() for test in promise.tests)
    return list(dict.fromkeys(f"{file}::{name}{parameters}" for file, name, parameters in every))


def main() -> int:
    """Run each test of a promise once, in one process per core; return the exit code.

    A skipped test shows nothing, so it is printed with its reason, and the exit code is not 0.
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
