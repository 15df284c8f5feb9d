"""Tests of the SEV-SNP rules of a policy: launch, guest policy, host and firmware."""

from dataclasses import replace
from typing import Any

import pytest

from attestkit.errors import PolicyError, UsageError
from attestkit.verifier.claims import Tcb
from attestkit.verifier.policy.appraisal_policy import PRESETS, AppraisalPolicy
from attestkit.verifier.policy.reference_values import ReferenceValues
from attestkit.verifier.policy.rules import BitMask
from tests.raising import raises
from tests.runner.cases import every_case
from tests.verifier.policy.policy_samples import (
    ATTRIBUTES,
    SGX,
    SNP,
    SNP_SVNS,
    TDX,
    appraise,
    appraise_in_steps,
    authenticated,
    claims,
    create_snp_policy_with_every_rule,
    get_rejection_text,
    register,
    result,
    rules,
)

SMT, CXL = 1 << 16, 1 << 21


def little(value: int, size: int = 8) -> bytes:
    """Return a number in the report's byte order."""
    return value.to_bytes(size, "little")


# Rule, its accepted and its refused claims, and the reason of the refusal.
REFUSED: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = [
    ({}, {"sev_features": little(0x21)}, {"sev_features": little(0x3)}, "sev_features"),
    (
        {"sev_features": (0x201,)},
        {"sev_features": little(0x201)},
        {"sev_features": little(0x1)},
        "sev_features",
    ),
    ({"sev_features": None}, {"sev_features": little(0x3F)}, {"policy": None}, "debug"),
    ({}, {}, {"sev_features": None}, "sev_features"),  # a verified image has a launch
    ({"vcpus": (2, 4)}, {"vcpus": little(4, 4)}, {"vcpus": little(3, 4)}, "vcpus"),
    ({"vcpus": (2,)}, {}, {"vcpus": None}, "vcpus"),
    ({"vcpu_type": ("EPYC-Milan",)}, {}, {"vcpu_type": b"EPYC-Rome"}, "vcpu_type"),
    ({"vcpu_type": ("EPYC-Milan",)}, {}, {"vcpu_type": None}, "vcpu_type"),
    (
        {"guest_policy": BitMask(must_be_set=SMT, must_be_clear=CXL)},
        {"policy": little(0x2_0000 | SMT)},
        {"policy": little(0x2_0000 | SMT | CXL)},
        "attributes",
    ),
    (
        {"guest_policy": BitMask(must_be_set=1 << 20)},
        {"policy": little(0x12_0000)},
        {"policy": little(0x3_0000)},
        "attributes",
    ),
    (
        {"platform_info": BitMask(must_be_set=1 << 5)},
        {"platform_info": little(0x21)},
        {"platform_info": little(0x01)},
        "attributes",
    ),
    (
        {"platform_info": BitMask(must_be_clear=1 << 1)},
        {},
        {"platform_info": little(0x02)},
        "attributes",
    ),
    ({"platform_info": BitMask(must_be_clear=2)}, {}, {"platform_info": None}, "attributes"),
    (
        {"minimum_guest_svn": 256},
        {"guest_svn": little(256, 4)},
        {"guest_svn": little(255, 4)},
        "minimum_svn",
    ),
    ({"minimum_guest_svn": 0}, {}, {"guest_svn": None}, "minimum_svn"),
    (
        {"minimum_guest_abi": "1.55"},
        {"policy": little(0x3_0200)},
        {"policy": little(0x3_0136)},
        "minimum_version",
    ),
    (
        {"minimum_firmware": "1.55"},
        {"current_version": bytes((1, 55, 0)), "committed_version": bytes((1, 55, 0))},
        {"current_version": bytes((1, 54, 255)), "committed_version": bytes((1, 54, 255))},
        "minimum_version",
    ),
    (
        {"minimum_firmware": "1.55.29", "refuse_provisional_firmware": False},
        {"current_version": bytes((2, 0, 0))},
        {"current_version": bytes((2, 0, 0)), "committed_version": bytes((1, 55, 28))},
        "minimum_version",
    ),
    ({"minimum_firmware": "0.0"}, {}, {"committed_version": None}, "minimum_version"),
    ({}, {}, {"current_version": bytes((1, 55, 30))}, "provisional_firmware"),
    ({}, {}, {"current_version": bytes((1, 56, 29))}, "provisional_firmware"),
    (
        {},
        {},
        {"current_tcb": bytes((4, 0, 0, 0, 0, 0, 24, 213))},
        "provisional_firmware",
    ),
    ({}, {}, {"committed_tcb": None}, "provisional_firmware"),
    (
        {"refuse_provisional_firmware": False},
        {"current_tcb": bytes((4, 0, 0, 0, 0, 0, 24, 213))},
        {"committed_tcb": bytes((4, 1, 0, 0, 0, 0, 23, 213))},
        "tcb_status",
    ),
    (
        {"refuse_provisional_firmware": False},
        {"current_version": bytes((1, 55, 30))},
        {"current_version": bytes((1, 55, 28))},
        "tcb_status",
    ),
    (
        {"refuse_provisional_firmware": False},
        {"reported_tcb": bytes((3, 0, 0, 0, 0, 0, 23, 213))},
        {"reported_tcb": bytes((4, 0, 0, 0, 0, 0, 23, 214))},
        "tcb_status",
    ),
    *(
        (
            {"reference_values": ReferenceValues(**{name: (ATTRIBUTES[SNP][name],)})},
            {},
            {name: b"\xee" * len(ATTRIBUTES[SNP][name])},
            "reference_value",
        )
        for name in ("family_id", "image_id", "report_id", "report_id_ma", "author_key_digest")
    ),
]


