"""Tests of single policy rules: accepted, rejected and invalid values."""

import hmac
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.errors import PolicyError
from attestkit.verifier.policy import rules as policy_rules
from attestkit.verifier.policy.platforms import VERIFIED_PLATFORMS
from attestkit.verifier.policy.reference_values import REGISTERS, ReferenceValues
from attestkit.verifier.policy.rules import (
    BIT_NAMES,
    BitMask,
    KeyProvider,
    format_values,
    matches_any,
)
from tests.runner.cases import every_case
from tests.verifier.policy.policy_samples import (
    ATTRIBUTES,
    NITRO,
    SEPT_VE_DISABLE,
    SGX,
    SNP,
    TDX,
    XFAM,
    app_info,
    appraise,
    authenticated,
    claims,
    get_rejection_text,
    register,
    rules,
)
from tests.verifier.policy.policy_samples import REGISTERS as SAMPLE_REGISTERS

# -- reference values --------------------------------------------------------------------------


def owner_of(name: str) -> str:
    """Return the first platform that has a register."""
    return next(one for one in VERIFIED_PLATFORMS if one in REGISTERS[name].platforms)


def test_reference_values_fields_match_registers() -> None:
    """ReferenceValues has a field for each register, and the samples have a value of its size."""
    assert {field.name for field in fields(ReferenceValues)} == set(REGISTERS)
    for name, (_, size, _) in REGISTERS.items():
        platform = owner_of(name)
        value = {**SAMPLE_REGISTERS[platform], **ATTRIBUTES[platform]}[name]
        assert len(value) == size, name


@every_case("name", REGISTERS)
def test_reference_value_mismatch_is_rejected(name: str) -> None:
    """One of several values is accepted; a rejection names both values."""
    platform, size = owner_of(name), REGISTERS[name].size
    verified = authenticated(platform)
    actual = {**SAMPLE_REGISTERS[platform], **ATTRIBUTES[platform]}[name]
    other = register(0xEE, size)
    accepted = rules(reference_values=ReferenceValues(**{name: (other, actual)}))
    assert f"{name}: a reference value each" in appraise(accepted, claims(platform), verified)
    rejecting = rules(reference_values=ReferenceValues(**{name: (other,)}))
    text = get_rejection_text("reference_value", rejecting, claims(platform), verified)
    assert text.startswith(f"{name}: {actual.hex()}, must be {other.hex()}; ")
    assert f"reference_values.{name}" in text


@every_case("name", REGISTERS)
def test_reference_value_of_missing_register_is_rejected(name: str) -> None:
    """A platform without the register, or evidence that omits it, is rejected."""
    owner, size = owner_of(name), REGISTERS[name].size
    policy = rules(reference_values=ReferenceValues(**{name: (register(0xEE, size),)}))
    for platform in {TDX, SNP, SGX, NITRO} - {owner}:
        verified = authenticated(platform)
        text = get_rejection_text("reference_value", policy, claims(platform), verified)
        assert text.startswith(f"{name}: ")
        assert platform in text
    verified = authenticated(owner)
    get_rejection_text("reference_value", policy, claims(owner, **{name: None}), verified)


def test_reference_value_rejection_names_first_register() -> None:
    """Registers are compared in the order of the platform's registers."""
    values = ReferenceValues(rtmr2=(register(1),), mrtd=(register(0x11),), rtmr1=(register(1),))
    assert get_rejection_text("reference_value", rules(reference_values=values)).startswith(
        "rtmr1: 2121"
    )


def test_matches_any_compares_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """`matches_any` compares with every value by `hmac.compare_digest`."""
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return hmac.compare_digest(one, other)

    class RecordingHmac:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(policy_rules, "hmac", RecordingHmac)
    assert matches_any(b"a", [b"a", b"b", b"c"])
    assert not matches_any(b"d", [b"a", b"b"])
    assert compared == [b"a", b"b", b"c", b"a", b"b"]


def test_format_values_shortens_long_lists() -> None:
    """An error lists at most three values, each shortened."""
    assert format_values([b"\1", b"\2", b"\3", b"\4", b"\5"]) == "01 or 02 or 03 or one of 2 more"
    assert format_values([bytes(100)]) == f"{'00' * 64}... (100 bytes)"
    assert format_values([b""]) == "nothing"


# -- bits --------------------------------------------------------------------------------------


