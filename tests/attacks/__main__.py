"""Run all attempts, and write docs/records/attacks.json: counts, and the outcome of each."""

import sys
from collections import Counter
from typing import TYPE_CHECKING

from tests.long_runs.outcomes import run_tests
from tests.long_runs.records import write_record

if TYPE_CHECKING:
    from tests.attacks.attempts import Attempt


def main() -> int:
    """Run them; return 1 if one succeeded."""
    outcomes = run_tests("-n", "auto", "tests/attacks/test_attempts.py").outcomes
    from tests.attacks.test_attempts import ATTEMPTS  # after pytest, which rewrites its plugins

    test = "tests/attacks/test_attempts.py::test_attempt_is_refused[{}]"
    rows = [
        {
            "surface": one.surface,
            "kind": one.kind,
            "attempt": one.name,
            "outcome": outcomes.get(test.format(_escaped(one)), "not run"),
            "reasons": list(one.reasons),
        }
        for one in ATTEMPTS
    ]
    refused = sum(row["outcome"] == "passed" for row in rows)
    figures = {
        "command": "python -m tests.attacks",
        "attempts": len(rows),
        "refused": refused,
        "by_surface": Counter(one.surface for one in ATTEMPTS),
        "by_kind": Counter(one.kind for one in ATTEMPTS),
        "list": rows,
    }
    sys.stdout.write(f"{write_record('attacks', figures)}: {refused} of {len(rows)} refused\n")
    return int(refused != len(rows))


def _escaped(attempt: "Attempt") -> str:
    """Return the name of an attempt as in the id of its test, where pytest escapes backslashes."""
    return f"{attempt.surface}: {attempt.name}".encode("unicode_escape").decode()


if __name__ == "__main__":
    sys.exit(main())
