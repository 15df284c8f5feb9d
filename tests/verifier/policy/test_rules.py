"""Single rules: what they accept, what they refuse, and that no rule accepts nothing."""

import hmac
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.errors import PolicyError, UsageError
from attestkit.event_log.runtime_events import RESERVED_NAMES, runtime_digest
from attestkit.verifier.policy import rules as policy_rules
from attestkit.verifier.policy.rules import (
    BIT_NAMES,
    REGISTERS,
    BitMask,
    KeyProvider,
    ReferenceValues,
    RequiredEvent,
    any_of,
    shown,
)
from attestkit.verifier.result import TcbStatus
from tests.verifier.policy.policy_samples import (
    ATTRIBUTES,
    NITRO,
    SEPT_VE_DISABLE,
    SGX,
    SNP,
    TDX,
    XFAM,
    app_info,
    authenticated,
    bare_claims,
    claims,
    events,
    judged,
    refused,
    register,
    rules,
)
from tests.verifier.policy.policy_samples import REGISTERS as HAVE

# -- reference values --------------------------------------------------------------------------


def test_every_register_has_its_place() -> None:
    """The rules are those of the table, and the samples have a value for each."""
    assert {field.name for field in fields(ReferenceValues)} == set(REGISTERS)
    for name, (platform, size) in REGISTERS.items():
        value = {**HAVE[platform], **ATTRIBUTES[platform]}[name]
        assert len(value) == size, name


@pytest.mark.parametrize("name", REGISTERS)
def test_each_register(name: str) -> None:
    """One of several values is accepted; another is refused with both."""
    platform, size = REGISTERS[name]
    word = authenticated(status=None if platform == NITRO else TcbStatus.UP_TO_DATE)
    have = {**HAVE[platform], **ATTRIBUTES[platform]}[name]
    other = register(0xEE, size)
    accepted = rules(reference_values=ReferenceValues(**{name: (other, have)}))
    assert f"{name}: a reference value each" in judged(accepted, claims(platform), word)
    refusing = rules(reference_values=ReferenceValues(**{name: (other,)}))
    text = refused("reference_value", refusing, claims(platform), word)
    assert f"{name} is {have.hex()}, want {other.hex()};" in text
    assert f"reference_values.{name}" in text


@pytest.mark.parametrize("name", REGISTERS)
def test_a_register_that_is_not_there(name: str) -> None:
    """A platform without the register, or evidence that leaves it out, is refused."""
    own, size = REGISTERS[name]
    policy = rules(reference_values=ReferenceValues(**{name: (register(0xEE, size),)}))
    for platform in {TDX, SNP, SGX, NITRO} - {own}:
        word = authenticated(status=None if platform == NITRO else TcbStatus.UP_TO_DATE)
        text = refused("reference_value", policy, claims(platform), word)
        assert f"evidence of {platform} has no such register" in text
    word = authenticated(status=None if own == NITRO else TcbStatus.UP_TO_DATE)
    refused("reference_value", policy, claims(own, **{name: None}), word)


def test_the_first_wrong_register_is_named() -> None:
    """They are judged in the order of the platform's registers."""
    values = ReferenceValues(rtmr2=(register(1),), mrtd=(register(0x11),), rtmr1=(register(1),))
    assert refused("reference_value", rules(reference_values=values)).startswith("rtmr1 is 2121")


@pytest.mark.parametrize(
    ("given_values", "text"),
    [
        ({"mrtd": ()}, "mrtd: no value would be accepted"),
        ({"mrtd": register(1)}, "mrtd: want several values of 48 bytes"),
        ({"mrtd": "00" * 48}, "mrtd: want several values of 48 bytes"),
        ({"mrtd": 1}, "mrtd: want several values of 48 bytes"),
        ({"mrtd": (register(1, 47),)}, "mrtd: a value has 47 bytes, want 48"),
        ({"host_data": (register(1),)}, "host_data: a value has 48 bytes, want 32"),
        ({"mrtd": (bytearray(48),)}, "mrtd: a value is bytes, not bytearray"),
        (
            {"mrtd": (register(1),), "measurement": (register(1),)},
            "measurement: a register of dstack-amd-sev-snp, and mrtd is one of dstack-tdx",
        ),
    ],
)
def test_reference_values_that_cannot_be(given_values: dict[str, Any], text: str) -> None:
    """A rule that nothing can meet is not made."""
    with pytest.raises(UsageError) as caught:
        ReferenceValues(**given_values)
    assert text in str(caught.value)


