"""Rules about guests with a TPM, and which platforms have the values; the strict preset."""

from dataclasses import replace
from typing import Any

import pytest

from attestkit.errors import PolicyError, UsageError
from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
from attestkit.verifier.policy.event_rules import RequiredEvent
from attestkit.verifier.policy.platforms import VERIFIED_PLATFORMS
from attestkit.verifier.policy.reference_values import ReferenceValues
from attestkit.verifier.policy.rules import BitMask
from tests.raising import raises
from tests.runner.cases import every_case
from tests.verifier.policy.policy_samples import (
    APP_ID,
    OF_SNP,
    OF_TDX,
    SNP,
    TDX,
    appraise,
    authenticated,
    claims,
    get_rejection_text,
    register,
    rules,
    vtpm,
)
from tests.verifier.policy.vtpm.vtpm_policies import (
    AZURE,
    HCL,
    KEY,
    PARAVISOR,
    SHA,
    WITH_TPM,
    accept,
    azure_claims,
    reject,
)

# -- platforms ---------------------------------------------------------------------------------


@every_case(
    ("rule", "platforms"),
    [
        ({"pcrs": {"sha256:7": register(0xA7, 32)}}, WITH_TPM),
        ({"trusted_aks": {KEY}}, set(WITH_TPM) - {"dstack-aws-nitro-tpm"}),
        ({"require_joins": {"ak_to_hardware"}}, {*OF_TDX, *OF_SNP}),
        ({"secure_boot": True}, HCL),
        ({"console_enabled": False}, HCL),
        ({"tpm_persisted": True}, HCL),
        ({"paravisor_measurement": {register(0x31), register(0x11)}}, HCL),
        ({"id_key_digest": {register(0x71)}}, {SNP, *OF_SNP}),
        ({"gce_project": {"project"}}, set(WITH_TPM) - {"dstack-aws-nitro-tpm"}),
        ({"gce_zone": {"zone-a"}}, set(WITH_TPM) - {"dstack-aws-nitro-tpm"}),
        ({"gce_instance": {"vm-1"}}, set(WITH_TPM) - {"dstack-aws-nitro-tpm"}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_rule_rejects_platform_without_the_value(rule: dict[str, Any], platforms: Any) -> None:
    """A rule accepts the platforms that have its value, and rejects all others by its name."""
    [name] = rule
    for platform in set(VERIFIED_PLATFORMS) - set(AZURE.values()):
        if platform in platforms:
            assert accept(rules(**rule), claims(platform))
        else:
            assert reject(name, rules(**rule), claims(platform)).startswith(f"{name}: {platform}")


def test_evidence_without_facts_meets_no_rule_about_a_tpm() -> None:
    """Claims of a platform with a TPM that lack the facts of its quote are rejected."""
    for platform in HCL:
        policy = rules(paravisor_measurement={PARAVISOR[platform]})
        reject("paravisor_measurement", policy, claims(platform, vtpm=None))
        reject("pcrs", rules(pcrs={"sha256:7": SHA}), claims(platform, vtpm=None))


@every_case("platform", ["hcl-tdx", "azure-tdx"])
@every_case(
    "name", ["rtmr0", "rtmr1", "rtmr2", "rtmr3", "mr_config_id", "mr_owner", "mr_owner_config"]
)
def test_registers_that_are_zero_by_design_match_no_value(platform: str, name: str) -> None:
    """Behind a paravisor these registers are zero: a rule about them rejects, also with zero."""
    policy = rules(reference_values=ReferenceValues(**{name: (bytes(48),)}))
    assert "pin pcrs instead" in reject("reference_value", policy, claims("hcl-tdx"))
    pinned = rules(paravisor_measurement={register(0x11)})
    identified = pinned.identify(azure_claims("hcl-tdx"))
    assert identified.platform == "azure-tdx"
    with pytest.raises(PolicyError) as caught:
        policy.reference_values.appraise(replace(identified, platform=platform))
    assert caught.value.reason == "reference_value"


@every_case("platform", [*HCL, "gcp-snp", "tpm", "go-tpm-tools"])
def test_rules_about_an_app_reject_platforms_that_measure_none(platform: str) -> None:
    """Events and identities of an app are not measured there, so rules about them reject.

    They do also if claims have events: then these are not proven.
    """
    found = claims(platform, events=claims().events, event_registers=(0, 1, 2, 3))
    for evidence in (claims(platform), found):
        policy = rules(required_events=(RequiredEvent(name="system-ready"),))
        reject("required_event", policy, evidence)
        for name, value in (("app_id", APP_ID), ("compose_hash", SHA), ("instance_id", APP_ID)):
            text = get_rejection_text(
                name, rules(**{name: (value,)}), evidence, authenticated(platform)
            )
            assert "pin pcrs instead" in text
        reject("acpi_tables", rules(require_acpi_tables=True), evidence)


@pytest.mark.parametrize("platform", ["dstack-gcp-tdx", "dstack-aws-nitro-tpm"])
def test_rules_about_an_app_hold_where_dstack_measures_it(platform: str) -> None:
    """The events of dstack's guests are measured by RTMR3, or PCR 14 of a NitroTPM."""
    policy = rules(required_events=(RequiredEvent(name="system-ready"),), app_id={APP_ID})
    assert appraise(policy, claims(platform), authenticated(platform))
    none = claims(platform, event_registers=(), vtpm=vtpm(replayed=(("sha256", 14),)))
    get_rejection_text("app_id", policy, none, authenticated(platform))
    events = rules(required_events=(RequiredEvent(name="system-ready"),))
    get_rejection_text("required_event", events, none, authenticated(platform))


@pytest.mark.parametrize("platform", OF_TDX[:2])
def test_rules_about_a_td_apply_in_every_cloud(platform: str) -> None:
    """Bits of a TD and debug mode are checked wherever the evidence is of a TD."""
    debug = claims(platform, td_attributes=bytes.fromhex("0100001000000000"))
    reject("td_debug", rules(), debug)
    reject("td_debug", rules(), claims(platform, td_attributes=None))
    reject("attributes", rules(td_attributes=BitMask(must_be_clear=1 << 28)), claims(platform))
    unnamed = claims(platform, xfam=(1 << 40 | 3).to_bytes(8, "little"))
    reject("attributes", rules(refuse_unnamed_td_bits=True), unnamed)
    values = rules(reference_values=ReferenceValues(mrtd=(register(1),)))
    reject("reference_value", values, claims(platform))


@pytest.mark.parametrize("platform", OF_SNP[:2])
def test_rules_about_snp_apply_in_every_cloud(platform: str) -> None:
    """Guest policy, versions and debug mode are checked wherever there is an SEV-SNP report."""
    reject("debug", rules(), claims(platform, policy=(0xB0000).to_bytes(8, "little")))
    reject("debug", rules(), claims(platform, policy=None))
    reject("attributes", rules(guest_policy=BitMask(must_be_clear=1 << 16)), claims(platform))
    reject("minimum_version", rules(minimum_firmware="1.56.0"), claims(platform))
    provisional = claims(platform, committed_version=bytes((1, 54, 0)))
    reject("provisional_firmware", AppraisalPolicy.default(), provisional)
    assert accept(rules(), claims(platform))["minimum_svn"] == "caution"


@every_case(
    "rule",
    [
        {"reference_values": ReferenceValues(mrtd={register(0x11)})},
        {"reference_values": ReferenceValues(measurement={register(0x31)})},
        {"td_attributes": BitMask(must_be_clear=1)},
        {"guest_policy": BitMask(must_be_clear=1)},
        {"id_key_digest": {register(0x71)}},
        {"require_joins": {"ak_to_hardware"}},
    ],
    ids=lambda rule: next(iter(rule)),
)
def test_message_of_go_tpm_tools_has_no_rules_about_hardware(rule: dict[str, Any]) -> None:
    """Hardware evidence in a message is not verified, so no policy for it has rules about it."""
    with raises(UsageError, "conflict"):
        rules(platforms={"go-tpm-tools"}, **rule)


# -- strict ------------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", HCL)
def test_strict_accepts_azure_with_an_identified_paravisor(platform: str) -> None:
    """The strict preset is possible at Azure, where MR_CONFIG_ID is zero, once it is Azure."""
    strict = AppraisalPolicy.strict()
    reject("platform", strict, azure_claims(platform))
    found = strict.replace(paravisor_measurement={PARAVISOR[platform]})
    assert accept(found, azure_claims(platform))["paravisor"] == "passed"
    without = azure_claims(platform)
    if platform == "hcl-tdx":
        without = azure_claims(platform, td_attributes=bytes(8))  # as in genuine TDREPORTs
        assert accept(found, without)
        reject("attributes", found, azure_claims(platform, td_attributes=b"\0\0\1" + bytes(5)))
        reject("attributes", strict, claims("dstack-gcp-tdx", td_attributes=bytes(8)))


def test_strict_requires_the_sealed_configuration_only_where_owners_set_it() -> None:
    """MR_CONFIG_ID of zero is rejected on dstack's own hosts, and accepted at Google."""
    strict = AppraisalPolicy.strict()
    assert accept(strict, claims("dstack-gcp-tdx", mr_config_id=bytes(48)))
    reject("require_mr_config", strict, claims(TDX, mr_config_id=bytes(48)))
