"""DCAP verification of the shared vectors: outcome, status, advisories, dates and reason."""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit.collateral import Collateral
from attestkit.errors import AttestKitError, FormatError
from attestkit.quote import Quote
from attestkit.verifier.claims import Authenticated
from attestkit.verifier.dcap.engine import Dcap
from tests.runner.cases import every_case
from tests.vectors import SHARED, needs_shared

VECTORS: Final = SHARED / "vectors"
# Quote.parse rejects these first, with reasons of its own.
FORMAT_REASONS: Final = {
    "attestation-key-unbound": "qe_binding",
    "vendor-id-wrong": "qe_vendor_id",
    "truncated": "sig_data_truncated",
    "td15-extended": "body_type",
    "byte-behind": "trailing_bytes",
}
DATES: Final = ("earliest_issue", "latest_issue", "earliest_expiration")
# The vectors allow either of two reasons.
OTHER_REASONS: Final = {"wrong-root": "untrusted_root"}


def load_cases(name: str) -> list[Any]:
    """Return a parameter for each case of a folder; none if the vectors are missing."""
    path = VECTORS / name / "cases.json"
    if not path.exists():
        return []
    cases = json.loads(path.read_text())["cases"]
    return [pytest.param(path.parent, case, id=case["id"]) for case in cases]


def authenticate(folder: Path, case: dict[str, Any]) -> Authenticated:
    """Verify a case with an engine of its own."""
    quote = Quote.parse((folder / case["quote"]).read_bytes())
    collateral = Collateral.load(folder / case["collateral"])
    return Dcap((folder / case["root"]).read_bytes()).authenticate(quote, collateral, case["now"])


def describe(found: Authenticated) -> dict[str, object]:
    """Return what the vectors expect of accepted evidence."""
    tcb = found.tcb
    assert tcb.date is not None
    assert tcb.qe_date is not None
    assert tcb.collateral is not None
    dates = {
        name: moment.isoformat().replace("+00:00", "Z")
        for name, moment in (
            ("tcb_date", tcb.date),
            ("qe_date", tcb.qe_date),
            *((name, tcb.collateral[name]) for name in DATES),
        )
    }
    return {
        "outcome": "accept",
        "status": str(found.status),
        "advisory_ids": list(found.advisory_ids),
        "evaluation_data_number": tcb.evaluation_data_number,
        "tcb_date": dates.pop("tcb_date"),
        "qe_date": dates.pop("qe_date"),
        "qe_status": str(tcb.qe_status),
        "dates": dates,
    }


@needs_shared
@every_case(("folder", "case"), [*load_cases("dcap"), *load_cases("simulated-pki")])
def test_vector_has_expected_outcome(folder: Path, case: dict[str, Any]) -> None:
    """Each case is accepted with the expected facts, or rejected with the expected reason."""
    expect, name = case["expect"], case["id"]
    if expect["outcome"] == "accept":
        found = describe(authenticate(folder, case))
        assert found | expect == found
        return
    with pytest.raises(AttestKitError) as caught:
        authenticate(folder, case)
    if name in FORMAT_REASONS:
        assert isinstance(caught.value, FormatError)
        assert caught.value.reason == FORMAT_REASONS[name]
    else:
        assert caught.value.reason == OTHER_REASONS.get(name, expect["reason"])
