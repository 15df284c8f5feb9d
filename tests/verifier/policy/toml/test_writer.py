"""Tests of the policy writer and of pinned policies."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import PolicyError
from attestkit.gpu.rules import GpuRules
from attestkit.verifier.claims import TcbStatus
from attestkit.verifier.policy.appraisal_policy import PRESETS, AppraisalPolicy
from attestkit.verifier.policy.event_rules import RequiredEvent
from attestkit.verifier.policy.rules import BitMask, KeyProvider
from attestkit.verifier.result import AttestationResult
from tests.raising import raises
from tests.runner.cases import every_case
from tests.verifier.policy.policy_samples import (
    APP_ID,
    COMPOSE_HASH,
    IMAGE_HASH,
    NITRO,
    NOW,
    SEPT_VE_DISABLE,
    SNP,
    TDX,
    app_info,
    authenticated,
    bare_claims,
    claims,
    create_policy_with_every_rule,
    events,
    register,
    result,
)

pin = AppraisalPolicy.from_evidence

# -- pinned policies ---------------------------------------------------------------------------


def is_accepted(
    policy: AppraisalPolicy, attestation_result: AttestationResult, **changes: Any
) -> bool:
    """Return whether a policy accepts the evidence of a result with changed claims."""
    verified = authenticated(
        status=attestation_result.tcb.status, advisory_ids=attestation_result.advisory_ids
    )
    try:
        policy.appraise(
            replace(attestation_result.claims, **changes),
            verified,
            attestation_result.app_info,
            NOW,
            simulated=attestation_result.simulated,
        )
    except PolicyError:
        return False
    return True


def test_pin_of_td() -> None:
    """Image, app and settings are pinned; instance, device, TDX module and RTMR3 are not."""
    policy = pin(result())
    assert policy.accepted_statuses == AppraisalPolicy.default().accepted_statuses
    assert policy.platforms == {TDX}
    assert set(policy.reference_values.rules) == {
        *("mrtd", "rtmr0", "rtmr1", "rtmr2"),
        *("mr_signer_seam", "mr_config_id", "mr_owner", "mr_owner_config"),
    }
    assert policy.td_attributes == BitMask.exactly(SEPT_VE_DISABLE)
    assert policy.xfam is not None
    assert policy.app_id == {APP_ID}
    assert policy.compose_hash == {COMPOSE_HASH}
    assert policy.os_image_hash == {IMAGE_HASH}
    assert policy.key_provider == {KeyProvider(name="kms", id=b"\x30\x59")}
    assert {(event.name, event.payload) for event in policy.required_events} == {
        ("init-script-hash", register(0x15, 32)),
        ("gpu-policy-hash", register(0x6F, 32)),
        ("storage-fs", b"zfs"),
    }
    assert policy.instance_id is None
    assert policy.device_id is None


RESULTS = {
    "td": result(),
    "td, no boot": result(
        claims(events=events(("model", b""))[-1:]),
        None,
        app_info(app_id=b"", compose_hash=b"", instance_id=b"", key_provider_info=b""),
    ),
    "td, no events": result(claims(events=(), rtmr3=bytes(48))),
    "td, no image": result(claims(os_image_hash=b"")),
    "td, strange provider": result(None, None, app_info(key_provider_info=b"\xff")),
    "td, empty provider": result(None, None, app_info(key_provider_info=b'{"name":"","id":""}')),
    "bare quote": result(bare_claims(), None, None),
    "out of date": result(
        None, authenticated(status=TcbStatus.OUT_OF_DATE, advisory_ids=("INTEL-SA-00837",))
    ),
    "snp": result(claims(SNP)),
    "snp, no document": result(claims(SNP), None, None),
    "nitro": result(claims(NITRO), authenticated(status=None), app_info(app_id=b"")),
    "sgx": result(claims("sgx"), None, None),
}


@every_case("name", RESULTS)
def test_pin_accepts_its_evidence(name: str) -> None:
    """The policy accepts its evidence, also after a round trip through TOML."""
    evidence = RESULTS[name]
    policy = pin(evidence)
    assert is_accepted(policy, evidence)
    read = AppraisalPolicy.from_toml(policy.to_toml())
    assert read == policy
    assert is_accepted(read, evidence)


@every_case("name", RESULTS)
def test_pin_rejects_any_other_register(name: str) -> None:
    """A change of any pinned register is rejected."""
    evidence = RESULTS[name]
    policy = pin(evidence)
    assert policy.reference_values.rules
    for pinned in policy.reference_values.rules:
        for table in ("registers", "attributes"):
            current = dict(getattr(evidence.claims, table))
            if pinned in current:
                current[pinned] = b"\xee" * len(current[pinned])
                changes = {table: tuple(current.items())}
                assert not is_accepted(policy, evidence, **changes), pinned


@every_case("name", RESULTS)
def test_pin_of_hardware_rejects_simulated_evidence(name: str) -> None:
    """A policy of a deployment does not depend on a verifier without the simulator's root."""
    evidence = RESULTS[name]
    verified = authenticated(status=evidence.tcb.status, advisory_ids=evidence.advisory_ids)
    for simulated in (True, None):
        with raises(PolicyError, "simulated"):
            pin(evidence).appraise(
                evidence.claims, verified, evidence.app_info, NOW, simulated=simulated
            )
    assert not pin(result(simulated=True)).refuse_simulated