def test_values_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """All values are looked at by the one function for it, also behind the right one."""
    seen = []

    def compare(one: bytes, other: bytes) -> bool:
        seen.append(other)
        return hmac.compare_digest(one, other)

    class Watched:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(policy_rules, "hmac", Watched)
    assert any_of(b"a", [b"a", b"b", b"c"])
    assert not any_of(b"d", [b"a", b"b"])
    assert seen == [b"a", b"b", b"c", b"a", b"b"]


def test_long_lists_are_cut() -> None:
    """An error lists three values, and of a long one its beginning."""
    assert shown([b"\1", b"\2", b"\3", b"\4", b"\5"]) == "01 or 02 or 03 or one of 2 more"
    assert shown([bytes(100)]) == f"{'00' * 64}... (100 bytes)"
    assert shown([b""]) == "nothing"


# -- bits --------------------------------------------------------------------------------------


def test_bits_of_attributes() -> None:
    """SEPT_VE_DISABLE is bit 28, which is the fourth byte of the evidence."""
    assert (
        BitMask.exactly(SEPT_VE_DISABLE).must_be_set
        == BIT_NAMES["td_attributes"]["SEPT_VE_DISABLE"]
    )
    policy = rules(td_attributes=BitMask(must_be_set=1 << 28, must_be_clear=1 << 29))
    assert f"td_attributes {SEPT_VE_DISABLE.hex()} has the bits that are wanted" in judged(policy)
    text = refused("attributes", policy, claims(td_attributes=bytes(8)))
    assert "td_attributes is 0000000000000000, where SEPT_VE_DISABLE must be set;" in text
    both = (1 << 29).to_bytes(8, "little")
    text = refused("attributes", policy, claims(td_attributes=both))
    assert "SEPT_VE_DISABLE must be set and MIGRATABLE must be clear" in text
    unnamed = rules(td_attributes=BitMask(must_be_clear=1 << 40))
    text = refused("attributes", unnamed, claims(td_attributes=(1 << 40).to_bytes(8, "little")))
    assert "bit 40 must be clear" in text


def test_bits_of_xfam() -> None:
    """The typical XFAM has AVX-512 and AMX; one bit of a feature is enough to name it."""
    xfam = BIT_NAMES["xfam"]
    assert judged(rules(xfam=BitMask(must_be_set=xfam["AVX512"] | xfam["AMX"])))
    assert "CET must be set" in refused("attributes", rules(xfam=BitMask(must_be_set=1 << 12)))
    assert judged(rules(xfam=BitMask.exactly(XFAM)))
    refused("attributes", rules(xfam=BitMask.exactly(bytes.fromhex("e702040000000000"))))


@pytest.mark.parametrize("value", [None, bytes(7), bytes(9)])
def test_bits_that_are_not_there(value: bytes | None) -> None:
    """A field that is missing or of another size fails closed."""
    policy = rules(xfam=BitMask(must_be_clear=1))
    text = refused("attributes", policy, claims(xfam=value))
    assert "has no such field of 8 bytes" in text
    refused("attributes", policy, claims(SNP))


