"""`make audit` never takes silence for a clean bill of health."""

import pytest

from tests.hardening.audit import CLEAN, UNKNOWN, VULNERABLE, Findings, findings

# As pip-audit 2.10 writes them.
FINE = {"name": "click", "version": "8.5.1", "vulns": []}
BAD = {
    "name": "requests",
    "version": "2.19.0",
    "vulns": [
        {"id": "PYSEC-2018-28", "fix_versions": ["2.20.0"], "aliases": [], "description": ""}
    ],
}
SKIPPED = {"name": "rich", "skip_reason": "Dependency not found on PyPI and could not be audited"}


@pytest.mark.parametrize(
    ("packages", "status"),
    [
        ([FINE], CLEAN),
        ([FINE, BAD], VULNERABLE),
        ([BAD, SKIPPED], VULNERABLE),
        ([FINE, SKIPPED], UNKNOWN),
        ([SKIPPED], UNKNOWN),
        ([], UNKNOWN),
    ],
)
def test_a_package_nobody_told_of_is_not_clean(packages: list[object], status: int) -> None:
    """pip-audit itself ends with 0 when the index has no data on any package."""
    assert findings({"dependencies": packages, "fixes": []}).status == status


def test_a_finding_says_what_mends_it() -> None:
    """The line has package, version, the name of the vulnerability, and the mended version."""
    assert findings({"dependencies": [BAD]}) == Findings(
        ["requests 2.19.0"], [], ["requests 2.19.0: PYSEC-2018-28, mended in 2.20.0"]
    )
