"""Tests of AppraisalPolicy: presets, rules, and its properties as a value."""

import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit.errors import PolicyError, UsageError
from attestkit.verifier import VerificationStep
from attestkit.verifier.claims import TcbStatus
from attestkit.verifier.policy.appraisal_policy import PRESETS, AppraisalPolicy
from attestkit.verifier.policy.event_rules import RequiredEvent
from attestkit.verifier.policy.platforms import VERIFIED_PLATFORMS
from attestkit.verifier.policy.reference_values import ReferenceValues
from attestkit.verifier.policy.rules import BitMask, KeyProvider
from attestkit.verifier.policy.tcb_rules import TcbRules
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped, with_false_length
from tests.verifier.policy.policy_samples import (
    APP_ID,
    NITRO,
    SGX,
    SNP,
    TDX,
    TPM_ALONE,
    app_info,
    appraise,
    appraise_in_steps,
    authenticated,
    claims,
    create_policy_with_every_rule,
    create_snp_policy_with_every_rule,
    get_rejection_text,
    register,
    rules,
)
from tests.verifier.policy.vtpm.vtpm_policies import AZURE_POLICY, GOOGLE_POLICY

STRICT = {"UpToDate"}
DEFAULT = STRICT | {
    *("SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded")
}
PRESET_TABLE = {
    "strict": STRICT,
    "default": DEFAULT,
    "development": DEFAULT
    | {"TDRelaunchAdvised", "TDRelaunchAdvisedConfigurationNeeded"}
    | {"OutOfDate", "OutOfDateConfigurationNeeded"},
}
OTHER_20, OTHER_32 = b"\xee" * 20, b"\xee" * 32
_REFERENCE: Final = Path(__file__).parents[3] / "docs/reference/verification/verifier.md"


# -- rules that are set ------------------------------------------------------------------------

RULES = create_policy_with_every_rule()
APPRAISED_ALWAYS = {one.name for one in fields(TcbRules)} | {"platforms", "refuse_simulated"}
APPRAISED_ALWAYS |= {"gpu"}  # with the evidence of the GPUs
APPRAISED_IF_SET = {
    one.name: getattr(RULES, one.name)
    for one in fields(AppraisalPolicy)
    if one.name not in APPRAISED_ALWAYS and getattr(RULES, one.name) != one.default
} | {"minimum_qe_svn": 0, "minimum_pce_svn": 0}
APPRAISED_ON_SNP = {"sev_features", "refuse_provisional_firmware"}


@every_case("name", APPRAISED_IF_SET)
def test_each_rule_is_appraised_if_it_alone_is_set(name: str) -> None:
    """No rule is skipped as one that is not set, whatever its value."""
    rules = {"platforms": (TDX,), "required_events": (), name: APPRAISED_IF_SET[name]}
    policy = AppraisalPolicy.default().replace(**rules)
    appraised = policy._has_td_rules or policy._has_app_rules
    assert appraised is (name not in APPRAISED_ON_SNP)


# -- presets -----------------------------------------------------------------------------------


@every_case("status", TcbStatus)
@every_case("preset", PRESET_TABLE)
def test_preset_accepts_statuses_of_its_table(preset: str, status: TcbStatus) -> None:
    """Each preset accepts the statuses of its table, and a rejection lists them."""
    policy, verified = PRESETS[preset](), authenticated(status=status)
    if status.value in PRESET_TABLE[preset]:
        assert f"TCB status {status} is accepted" in appraise(policy, None, verified)
        return
    text = get_rejection_text("tcb_status", policy, None, verified)
    assert text.startswith(f"TCB status: {status} is not accepted, must be UpToDate")


def test_preset_accepts_every_platform_with_hardware_evidence() -> None:
    """Evidence of these platforms passes the presets, with a step for each rule.

    A policy with no rule about the paravisor cannot identify evidence of Azure, and the strict
    preset requires that.
    """
    azure = {"azure-snp", "azure-tdx"}
    for platform in set(VERIFIED_PLATFORMS) - {SGX, *TPM_ALONE} - azure:
        for name, preset in PRESETS.items():
            if name == "strict" and platform in {"hcl-snp", "hcl-tdx"}:
                text = get_rejection_text(
                    "platform", preset(), claims(platform), authenticated(platform), None
                )
                assert "paravisor_measurement" in text
                continue
            steps = appraise(preset(), claims(platform), authenticated(platform), None)
            assert f"platform {platform} is accepted" in steps
            assert all(steps)


