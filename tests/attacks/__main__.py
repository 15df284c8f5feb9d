"""Run all attempts, and write docs/records/attacks.json: counts, and the outcome of each."""

import sys
from collections import Counter

from tests.long_runs.outcomes import run_tests
from tests.long_runs.records import write_record


def main() -> int:
    """Run them; return 1 if one succeeded."""
    outcomes = run_tests("-n", "auto", "tests/attacks/test_attempts.py").outcomes
    from tests.attacks.test_attempts import ATTEMPTS  # after pytest, which rewrites its plugins

    place = "tests/attacks/test_attempts.py::test_attempt_is_refused"
    rows = [
        {
            "surface": one.surface,
            "kind": one.kind,
            "attempt": one.name,
            "outcome": outcomes.get(f"{place}[{one.surface}: {one.name}]", "not run"),
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


if __name__ == "__main__":
    sys.exit(main())
