"""Tests of the rules about runtime events."""

from dataclasses import replace
from typing import Any

import pytest

from attestkit.errors import UsageError
from attestkit.event_log.runtime_events import RESERVED_NAMES, runtime_digest
from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
from attestkit.verifier.policy.event_rules import RequiredEvent
from tests.raising import raises
from tests.runner.cases import every_case
from tests.verifier.policy.policy_samples import (
    NITRO,
    SGX,
    SNP,
    appraise,
    authenticated,
    bare_claims,
    claims,
    events,
    get_rejection_text,
    rules,
)

# -- one event ---------------------------------------------------------------------------------

STORAGE = RequiredEvent(name="storage-fs", payload=b"zfs")


@every_case(
    "rule",
    [
        RequiredEvent(name="model"),
        RequiredEvent(name="model", payload=b"weights"),
        RequiredEvent(name="model", digest=runtime_digest("model", b"weights")),
        STORAGE,
        RequiredEvent(name="system-preparing", payload=b""),
    ],
)
def test_required_event_is_found(rule: RequiredEvent) -> None:
    """An event is found by its name, and by payload or digest if given."""
    assert f"the log has event {rule.name!r}" in appraise(rules(required_events=(rule,)))


@every_case(
    ("rule", "text"),
    [
        (RequiredEvent(name="other"), "event 'other': required, but not in the log;"),
        (
            RequiredEvent(name="model", during="boot"),
            "event 'model': required up to system-ready, but not in the log at that time;",
        ),
        (
            RequiredEvent(name="model", payload=b"other"),
            f"event 'model': payload {b'weights'.hex()}, must be payload {b'other'.hex()};",
        ),
        (
            RequiredEvent(name="model", digest=bytes(48)),
            f"event 'model': digest {runtime_digest('model', b'weights').hex()}, must be digest",
        ),
        (RequiredEvent(name="storage-fs", payload=b""), "payload 7a6673, must be payload nothing"),
    ],
)
def test_required_event_missing_is_rejected(rule: RequiredEvent, text: str) -> None:
    """The rejection distinguishes a missing event, another payload, and another time."""
    assert text in get_rejection_text("required_event", rules(required_events=(rule,)))


SEVERAL = claims(events=events(("model", b"one"), ("model", b"two")))
LISTED = {RequiredEvent(name="model", payload=b"one"), RequiredEvent(name="model", payload=b"two")}


def require(name: str, payload: bytes, occurrence: Any = "every") -> AppraisalPolicy:
    """Return a policy with one required event."""
    rule = RequiredEvent(name=name, payload=payload, occurrence=occurrence)
    return rules(required_events=(rule,))


def test_required_event_with_another_value_is_rejected() -> None:
    """By default every event of that name must be a required one."""
    for payload in (b"one", b"two"):
        text = get_rejection_text("required_event", require("model", payload), SEVERAL)
        assert "also with payload" in text
        assert appraise(require("model", payload, "any"), SEVERAL)
    assert appraise(rules(required_events=LISTED), SEVERAL)
    assert appraise(rules(required_events=(RequiredEvent(name="model"),)), SEVERAL)
    text = get_rejection_text("required_event", require("model", b"three", "any"), SEVERAL)
    assert "payload 6f6e65 or 74776f, must be payload 7468726565" in text


def test_required_event_of_other_period_is_ignored() -> None:
    """Values of an event count in the period of the rule only."""
    booted = events(("model", b"two"))
    found = claims(events=(*booted[:-2], *events(("model", b"one"))[-1:], *booted[-2:]))
    boot = RequiredEvent(name="model", payload=b"one", during="boot")
    app = RequiredEvent(name="model", payload=b"two", during="app")
    for rule in (boot, app):
        assert appraise(rules(required_events=(rule,)), found)
    get_rejection_text("required_event", require("model", b"two"), found)


def test_required_event_last_value() -> None:
    """The last event of that name must match; earlier ones may have any value."""
    assert appraise(require("model", b"two", "last"), SEVERAL)
    text = get_rejection_text("required_event", require("model", b"one", "last"), SEVERAL)
    assert "the last one has payload 74776f, must be payload 6f6e65;" in text
    digest = runtime_digest("model", b"two")
    rule = RequiredEvent(name="model", digest=digest, occurrence="last")
    assert appraise(rules(required_events=(rule,)), SEVERAL)


def in_order(*required: RequiredEvent) -> AppraisalPolicy:
    """Return a policy with required events in this order."""
    return rules(required_events=required, required_events_in_order=True)


LOCK = RequiredEvent(name="lock")
KEY = RequiredEvent(name="key", payload=b"1", occurrence="any")


@every_case(
    ("log", "accepted"),
    [
        ("lock key", True),
        ("lock other key key", True),
        ("key lock", False),
        ("key lock key", False),
        ("lock key lock", False),
    ],
)
def test_required_events_in_order(log: str, accepted: bool) -> None:
    """Every event that matches the first precedes every event that matches the second."""
    found = claims(events=events(*((name, b"1") for name in log.split())))
    assert appraise(rules(required_events=(LOCK, KEY)), found)
    if accepted:
        assert "the required events are in order" in appraise(in_order(LOCK, KEY), found)
    else:
        text = get_rejection_text("required_event", in_order(LOCK, KEY), found)
        assert "required_events_in_order" in text