@every_case("platform", [SGX, *TPM_ALONE])
def test_preset_rejects_platform_that_must_be_named(platform: str) -> None:
    """Presets accept neither SGX nor a TPM alone; a policy that names them does."""
    for preset in PRESETS.values():
        get_rejection_text("platform", preset(), claims(platform), authenticated(platform), None)
        named = preset().replace(platforms={platform})
        steps = appraise(named, claims(platform), authenticated(platform), None)
        assert f"platform {platform} is accepted" in steps


def test_strict_preset_rejects_advisories() -> None:
    """Only the strict preset rejects advisories of a platform that is up to date."""
    verified = authenticated(advisory_ids=("INTEL-SA-00837",))
    assert "INTEL-SA-00837" in get_rejection_text(
        "advisory", AppraisalPolicy.strict(), None, verified
    )
    steps = appraise(AppraisalPolicy.default(), None, verified)
    assert "security advisories INTEL-SA-00837 are accepted" in steps


# -- platform and debug ------------------------------------------------------------------------


def test_policy_platform_not_accepted_is_rejected() -> None:
    """A platform that is not accepted is rejected by name."""
    text = get_rejection_text("platform", rules(platforms=(SNP, SGX)))
    assert text.startswith(
        "platform: dstack-tdx is not accepted, must be dstack-amd-sev-snp or sgx;"
    )
    assert appraise(rules(platforms={TDX}))


def test_policy_unverifiable_platform_is_rejected() -> None:
    """Every preset rejects a platform that no authenticator supports."""
    unknown = replace(claims(), platform="dstack-other")
    get_rejection_text("platform", AppraisalPolicy.development(), unknown)


@every_case(
    ("platform", "reason", "changes"),
    [
        (TDX, "td_debug", {"td_attributes": bytes.fromhex("0100001000000000")}),
        (TDX, "td_debug", {"td_attributes": bytes.fromhex("8000001000000000")}),
        (TDX, "td_debug", {"td_attributes": None}),
        (SNP, "debug", {"policy": (0xB0000).to_bytes(8, "little")}),
        (SNP, "debug", {"policy": None}),
        (SGX, "debug", {"attributes": bytes.fromhex("0700000000000000e700000000000000")}),
        (SGX, "debug", {"attributes": None}),
        (NITRO, "debug", {"pcr0": bytes(48), "pcr1": bytes(48), "pcr2": bytes(48)}),
        (NITRO, "debug", {"pcr0": None, "pcr1": None, "pcr2": None}),
    ],
)
def test_preset_rejects_debug_mode(platform: str, reason: str, changes: dict[str, Any]) -> None:
    """Every preset rejects debug mode, and evidence without the field for it."""
    verified = authenticated(platform)
    for preset in PRESETS.values():
        policy = preset().replace(platforms=VERIFIED_PLATFORMS)
        get_rejection_text(reason, policy, claims(platform, **changes), verified)


def test_policy_refuse_simulated() -> None:
    """`refuse_simulated` rejects other roots than the vendor's, and unknown ones."""
    for simulated in (True, False, None):
        assert appraise(AppraisalPolicy.strict(), simulated=simulated)
    policy = rules(refuse_simulated=True)
    assert "nothing in the evidence is the simulator's" in appraise(policy, simulated=False)
    get_rejection_text("simulated", policy, simulated=True)
    get_rejection_text("simulated", policy, simulated=None)


# -- steps and time ----------------------------------------------------------------------------


def test_policy_error_has_steps_passed_before() -> None:
    """A rejection has the steps of the rules that were met before it."""
    policy = rules(
        reference_values=ReferenceValues(mrtd=(register(0x11),)), app_id=(APP_ID, OTHER_20)
    )
    with pytest.raises(PolicyError) as caught:
        appraise(policy, None, None, app_info(app_id=b"\1" * 20))
    assert caught.value.steps == (
        VerificationStep("platform", "passed", "platform dstack-tdx is accepted"),
        VerificationStep("tcb_status", "passed", "TCB status UpToDate is accepted"),
        VerificationStep("advisory", "passed", "no security advisory applies"),
        VerificationStep("reference_value", "passed", "mrtd: a reference value each"),
    )


