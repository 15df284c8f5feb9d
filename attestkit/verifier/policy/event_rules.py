"""Policy rules about runtime events: required events, their order, and whether others may occur."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal, TypeAlias

from attestkit._argument_checks import check_text, normalize_members, wrong_type
from attestkit._outcomes.steps import VerificationStep, passed
from attestkit._sanitize import shown
from attestkit.errors import PolicyError, UsageError
from attestkit.event_log.event import DIGEST_SIZE, Event
from attestkit.event_log.runtime_events import RESERVED_NAMES
from attestkit.verifier.claims import Claims
from attestkit.verifier.policy.platforms import EVENT_PLATFORMS, SGX, measures_events
from attestkit.verifier.policy.rules import BOOT_END, accepted_values, format_values, matches_any

Period: TypeAlias = Literal["boot", "app"]
"""Up to the event `system-ready`, or after it. Without that event all events are of the app."""

_PERIODS: Final = ("boot", "app")
_OCCURRENCES: Final = ("every", "last", "any")
_DURING: Final = {"boot": f" up to {BOOT_END}", "app": f" after {BOOT_END}"}


@dataclass(frozen=True, kw_only=True)
class RequiredEvent:
    """Runtime event that must be in the event log.

    An event with the reserved name of a boot event counts only up to the event `system-ready`,
    because the application may emit events of any name later.

    Raises:
        UsageError: If a value has the wrong type or size, or is not one of those allowed, both
            payload and digest are given, or `during` is "app" for a reserved name.
    """

    name: str
    payload: bytes | None = None  # None: any
    digest: bytes | None = None  # 48 bytes, SHA-384; instead of a payload
    during: Period | None = None  # None: any; reserved names: boot
    occurrence: Literal["every", "last", "any"] = "every"
    """Which events of this name, in this period, must match.

    `every`: each must match one of the policy's required events; `last`: the last one; `any`: at
    least one.
    """

    def __post_init__(self) -> None:
        check_text("name", self.name)
        if self.payload is not None and type(self.payload) is not bytes:
            raise wrong_type("payload", "bytes", self.payload)
        if self.digest is not None:
            accepted_values("digest", (self.digest,), DIGEST_SIZE)
            if self.payload is not None:
                message = "digest: cannot be combined with payload; pass one of them"
                raise UsageError(message, reason="conflict")
        if self.during not in (*_PERIODS, None):
            message = f'during: must be "boot" or "app", not {shown(self.during)}'
            raise UsageError(message, reason="wrong_value")
        if self.occurrence not in _OCCURRENCES:
            raise UsageError(
                f'occurrence: must be "every", "last" or "any", not {shown(self.occurrence)}',
                reason="wrong_value",
            )
        if self.name in RESERVED_NAMES:
            if self.during == "app":
                message = f"during: {self.name!r} is a boot event and cannot occur later; use boot"
                raise UsageError(message, reason="conflict")
            object.__setattr__(self, "during", "boot")

    @property
    def part(self) -> tuple[Literal["payload", "digest"], bytes | None]:
        """The part of the event that is compared, and its value; None accepts any."""
        return ("payload", self.payload) if self.digest is None else ("digest", self.digest)

    def matches(self, event: Event) -> bool:
        """Return whether an event has the required payload or digest; its name is not compared."""
        part, wanted = self.part
        return wanted is None or matches_any(getattr(event, part), [wanted])


@dataclass(frozen=True, kw_only=True)
class EventRules:
    """Rules of an `AppraisalPolicy` about runtime events."""

    required_events: Collection[RequiredEvent] = ()
    """Runtime events that must be in the event log."""

    required_events_in_order: bool = False
    """Whether the required events must occur in the order in which they are listed.

    Every event that matches one of them must precede every event that matches the next. The
    required events must be a list or a tuple then.
    """

    only_required_events: Literal["boot", "app", "all"] | None = None
    """Period of the log without events of other names than those of the required events.

    `boot` ends with the event `system-ready`, and `app` follows it.
    """

    def _normalize_events(self) -> None:
        given, ordered = self.required_events, self.required_events_in_order
        found: Collection[RequiredEvent] = normalize_members(
            "required_events", given, RequiredEvent
        )
        if ordered:
            if not isinstance(given, Sequence):
                raise UsageError(
                    "required_events: must be a list or a tuple, because of "
                    "required_events_in_order",
                    reason="wrong_type",
                )
            if len(found) != len(given):
                message = "required_events: events must be unique to have an order; list each once"
                raise UsageError(message, reason="conflict")
            found = tuple(given)
        object.__setattr__(self, "required_events", found)
        if self.only_required_events not in (*_PERIODS, "all", None):
            value = shown(self.only_required_events)
            message = f'only_required_events: must be "boot", "app" or "all", not {value}'
            raise UsageError(message, reason="wrong_value")

    def _appraise_events(self, claims: Claims) -> Iterator[VerificationStep]:
        """Yield the verification steps, if a rule is set; PolicyError names the event."""
        rules: Collection[RequiredEvent] = self.required_events
        if not self.required_events_in_order:
            rules = sorted(rules, key=str)
        if not measures_events(claims):
            first = next((_subject(rule) for rule in rules), "runtime events")
            raise _refusal(f"{first}: required, but {_missing_log(claims.platform)}")
        log = _Log(claims.events)
        found = {rule: log.find(rule) for rule in rules}
        matched = {at for matching in found.values() for at in matching}
        for rule, matching in found.items():
            log.check_occurrence(rule, matching, matched)
            yield passed("required_event", f"the log has event {rule.name!r}")
        if self.required_events_in_order:
            _check_order(found)
            yield passed("required_event", "the required events are in order")
        if self.only_required_events is not None:
            log.refuse_others(rules, self.only_required_events)
            during = _DURING.get(self.only_required_events, "")
            yield passed("required_event", f"the log has no other events{during}")


class _Log:
    """Runtime events of evidence, with an index by name and the position of the boot's end."""

    def __init__(self, events: tuple[Event, ...]) -> None:
        self.events = events
        self.end = next((at for at, one in enumerate(events) if one.name == BOOT_END), -1)
        self._named: dict[str, list[int]] = {}
        for at, event in enumerate(events):
            self._named.setdefault(event.name, []).append(at)

    def _timely(self, rule: RequiredEvent) -> list[int]:
        """Return the indices of the events with the name of a rule, in its period."""
        named = self._named.get(rule.name, [])
        if rule.during is None:
            return named
        return [at for at in named if (rule.during == "boot") == (at <= self.end)]

    def find(self, rule: RequiredEvent) -> list[int]:
        """Return the indices of the events that match a rule; PolicyError if there is none."""
        timely, subject = self._timely(rule), _subject(rule)
        if not timely:
            beside = " at that time" if rule.name in self._named else ""
            raise _refusal(
                f"{subject}: required{_DURING.get(rule.during or '', '')}, but not in the "
                f"log{beside}; have the guest emit it, or drop it from required_events"
            )
        matching = [at for at in timely if rule.matches(self.events[at])]
        if not matching:
            raise _refusal(
                f"{subject}: {self._values(rule, timely)}, {_must(rule)}; have the guest emit "
                "that, or change required_events"
            )
        return matching

    def check_occurrence(
        self, rule: RequiredEvent, matching: list[int], matched: Collection[int]
    ) -> None:
        """Check that events of the name that do not match a rule are allowed by its occurrence.

        Args:
            rule: The required event.
            matching: Indices of the events that match it.
            matched: Indices of the events that match any rule of the policy.

        Raises:
            PolicyError: If the last event of the name does not match the rule (occurrence "last"),
                or any event of the name matches no rule of the policy ("every").
        """
        timely = self._timely(rule)
        if rule.occurrence == "last" and matching[-1] != timely[-1]:
            raise _refusal(
                f"{_subject(rule)}: the last one has {self._values(rule, timely[-1:])}, "
                f"{_must(rule)}; have the guest emit that last, or change required_events"
            )
        if rule.occurrence != "every":
            return
        if others := [at for at in timely if at not in matched]:
            raise _refusal(
                f"{_subject(rule)}: also with {self._values(rule, others)}, {_must(rule)} each "
                'time; require those too, or set its occurrence to "last" or "any"'
            )

    def _values(self, rule: RequiredEvent, places: list[int]) -> str:
        part, _ = rule.part
        return f"{part} {format_values([getattr(self.events[at], part) for at in places])}"

    def refuse_others(
        self, rules: Collection[RequiredEvent], period: Literal["boot", "app", "all"]
    ) -> None:
        """Raise PolicyError if the period has an event with a name that is in no rule."""
        first = self.end + 1 if period == "app" else 0
        last = self.end + 1 if period == "boot" else len(self.events)
        required = {at for rule in rules for at in self._timely(rule)}
        for at in range(first, last):
            if at not in required:
                raise _refusal(
                    f"event {self.events[at].name[:64]!r}: not one of required_events, and "
                    f"only_required_events refuses others{_DURING.get(period, '')}; require it "
                    "too, or drop only_required_events"
                )


