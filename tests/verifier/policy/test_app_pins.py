"""A policy names an app only by rules that no other app can meet."""

from dataclasses import fields
from typing import Any

from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import Stack
from attestkit.errors import PolicyError
from attestkit.verifier import AppraisalPolicy, ReferenceValues, Verifier
from attestkit.verifier.policy.app_pins import names_app, names_boot, pinned_identity
from attestkit.verifier.policy.event_rules import RequiredEvent
from attestkit.verifier.policy.pcr_rules import normalize_pcrs
from tests.backends.simulator.clouds.guests import open_cloud, verifier_of
from tests.raising import raises
from tests.runner.cases import every_case

HASH = {b"\1" * 32}
REGISTER = {b"\1" * 48}
ZERO = {bytes(48)}
BOOT = {"sha256:4": HASH}
GOOGLE = {"gcp-snp"}
SEV: dict[str, Any] = {"platforms": {"dstack-amd-sev-snp"}}
NITRO_TPM: dict[str, Any] = {"platforms": {"dstack-aws-nitro-tpm"}}
TD_IMAGE = {"mrtd": REGISTER, "rtmr1": REGISTER, "rtmr2": REGISTER}


def pins(**registers: Any) -> dict[str, Any]:
    """Return the rule with reference values of registers."""
    return {"reference_values": ReferenceValues(**registers)}


def describe_rules(rules: dict[str, Any]) -> str:
    """Return a test id that is the same in each process, which the text of a set is not."""
    values = rules.get("reference_values")
    pinned = [one.name for one in fields(values) if getattr(values, one.name)] if values else []
    return " ".join([*sorted(rules.keys() - {"reference_values"}), *pinned]) or "no rule"


@every_case(
    "rules",
    [
        {"os_image_hash": HASH, "app_id": {bytes(20)}},
        {"os_image_hash": HASH, "compose_hash": HASH},
        {"os_image_hash": HASH, **pins(mr_config_id=REGISTER)},
        {"os_image_hash": HASH, **pins(host_data=HASH)},
        {"app_id": {bytes(20)}, **pins(**TD_IMAGE)},
        {"app_id": {bytes(20)}, **pins(measurement=REGISTER)},
        pins(**TD_IMAGE, rtmr3=REGISTER),
        pins(**TD_IMAGE, rtmr3=ZERO),  # an image that measures no app
        {**SEV, **pins(measurement=REGISTER, host_data={bytes(32)})},
        {**SEV, "os_image_hash": HASH, "app_id": {bytes(20)}, "vlek_providers": {"aws"}},
        pins(pcr0=REGISTER),
        {"platforms": {"dstack-nitro-enclave"}, "os_image_hash": HASH},
        {"platforms": {"sgx"}, **pins(mrenclave=HASH)},
        {"init_data": HASH, "pcrs": BOOT, "paravisor_measurement": REGISTER},
        {"init_data": HASH, "pcrs": BOOT, "id_key_digest": REGISTER},
        {"init_data": HASH, "pcrs": BOOT, "platforms": {"gcp-snp"}},
        {"app_id": {bytes(20)}, "pcrs": {"sha256:2": HASH}, "platforms": {"dstack-gcp-tdx"}},
        {**NITRO_TPM, "app_id": {bytes(20)}, "pcrs": {"sha384:4": REGISTER}},
        {**NITRO_TPM, "app_id": {bytes(20)}, "os_image_hash": HASH},
    ],
    ids=describe_rules,
)
def test_names_app_with_rules_about_program(rules: dict[str, Any]) -> None:
    """App id, compose hash, or registers of a program name the app, together with its image."""
    assert names_app(AppraisalPolicy.default().replace(**rules))


@every_case(
    "rules",
    [
        {},
        {"os_image_hash": HASH},
        {"device_id": HASH},
        {"mr_aggregated": HASH},
        {"mr_system": HASH},
        {"instance_id": {bytes(20)}},
        {"refuse_simulated": True},
        {"required_events": [RequiredEvent(name="ready", payload=b"1")]},
        pins(mrtd=REGISTER, rtmr1=REGISTER, rtmr2=REGISTER),
        pins(rtmr0=REGISTER),
        pins(measurement=REGISTER),
        pins(mr_seam=REGISTER),
        pins(id_key_digest=REGISTER),
        pins(pcr8=REGISTER),
        {"platforms": {"sgx"}, **pins(mrsigner=HASH)},
        {"app_id": {bytes(20)}},
        {"compose_hash": HASH},
        {"app_id": {bytes(20)}, **pins(mrtd=REGISTER)},
        {"app_id": {bytes(20)}, **pins(rtmr0=REGISTER, rtmr1=REGISTER, rtmr2=REGISTER)},
        pins(rtmr3=REGISTER),
        pins(rtmr3=ZERO, mr_config_id=ZERO),
        pins(mr_config_id=REGISTER),
        pins(host_data=HASH),
        pins(mrtd=REGISTER, rtmr1=ZERO, rtmr2=REGISTER, rtmr3=ZERO),  # firmware that measures none
        pins(measurement=REGISTER, host_data={bytes(32)}),  # also at Google
        pins(**TD_IMAGE, mr_config_id=ZERO),
        pins(**TD_IMAGE, mr_config_id=ZERO | REGISTER),
    ],
    ids=describe_rules,
)
def test_names_app_without_rule_about_program(rules: dict[str, Any]) -> None:
    """Images of any app, apps of any image, devices, signers and events do not name an app."""
    for preset in (AppraisalPolicy.strict, AppraisalPolicy.default, AppraisalPolicy.development):
        assert not names_app(preset().replace(**rules))


