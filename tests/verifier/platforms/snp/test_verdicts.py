"""Reports of a simulated AMD, of all versions, products and kinds of keys, with their verdicts.

The reports, and the results of go-sev-guest for them, are in the shared samples.
"""

import json
from datetime import datetime
from typing import Any, Final

import pytest

from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import Evidence, SevSnp, Stack
from attestkit.errors import (
    AttestKitError,
    FormatError,
    PolicyError,
    SignatureError,
    UnsupportedError,
)
from attestkit.verifier import AppraisalPolicy, AttestationResult, Verifier
from tests.runner.cases import every_case
from tests.vectors import data, needs_shared

FOLDER: Final = "snp/go-sev-guest"
VERDICTS: Final[dict[str, Any]] = json.loads(data(f"{FOLDER}/expected.json") or b"{}")
CASES: Final[list[dict[str, Any]]] = VERDICTS.get("cases", [])
# Errors by the names of refusals in the samples.
ERRORS: Final[dict[str, tuple[type[AttestKitError], set[str]]]] = {
    "chip_id_mismatch": (SignatureError, {"chip_id_mismatch"}),
    "chip_key_masked": (PolicyError, {"chip_key_masked"}),
    "debug": (PolicyError, {"debug"}),
    "migration_agent": (PolicyError, {"migration_agent"}),
    "policy": (FormatError, {"wrong_value"}),
    "product_mismatch": (SignatureError, {"product_mismatch"}),
    "reserved": (FormatError, {"wrong_value"}),
    "signature_algorithm": (FormatError, {"unsupported_algorithm"}),
    "tcb_mismatch": (SignatureError, {"tcb_mismatch"}),
    "tcb_status": (PolicyError, {"tcb_status"}),
    "unknown_product": (UnsupportedError, {"feature"}),
    "version": (FormatError, {"unsupported_version"}),
    "vmpl": (AttestKitError, {"vmpl", "wrong_value"}),  # 0xFFFFFFFF is malformed
}


def file_of(case: dict[str, Any], name: str) -> bytes:
    """Return the content of a file of a case."""
    return data(f"{FOLDER}/{case[name]}")


def evidence_of(case: dict[str, Any]) -> Attestation:
    """Return the evidence of a case, with the certificates below the root."""
    platform = SevSnp(
        file_of(case, "report"), (file_of(case, "authority"), file_of(case, "leaf")), ""
    )
    return Attestation(Evidence(platform, Stack(bytes.fromhex(VERDICTS["report_data"]), (), "")))


def verify(case: dict[str, Any]) -> AttestationResult:
    """Verify the evidence of a case under its root, by a policy that accepts its VLEK."""
    policy = AppraisalPolicy.default().replace(vlek_providers={"go-sev-guest"})
    return Verifier(trust_anchor=file_of(case, "root"), policy=policy).verify(
        evidence_of(case),
        report_data=bytes.fromhex(VERDICTS["report_data"]),
        now=datetime.fromisoformat(VERDICTS["judge_at"].replace("Z", "+00:00")),
    )


@needs_shared
@every_case("case", CASES, ids=[case["name"] for case in CASES])
def test_snp_report_has_expected_verdict(case: dict[str, Any]) -> None:
    """The default policy accepts what it should, and refuses the rest with the reason."""
    if case["verdict"] == "accept":
        result = verify(case)
        assert result.simulated
        assert result.claims.platform == "dstack-amd-sev-snp"
        return
    kind, reasons = ERRORS[case["reason"]]
    with pytest.raises(kind) as caught:
        verify(case)
    assert caught.value.reason in reasons


@needs_shared
def test_snp_verdicts_are_at_least_as_strict_as_go_sev_guest() -> None:
    """Reports that go-sev-guest refuses are accepted only in AMD's newer forms."""
    assert len(CASES) == 74
    laxer = {
        case["name"]
        for case in CASES
        if case["verdict"] == "accept" and not case["go_sev_guest_0_15_0"]["accepts"]
    }
    unknown_to_it = {case["name"] for case in CASES if "does not know" in case.get("note", "")}
    assert laxer <= unknown_to_it | {"Genoa-v3-VCEK-fms-bergamo"}
