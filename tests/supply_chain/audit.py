"""Check locked packages for known vulnerabilities: `make audit`.

pip-audit queries the package index. It prints "no known vulnerabilities" even if the index has no
data, so its result is checked for each package:

    exit status 0   data for every package, and no known vulnerability
                1   at least one known vulnerability
                3   no data for some packages
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tests.processes import run_program

CLEAN, VULNERABLE, UNKNOWN = 0, 1, 3
ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements/ci.lock", "requirements/docs.lock", "requirements/tools.lock")


class Findings(NamedTuple):
    """The findings of pip-audit.

    Attributes:
        checked: Packages with data.
        unknown: Packages without data, with the reason.
        vulnerable: A line for each vulnerability.
    """

    checked: list[str]
    unknown: list[str]
    vulnerable: list[str]

    @property
    def status(self) -> int:
        """The exit status."""
        if self.vulnerable:
            return VULNERABLE
        return UNKNOWN if self.unknown or not self.checked else CLEAN


def findings(report: dict[str, Any]) -> Findings:
    """Return the findings in a report of pip-audit (`--format json`)."""
    found = Findings([], [], [])
    for package in report["dependencies"]:
        if reason := package.get("skip_reason"):
            found.unknown.append(reason)
            continue
        name = f"{package['name']} {package['version']}"
        found.checked.append(name)
        for one in package["vulns"]:
            mended = ", ".join(one["fix_versions"]) or "no version"
            found.vulnerable.append(f"{name}: {one['id']}, mended in {mended}")
    return found


def run_pip_audit(lock: Path) -> Findings:
    """Run pip-audit on a lock; if it fails, all its packages are unknown."""
    words = ["--format=json", "--progress-spinner=off", "--require-hashes", "--disable-pip"]
    done = run_program(sys.executable, "-m", "pip_audit", *words, "-r", str(lock))
    try:
        return findings(json.loads(done.stdout))
    except ValueError:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        return Findings([], [f"pip-audit made no report: {lines[-1]}"], [])


def main() -> int:
    """Return the worst status of the locks: vulnerable, unknown, or clean."""
    parser = argparse.ArgumentParser(description="Ask for known vulnerabilities.")
    parser.add_argument("locks", nargs="*", default=LOCKS)
    statuses = set()
    for name in parser.parse_args().locks:
        found = run_pip_audit(ROOT / name)
        statuses.add(found.status)
        for line in found.vulnerable:
            sys.stdout.write(f"{name}: {line}\n")
        for line in found.unknown[:3]:
            sys.stderr.write(f"{name}: {line}\n")
        checked, unknown = len(found.checked), len(found.unknown)
        sys.stdout.write(
            f"{name}: {checked} packages looked up, {len(found.vulnerable)} vulnerabilities found\n"
        )
        if unknown:
            sys.stderr.write(f"{name}: the index has NO DATA on {unknown} packages\n")
    return next(status for status in (VULNERABLE, UNKNOWN, CLEAN) if status in statuses)


if __name__ == "__main__":
    sys.exit(main())
