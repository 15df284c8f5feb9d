"""Ask for known vulnerabilities of what is locked: `make audit`.

pip-audit asks the package index. Where that has no such data pip-audit says "no known
vulnerabilities" all the same, so this looks at what it was told of each package:

    exit status 0   it was told of every one, and none has a vulnerability that is known
                1   at least one has
                3   it was not told of some: nothing is known of those
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

CLEAN, VULNERABLE, UNKNOWN = 0, 1, 3
ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements/ci.lock", "requirements/docs.lock", "requirements/tools.lock")


class Findings(NamedTuple):
    """What pip-audit found out.

    Attributes:
        told: Packages that it was told of.
        unknown: Those that it was not, with its reason.
        vulnerable: A line for each vulnerability.
    """

    told: list[str]
    unknown: list[str]
    vulnerable: list[str]

    @property
    def status(self) -> int:
        """The exit status."""
        if self.vulnerable:
            return VULNERABLE
        return UNKNOWN if self.unknown or not self.told else CLEAN


def findings(report: dict[str, Any]) -> Findings:
    """Return what a report of pip-audit says (`--format json`)."""
    found = Findings([], [], [])
    for package in report["dependencies"]:
        if reason := package.get("skip_reason"):
            found.unknown.append(reason)
            continue
        name = f"{package['name']} {package['version']}"
        found.told.append(name)
        for one in package["vulns"]:
            mended = ", ".join(one["fix_versions"]) or "no version"
            found.vulnerable.append(f"{name}: {one['id']}, mended in {mended}")
    return found


def ask(lock: Path) -> Findings:
    """Run pip-audit on a lock; without an answer nothing is known of any package of it."""
    words = ["--format=json", "--progress-spinner=off", "--require-hashes", "--disable-pip"]
    done = subprocess.run(
        [sys.executable, "-m", "pip_audit", *words, "-r", str(lock)],
        capture_output=True,  # its last line on stderr says that none are known, whatever it knew
        text=True,
        check=False,
    )
    try:
        return findings(json.loads(done.stdout))
    except ValueError:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        return Findings([], [f"pip-audit made no report: {lines[-1]}"], [])


def main() -> int:
    """Return the worst that there is of the locks: a vulnerability, nothing known, or neither."""
    parser = argparse.ArgumentParser(description="Ask for known vulnerabilities.")
    parser.add_argument("locks", nargs="*", default=LOCKS)
    statuses = set()
    for name in parser.parse_args().locks:
        found = ask(ROOT / name)
        statuses.add(found.status)
        for line in found.vulnerable:
            sys.stdout.write(f"{name}: {line}\n")
        for line in found.unknown[:3]:
            sys.stderr.write(f"{name}: {line}\n")
        told, unknown = len(found.told), len(found.unknown)
        sys.stdout.write(
            f"{name}: {told} packages looked up, {len(found.vulnerable)} vulnerabilities found\n"
        )
        if unknown:
            sys.stderr.write(f"{name}: NOTHING IS KNOWN of {unknown}: nobody told of them\n")
    return next(status for status in (VULNERABLE, UNKNOWN, CLEAN) if status in statuses)


if __name__ == "__main__":
    sys.exit(main())
