"""Tests of `make audit`: missing data do not count as absence of vulnerabilities."""

from tests.runner.cases import every_case
from tests.supply_chain.audit import CLEAN, UNKNOWN, VULNERABLE, findings

# In the format of pip-audit 2.10.
FINE = {"name": "click", "version": "8.5.1", "vulns": []}
BAD = {
    "name": "requests",
    "version": "2.19.0",
    "vulns": [
        {"id": "PYSEC-2018-28", "fix_versions": ["2.20.0"], "aliases": [], "description": ""}
    ],
}
SKIPPED = {"name": "rich", "skip_reason": "Dependency not found on PyPI and could not be audited"}


@every_case(
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
def test_audit_package_without_data_is_unknown(packages: list[object], status: int) -> None:
    """pip-audit itself exits with 0 if the index has no data on a package."""
    assert findings({"dependencies": packages, "fixes": []}).status == status