def test_policy_naive_now_raises_usage_error() -> None:
    """`now` without time zone raises UsageError."""
    with raises(UsageError, "wrong_value"):
        rules().appraise(claims(), authenticated(), None, datetime.fromisoformat("2026-09-21"))


# -- construction ------------------------------------------------------------------------------

# Arguments, reason, and the subject of the error unless it is the last argument.
INVALID_RULES: dict[Callable[..., object], list[tuple[Any, ...]]] = {
    ReferenceValues: [
        ({"mrtd": register(1)}, "wrong_type"),
        ({"mrtd": (register(1, 47),)}, "wrong_size"),
        ({"mrtd": (bytearray(48),)}, "wrong_type"),
        ({"mrtd": (with_false_length(bytes(48), 48),)}, "wrong_type"),
        ({"mrtd": (register(1),), "measurement": (register(1),)}, "conflict"),
    ],
    KeyProvider: [
        ({}, "missing", "key provider"),
        ({"name": ""}, "wrong_type"),
        ({"id": b""}, "wrong_type"),
    ],
    RequiredEvent: [
        ({"name": ""}, "wrong_type"),
        ({"name": "\udfff"}, "encoding"),
        ({"name": "a", "payload": "00"}, "wrong_type"),
        ({"name": "a", "digest": bytes(32)}, "wrong_size"),
        ({"name": "a", "payload": b"", "digest": bytes(48)}, "conflict"),
        ({"name": "app-id", "during": "app"}, "conflict"),
        ({"name": "a", "during": "late"}, "wrong_value"),
        ({"name": "a", "occurrence": None}, "wrong_value"),
    ],
    BitMask: [
        ({}, "missing", "bit mask"),
        ({"must_be_set": True}, "out_of_range"),
        ({"must_be_set": -1}, "out_of_range"),
    ],
    BitMask.exactly: [
        ({"value": bytes(7)}, "wrong_size"),
        ({"value": bytes(8), "mask": bytes(8)}, "missing", "bit mask"),
        ({"mask": b"\1" + bytes(7), "value": b"\3" + bytes(7)}, "conflict"),
    ],
    rules: [
        ({"accepted_statuses": ()}, "missing"),
        ({"accepted_statuses": ("UpToDate",)}, "wrong_type"),
        ({"accepted_statuses": {TcbStatus.REVOKED}}, "wrong_value"),
        ({"accepted_advisories": "INTEL-SA-00837"}, "wrong_type"),
        ({"accepted_advisories": ("two words",)}, "wrong_value"),
        ({"platform_grace_period": 30}, "wrong_type"),
        ({"qe_grace_period": timedelta(-1)}, "out_of_range"),
        ({"platform_grace_period": timedelta(40_000)}, "out_of_range"),
        ({"accepted_statuses": TcbStatus.__members__.values()}, "wrong_value"),
        (
            {"qe_grace_period": timedelta(1), "accepted_statuses": {TcbStatus.OUT_OF_DATE}},
            "conflict",
        ),
        ({"minimum_evaluation_data_number": True}, "out_of_range"),
        ({"minimum_svns": ("PCE",)}, "wrong_type"),
        ({"minimum_svns": (("PCE",),)}, "wrong_type"),
        ({"minimum_svns": (("PCE", [1]),)}, "wrong_type"),
        ({"minimum_svns": (("PCE", 65_536),)}, "out_of_range"),
        ({"minimum_svns": (("PCE", 1), ("PCE", 2))}, "conflict"),
        ({"platforms": ()}, "missing"),
        ({"platforms": "sgx"}, "wrong_type"),
        ({"platforms": ("azure",)}, "unknown_name"),
        ({"refuse_simulated": 1}, "wrong_type"),
        ({"require_mr_config": None}, "wrong_type"),
        ({"require_acpi_tables": 1}, "wrong_type"),
        ({"minimum_measurement_version": True}, "out_of_range"),
        ({"minimum_measurement_version": 256}, "out_of_range"),
        ({"platforms": (SNP,), "minimum_measurement_version": 4}, "conflict"),
        ({"reference_values": {}}, "wrong_type"),
        ({"td_attributes": 1}, "wrong_type"),
        ({"td_attributes": BitMask(must_be_set=1)}, "wrong_value"),
        ({"platforms": (SNP,), "xfam": BitMask(must_be_set=3)}, "conflict"),
        (
            {
                "reference_values": ReferenceValues(pcr0=(register(1),)),
                "td_attributes": BitMask(must_be_set=1 << 28),
            },
            "conflict",
        ),
        ({"app_id": APP_ID}, "wrong_type"),
        ({"compose_hash": (APP_ID,)}, "wrong_size"),
        ({"required_events": ("model",)}, "wrong_type"),
    ],
}


