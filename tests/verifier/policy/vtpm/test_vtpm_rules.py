"""Rules about guests with a TPM: which platforms have the values, what is accepted, and errors."""

from dataclasses import replace
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.hashes import sha256
from attestkit.errors import ConfigError, PolicyError, SignatureError, UsageError
from attestkit.verifier.policy.appraisal_policy import (
    PRESETS,
    VERIFIED_PLATFORMS,
    AppraisalPolicy,
    BitMask,
    ReferenceValues,
    RequiredEvent,
)
from attestkit.verifier.policy.vtpm.pcr_rules import BANK_SIZES, normalize_pcrs
from attestkit.verifier.result import Claims
from tests.raising import raises
from tests.untyped import untyped
from tests.verifier.policy.policy_samples import (
    APP_ID,
    NITRO,
    OF_SNP,
    OF_TDX,
    SGX,
    SNP,
    TDX,
    TPM_ALONE,
    appraise,
    appraise_in_steps,
    authenticated,
    claims,
    get_rejection_text,
    register,
    result,
    rules,
    vtpm,
)
from tests.verifier.policy.vtpm.vtpm_policies import (
    AZURE_FILE,
    AZURE_POLICY,
    GOOGLE_FILE,
    GOOGLE_POLICY,
    INIT_DATA,
    KEY,
    azure_claims,
    with_pcr,
)

HCL: Final = ("hcl-snp", "hcl-tdx")
WITH_TPM: Final = (*OF_TDX[:2], *OF_SNP[:2], *TPM_ALONE)
PARAVISOR: Final = {"hcl-snp": register(0x31), "hcl-tdx": register(0x11)}
AZURE: Final = {"hcl-snp": "azure-snp", "hcl-tdx": "azure-tdx"}


def reject(reason: str, policy: AppraisalPolicy, evidence: Claims) -> str:
    """Return the text of a rejection of claims, of a platform whose status is up to date."""
    return get_rejection_text(reason, policy, evidence, authenticated(evidence.platform), None)


def accept(policy: AppraisalPolicy, evidence: Claims) -> dict[str, str]:
    """Return the outcome of the last step of each check, in an appraisal that accepts claims."""
    verified = authenticated(evidence.platform)
    steps = appraise_in_steps(policy, evidence, verified, None, simulated=False)
    return {step.check: step.outcome for step in steps}


# -- policies as values ------------------------------------------------------------------------


def test_policies_with_every_rule_accept_samples() -> None:
    """Evidence that meets all rules is accepted, and each rule has a step that passed."""
    found = accept(AZURE_POLICY, azure_claims())
    names = {*("pcrs", "trusted_aks", "require_joins", "paravisor_measurement", "id_key_digest")}
    names |= {"secure_boot", "console_enabled", "tpm_persisted", "init_data", "paravisor"}
    assert {name: found[name] for name in names} == dict.fromkeys(names, "passed")
    found = accept(GOOGLE_POLICY, claims("gcp-snp"))
    names = {"gce_project", "gce_zone", "gce_instance", "require_joins"}
    assert {name: found[name] for name in names} == dict.fromkeys(names, "passed")


@pytest.mark.parametrize("policy", [AZURE_POLICY, GOOGLE_POLICY])
def test_policies_are_values(policy: AppraisalPolicy) -> None:
    """A policy equals its copies, by `replace` and in TOML, and has their hash."""
    for copy in (policy.replace(), AppraisalPolicy.from_toml(policy.to_toml())):
        assert copy == policy
        assert hash(copy) == hash(policy)


def test_from_toml_reads_every_rule() -> None:
    """Each key of a file becomes the rule of its name; an attestation key becomes its hash."""
    assert AppraisalPolicy.from_toml(AZURE_FILE) == AZURE_POLICY
    assert AppraisalPolicy.from_toml(GOOGLE_FILE) == GOOGLE_POLICY
    assert AZURE_POLICY.trusted_aks == {sha256(KEY)}


