"""Records of long runs, each with its commit and machine."""

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "docs" / "records"
BENCHMARKS = ROOT / "docs" / "benchmarks"
DIRTY = "-dirty"


def write_record(name: str, figures: dict[str, Any]) -> Path:
    """Write docs/records/NAME.json with the commit, the machine and the figures."""
    system = f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}"
    record = {
        "commit": commit(),
        "machine": f"{system}, Python {platform.python_version()}",
        **figures,
    }
    RECORDS.mkdir(parents=True, exist_ok=True)
    path = RECORDS / f"{name}.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="ascii")
    return path


def commit() -> str:
    """Return the commit of this checkout, marked if files other than records are modified."""
    name = _git("describe", "--always").stdout.strip()
    if not name:
        return ""
    records = (f":!{path.relative_to(ROOT)}" for path in (RECORDS, BENCHMARKS))
    return name + (DIRTY if _git("diff", "--quiet", "HEAD", "--", ".", *records).returncode else "")


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", "-C", str(ROOT), *words],
        capture_output=True,
        text=True,
        check=False,
    )
