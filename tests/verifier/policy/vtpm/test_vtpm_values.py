"""Policies with rules about guests with a TPM as values: files, equality, and invalid rules."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.hashes import sha256
from attestkit.errors import ConfigError, UsageError
from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
from attestkit.verifier.policy.pcr_rules import BANK_SIZES, normalize_pcrs
from attestkit.verifier.policy.reference_values import ReferenceValues
from attestkit.verifier.policy.rules import BitMask
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.verifier.policy.policy_samples import (
    NITRO,
    SNP,
    TDX,
    TPM_ALONE,
    claims,
    register,
)
from tests.verifier.policy.vtpm.vtpm_policies import (
    AZURE_FILE,
    AZURE_POLICY,
    GOOGLE_FILE,
    GOOGLE_POLICY,
    HCL,
    KEY,
    SHA,
    accept,
    azure_claims,
)


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


@every_case(
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


@every_case(
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
