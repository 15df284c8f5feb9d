"""Copy of this checkout, with tests for a core that is built differently."""

import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.vectors import HAVE_SHARED, SHARED

ROOT = Path(__file__).resolve().parents[2]
_CORE_TESTS = re.compile(r"^CORE_TESTS := ((?:.*\\\n)*.*)$", re.MULTILINE)
_PLUGINS = ("-p", "no:cacheprovider", "-p", "tests.rigs.few_examples")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "node_modules", "*.so", "*.o", "_lib.c", ".*")


class Outcome(NamedTuple):
    """Result of a pytest run."""

    counts: Counter[str]  # passed, skipped, failed
    text: str  # of the failures, or of the run if it had no tests

    def __str__(self) -> str:
        return ", ".join(f"{count} {what}" for what, count in sorted(self.counts.items()))

    @property
    def good(self) -> bool:
        """Return whether tests ran and none failed."""
        return self.counts["passed"] > 0 and self.counts["failed"] == 0


def core_tests() -> list[str]:
    """Return the tests of the C core, from the Makefile."""
    found = _CORE_TESTS.search((ROOT / "Makefile").read_text())
    assert found is not None
    return found[1].replace("\\", "").split()


def copy_checkout(folder: Path) -> Path:
    """Copy the checkout without a compiled core to `folder`; the samples are accessible."""
    checkout = folder / "checkout"
    checkout.mkdir()
    for name in ("attestkit", "tests", "fuzz"):
        shutil.copytree(ROOT / name, checkout / name, ignore=_LEFT_OUT)
    for name in ("build_cffi.py", "build_sbom.py", "pyproject.toml"):
        shutil.copy(ROOT / name, checkout)
    if HAVE_SHARED:
        (folder / "shared").symlink_to(SHARED)
    return checkout


def run_tests(
    command: Sequence[str], checkout: Path, *, seconds: float, examples: int, **environment: str
) -> Outcome:
    """Run pytest in a checkout, with a limit on the examples of each property.

    `command` starts pytest, with its options.
    """
    environment["ATTESTKIT_MOST_EXAMPLES"] = str(examples)
    # Hypothesis computes tables of Unicode for seconds, and for a minute on an emulated machine.
    environment.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(ROOT / ".hypothesis"))
    report = checkout / "report.xml"
    done = subprocess.run(
        [*command, f"--junitxml={report}", "-q", *_PLUGINS],
        cwd=checkout,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    return parse_report(report, done.stdout + done.stderr)


def parse_report(report: Path, printed: str) -> Outcome:
    """Return the result in pytest's XML report; `printed` is the output of pytest."""
    if not report.exists():
        return Outcome(Counter(failed=1), printed)
    counts: Counter[str] = Counter()
    texts = []
    root = ET.fromstring(report.read_text())  # noqa: S314 - our own report
    for case in root.iter("testcase"):
        bad = [part for part in case if part.tag in ("failure", "error")]
        skipped = case.find("skipped") is not None
        counts["failed" if bad else "skipped" if skipped else "passed"] += 1
        texts += [f"{case.get('classname')}.{case.get('name')}:\n{part.text}" for part in bad]
    return Outcome(counts, "\n".join(texts) or printed)