@given(
    st.dictionaries(
        st.tuples(st.sampled_from(sorted(BANK_SIZES)), st.integers(0, 31)),
        st.sets(st.integers(0, 255), min_size=1, max_size=3),
        max_size=5,
    )
)
def test_pcrs_round_trip(rows: dict[tuple[str, int], set[int]]) -> None:
    """PCRs in any order become pairs in the order of bank and index, the same ones in TOML."""
    given_pcrs = {
        f"{bank}:{index}": [register(value, BANK_SIZES[bank]) for value in values]
        for (bank, index), values in rows.items()
    }
    policy = AppraisalPolicy.default().replace(pcrs=given_pcrs)
    assert [name for name, _ in untyped(policy.pcrs)] == [f"{b}:{i}" for b, i in sorted(rows)]
    assert AppraisalPolicy.from_toml(policy.to_toml()) == policy
    assert normalize_pcrs(policy.pcrs) == policy.pcrs


SHA: Final = register(1, 32)


@pytest.mark.parametrize(
    ("given_rules", "reason"),
    [
        ({"pcrs": {"sha1:7": bytes(20)}}, "wrong_value"),
        ({"pcrs": {"sha256:32": SHA}}, "wrong_value"),
        ({"pcrs": {"sha256:07": SHA}}, "wrong_value"),
        ({"pcrs": {7: SHA}}, "wrong_value"),
        ({"pcrs": {"sha256:7": bytes(48)}}, "wrong_size"),
        ({"pcrs": {"sha256:7": ()}}, "missing"),
        ({"pcrs": {"sha256:7": None}}, "missing"),
        ({"pcrs": {"sha256:7": SHA.hex()}}, "wrong_type"),
        ({"pcrs": (("sha256:7", SHA), ("sha256:7", SHA))}, "conflict"),
        ({"pcrs": (("sha256:7", SHA, 1),)}, "wrong_type"),
        ({"pcrs": "sha256:7"}, "wrong_type"),
        ({"pcrs": 7}, "wrong_type"),
        ({"pcrs": [("sha256:7", (SHA,))] * 97}, "too_many"),
        ({"trusted_aks": ()}, "missing"),
        ({"trusted_aks": SHA}, "wrong_type"),
        ({"trusted_aks": (bytes(31),)}, "wrong_size"),
        ({"trusted_aks": (bytes(91),)}, "wrong_size"),
        ({"require_joins": ("both",)}, "unknown_name"),
        ({"require_joins": "hardware_to_ak"}, "wrong_type"),
        ({"paravisor_measurement": (SHA,)}, "wrong_size"),
        ({"id_key_digest": (bytes(48),)}, "wrong_value"),
        ({"id_key_digest": ()}, "missing"),
        ({"secure_boot": 1}, "wrong_type"),
        ({"console_enabled": "false"}, "wrong_type"),
        ({"tpm_persisted": ()}, "wrong_type"),
        ({"init_data": (bytes(48),)}, "wrong_size"),
        ({"gce_project": ()}, "missing"),
        ({"gce_zone": "zone"}, "wrong_type"),
        ({"gce_instance": (1,)}, "wrong_type"),
        ({"gce_instance": ("",)}, "wrong_type"),
        ({"vlek_providers": "aws"}, "wrong_type"),
        ({"vlek_providers": ("",)}, "wrong_type"),
        # Rules without a common platform.
        ({"platforms": ("azure-snp", "azure-tdx")}, "conflict"),
        ({"platforms": (TDX,), "pcrs": {"sha256:7": SHA}}, "conflict"),
        ({"platforms": (NITRO,), "pcrs": {"sha384:0": bytes(48)}}, "conflict"),
        (
            {"platforms": HCL, "gce_zone": ("a",), "vcpus": (2,), "xfam": BitMask(must_be_set=1)},
            "conflict",
        ),
        ({"platforms": ("hcl-tdx",), "id_key_digest": (register(1),)}, "conflict"),
        ({"platforms": (SNP,), "paravisor_measurement": (register(1),)}, "conflict"),
        ({"platforms": ("tpm",), "require_joins": ("hardware_to_ak",)}, "conflict"),
        ({"platforms": HCL, "reference_values": ReferenceValues(rtmr0=(register(1),))}, "conflict"),
        ({"platforms": HCL, "reference_values": ReferenceValues(host_data=(SHA,))}, "conflict"),
        (
            {"platforms": TPM_ALONE, "reference_values": ReferenceValues(pcr0=(register(1),))},
            "conflict",
        ),
    ],
)
def test_invalid_rules_are_usage_errors(given_rules: dict[str, Any], reason: str) -> None:
    """A rule of a wrong type or size, or that no accepted platform can meet, is an error."""
    with raises(UsageError, reason):
        AppraisalPolicy.default().replace(**given_rules)