@every_case(("rule", "good", "bad", "reason"), REFUSED)
def test_snp_rule_violation_is_rejected(
    rule: dict[str, Any], good: dict[str, Any], bad: dict[str, Any], reason: str
) -> None:
    """Each rule accepts claims that meet it, and rejects others with its reason."""
    policy = rules(**rule)
    assert appraise(policy, claims(SNP, **good), authenticated(SNP))
    get_rejection_text(reason, policy, claims(SNP, **bad), authenticated(SNP))


def test_snp_rules_have_steps() -> None:
    """Each rule that was met is a step."""
    steps = appraise_in_steps(
        create_snp_policy_with_every_rule(), claims(SNP), authenticated(SNP), None
    )
    passed = [step.check for step in steps if step.outcome == "passed"]
    assert passed[passed.index("tcb_status") + 1 :] == [
        "minimum_svn",  # minimum_tcb
        "sev_features",
        "vcpus",
        "vcpu_type",
        "attributes",
        "attributes",
        "minimum_svn",
        "minimum_version",
        "minimum_version",
        "minimum_version",
        "provisional_firmware",
    ]


@pytest.mark.parametrize("preset", PRESETS.values())
def test_preset_accepts_sev_features_of_snp_and_debug_swap(preset: Any) -> None:
    """Every preset accepts SEV_FEATURES 0x1 and 0x21, and no other bit of the 64."""
    for bit in range(64):
        for features in (1 << bit, 1 | 1 << bit):
            evidence = claims(SNP, sev_features=little(features))
            if features in {0x1, 0x21}:
                assert appraise(preset(), evidence, authenticated(SNP))
            else:
                get_rejection_text("sev_features", preset(), evidence, authenticated(SNP))


def test_sev_features_are_not_required_without_image() -> None:
    """Evidence without verified OS image has no SEV_FEATURES; `os_image_hash` rejects it."""
    bare = claims(SNP, sev_features=None, vcpus=None, vcpu_type=None, os_image_hash=b"")
    assert appraise(AppraisalPolicy.strict(), bare, authenticated(SNP))
    policy = rules(os_image_hash=(register(1, 32),))
    get_rejection_text("os_image_hash", policy, bare, authenticated(SNP))