@settings(deadline=None)  # machines are busy
@given(value=st.integers(0, 2**64 - 1), mask=st.integers(1, 2**64 - 1), have=st.binary())
def test_masks_are_comparisons(value: int, mask: int, have: bytes) -> None:
    """A mask with a value accepts what equals the value in the mask's bits."""
    have = have[:8].ljust(8, b"\0")
    wanted = value & mask
    rule = BitMask.exactly(wanted.to_bytes(8, "little"), mask.to_bytes(8, "little"))
    equal = int.from_bytes(have, "little") & mask == wanted
    try:
        rule.judge("xfam", claims(xfam=have))
    except PolicyError:
        assert not equal
    else:
        assert equal


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (BitMask, "no bit is asked for"),
        (lambda: BitMask(must_be_set=True), "must_be_set: want a number of 64 bits"),
        (lambda: BitMask(must_be_clear=1 << 64), "must_be_clear: want a number of 64 bits"),
        (lambda: BitMask(must_be_set=-1), "must_be_set: want a number of 64 bits"),
        (lambda: BitMask(must_be_set=6, must_be_clear=12), "bit 2 must be set and must be clear"),
        (lambda: BitMask.exactly(bytes(7)), "value: want 8 bytes"),
        (lambda: BitMask.exactly(bytes(8), bytes(9)), "mask: want 8 bytes"),
        (lambda: BitMask.exactly(bytes(8), bytes(8)), "no bit is asked for"),
        (
            lambda: BitMask.exactly(b"\3" + bytes(7), b"\1" + bytes(7)),
            "value: bit 1 is set and not in the mask",
        ),
    ],
)
def test_masks_that_cannot_be(make: Callable[[], BitMask], text: str) -> None:
    """A mask asks for something, and not for both."""
    with pytest.raises(UsageError) as caught:
        make()
    assert text in str(caught.value)


# -- key providers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "accepted"),
    [
        (KeyProvider(name="kms"), True),
        (KeyProvider(id=b"\x30\x59"), True),
        (KeyProvider(name="kms", id=b"\x30\x59"), True),
        (KeyProvider(name="tpm"), False),
        (KeyProvider(name="tpm", id=b"\x30\x59"), False),
        (KeyProvider(name="kms", id=b"\x30"), False),
        (KeyProvider(id=b"\x30"), False),
    ],
)
def test_key_provider(rule: KeyProvider, accepted: bool) -> None:
    """Name and id must both be those of one rule."""
    if accepted:
        assert f"the key provider is {rule}" in judged(rules(key_provider=(rule,)))
        return
    text = refused("key_provider", rules(key_provider=(rule,)))
    assert f"the key provider is 'kms' with id 3059, want {rule};" in text
    assert judged(rules(key_provider=(rule, KeyProvider(name="kms"))))


def test_a_name_of_one_and_an_id_of_another() -> None:
    """Rules are not mixed."""
    policy = rules(
        key_provider=(KeyProvider(name="kms", id=b"\1"), KeyProvider(name="tpm", id=b"\x30\x59"))
    )
    text = refused("key_provider", policy)
    assert "want kms with id 01 or tpm with id 3059" in text


@pytest.mark.parametrize(
    "info",
    [b"kms", b"{}", b"[]", b'{"name":"kms","id":7}', b'{"name":"kms","id":"3"}', b"\xff" * 4],
)
def test_a_key_provider_that_cannot_be_read(info: bytes) -> None:
    """What is no JSON of that shape is refused, not left out."""
    policy = rules(key_provider=(KeyProvider(name="kms"),))
    text = refused("key_provider", policy, None, None, app_info(key_provider_info=info))
    assert "cannot be read" in text


@pytest.mark.parametrize(
    ("given_fields", "text"),
    [
        ({}, "want a name, an id, or both"),
        ({"name": ""}, "name: want text that is not empty"),
        ({"name": "\ud800"}, "name: text has half a surrogate pair"),
        ({"id": b""}, "id: want bytes that are not empty"),
        ({"id": "3059"}, "id: want bytes that are not empty"),
    ],
)
def test_key_providers_that_cannot_be(given_fields: dict[str, Any], text: str) -> None:
    """A rule names somebody."""
    with pytest.raises(UsageError) as caught:
        KeyProvider(**given_fields)
    assert text in str(caught.value)


# -- required events ---------------------------------------------------------------------------

STORAGE = RequiredEvent(name="storage-fs", payload=b"zfs")


