"""Tests of the rules about TDs and Intel platforms, and what the presets say about them."""

from dataclasses import replace
from typing import Any

import pytest

from attestkit.errors import PolicyError, UsageError
from attestkit.verifier.claims import Claims
from attestkit.verifier.policy.appraisal_policy import PRESETS, AppraisalPolicy
from attestkit.verifier.policy.reference_values import ReferenceValues
from attestkit.verifier.policy.rules import BIT_NAMES
from attestkit.verifier.policy.td_rules import FIXED_BITS
from tests.raising import raises
from tests.runner.cases import every_case
from tests.verifier.platforms import intel
from tests.verifier.policy.policy_samples import (
    NITRO,
    SGX,
    SNP,
    TDX,
    XFAM,
    appraise,
    authenticated,
    bare_claims,
    claims,
    get_rejection_text,
    register,
    rules,
)

STRICT = AppraisalPolicy.strict()
RULES = (
    *("refuse_unnamed_td_bits", "require_fixed_td_bits", "minimum_qe_svn", "minimum_pce_svn"),
    *("refuse_dynamic_platform", "refuse_cached_keys", "refuse_smt"),
)


def field(bits: int) -> bytes:
    """Return a field of 64 bits."""
    return bits.to_bytes(8, "little")


# -- presets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_preset_refuses_sgx_unless_named(name: str) -> None:
    """SGX is opt-in in every preset: a policy has to name it."""
    policy = PRESETS[name]()
    assert {TDX, SNP, NITRO} < set(policy.platforms)
    assert SGX not in policy.platforms
    text = get_rejection_text("platform", policy, claims(SGX), None, None)
    assert "sgx is not accepted" in text
    assert appraise(policy.replace(platforms={SGX}), claims(SGX), None, None)


def test_sgx_register_requires_platform() -> None:
    """A reference value of an enclave alone does not make SGX accepted."""
    values = ReferenceValues(mrenclave=(register(0x51, 32),))
    with raises(UsageError, "conflict", start="mrenclave: "):
        AppraisalPolicy.default().replace(reference_values=values)
    assert appraise(rules(reference_values=values, platforms={SGX}), claims(SGX), None, None)


def test_preset_rules_about_tds() -> None:
    """Strict restricts the bits of a TD; no preset has another of these rules."""
    found = {name: {rule: getattr(PRESETS[name](), rule) for rule in RULES} for name in PRESETS}
    assert found["default"] == found["development"]
    assert not any(found["default"].values())
    bits = {"refuse_unnamed_td_bits": True, "require_fixed_td_bits": True}
    assert found["strict"] == found["default"] | bits


# -- bits --------------------------------------------------------------------------------------

SEPT = 1 << 28
SAMPLE_XFAM = int.from_bytes(XFAM, "little")


@every_case(
    "changes",
    [
        {"td_attributes": field(SEPT | 1 << 18)},
        {"td_attributes": field(SEPT | 1 << 61)},
        {"xfam": field(SAMPLE_XFAM | 1 << 20)},
        {"xfam": field(SAMPLE_XFAM | 1 << 63)},
        {"seam_attributes": field(1)},
        {"td_attributes": None},
        {"xfam": None},
        {"seam_attributes": None},
    ],
)
def test_unnamed_bit_is_rejected(changes: dict[str, Any]) -> None:
    """A bit without a name is rejected by strict, and by the rule alone; not by default."""
    evidence = claims(**changes)
    alone = rules(refuse_unnamed_td_bits=True)
    for policy in (STRICT, STRICT.replace(require_fixed_td_bits=False), alone):
        reason = "td_debug" if evidence.get("td_attributes") is None else "attributes"
        assert next(iter(changes)) in get_rejection_text(reason, policy, evidence)
    if None not in changes.values():
        assert appraise(AppraisalPolicy.default(), evidence)
        assert appraise(AppraisalPolicy.development(), evidence)


def test_named_bits_are_accepted() -> None:
    """Every bit with a name passes the rule, except those that mean debugging."""
    policy = rules(refuse_unnamed_td_bits=True)
    attributes = sum(bits for bits in BIT_NAMES["td_attributes"].values() if bits > 0xFF)
    xfam = sum(BIT_NAMES["xfam"].values())
    assert appraise(policy, claims(td_attributes=field(attributes), xfam=field(xfam)))


