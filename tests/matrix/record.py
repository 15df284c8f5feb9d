"""Add the results of some sessions to the record of all: python -m tests.matrix.record REPORT.

A report is what `nox --report` writes.
"""

import json
import sys
from pathlib import Path
from typing import Any

from tests.long_runs.records import RECORDS


def add_sessions(record: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    """Return the record with a report's sessions, each in place of its earlier run."""
    sessions = {
        session["signatures"][0]: session for session in (*record["sessions"], *report["sessions"])
    }
    succeeded = all(session["result"] == "success" for session in sessions.values())
    return {"result": int(succeeded), "sessions": list(sessions.values())}


def main(report: str) -> None:
    """Write docs/records/matrix.json anew."""
    path = RECORDS / "matrix.json"
    record = add_sessions(json.loads(path.read_text()), json.loads(Path(report).read_text()))
    path.write_text(json.dumps(record, indent=2))


if __name__ == "__main__":
    main(*sys.argv[1:])
