"""Rules about the identity of app, OS image, configuration and device."""

import hashlib
from dataclasses import replace

import pytest

from attestkit.attestation.launch.mr_config import config_id_v2
from attestkit.verifier.policy.appraisal_policy import PRESETS, AppraisalPolicy
from attestkit.verifier.policy.reference_values import ReferenceValues
from attestkit.verifier.policy.rules import KeyProvider
from tests.runner.cases import every_case
from tests.verifier.policy.policy_samples import (
    APP_ID,
    COMPOSE_HASH,
    IMAGE_HASH,
    INSTANCE_ID,
    NITRO,
    PPID,
    SNP,
    app_info,
    appraise,
    appraise_in_steps,
    authenticated,
    bare_claims,
    claims,
    get_rejection_text,
    register,
    result,
    rules,
)

OTHER_20, OTHER_32 = b"\xee" * 20, b"\xee" * 32


@pytest.mark.parametrize(
    ("name", "actual", "other"),
    [
        ("app_id", APP_ID, OTHER_20),
        ("compose_hash", COMPOSE_HASH, OTHER_32),
        ("instance_id", INSTANCE_ID, OTHER_20),
    ],
)
def test_policy_identity_mismatch_is_rejected(name: str, actual: bytes, other: bytes) -> None:
    """Another app's identity is rejected, and the error has both values."""
    text = get_rejection_text(name, rules(**{name: (other,)}))
    assert text.startswith(f"{name}: {actual.hex()}, must be {other.hex()}; ")


IDENTITY = {
    "app_id": ("app_id", (APP_ID,)),
    "compose_hash": ("compose_hash", (COMPOSE_HASH,)),
    "instance_id": ("instance_id", (INSTANCE_ID,)),
    "key_provider": ("key_provider_info", (KeyProvider(name="kms"),)),
}


@every_case("name", IDENTITY)
def test_policy_unmeasured_identity_is_rejected(name: str) -> None:
    """Identity without boot events, or without an RTMR3 log, is rejected."""
    field, value = IDENTITY[name]
    policy = rules(**{name: value})
    assert appraise(policy)
    assert "system-ready" in get_rejection_text(name, policy, None, None, app_info(**{field: b""}))
    get_rejection_text(name, policy, claims(event_registers=(0, 1, 2)))


@every_case("name", IDENTITY)
def test_policy_identity_rule_rejects_bare_quote(name: str) -> None:
    """An identity rule rejects a bare quote."""
    policy = rules(**{name: IDENTITY[name][1]})
    text = get_rejection_text(name, policy, bare_claims(), None, None)
    assert text.startswith(f"{name}: ")
    assert "bare quote" in text


@every_case("name", IDENTITY)
def test_policy_identity_by_platform(name: str) -> None:
    """SEV-SNP takes the identity from the sealed document; an enclave has its image only."""
    policy = rules(**{name: IDENTITY[name][1]})
    assert appraise(policy, claims(SNP))
    assert "no configuration document" in get_rejection_text(name, policy, claims(SNP), None, None)
    enclave = authenticated(status=None)
    if name == "compose_hash":
        assert appraise(policy, claims(NITRO), enclave)
    else:
        assert "pin pcr0 to pcr2" in get_rejection_text(name, policy, claims(NITRO), enclave)


def test_policy_os_image_must_be_verified() -> None:
    """The OS image must have been verified; the configuration's name for it does not count."""
    policy = rules(os_image_hash=(IMAGE_HASH,))
    assert appraise(policy)
    text = get_rejection_text("os_image_hash", policy, claims(os_image_hash=b""))
    assert "could not be verified" in text
    text = get_rejection_text("os_image_hash", policy, claims(os_image_hash=OTHER_32))
    assert text.startswith(f"OS image: {OTHER_32.hex()}, must be {IMAGE_HASH.hex()}; ")


def test_policy_require_mr_config_by_preset() -> None:
    """The strict preset, and a pinned policy, require the MR_CONFIG document."""
    version_3 = claims(mr_config_id=b"\3" + bytes(47))
    text = get_rejection_text("require_mr_config", AppraisalPolicy.strict(), version_3)
    assert "MR_CONFIG_ID: 0300" in text
    assert appraise(AppraisalPolicy.default(), version_3)
    assert appraise(AppraisalPolicy.strict(), replace(version_3, has_mr_config=True))
    assert appraise(AppraisalPolicy.strict(), version_3, None, None)
    assert appraise(AppraisalPolicy.strict(), claims(SNP))
    for has in (True, False):
        known_good = result(replace(version_3, has_mr_config=has))
        assert AppraisalPolicy.from_evidence(known_good).require_mr_config is has


@every_case(
    "config_id",
    [
        bytes(48),
        b"\2" + bytes(47),
        config_id_v2(COMPOSE_HASH, APP_ID, "kms", b"\x30\x58"),
        config_id_v2(COMPOSE_HASH, APP_ID, "tpm", b"\x30\x59"),
        b"\4" + bytes(47),
    ],
)
def test_policy_require_mr_config_rejects_unsealed_td(config_id: bytes) -> None:
    """A TD without sealed configuration, or with one that cannot be compared, is rejected."""
    found = claims(mr_config_id=config_id)
    for policy in (AppraisalPolicy.strict(), rules(require_mr_config=True)):
        get_rejection_text("require_mr_config", policy, found)
    for preset in ("default", "development"):
        assert appraise(PRESETS[preset](), found)