@pytest.mark.parametrize(
    ("line", "reason", "key"),
    [
        ("[pcrs]", "missing", "pcrs"),
        ("pcrs = []", "missing", "pcrs"),
        ("pcrs = 7", "wrong_type", "pcrs"),
        ('[pcrs]\n"sha1:7" = "00"', "unknown_key", "pcrs.sha1:7"),
        ('[pcrs]\n"sha256:99" = "%s"' % ("00" * 32), "wrong_value", "pcrs"),
        ('[pcrs]\n"sha256:7" = "0"', "encoding", "pcrs.sha256:7"),
        ('[pcrs]\n"sha256:7" = "00"', "wrong_size", "pcrs.sha256:7"),
        ('[pcrs]\n"sha256:7" = []', "missing", "pcrs.sha256:7"),
        ("trusted_aks = 7", "wrong_type", "trusted_aks"),
        ("trusted_aks = []", "missing", "trusted_aks"),
        ('trusted_aks = "00"', "wrong_size", "trusted_aks"),
        ("require_joins = []", "missing", "require_joins"),
        ('secure_boot = "true"', "wrong_type", "secure_boot"),
        ("gce_zone = [7]", "wrong_type", "gce_zone"),
        ('paravisor_measurement = "00"', "wrong_size", "paravisor_measurement"),
    ],
)
def test_invalid_file_names_key(line: str, reason: str, key: str) -> None:
    """The error of a file begins with the key."""
    with raises(ConfigError, reason, start=f"site.toml: {key}"):
        AppraisalPolicy.from_toml(f'preset = "default"\n{line}', "site.toml")


# -- platforms ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
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