@every_case(
    ("name", "bits"),
    [
        ("td_attributes", 0),  # SEPT_VE_DISABLE is clear
        *(("td_attributes", SEPT | 1 << bit) for bit in (16, 17, 27, 29, 31, 62)),
        ("xfam", SAMPLE_XFAM & ~1),
        ("xfam", SAMPLE_XFAM & ~2),
        *(("xfam", SAMPLE_XFAM | 1 << bit) for bit in (3, 4, 10, 13, 16, 19)),
    ],
)
def test_bit_outside_of_fixed_masks_is_rejected(name: str, bits: int) -> None:
    """Strict has the masks of go-tdx-guest, and requires SEPT_VE_DISABLE."""
    changes: dict[str, Any] = {name: field(bits)}
    evidence = claims(**changes)
    for policy in (STRICT, rules(require_fixed_td_bits=True)):
        text = get_rejection_text("attributes", policy, evidence)
        assert text.endswith("drop require_fixed_td_bits from the policy")
    assert appraise(STRICT.replace(require_fixed_td_bits=False), evidence)
    assert appraise(AppraisalPolicy.default(), evidence)


def test_bits_of_fixed_masks_are_accepted() -> None:
    """The largest values within the masks are accepted; they are those of go-tdx-guest 0.3.1."""
    all_bits = (1 << 64) - 1
    allowed = {name: all_bits & ~mask.must_be_clear for name, mask in FIXED_BITS.items()}
    assert allowed == {"td_attributes": 1 << 28 | 1 << 30 | 1 << 63, "xfam": 0x6DBE7}
    assert FIXED_BITS["xfam"].must_be_set == 3
    largest: dict[str, Any] = {name: field(bits) for name, bits in allowed.items()}
    assert appraise(STRICT, claims(**largest))
    assert appraise(STRICT, claims(xfam=field(3)))


def test_bit_rules_do_not_apply_to_other_platforms() -> None:
    """Strict accepts evidence of platforms that have no TD attributes."""
    for platform in (SNP, NITRO):
        status = None if platform == NITRO else authenticated().status
        assert appraise(STRICT, claims(platform), authenticated(status=status), None)


@pytest.mark.parametrize("xfam", [SAMPLE_XFAM | 1 << 19, SAMPLE_XFAM | 1 << 40])
def test_verify_xfam_by_preset(xfam: int) -> None:
    """Signed evidence with a fixed or unnamed XFAM bit is refused by strict only."""
    evidence = intel.evidence(xfam=field(xfam)).to_bytes()
    for name in ("default", "development"):
        intel.verifier(policy=name).verify(evidence, report_data=intel.NONCE)
    with raises(PolicyError, "attributes", start="xfam: "):
        intel.verifier(policy="strict").verify(evidence, report_data=intel.NONCE)


def test_verify_unnamed_td_attribute_by_preset() -> None:
    """Signed evidence with an unnamed TD attribute is refused by strict only."""
    evidence = intel.evidence(td_attributes=field(SEPT | 1 << 18)).to_bytes()
    intel.verifier(policy="default").verify(evidence, report_data=intel.NONCE)
    with raises(PolicyError, "attributes", start="td_attributes: "):
        intel.verifier(policy="strict").verify(evidence, report_data=intel.NONCE)


# -- quoting enclave and PCE -------------------------------------------------------------------


def with_svns(**svns: int) -> Claims:
    """Return claims with SVNs as attributes."""
    found = claims()
    more = ((name, svn.to_bytes(2, "little")) for name, svn in svns.items())
    return replace(found, attributes=(*found.attributes, *more))


def test_minimum_qe_svn() -> None:
    """The quoting enclave's SVN is that of its report, and of the header of a version 3 quote."""
    policy = rules(minimum_qe_svn=8)
    for svns in ({"qe_svn": 8}, {"qe_svn": 9, "header_qe_svn": 8}):
        assert "QE SVN 8 is at least 8" in appraise(policy, with_svns(**svns))
    for svns in ({"qe_svn": 7}, {"qe_svn": 8, "header_qe_svn": 7}, {}):
        text = get_rejection_text("minimum_svn", policy, with_svns(**svns))
        assert "must be at least 8" in text
        assert appraise(rules(), with_svns(**svns))