def test_pin_omits_values_with_instance_id() -> None:
    """Values that depend on the instance id are pinned only if it is empty."""
    version_3 = claims(mr_config_id=b"\3" + register(1, 47))
    assert pin(result(version_3)).reference_values.mr_config_id is None
    anonymous = app_info(instance_id=b"")
    assert pin(result(version_3, None, anonymous)).reference_values.mr_config_id is not None
    assert pin(result(claims(SNP))).reference_values.host_data is None
    assert pin(result(claims(SNP), None, anonymous)).reference_values.host_data is not None


def test_pin_rtmr3_only_without_events() -> None:
    """RTMR3 is pinned only if its log has no events."""
    assert pin(RESULTS["td, no events"]).reference_values.rtmr3 == {bytes(48)}
    for name in ("td", "td, no boot", "bare quote"):
        assert pin(RESULTS[name]).reference_values.rtmr3 is None


def test_pin_omits_app_events() -> None:
    """Only boot events are pinned, not events of the same names by the app."""
    claimed = claims(events=events(("storage-fs", b"claimed")))
    assert {event.payload for event in pin(result(claimed)).required_events} == {
        *(register(0x15, 32), register(0x6F, 32), b"zfs")
    }
    unbooted = claims(events=tuple(each for each in events() if each.name != "system-ready"))
    assert pin(result(unbooted)).required_events == frozenset()


def test_pin_of_enclave_omits_app_id() -> None:
    """An enclave's app id is not signed, and therefore not pinned."""
    policy = pin(result(claims(NITRO), authenticated(status=None)))
    assert (policy.app_id, policy.compose_hash, policy.key_provider) == (None, None, None)
    assert set(policy.reference_values.rules) == {"pcr0", "pcr1", "pcr2", "pcr8"}


def test_pin_includes_status_of_evidence() -> None:
    """The status of the evidence is accepted, and visible in the file."""
    policy = pin(RESULTS["out of date"])
    assert TcbStatus.OUT_OF_DATE in policy.accepted_statuses
    assert '"OutOfDate"' in policy.to_toml()


# -- TOML --------------------------------------------------------------------------------------


def test_to_toml_explains_each_rule() -> None:
    """The file has a comment before each rule; bytes are hex, and bits are named."""
    text = pin(result(None, None, app_info(instance_id=b""))).to_toml()
    assert all(rule.startswith("# ") for rule in text.split("\n\n"))
    for part in (
        '"UpToDate",\n  "SWHardeningNeeded",\n',
        f'\napp_id = "{"0a" * 20}"\n',
        f'\n[reference_values]\n# initial contents of the TD: its firmware\nmrtd = "{"11" * 48}"\n',
        '\n# SEPT_VE_DISABLE\nvalue = "0000001000000000"\n',
        '\n[[key_provider]]\nname = "kms"\nid = "3059"\n',
        '\n[[required_events]]\nname = "storage-fs"\npayload = "7a6673"\nduring = "boot"\n',
    ):
        assert part in text


@pytest.mark.parametrize("preset", PRESETS)
def test_to_toml_writes_presets_in_full(preset: str) -> None:
    """The file lists statuses instead of a preset, whose meaning may change."""
    text = PRESETS[preset]().to_toml()
    assert "preset" not in text
    assert AppraisalPolicy.from_toml(text) == PRESETS[preset]()


@given(st.text("\"\\'\n\x7f\x00\x1f.é\u2028#a", min_size=1, max_size=9), st.binary(max_size=9))
def test_to_toml_odd_text_round_trip(name: str, payload: bytes) -> None:
    """A policy with every rule and any names equals itself after a round trip through TOML."""
    policy = create_policy_with_every_rule().replace(
        minimum_svns=((name, 4),),
        key_provider=(KeyProvider(name=name), KeyProvider(id=payload + b"\0")),
        required_events=(
            RequiredEvent(name=name, payload=payload),
            RequiredEvent(name=name, digest=bytes(48), during="boot"),
        ),
    )
    assert AppraisalPolicy.from_toml(policy.to_toml()) == policy


def test_rules_for_gpus_that_are_not_required_say_so() -> None:
    """A policy whose rules accept evidence without GPUs is written so that it can be read."""
    policy = replace(AppraisalPolicy.default(), gpu=GpuRules(allow_hold=True))
    assert AppraisalPolicy.from_toml(policy.to_toml()) == policy