@pytest.mark.parametrize("platform", ["hcl-tdx", "azure-tdx"])
@pytest.mark.parametrize(
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


@pytest.mark.parametrize("platform", [*HCL, "gcp-snp", "tpm", "go-tpm-tools"])
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


@pytest.mark.parametrize(
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


# -- paravisor ---------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", HCL)
def test_evidence_is_named_azure_only_if_a_rule_identifies_its_paravisor(platform: str) -> None:
    """Without a rule that matches, the name is that of the format."""
    evidence = azure_claims(platform)
    assert AppraisalPolicy.default().identify(evidence) == evidence
    policy = AppraisalPolicy.default().replace(paravisor_measurement={PARAVISOR[platform]})
    assert policy.identify(evidence).platform == AZURE[platform]
    other = policy.replace(paravisor_measurement={register(1)})
    assert other.identify(evidence) == evidence
    assert other.identify(policy.identify(evidence)) == evidence  # a name is not believed
    assert AppraisalPolicy.default().identify(policy.identify(evidence)) == evidence


@pytest.mark.parametrize("platform", HCL)
def test_policy_for_azure_rejects_another_paravisor(platform: str) -> None:
    """The error names the rule that is not met, and both values."""
    for platforms in ({AZURE[platform]}, {platform}, VERIFIED_PLATFORMS):
        policy = rules(platforms=platforms, paravisor_measurement={register(1)})
        text = reject("paravisor_measurement", policy, azure_claims(platform))
        assert PARAVISOR[platform].hex() in text
        assert register(1).hex() in text


def test_id_key_digest_identifies_a_paravisor_of_snp() -> None:
    """The signer of the ID block is enough; a digest of zero is no signer; TDX has none."""
    policy = rules(platforms={"azure-snp"}, id_key_digest={register(0x71)})
    assert accept(policy, azure_claims())["id_key_digest"] == "passed"
    reject("id_key_digest", policy, azure_claims(id_key_digest=bytes(48)))
    reject("id_key_digest", policy, azure_claims(id_key_digest=None))
    reject("id_key_digest", rules(id_key_digest={register(0x71)}), azure_claims("hcl-tdx"))


def test_rules_about_the_paravisor_must_all_hold() -> None:
    """A measurement that matches does not make up for another signer, and the reverse."""
    pins = {"paravisor_measurement": {register(0x31)}, "id_key_digest": {register(0x71)}}
    assert rules(**pins).identify(azure_claims()).platform == "azure-snp"
    for name in pins:
        policy = rules(**{**pins, name: {register(2)}})
        assert policy.identify(azure_claims()).platform == "hcl-snp"
        reject(name, policy, azure_claims())


def test_unidentified_paravisor_is_a_caution() -> None:
    """Evidence that nothing identifies is accepted by default, and lists that as not proven."""
    assert accept(AppraisalPolicy.default(), azure_claims())["paravisor"] == "caution"
    pinned = rules(id_key_digest={register(0x71)})
    assert "paravisor" not in accept(pinned, claims("gcp-snp"))


@pytest.mark.parametrize("name", ["secure_boot", "console_enabled", "tpm_persisted"])
@pytest.mark.parametrize("wanted", [True, False])
def test_claims_of_the_paravisor_are_compared(name: str, wanted: bool) -> None:
    """A rule requires the stated value; a claim that is missing meets neither."""
    policy = rules(**{name: wanted})
    for stated in ("true", "false"):
        evidence = claims("hcl-snp", vtpm=vtpm(details=((name, stated),)))
        if stated == str(wanted).lower():
            assert accept(policy, evidence)[name] == "passed"
        else:
            reject(name, policy, evidence)
    reject(name, policy, claims("hcl-snp", vtpm=vtpm(details=())))


# -- key and joins -----------------------------------------------------------------------------


@pytest.mark.parametrize("platform", ["tpm", "go-tpm-tools"])
def test_uncertified_key_is_rejected_unless_listed(platform: str) -> None:
    """Evidence of a key that nothing certifies is accepted by a policy that lists the key."""
    evidence = claims(platform, vtpm=vtpm(key_trust="listed"))
    with raises(SignatureError, "ak_unknown"):
        appraise(rules(), evidence, authenticated(platform))
    for listed in (KEY, sha256(KEY)):
        assert accept(rules(trusted_aks={listed}), evidence)["trusted_aks"] == "passed"
    reject("trusted_aks", rules(trusted_aks={SHA}), evidence)


@pytest.mark.parametrize("trust", ["certificate", "hardware_report"])
def test_listed_keys_exclude_certified_ones(trust: Any) -> None:
    """A policy that lists keys accepts no other, whatever certifies it; its trust is unchanged."""
    evidence = claims("gcp-snp", vtpm=vtpm(key_trust=trust))
    reject("trusted_aks", rules(trusted_aks={SHA}), evidence)
    policy = rules(trusted_aks={KEY})
    assert accept(policy, evidence)
    assert untyped(policy.identify(evidence).vtpm).key_trust == trust


def test_empty_key_is_never_listed() -> None:
    """The hash of no key does not stand for evidence without a key."""
    evidence = claims("tpm", vtpm=vtpm(attestation_key=b"", key_trust="listed"))
    reject("trusted_aks", rules(trusted_aks={sha256(b"")}), evidence)


def test_required_joins_must_hold() -> None:
    """Each required direction must be among those of the evidence."""
    both: Any = {"hardware_to_ak", "ak_to_hardware"}
    text = reject("require_joins", rules(require_joins=both), claims("gcp-snp"))
    assert text.startswith("join hardware_to_ak: ")
    assert accept(rules(require_joins=both), claims("gcp-snp", vtpm=vtpm(joins=tuple(both))))
    reject("require_joins", rules(require_joins=both), claims("gcp-snp", vtpm=vtpm(joins=())))


# -- PCRs --------------------------------------------------------------------------------------


def test_pcrs_of_every_bank_are_compared() -> None:
    """One of several values is accepted, of the named bank; the error names the PCR."""
    policy = rules(pcrs={"sha256:7": (register(0xA7, 32), SHA), "sha384:7": register(0xC7)})
    assert accept(policy, claims("gcp-snp"))["pcrs"] == "passed"
    for bank in ("sha256", "sha384"):
        changed = with_pcr(bank, 7, register(2, BANK_SIZES[bank]))
        text = reject("pcrs", policy, claims("gcp-snp", vtpm=changed))
        assert text.startswith(f"PCR {bank}:7: {'02' * BANK_SIZES[bank]}, must be ")


def test_pcr_that_is_not_quoted_is_rejected() -> None:
    """A PCR of another bank or number does not stand for it."""
    only = vtpm(pcrs=(("sha384", 7, register(0xC7)), ("sha256", 8, register(0xA7, 32))))
    policy = rules(pcrs={"sha256:7": register(0xA7, 32)})
    assert "not quoted" in reject("pcrs", policy, claims("gcp-snp", vtpm=only))


def test_policy_without_pcrs_leaves_them_unproven() -> None:
    """A policy that expects no PCR has a step that says so."""
    assert accept(rules(), claims("gcp-snp"))["pcrs"] == "skipped"
    assert "pcrs" not in accept(rules(), claims(SNP))


def test_init_data_is_the_only_extension_of_pcr_8() -> None:
    """PCR 8 must be the extension of zero with an accepted digest."""
    policy = rules(init_data={INIT_DATA, SHA})
    assert accept(policy, azure_claims())["init_data"] == "passed"
    for facts in (vtpm(), with_pcr("sha256", 8, INIT_DATA), vtpm(pcrs=())):
        reject("init_data", policy, claims("hcl-snp", vtpm=facts))
    reject("init_data", rules(init_data={SHA}), azure_claims())


def test_message_of_go_tpm_tools_needs_a_log_or_values() -> None:
    """PCRs of firmware and boot loaders that are extended must be explained, or be expected."""
    bare = claims("go-tpm-tools", vtpm=vtpm(replayed=()))
    assert reject("pcrs", rules(), bare).startswith("PCR sha256:0: ")
    logged = (*range(10), 14)
    names = [f"{bank}:{index}" for bank in ("sha256", "sha384") for index in logged]
    facts = vtpm(replayed=())
    values = {f"{bank}:{index}": value for bank, index, value in facts.pcrs}
    assert accept(rules(pcrs={name: values[name] for name in names}), bare)
    some = rules(pcrs={name: values[name] for name in names[:-1]})
    assert reject("pcrs", some, bare).startswith("PCR sha384:14: ")
    fresh = vtpm(replayed=(), pcrs=(("sha512", 0, bytes(64)), ("sha1", 0, bytes([1] * 20))))
    assert accept(rules(), claims("go-tpm-tools", vtpm=fresh))
    assert accept(rules(), claims("tpm", vtpm=vtpm(replayed=())))


# -- Google ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("gce_project", "project"), ("gce_zone", "zone-a"), ("gce_instance", "vm-1")),
        ("gce_instance", "123"),
    ],
)
def test_google_instance_is_compared(name: str, value: str) -> None:
    """Project, zone and instance are those of the certificate; a missing one is rejected."""
    assert accept(rules(**{name: {value, "other"}}), claims("gcp-snp"))[name] == "passed"
    reject(name, rules(**{name: {"other"}}), claims("gcp-snp"))
    reject(name, rules(**{name: {value}}), claims("gcp-snp", vtpm=vtpm(details=())))