@every_case(
    ("create", "given", "reason", "subject"),
    [
        (create, given, reason, *(subject or [list(given)[-1]]))
        for create, rows in INVALID_RULES.items()
        for given, reason, *subject in rows
    ],
)
def test_invalid_rule_raises_usage_error(
    create: Callable[..., object], given: dict[str, Any], reason: str, subject: str
) -> None:
    """A rule of a wrong type or size, or that accepts nothing or contradicts another, is an error.

    Its text starts with the argument.
    """
    with raises(UsageError, reason, start=f"{subject}: "):
        create(**given)


def test_policy_with_every_rule_accepts_samples() -> None:
    """The policies set every field, and the sample evidence meets all rules."""
    policy, snp = create_policy_with_every_rule(), create_snp_policy_with_every_rule()
    for field in fields(policy):
        policies = (policy, snp, AZURE_POLICY, GOOGLE_POLICY)
        values = [getattr(each, field.name) for each in policies]
        unset: tuple[object, ...] = (None, (), frozenset(), field.default)
        assert any(value not in unset for value in values), field.name
    assert appraise(snp, claims(SNP), authenticated(SNP))
    found, verified = claims(), authenticated()
    found = replace(found, attributes=(*found.attributes, ("qe_svn", b"\x08\0")))
    tcb = replace(
        verified.tcb,
        components=(*verified.tcb.components, ("PCESVN", 13)),
        dynamic_platform=False,
        cached_keys=False,
        smt_enabled=False,
    )
    steps = appraise_in_steps(policy, found, verified._replace(tcb=tcb), simulated=False)
    assert {step.outcome for step in steps} == {"passed"}


def test_policy_is_immutable_value() -> None:
    """A policy is hashable, picklable and immutable, and ignores the order of values."""
    policy = create_policy_with_every_rule()
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert hash(create_policy_with_every_rule()) == hash(policy)
    assert rules(app_id=[APP_ID, OTHER_20]) == rules(app_id=(OTHER_20, APP_ID, APP_ID))
    assert rules(app_id=(APP_ID,)) != rules()
    assert rules(minimum_svns={"PCE": 1, "A": 2}.items()) == rules(
        minimum_svns=(("A", 2), ("PCE", 1))
    )
    with pytest.raises(FrozenInstanceError):
        untyped(policy).app_id = None


def test_every_integer_rule_rejects_other_types() -> None:
    """A rule whose value is an integer has its limit in the policy's table of numbers."""
    numbers = [one.name for one in fields(AppraisalPolicy) if one.type in {int, int | None}]
    assert len(numbers) >= 5
    for name in numbers:
        for value in ("1", True, 1.0, -1, 1 << 64):
            with pytest.raises(UsageError, match=f"^{name}: must be an integer"):
                rules(**{name: value})


def test_reference_lists_every_rule() -> None:
    """The page about the verifier has every rule of a policy: its own ones, and inherited ones."""
    page = _REFERENCE.read_text()
    listed = {line.removeprefix("        - ") for line in page.splitlines()}
    inherited = {
        one.name for one in fields(AppraisalPolicy)
    } - AppraisalPolicy.__annotations__.keys()
    assert inherited <= listed