@pytest.mark.parametrize(
    "rule",
    [
        RequiredEvent(name="model"),
        RequiredEvent(name="model", payload=b"weights"),
        RequiredEvent(name="model", digest=runtime_digest("model", b"weights")),
        RequiredEvent(name="model", during="app"),
        STORAGE,
        RequiredEvent(name="system-ready"),
        RequiredEvent(name="system-preparing", payload=b""),
    ],
)
def test_events_that_are_there(rule: RequiredEvent) -> None:
    """An event is found by its name, and by payload or digest if those are given."""
    assert f"the log has event {rule.name!r}" in judged(rules(required_events=(rule,)))


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (RequiredEvent(name="other"), "event 'other' is required, and the log has no such event;"),
        (
            RequiredEvent(name="model", during="boot"),
            "event 'model' is required up to system-ready, and the log has no such event at that",
        ),
        (
            RequiredEvent(name="model", payload=b"other"),
            f"event 'model' has payload {b'weights'.hex()}, want payload {b'other'.hex()};",
        ),
        (
            RequiredEvent(name="model", digest=bytes(48)),
            f"event 'model' has digest {runtime_digest('model', b'weights').hex()}, want digest",
        ),
        (RequiredEvent(name="storage-fs", payload=b""), "has payload 7a6673, want payload nothing"),
    ],
)
def test_events_that_are_not_there(rule: RequiredEvent, text: str) -> None:
    """The text tells a missing event from another payload, and from another time."""
    assert text in refused("required_event", rules(required_events=(rule,)))


def test_one_of_several_is_enough() -> None:
    """An event may be emitted again with another payload."""
    found = claims(events=events(("model", b"one"), ("model", b"two")))
    rule = RequiredEvent(name="model", payload=b"two")
    assert judged(rules(required_events=(rule,)), found)
    none = RequiredEvent(name="model", payload=b"three")
    text = refused("required_event", rules(required_events=(none,)), found)
    assert "has payload 6f6e65 or 74776f, want payload 7468726565" in text


@pytest.mark.parametrize("name", sorted(RESERVED_NAMES))
def test_an_app_cannot_emit_what_the_boot_did_not(name: str) -> None:
    """What comes after system-ready, or without it, does not stand in for the boot's events."""
    rule = RequiredEvent(name=name, payload=b"claimed")
    assert rule.during == "boot"
    late = claims(events=events((name, b"claimed")))
    refused("required_event", rules(required_events=(rule,)), late)
    only = tuple(event for event in late.events if event.payload == b"claimed")
    if name != "system-ready":
        unbooted = claims(events=only)
        refused("required_event", rules(required_events=(rule,)), unbooted)


def test_events_of_the_app_are_behind_the_boot() -> None:
    """An event of the boot is none of the app's; without a boot all events are the app's."""
    booted = claims(events=(*events()[:-1], *events(("model", b""))[-1:], events()[-1]))
    rule = RequiredEvent(name="model", during="app")
    refused("required_event", rules(required_events=(rule,)), booted)
    assert judged(rules(required_events=(RequiredEvent(name="model", during="boot"),)), booted)
    unbooted = claims(events=events(("model", b""))[-1:])
    assert judged(rules(required_events=(rule,)), unbooted)


def test_where_nothing_measures_events() -> None:
    """A bare quote has no log, and other platforms have no register for events."""
    policy = rules(required_events=(RequiredEvent(name="model"),))
    text = refused("required_event", policy, bare_claims(), None, None)
    assert "a bare quote has no log: ask the attester for whole evidence" in text
    told = events(("model", b""))
    for platform in (SNP, NITRO):
        word = authenticated(status=None if platform == NITRO else TcbStatus.UP_TO_DATE)
        text = refused("required_event", policy, claims(platform, events=told), word)
        assert f"nothing measures runtime events on {platform}" in text
    assert "bare quote" in refused("required_event", policy, claims(SGX))


@pytest.mark.parametrize(
    ("given_fields", "text"),
    [
        ({"name": ""}, "name: want text that is not empty"),
        ({"name": 1}, "name: want text that is not empty"),
        ({"name": "\udfff"}, "name: text has half a surrogate pair"),
        ({"name": "a", "payload": "00"}, "payload: want bytes"),
        ({"name": "a", "digest": bytes(32)}, "digest: a value has 32 bytes, want 48"),
        ({"name": "a", "digest": bytes(48), "payload": b""}, "digest: it covers the payload"),
        ({"name": "a", "during": "night"}, 'during: want "boot" or "app"'),
        ({"name": "app-id", "during": "app"}, "during: 'app-id' is an event of the boot"),
    ],
)
def test_events_that_cannot_be(given_fields: dict[str, Any], text: str) -> None:
    """A rule about events names one."""
    with pytest.raises(UsageError) as caught:
        RequiredEvent(**given_fields)
    assert text in str(caught.value)