def test_required_events_in_order_of_last_values() -> None:
    """Of an event whose last value counts, only the last one has a place in the order."""
    found = claims(events=events(("key", b"0"), ("lock", b""), ("key", b"1")))
    last = replace(KEY, occurrence="last")
    assert appraise(in_order(LOCK, last), found)
    get_rejection_text("required_event", in_order(last, LOCK), found)


def test_required_events_in_order_is_part_of_the_policy() -> None:
    """Policies with another order are not equal, and a file keeps the order."""
    policy = in_order(LOCK, KEY)
    assert policy != in_order(KEY, LOCK)
    assert AppraisalPolicy.from_toml(policy.to_toml()) == policy
    assert policy.replace(required_events_in_order=False) == rules(required_events=(KEY, LOCK))
    with raises(UsageError, "wrong_type", start="required_events: "):
        rules(required_events={LOCK, KEY}, required_events_in_order=True)
    with raises(UsageError, "conflict", start="required_events: "):
        in_order(LOCK, KEY, LOCK)


@pytest.mark.parametrize("period", ["app", "all", "boot"])
def test_only_required_events(period: str) -> None:
    """An event with a name that is not required is rejected in this period."""
    log = events(("model", b"one"), ("debug", b""))
    names = {event.name for event in log} - {"debug"}
    if period == "boot":
        names -= {"model", "storage-fs"}
    elif period == "app":
        names = {"model"}
    listed = {RequiredEvent(name=name) for name in names}
    policy = rules(required_events=listed, only_required_events=period)
    assert appraise(policy.replace(only_required_events=None), claims(events=log))
    text = get_rejection_text("required_event", policy, claims(events=log))
    extra = "storage-fs" if period == "boot" else "debug"
    assert text.startswith(f"event '{extra}': not one of required_events")
    more = {*listed, RequiredEvent(name=extra)}
    assert appraise(policy.replace(required_events=more), claims(events=log))


def test_only_required_events_alone_refuses_every_event() -> None:
    """Without required events, the app must not emit any."""
    policy = rules(only_required_events="app")
    assert appraise(policy, claims(events=events()))
    get_rejection_text("required_event", policy, claims(events=events(("a", b""))))
    get_rejection_text("required_event", policy, bare_claims(), None, None)


@pytest.mark.parametrize(
    ("arguments", "subject"),
    [
        ({"only_required_events": "late"}, "only_required_events"),
        ({"only_required_events": []}, "only_required_events"),
        ({"required_events_in_order": 1}, "required_events_in_order"),
    ],
)
def test_invalid_event_rule_raises_usage_error(arguments: dict[str, Any], subject: str) -> None:
    """A rule of another value is an error that starts with its name."""
    with raises(UsageError, "wrong_value", "wrong_type", start=f"{subject}: "):
        rules(**arguments)


@every_case("name", sorted(RESERVED_NAMES))
def test_required_boot_event_emitted_by_app_is_rejected(name: str) -> None:
    """An event after system-ready, or without it, does not count as a boot event."""
    rule = RequiredEvent(name=name, payload=b"claimed")
    assert rule.during == "boot"
    claimed = claims(events=events((name, b"claimed")))
    get_rejection_text("required_event", rules(required_events=(rule,)), claimed)
    app_only = tuple(event for event in claimed.events if event.payload == b"claimed")
    if name != "system-ready":
        unbooted = claims(events=app_only)
        get_rejection_text("required_event", rules(required_events=(rule,)), unbooted)


def test_required_app_event_must_follow_boot() -> None:
    """A boot event does not count as an app event; without a boot all events are app events."""
    booted = claims(events=(*events()[:-1], *events(("model", b""))[-1:], events()[-1]))
    rule = RequiredEvent(name="model", during="app")
    get_rejection_text("required_event", rules(required_events=(rule,)), booted)
    assert appraise(rules(required_events=(RequiredEvent(name="model", during="boot"),)), booted)
    unbooted = claims(events=events(("model", b""))[-1:])
    assert appraise(rules(required_events=(rule,)), unbooted)


def test_required_event_without_event_registers_is_rejected() -> None:
    """Bare quotes and platforms without event registers are rejected."""
    policy = rules(required_events=(RequiredEvent(name="model"),))
    text = get_rejection_text("required_event", policy, bare_claims(), None, None)
    assert "bare quote" in text
    app_events = events(("model", b""))
    for platform in (SNP, NITRO):
        verified = authenticated(platform)
        text = get_rejection_text(
            "required_event", policy, claims(platform, events=app_events), verified
        )
        assert platform in text
    assert "bare quote" in get_rejection_text("required_event", policy, claims(SGX))