@every_case(
    "rules",
    [
        {"init_data": HASH, "pcrs": BOOT},  # of a paravisor that no rule identifies
        {"init_data": HASH, "paravisor_measurement": REGISTER},
        {"init_data": HASH, "pcrs": {"sha256:7": HASH}, "paravisor_measurement": REGISTER},
        {"pcrs": BOOT, "paravisor_measurement": REGISTER},
        {"paravisor_measurement": REGISTER, "secure_boot": True},
        # The booted program extends these, and can extend them by anything.
        {"init_data": HASH, "pcrs": {"sha256:9": HASH, "sha256:11": HASH}, "platforms": GOOGLE},
        # Of a bank that the firmware does not extend.
        {"init_data": HASH, "pcrs": {"sha512:4": {bytes(64)}}, "platforms": GOOGLE},
        {"init_data": HASH, "pcrs": {"sha256:2": HASH}, "platforms": GOOGLE},
        {**NITRO_TPM, "app_id": {bytes(20)}},
        {**NITRO_TPM, "app_id": {bytes(20)}, "pcrs": {"sha384:7": REGISTER, "sha384:16": ZERO}},
        {**NITRO_TPM, "pcrs": {"sha384:4": REGISTER}},
    ],
    ids=describe_rules,
)
def test_names_no_app_with_rules_about_a_tpm(rules: dict[str, Any]) -> None:
    """Init-data name an app only beside the boot, of a guest whose TPM is known."""
    assert not names_app(AppraisalPolicy.default().replace(**rules))


@every_case(
    "rules",
    [
        {"platforms": GOOGLE, **pins(measurement=REGISTER, host_data=HASH)},
        {"platforms": GOOGLE, "gce_project": {"mine"}, **pins(measurement=REGISTER)},
        {**SEV, "vlek_providers": {"aws"}, **pins(measurement=REGISTER, host_data=HASH)},
        {**SEV, "vlek_providers": {"aws"}, "app_id": {bytes(20)}, **pins(measurement=REGISTER)},
    ],
    ids=describe_rules,
)
def test_names_no_app_with_launch_measurement_of_firmware(rules: dict[str, Any]) -> None:
    """At Google and AWS, the launch measurement covers firmware that boots any image."""
    assert not names_app(AppraisalPolicy.default().replace(**rules))


@every_case("platform", ["gcp-snp", "aws-nitro-tpm"])
def test_policy_from_evidence_without_image_names_its_boot_only(platform: str) -> None:
    """PCR 4 is pinned, also without a log; evidence of another boot is refused."""
    with open_cloud(platform=platform) as tee:
        parts = tee.attest(nonce=bytes(32)).evidence
        evidence = Attestation(parts._replace(stack=Stack(parts.stack.report_data, (), "")))
        accepted = verifier_of(tee).verify(evidence, report_data=None)
        policy = AppraisalPolicy.from_evidence(accepted)
    assert not names_app(policy)
    assert names_boot(policy, accepted.claims.platform)
    pinned = dict(normalize_pcrs(policy.pcrs))
    name = next(name for name in pinned if name.endswith(":4"))
    other = policy.replace(pcrs={name: bytes(len(next(iter(pinned[name]))))})
    with open_cloud(platform=platform) as tee, raises(PolicyError, "pcrs"):
        verifier = Verifier(trust_anchor=tee.backend.trust_anchor, policy=other)
        verifier.verify(evidence, report_data=None)


@every_case(
    ("rules", "names"),
    [
        ({}, ""),
        ({"app_id": {bytes(20)}, "os_image_hash": HASH}, "app_id os_image_hash"),
        ({"compose_hash": HASH, **pins(**TD_IMAGE)}, "compose_hash os_image_hash"),
        (pins(mrtd=REGISTER), ""),
        (pins(rtmr3=REGISTER), "app_id compose_hash"),
        (pins(host_data=HASH, measurement=REGISTER), "app_id compose_hash os_image_hash"),
        (pins(mr_config_id=ZERO), ""),
        (pins(mr_config_id=REGISTER), "compose_hash"),  # version 1
        (pins(mr_config_id={b"\3" * 48}), "app_id compose_hash"),
        (pins(mr_config_id={b"\3" * 48, *REGISTER}), "compose_hash"),
    ],
)
def test_pinned_identity_has_rules_and_what_registers_contain(
    rules: dict[str, Any], names: str
) -> None:
    """A value is pinned by its rule, or by reference values of registers that contain it."""
    assert pinned_identity(AppraisalPolicy.default().replace(**rules)) == set(names.split())
