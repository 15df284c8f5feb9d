"""Tables of docs/guides/testing/scenarios.md, made from the registry of scenarios and faults.

`python -m tests.docs.scenarios.scenario_tables` writes them into the page, which a test compares.
A comment before each table lists the subjects of its rows.
"""

import re
from typing import Final

from attestkit.backends.simulator.faults.fault_specs import NAMED
from attestkit.backends.simulator.faults.kms_faults import KMS_FAULTS
from attestkit.backends.simulator.scenarios.named_case import Cases
from attestkit.backends.simulator.scenarios.registry import SCENARIOS, gpu_scenarios
from tests.docs.blocks import ROOT

PAGE: Final = ROOT / "docs/guides/testing/scenarios.md"
_TABLE: Final = re.compile(r"(<!-- (scenario|fault)s: (.+) -->\n\| .*\n\|---.*\n)((?:\| .*\n)*)")


def all_cases() -> Cases:
    """Return every scenario and fault by name."""
    return {**SCENARIOS, **gpu_scenarios(), **NAMED, **KMS_FAULTS}


def subjects() -> list[tuple[str, str]]:
    """Return kind and subject of the tables' rows, in order."""
    found = _TABLE.findall(PAGE.read_text())
    return [(kind, subject) for _, kind, listed, _ in found for subject in listed.split()]


def make_page() -> str:
    """Return the page with the rows of the registry."""
    return _TABLE.sub(lambda table: table[1] + _rows(table[2], table[3].split()), PAGE.read_text())


def _rows(kind: str, listed: list[str]) -> str:
    return "".join(
        f"| `{name}` | {_outcome(case.outcome)} | {case.text} |\n"
        for name, case in all_cases().items()
        if case.kind == kind and case.subject in listed
    )


def _outcome(text: str) -> str:
    """Return an outcome, with names of exceptions as code."""
    return re.sub(r"\b\w+Error\b", r"`\g<0>`", text)


if __name__ == "__main__":
    PAGE.write_text(make_page())