def _check_order(found: Mapping[RequiredEvent, list[int]]) -> None:
    """Check that events occur in the order of their rules; PolicyError if not.

    Args:
        found: Indices of the matching events by rule, in the order of the rules.
    """
    places = [
        (rule, matching[-1:] if rule.occurrence == "last" else matching)
        for rule, matching in found.items()
    ]
    for (first, before), (second, after) in pairwise(places):
        if before[-1] >= after[0]:
            raise _refusal(
                f"{_subject(second)}: occurs as event {after[0]}, which must follow event "
                f"{before[-1]}, {first.name!r}; have the guest emit them in the order of "
                "required_events, or drop required_events_in_order"
            )


def _must(rule: RequiredEvent) -> str:
    part, wanted = rule.part
    return f"must be {part} {format_values([wanted or b''])}"


def _subject(rule: RequiredEvent) -> str:
    return f"event {rule.name!r}"


def _refusal(message: str) -> PolicyError:
    return PolicyError(message, reason="required_event")


def _missing_log(platform: str) -> str:
    if platform in {*EVENT_PLATFORMS, SGX}:
        return (
            "a bare quote has no log; request complete evidence from the attester, or drop the "
            "rule from the policy"
        )
    return f"{platform} does not measure runtime events; drop the rule from the policy"