def test_td_attributes_bit_mask() -> None:
    """SEPT_VE_DISABLE is bit 28, in the fourth byte of the little-endian field."""
    assert (
        BitMask.exactly(SEPT_VE_DISABLE).must_be_set
        == BIT_NAMES["td_attributes"]["SEPT_VE_DISABLE"]
    )
    policy = rules(td_attributes=BitMask(must_be_set=1 << 28, must_be_clear=1 << 29))
    assert f"td_attributes {SEPT_VE_DISABLE.hex()} has the required bits" in appraise(policy)
    text = get_rejection_text("attributes", policy, claims(td_attributes=bytes(8)))
    assert "td_attributes: 0000000000000000, but SEPT_VE_DISABLE must be set;" in text
    both = (1 << 29).to_bytes(8, "little")
    text = get_rejection_text("attributes", policy, claims(td_attributes=both))
    assert "SEPT_VE_DISABLE must be set and MIGRATABLE must be clear" in text
    unnamed = rules(td_attributes=BitMask(must_be_clear=1 << 40))
    text = get_rejection_text(
        "attributes", unnamed, claims(td_attributes=(1 << 40).to_bytes(8, "little"))
    )
    assert "bit 40 must be clear" in text


def test_xfam_bit_mask() -> None:
    """The sample XFAM has AVX-512 and AMX; a feature is named by any of its bits."""
    xfam = BIT_NAMES["xfam"]
    assert appraise(rules(xfam=BitMask(must_be_set=xfam["AVX512"] | xfam["AMX"])))
    assert "CET must be set" in get_rejection_text(
        "attributes", rules(xfam=BitMask(must_be_set=1 << 12))
    )
    assert appraise(rules(xfam=BitMask.exactly(XFAM)))
    get_rejection_text("attributes", rules(xfam=BitMask.exactly(bytes.fromhex("e702040000000000"))))


@pytest.mark.parametrize("value", [None, bytes(7), bytes(9)])
def test_bit_mask_field_missing_or_wrong_size_is_rejected(value: bytes | None) -> None:
    """A missing field, or one of a wrong size, is rejected."""
    policy = rules(xfam=BitMask(must_be_clear=1))
    assert get_rejection_text("attributes", policy, claims(xfam=value)).startswith("xfam: ")
    get_rejection_text("attributes", policy, claims(SNP))


@settings(deadline=None)  # shared machines are slow
@given(value=st.integers(0, 2**64 - 1), mask=st.integers(1, 2**64 - 1), actual=st.binary())
def test_bit_mask_exactly_compares_masked_bits(value: int, mask: int, actual: bytes) -> None:
    """`BitMask.exactly` accepts fields that equal the value in the mask's bits."""
    actual = actual[:8].ljust(8, b"\0")
    expected = value & mask
    rule = BitMask.exactly(expected.to_bytes(8, "little"), mask.to_bytes(8, "little"))
    equal = int.from_bytes(actual, "little") & mask == expected
    try:
        rule.appraise("xfam", claims(xfam=actual))
    except PolicyError:
        assert not equal
    else:
        assert equal


# -- key providers -----------------------------------------------------------------------------


@every_case(
    ("rule", "accepted"),
    [
        (KeyProvider(name="kms"), True),
        (KeyProvider(id=b"\x30\x59"), True),
        (KeyProvider(name="kms", id=b"\x30\x59"), True),
        (KeyProvider(name="tpm"), False),
        (KeyProvider(name="kms", id=b"\x30"), False),
        (KeyProvider(id=b"\x30"), False),
    ],
)
def test_key_provider_name_and_id_must_match(rule: KeyProvider, accepted: bool) -> None:
    """Name and id must match the same rule."""
    if accepted:
        assert f"the key provider is {rule}" in appraise(rules(key_provider=(rule,)))
        return
    text = get_rejection_text("key_provider", rules(key_provider=(rule,)))
    assert f"'kms' with id 3059, must be {rule};" in text
    assert appraise(rules(key_provider=(rule, KeyProvider(name="kms"))))


def test_key_provider_rules_are_not_mixed() -> None:
    """The name of one rule and the id of another do not match."""
    policy = rules(
        key_provider=(KeyProvider(name="kms", id=b"\1"), KeyProvider(name="tpm", id=b"\x30\x59"))
    )
    text = get_rejection_text("key_provider", policy)
    assert "must be kms with id 01 or tpm with id 3059" in text


@every_case(
    "info",
    [b"kms", b"{}", b"[]", b'{"name":"kms","id":7}', b'{"name":"kms","id":"3"}', b"\xff" * 4],
)
def test_key_provider_malformed_event_is_rejected(info: bytes) -> None:
    """A malformed key provider event is rejected."""
    policy = rules(key_provider=(KeyProvider(name="kms"),))
    get_rejection_text("key_provider", policy, None, None, app_info(key_provider_info=info))
