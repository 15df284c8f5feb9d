"""Real quotes with real collateral: same outcome, status and advisories as dcap-qvl."""

import json
from collections import Counter
from typing import Final

import pytest

from attestkit.collateral import Collateral
from attestkit.errors import AttestKitError
from attestkit.quote import Quote
from attestkit.verifier.dcap.engine import Dcap
from tests.clients.python_dcap_qvl import REJECT, verify_with_dcap_qvl
from tests.vectors import needs_shared
from tests.verifier.dcap.real_evidence import real_collateral, real_quotes

# Pairs by status, or reason of the rejection, which is the same at all three times. Quotes and
# collateral of dstack's development PKI are among them.
PAIRS: Final = {
    "UpToDate": 146,
    "ConfigurationAndSWHardeningNeeded": 1,
    "tcb_info_mismatch": 140,  # another FMSPC
    "unexpected_subject": 131,
    "cert_expired": 55,
    "tcb_not_supported": 22,
    "untrusted_root": 11,
    "quote_format": 11,
    "pck_chain_missing": 1,
}
Outcome = tuple[str, tuple[str, ...], str]


def outcome(dcap: Dcap, raw: bytes, collateral: Collateral, now: int) -> Outcome:
    """Return status and advisories of a verification, or `REJECT` and the reason."""
    try:
        found = dcap.authenticate(Quote.parse(raw), collateral, now)
    except AttestKitError as error:
        return REJECT, (), error.reason or ""
    return str(found.status), found.advisory_ids, ""


def times(collateral: Collateral) -> tuple[int, int, int]:
    """Return the first second, one in the middle, and the last one of a validity period."""
    start, end = int(collateral.valid_from.timestamp()), int(collateral.valid_until.timestamp())
    return start, (start + end) // 2, end - 1


@pytest.mark.slow
@needs_shared
def test_real_pairs_have_same_outcome_as_dcap_qvl() -> None:
    """No pair of the same TEE is of a class in which dcap-qvl differs."""
    dcap = Dcap()
    found: Counter[str] = Counter()
    pairs = 0
    for raw, file in real_quotes().items():
        tee = "TDX" if raw[4] else "SGX"
        for name, collateral in real_collateral().items():
            if json.loads(collateral.tcb_info)["id"] != tee:
                continue
            pairs += 1
            for now in times(collateral):
                status, advisories, reason = outcome(dcap, raw, collateral, now)
                theirs = verify_with_dcap_qvl(raw, collateral, None, now)
                expected = theirs.status, theirs.advisories
                assert (status, advisories) == expected, (file, name, now, reason, theirs.text)
                found[reason or status] += 1
    assert (len(real_quotes()), len(real_collateral()), pairs) == (45, 13, 518)
    assert found == {key: 3 * number for key, number in PAIRS.items()}