def test_instance_id_stands_for_an_instance_only() -> None:
    """The id of an instance is neither a project nor a zone."""
    for name in ("gce_project", "gce_zone"):
        reject(name, rules(**{name: {"123"}}), claims("gcp-snp"))


# -- keys of cloud providers -------------------------------------------------------------------


@pytest.mark.parametrize("platform", [SNP, *OF_SNP[:2]])
def test_key_of_a_provider_is_rejected_unless_named(platform: str) -> None:
    """A report signed by a VLEK is rejected by default, and if its provider is not known."""
    signed = claims(platform, key_info=bytes([4, 0, 0, 0]))
    for preset in PRESETS.values():
        policy = preset().replace(platforms=VERIFIED_PLATFORMS)
        reject("vlek_providers", policy, signed)
    reject("vlek_providers", rules(vlek_providers={"amazon"}), signed)


# -- pinning -----------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", [*HCL, "gcp-snp", "dstack-gcp-tdx", *TPM_ALONE])
def test_pinned_policy_accepts_its_evidence_and_no_other_pcr(platform: str) -> None:
    """PCRs with a replayed log are pinned, except for those that differ with every boot."""
    trust: Any = "listed" if platform in {"tpm", "go-tpm-tools"} else "certificate"
    joins: Any = () if platform in TPM_ALONE else ("ak_to_hardware",)
    evidence = claims(platform, vtpm=vtpm(key_trust=trust, joins=joins))
    verified = authenticated(platform)
    policy = AppraisalPolicy.from_evidence(result(evidence, verified, None))
    assert AppraisalPolicy.from_toml(policy.to_toml()) == policy
    assert appraise(policy, evidence, verified, None, simulated=False)
    left_out = {10, 14} if evidence.events else {10}
    replayed = {(bank, index) for bank, index in vtpm().replayed if index not in left_out}
    assert [name for name, _ in untyped(policy.pcrs)] == [f"{b}:{i}" for b, i in sorted(replayed)]
    changed = with_pcr("sha256", 4, SHA, key_trust=trust, joins=joins)
    get_rejection_text(
        "pcrs", policy, replace(evidence, vtpm=changed), verified, None, simulated=False
    )