@pytest.mark.parametrize("provider_id", [b"\x30\x59", b""])
def test_policy_require_mr_config_accepts_known_version_2(provider_id: bytes) -> None:
    """Version 2 is accepted if it is the hash of the app and the key provider in the log."""
    found = claims(mr_config_id=config_id_v2(COMPOSE_HASH, APP_ID, "kms", provider_id))
    assert appraise(AppraisalPolicy.strict(), found)
    for info in (
        app_info(app_id=OTHER_20),
        app_info(compose_hash=b""),
        app_info(key_provider_info=b'{"name":"kms","id":"305"}'),
        app_info(key_provider_info=b'{"name":"KMS","id":"3059"}'),
        app_info(key_provider_info=b""),
        None,
    ):
        get_rejection_text("require_mr_config", AppraisalPolicy.strict(), found, None, info)


def test_policy_require_mr_config_rejects_zero_of_bare_quote() -> None:
    """A bare quote without sealed configuration is rejected, too."""
    found = replace(bare_claims(), attributes=claims(mr_config_id=bytes(48)).attributes)
    get_rejection_text("require_mr_config", AppraisalPolicy.strict(), found, None, None)
    assert appraise(AppraisalPolicy.default(), found, None, None)


def test_policy_device_is_taken_from_vendor() -> None:
    """The device id is derived from the vendor's signed data, not from the app's information."""
    ppid = hashlib.sha256(PPID).digest()
    policy = rules(device_id=(ppid,))
    assert appraise(policy, bare_claims(), None, None)
    other = hashlib.sha256(b"other").digest()
    get_rejection_text(
        "device_id", policy, None, authenticated(device=b"other"), app_info(device_id=ppid)
    )
    assert appraise(rules(device_id=(other,)), None, authenticated(device=b"other"))
    assert "does not name it" in get_rejection_text(
        "device_id", policy, None, authenticated(device=b"")
    )


def test_policy_masked_device_is_rejected() -> None:
    """A masked chip id, or an enclave's parent instance, does not identify a device."""
    chip = hashlib.sha256(register(0x73, 64)).digest()
    policy = rules(device_id=(chip,))
    assert appraise(policy, claims(SNP), authenticated(device=b""))
    masked = hashlib.sha256(bytes(64)).digest()
    get_rejection_text("device_id", rules(device_id=(masked,)), claims(SNP, chip_id=bytes(64)))
    enclave = hashlib.sha256(b"i").digest()
    verified = authenticated(status=None, device=b"i")
    get_rejection_text("device_id", rules(device_id=(enclave,)), claims(NITRO), verified)


@pytest.mark.parametrize("name", ["mr_aggregated", "mr_system"])
def test_policy_summary_of_measurements_by_platform(name: str) -> None:
    """A hash of the measurements is compared where they are authenticated."""
    value = register(0xA6, 32)
    policy, info = rules(**{name: (OTHER_32, value)}), app_info(**{name: value})
    enclave = authenticated(status=None)
    assert appraise(policy, None, None, info)
    assert appraise(policy, claims(SNP), None, info)
    assert appraise(policy, claims(NITRO), enclave, info)
    text = get_rejection_text(name, rules(**{name: (OTHER_32,)}), None, None, info)
    assert text.startswith(f"{name}: {value.hex()}, must be {OTHER_32.hex()}; ")
    get_rejection_text(name, policy, claims(event_registers=(0, 1, 2)), None, info)
    get_rejection_text(name, policy, bare_claims(), None, None)
    get_rejection_text(name, policy, None, None, app_info(**{name: b""}))


def test_policy_mr_system_at_google_requires_verified_image() -> None:
    """There it hashes the image that the configuration names."""
    value = register(0x55, 32)
    info = app_info(mr_system=value, mr_aggregated=value)
    google = replace(claims(), platform="dstack-gcp-tdx")
    assert appraise(rules(mr_system=(value,)), google, None, info)
    unknown = replace(google, os_image_hash=b"")
    get_rejection_text("mr_system", rules(mr_system=(value,)), unknown, None, info)
    assert appraise(rules(mr_aggregated=(value,)), unknown, None, info)


def test_policy_with_app_but_no_image_gives_caution() -> None:
    """A policy with an app identity but no OS image gives a caution."""
    app_policy = rules(app_id=(APP_ID,))
    last = appraise_in_steps(app_policy)[-1]
    assert (last.check, last.outcome) == ("os_image_hash", "caution")
    assert str(last).startswith("caution: the policy names an app and no OS image")
    image = {name: (dict(claims().registers)[name],) for name in ("mrtd", "rtmr1", "rtmr2")}
    for extra in ({"os_image_hash": (IMAGE_HASH,)}, {"reference_values": ReferenceValues(**image)}):
        assert not any("no OS image" in step for step in appraise(app_policy.replace(**extra)))
    firmware = ReferenceValues(mrtd=image["mrtd"])
    assert "no OS image" in appraise(app_policy.replace(reference_values=firmware))[-1]
