"""Run every independent program over what attestkit makes, and print what each of them says.

Usage, in a checkout: make judges [ARGS='-k tpm']. The record is docs/records/judges.json.
"""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from tests.long_runs.outcomes import Outcomes, run_tests
from tests.long_runs.records import ROOT, write_record

JUDGES: Final[list[dict[str, Any]]] = json.loads(
    Path(__file__).with_name("judges.json").read_text()
)
"""Each program, what it is given, where its version is found, and the tests that run it.

A version is "python NAME" (a distribution), "npm NAME", or a command whose output has it.
"""


def find_version(text: str) -> str:
    """Return the version of a program, or "not here"."""
    kind, _, name = text.partition(" ")
    if not name:
        return text
    if kind == "python":
        try:
            return version(name)
        except PackageNotFoundError:
            return "not here"
    if kind == "npm":
        path = ROOT / "tests/clients/js/node_modules" / name / "package.json"
        return str(json.loads(path.read_text())["version"]) if path.exists() else "not here"
    words = text.split()
    if shutil.which(words[0]) is None:
        return "not here"
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    found = re.search(r"\d+(\.\d+)+[\w.-]*", done.stdout or done.stderr)
    return found[0] if found and not done.returncode else "not here"


def summarise(judge: dict[str, Any], outcomes: Outcomes) -> dict[str, Any] | None:
    """Return the row of a judge; None if none of its tests was selected."""
    ids = [
        one
        for one in outcomes.outcomes
        if any(
            one == path or one.startswith((f"{path}::", f"{path}/", f"{path}["))
            for path in judge["tests"]
        )
    ]
    if not ids:
        return None
    counted = Counter(outcomes.outcomes[one] for one in ids)
    said = "refused" if counted["failed"] else "accepted" if counted["passed"] else "not here"
    return {
        "program": judge["name"],
        "version": find_version(judge["version"]),
        "given": judge["given"],
        "outcome": said,
        "tests": dict(sorted(counted.items())),
        "reasons": sorted({outcomes.reasons[one] for one in ids if one in outcomes.reasons}),
    }


def main(arguments: list[str]) -> int:
    """Run them; return 1 if a program refused something."""
    tests = sorted({test for judge in JUDGES for test in judge["tests"]})
    outcomes = run_tests(*tests, *arguments)
    rows = [row for judge in JUDGES if (row := summarise(judge, outcomes)) is not None]
    for row in rows:
        counts = ", ".join(f"{count} {name}" for name, count in row["tests"].items())
        line = f"{row['outcome']:9} {row['program']:34} {row['version']:24.24} {counts}"
        lines = [line, *(f"          {reason[:140]}" for reason in row["reasons"])]
        sys.stdout.write("\n".join(lines) + "\n")
    if not arguments:
        write_record("judges", {"command": "python -m tests.judges", "judges": rows})
    return int(any(row["outcome"] == "refused" for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