def test_minimum_pce_svn() -> None:
    """The PCE's SVN is that of the PCK certificate, and of the header of a version 3 quote."""
    policy = rules(minimum_pce_svn=13)
    verified = authenticated()
    good = verified._replace(tcb=replace(verified.tcb, components=(("PCESVN", 13),)))
    low = verified._replace(tcb=replace(verified.tcb, components=(("PCESVN", 12),)))
    assert "PCE SVN 13 is at least 13" in appraise(policy, None, good)
    assert appraise(policy, with_svns(header_pce_svn=13), good)
    for evidence, found in (
        (claims(), low),
        (with_svns(header_pce_svn=12), good),
        (claims(), verified._replace(tcb=replace(verified.tcb, components=()))),
    ):
        get_rejection_text("minimum_svn", policy, evidence, found)
        assert appraise(rules(), evidence, found)


@pytest.mark.parametrize("platform", [SNP, NITRO])
def test_minimum_svn_without_enclave_is_rejected(platform: str) -> None:
    """A platform without quoting enclave has no such SVN, and is rejected."""
    verified = authenticated(platform)
    for rule in ("minimum_qe_svn", "minimum_pce_svn"):
        get_rejection_text("minimum_svn", rules(**{rule: 0}), claims(platform), verified)


def test_verify_minimum_enclave_svns() -> None:
    """Signed evidence has both SVNs; one more than its own is refused."""
    evidence = intel.evidence()
    assert evidence.quote is not None
    result = intel.verifier().verify(evidence, report_data=intel.NONCE)
    qe, pce = evidence.quote.qe_report.isv_svn, dict(result.tcb.components)["PCESVN"]
    assert result.claims["qe_svn"] == qe.to_bytes(2, "little")
    assert "header_qe_svn" not in result.claims  # reserved in version 4
    exact = rules(minimum_qe_svn=qe, minimum_pce_svn=pce)
    intel.verifier(policy=exact).verify(evidence, report_data=intel.NONCE)
    for policy in (exact.replace(minimum_qe_svn=qe + 1), exact.replace(minimum_pce_svn=pce + 1)):
        with raises(PolicyError, "minimum_svn"):
            intel.verifier(policy=policy).verify(evidence, report_data=intel.NONCE)


# -- platform flags ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "name", "reason"),
    [
        ("refuse_dynamic_platform", "dynamic_platform", "dynamic_platform"),
        ("refuse_cached_keys", "cached_keys", "cached_keys"),
        ("refuse_smt", "smt_enabled", "smt"),
    ],
)
def test_platform_flag(rule: str, name: str, reason: str) -> None:
    """A flag that is on, or unknown, is rejected by its rule only."""
    policy, verified = rules(**{rule: True}), authenticated()
    for value in (True, None):
        flags: dict[str, Any] = {name: value}
        found = verified._replace(tcb=replace(verified.tcb, **flags))
        assert "must be off" in get_rejection_text(reason, policy, None, found)
        for preset in PRESETS.values():
            assert appraise(preset(), None, found)
    flags = {name: False}
    off = verified._replace(tcb=replace(verified.tcb, **flags))
    assert appraise(policy, bare_claims(), off, None)
    get_rejection_text(reason, policy, claims(SNP))


# -- construction ------------------------------------------------------------------------------


@every_case(
    ("rule", "value", "reason"),
    [
        *((name, 1, "wrong_type") for name in RULES if not name.startswith("minimum")),
        ("minimum_qe_svn", True, "out_of_range"),
        ("minimum_qe_svn", -1, "out_of_range"),
        ("minimum_pce_svn", 65_536, "out_of_range"),
        ("minimum_pce_svn", "1", "out_of_range"),
    ],
)
def test_invalid_td_rule_raises_usage_error(rule: str, value: object, reason: str) -> None:
    """A rule of a wrong type or range is an error that starts with its name."""
    with raises(UsageError, reason, start=f"{rule}: "):
        rules(**{rule: value})