@pytest.mark.parametrize("name", ["strict", "default"])
def test_preset_refuses_provisional_firmware(name: str) -> None:
    """Only the development preset accepts firmware that is not committed."""
    provisional = claims(SNP, current_version=bytes((1, 55, 30)))
    get_rejection_text("provisional_firmware", PRESETS[name](), provisional, authenticated(SNP))
    assert appraise(PRESETS["development"](), provisional, authenticated(SNP))


@pytest.mark.parametrize("platform", [TDX, SGX])
def test_snp_rule_rejects_other_platforms(platform: str) -> None:
    """A rule that only SEV-SNP has rejects evidence of other platforms."""
    get_rejection_text("platform", rules(vcpus=(2,)), claims(platform), authenticated())
    accepted = rules(refuse_provisional_firmware=True, sev_features=(0x1,))
    assert appraise(accepted, claims(platform), authenticated())


@every_case(
    ("given", "reason"),
    [
        ({"sev_features": ()}, "missing"),
        ({"sev_features": 1}, "wrong_type"),
        ({"sev_features": (True,)}, "out_of_range"),
        ({"sev_features": (0,)}, "out_of_range"),
        ({"sev_features": (1 << 64,)}, "out_of_range"),
        ({"vcpus": (0,)}, "out_of_range"),
        ({"vcpus": ("2",)}, "wrong_type"),
        ({"vcpu_type": ("Skylake",)}, "unknown_name"),
        ({"vcpu_type": "EPYC"}, "wrong_type"),
        ({"guest_policy": 1 << 20}, "wrong_type"),
        ({"guest_policy": BitMask(must_be_set=1 << 18)}, "wrong_value"),
        ({"platform_info": b"\1"}, "wrong_type"),
        ({"minimum_guest_svn": 1 << 32}, "out_of_range"),
        ({"minimum_guest_svn": True}, "out_of_range"),
        ({"minimum_guest_abi": "1"}, "wrong_value"),
        ({"minimum_firmware": (1, 55)}, "wrong_value"),
        ({"refuse_provisional_firmware": 1}, "wrong_type"),
        ({"minimum_tcb": {"Rome": {"snp": 1}}}, "unknown_name"),
        ({"minimum_tcb": {"Milan": {"fmc": 1}}}, "unknown_name"),
        ({"minimum_tcb": {"Milan": {"snp": 256}}}, "out_of_range"),
        ({"minimum_tcb": {"Milan": {"snp": True}}}, "out_of_range"),
        ({"minimum_tcb": {"Milan": {}}}, "missing"),
        ({"minimum_tcb": {"Milan": {"snp": 1}, "milan": {"snp": 2}}}, "conflict"),
        ({"minimum_tcb": (("Milan", (("snp", 1), ("snp", 2))),)}, "conflict"),
        ({"minimum_tcb": {"Milan": 4}}, "wrong_type"),
        ({"minimum_tcb": {1: {"snp": 4}}}, "wrong_type"),
        ({"minimum_tcb": "Milan"}, "wrong_type"),
        ({"minimum_tcb": ("Milan",)}, "wrong_type"),
    ],
)
def test_invalid_snp_rule_raises_usage_error(given: dict[str, Any], reason: str) -> None:
    """A rule of a wrong type or range is an error that begins with its name."""
    with raises(UsageError, reason, start=next(iter(given))):
        rules(**given)


def test_snp_rules_are_normalised() -> None:
    """Equivalent rules are equal."""
    assert rules(vcpu_type=("epyc-milan-v2", " EPYC-Milan")) == rules(vcpu_type={"EPYC-Milan"})
    assert rules(minimum_firmware="1.055") == rules(minimum_firmware="1.55.0")
    assert rules(sev_features=[0x21, 0x1]) == rules()


