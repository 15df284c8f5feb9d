"""Appraisal by rules about guests with a TPM: paravisor, key, joins, PCRs, cloud instance."""

from typing import Any

import pytest

from attestkit._crypto.hashes import sha256
from attestkit.errors import SignatureError
from attestkit.verifier.policy.appraisal_policy import PRESETS, AppraisalPolicy
from attestkit.verifier.policy.pcr_rules import BANK_SIZES
from attestkit.verifier.policy.platforms import VERIFIED_PLATFORMS
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.verifier.policy.policy_samples import (
    OF_SNP,
    SNP,
    appraise,
    authenticated,
    claims,
    register,
    rules,
    vtpm,
)
from tests.verifier.policy.vtpm.vtpm_policies import (
    AZURE,
    HCL,
    INIT_DATA,
    KEY,
    PARAVISOR,
    SHA,
    accept,
    azure_claims,
    reject,
    with_pcr,
)

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
    """The signer of the ID block suffices; a zero digest is refused; TDX has no signer."""
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


@every_case("name", ["secure_boot", "console_enabled", "tpm_persisted"])
@every_case("wanted", [True, False])
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
    assert accept(rules(pcrs={"sha512:0": bytes(64)}), claims("go-tpm-tools", vtpm=fresh))
    assert accept(rules(), claims("tpm", vtpm=vtpm(replayed=())))


@every_case(
    "quoted",
    [
        [("sha512", index, bytes(64)) for index in range(16)],
        [("sha256", 23, register(1, 32))],
        [("sha256", index, register(1, 32)) for index in range(7)],
        [("sha256", index, register(1, 32)) for index in (*range(4), 5, 6, 7)]
        + [("sha384", 4, register(1, 48))],
        [("sha1", index, register(1, 20)) for index in range(24)] + [("sha256", 23, bytes(32))],
    ],
)
def test_message_of_go_tpm_tools_quotes_the_boot_of_one_bank(quoted: Any) -> None:
    """Without values a log must explain PCRs 0 to 7 of a bank: a quote of others states no boot."""
    replayed = tuple((bank, index) for bank, index, value in quoted if any(value))
    evidence = claims("go-tpm-tools", vtpm=vtpm(pcrs=tuple(quoted), replayed=replayed))
    assert reject("pcrs", rules(), evidence).startswith("PCRs 0 to 7: ")
    further = {f"{bank}:{index}": value for bank, index, value in quoted if index > 7}
    further = {name: value for name, value in further.items() if not name.startswith("sha1:")}
    if further:  # a rule about another PCR states no boot, either
        assert reject("pcrs", rules(pcrs=further), evidence).startswith("PCRs 0 to 7: ")
    whole = tuple(("sha256", index, register(1, 32)) for index in range(8))
    names = tuple((bank, index) for bank, index, _ in whole)
    assert accept(rules(), claims("go-tpm-tools", vtpm=vtpm(pcrs=whole, replayed=names)))


# -- Google ------------------------------------------------------------------------------------


@every_case(
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