def test_pinned_policy_of_azure_identifies_the_paravisor() -> None:
    """Paravisor, its signer and its claims are pinned, and the platform is then named."""
    snp = AppraisalPolicy.from_evidence(result(azure_claims(), authenticated("hcl-snp"), None))
    assert snp.platforms == {"azure-snp"}
    assert snp.paravisor_measurement == {register(0x31)}
    assert snp.id_key_digest == {register(0x71)}
    assert (snp.secure_boot, snp.console_enabled, snp.tpm_persisted) == (True, False, True)
    assert not {"measurement", "id_key_digest", "host_data"} & snp.reference_values.rules.keys()
    tdx = AppraisalPolicy.from_evidence(
        result(azure_claims("hcl-tdx"), authenticated("hcl-tdx"), None)
    )
    assert (tdx.platforms, tdx.paravisor_measurement) == ({"azure-tdx"}, {register(0x11)})
    assert tdx.id_key_digest is None
    assert tdx.reference_values.rules.keys() == {"mr_signer_seam"}
    unsigned = azure_claims(id_key_digest=bytes(48))
    policy = AppraisalPolicy.from_evidence(result(unsigned, authenticated("hcl-snp"), None))
    assert policy.id_key_digest is None


def test_pinned_policy_of_google_names_the_project() -> None:
    """The project and the joins are pinned; zone and instance are not."""
    found = AppraisalPolicy.from_evidence(result(claims("gcp-snp"), authenticated("gcp-snp"), None))
    assert found.gce_project == {"project"}
    assert found.require_joins == {"ak_to_hardware"}
    assert (found.gce_zone, found.gce_instance, found.trusted_aks) == (None, None, None)


def test_pinned_policy_of_a_listed_key_lists_it() -> None:
    """The key of a TPM that only a policy lists is listed again."""
    evidence = claims("tpm", vtpm=vtpm(key_trust="listed", joins=()))
    found = AppraisalPolicy.from_evidence(result(evidence, authenticated("tpm"), None))
    assert found.trusted_aks == {sha256(KEY)}


def test_platforms_without_tpm_are_pinned_as_before() -> None:
    """No rule about a TPM is in the policy of other evidence."""
    for platform in (TDX, SNP, NITRO, SGX):
        found = AppraisalPolicy.from_evidence(
            result(claims(platform), authenticated(platform), None)
        )
        assert (found.pcrs, found.trusted_aks, found.require_joins) == ((), None, frozenset())