def test_pin_of_snp_guest() -> None:
    """Policy bits, SEV_FEATURES and the guest's SVN are pinned, and no property of the host."""
    known = claims(SNP, sev_features=little(0x201))
    policy = AppraisalPolicy.from_evidence(result(known, authenticated(SNP)))
    assert policy.sev_features == {0x201}
    assert policy.guest_policy == BitMask.exactly(ATTRIBUTES[SNP]["policy"])
    assert policy.minimum_guest_svn == 2
    assert policy.refuse_provisional_firmware
    unpinned = (policy.platform_info, policy.minimum_firmware, policy.vcpus, policy.vcpu_type)
    assert unpinned == (None,) * 4
    assert {"family_id", "image_id"} <= policy.reference_values.rules.keys()
    assert policy.reference_values.report_id is None
    assert appraise(policy, known, authenticated(SNP), simulated=False)
    for change in ({"policy": little(0x2_0137)}, {"guest_svn": bytes(4)}):
        other = claims(SNP, sev_features=little(0x201), **change)
        with pytest.raises(PolicyError):
            appraise(policy, other, authenticated(SNP), simulated=False)
    provisional = claims(SNP, current_version=bytes((1, 56, 0)))
    pinned = AppraisalPolicy.from_evidence(result(provisional, authenticated(SNP)))
    assert appraise(pinned, provisional, authenticated(SNP), simulated=False)


# -- minimum TCB by product ------------------------------------------------------------------------


def changed(version: str, svns: tuple[tuple[str, int], ...]) -> Tcb:
    """Return the TCB with other SVNs in one of its versions."""
    changes: dict[str, Any] = {version: svns}
    return replace(authenticated(SNP).tcb, **changes)


def test_minimum_tcb_holds_for_all_tcb_versions() -> None:
    """Each component of each TCB version must have the minimum of the product."""
    verified = authenticated(SNP)
    policy = rules(minimum_tcb={"milan": dict(SNP_SVNS), "Turin": {"snp": 9}})
    steps = appraise(policy, claims(SNP), verified)
    assert "TCB of a Milan high enough: boot_loader, microcode, snp, tee" in steps
    assert "firmware of any age" not in steps
    for version in ("components", "current", "committed", "launch"):
        for name, svn in SNP_SVNS[:1] + SNP_SVNS[2:]:
            lower = tuple((one, svn - 1 if one == name else n) for one, n in SNP_SVNS)
            below = verified._replace(tcb=changed(version, lower))
            text = get_rejection_text("minimum_svn", policy, claims(SNP), below)
            assert f"component {name} of the" in text
        missing = verified._replace(tcb=changed(version, ()))
        get_rejection_text("minimum_svn", policy, claims(SNP), missing)


@pytest.mark.parametrize("product", ["Genoa", "Venice", ""])
def test_minimum_tcb_rejects_products_without_minimum(product: str) -> None:
    """A product line that the rule does not name is rejected, and so is an unknown one."""
    policy = rules(minimum_tcb={"Milan": {"snp": 1}, "Turin": {"snp": 1}})
    verified = authenticated(SNP)
    other = verified._replace(tcb=replace(verified.tcb, product=product))
    text = get_rejection_text("minimum_svn", policy, claims(SNP), other)
    assert "must be Milan or Turin" in text


def test_minimum_tcb_is_normalised() -> None:
    """Mappings and pairs, in any order and case of the product, are the same rule."""
    one = rules(minimum_tcb={"turin": {"snp": 1, "fmc": 2}, "MILAN": {"snp": 3}})
    other = rules(minimum_tcb=(("Milan", (("snp", 3),)), ("Turin", (("fmc", 2), ("snp", 1)))))
    assert one == other
    assert hash(one) == hash(other)
    assert AppraisalPolicy.from_toml(one.to_toml()) == one
    get_rejection_text("platform", rules(minimum_tcb={"Milan": {"snp": 3}}), claims(TDX))
