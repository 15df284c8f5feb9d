"""Tests of error messages of `attestkit.verifier`: subject, problem, value and remedy."""

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from attestkit.errors import AttestKitError
from attestkit.verifier import AppraisalPolicy, BitMask, EvidenceBundle, Verifier
from attestkit.verifier.dcap.authenticate import Dcap
from attestkit.verifier.ear.result_token import MAX_TOKEN
from attestkit.verifier.platforms.nitro import Nitro
from attestkit.verifier.platforms.snp import Snp
from tests.untyped import untyped
from tests.verifier import parcels
from tests.verifier.ear.ears import NOW, create_ear, read
from tests.verifier.platforms import amd, aws
from tests.verifier.policy.policy_samples import NITRO, appraise, authenticated, claims, rules

LATE = aws.NOW + timedelta(hours=2)
MESSAGES: list[tuple[Callable[[], object], str]] = [
    # Arguments
    (
        lambda: Verifier(policy=untyped("strict")),
        (
            "policy: wrong type: str, must be an AppraisalPolicy; use AppraisalPolicy.strict(), "
            "AppraisalPolicy.default(), AppraisalPolicy.development(), or AppraisalPolicy.load"
        ),
    ),
    (
        lambda: Verifier(untyped(5)),
        "trust anchor: wrong type: int, must be bytes or str",
    ),
    (
        lambda: parcels.verifier(collateral=None).verify(
            parcels.evidence().to_bytes(), report_data=None
        ),
        (
            "collateral: missing, and required for an SGX or TDX quote; pass it, or a PCCS URL to "
            "fetch it from"
        ),
    ),
    (
        lambda: Dcap().precheck(untyped(None), None, -1),
        "now: out of range: -1, must be in the years 1970 to 9999",
    ),
    (
        lambda: EvidenceBundle(b"", None, NOW),
        "evidence: wrong size: 0 bytes, must be 1 to 10485760",
    ),
    (
        lambda: EvidenceBundle(b"x", None, datetime.fromisoformat("2026-09-21")),
        "at: datetime without time zone",
    ),
    # Policies
    (
        lambda: AppraisalPolicy.from_toml("preset = 'strict'\ncompose_hsah = 1", "site.toml"),
        'site.toml: compose_hsah: unknown key; did you mean "compose_hash"?',
    ),
    (
        lambda: AppraisalPolicy.from_toml("preset = 'strict'\napp_id = '0x'", "site.toml"),
        "site.toml: app_id: invalid hex: '0x', must be 40 hex digits (20 bytes), or a list of such",
    ),
    (
        lambda: BitMask(must_be_set=6, must_be_clear=12),
        "bit mask: bit 2 is in must_be_set and in must_be_clear",
    ),
    (
        lambda: appraise(rules(minimum_svns=(("PCE", 14),))),
        (
            "component PCE: SVN is 13, must be at least 14; update the platform's firmware, or "
            "lower the minimum"
        ),
    ),
    (
        lambda: appraise(rules(device_id=(bytes(32),)), claims(NITRO), authenticated(status=None)),
        (
            f"device: must be {bytes(32).hex()}, but dstack-nitro-enclave evidence does not name "
            "it; drop device_id from the policy, or have the host unmask the chip id"
        ),
    ),
    # Evidence
    (
        lambda: Nitro(aws.root()).authenticate(aws.document(), LATE),
        (
            f"Nitro document: made {aws.NOW:%Y-%m-%d %H:%M:%S} UTC, not within 3600 s before or "
            f"300 s after {LATE:%Y-%m-%d %H:%M:%S}; request a new one from the enclave"
        ),
    ),
    (
        lambda: Snp(amd.ark()).authenticate(amd.evidence(amd.report({0x30: b"\1"})), amd.NOW),
        "SEV-SNP report: not from VMPL 0; request it at VMPL 0",
    ),
    # Signed results
    (
        lambda: read(create_ear(), nonce=bytes(8)),
        "EAR: another nonce than expected; request a new EAR",
    ),
    (
        lambda: read(b"e" * (MAX_TOKEN + 1)),
        f"EAR: too large: {MAX_TOKEN + 1} bytes, at most {MAX_TOKEN}",
    ),
]


@pytest.mark.parametrize(("call", "text"), MESSAGES, ids=range(len(MESSAGES)))
def test_error_text_names_subject_value_and_remedy(call: Callable[[], object], text: str) -> None:
    """An error names its subject, what is wrong with it, and what to do."""
    with pytest.raises(AttestKitError) as caught:
        call()
    assert str(caught.value) == text
