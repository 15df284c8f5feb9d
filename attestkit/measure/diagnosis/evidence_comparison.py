"""The first difference between expected measurements and evidence, with its cause.

Signatures are not verified here: a `Verifier` does that.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from attestkit import _native
from attestkit.attestation import Attestation
from attestkit.event_log import Event, EventLog, Rtmrs
from attestkit.event_log.event import ACPI_LABELS, RUNTIME_REGISTER
from attestkit.measure.diagnosis.acpi_causes import find_acpi_cause
from attestkit.measure.diagnosis.difference import (
    Cause,
    Difference,
    first_difference,
    value_difference,
)
from attestkit.measure.diagnosis.event_causes import find_cause
from attestkit.measure.diagnosis.guest_inputs import ComparedGuest, GuestInputs
from attestkit.measure.diagnosis.launch_digest_causes import SnpInputs, find_launch_cause
from attestkit.measure.diagnosis.logged_event import acpi_digests, name_event
from attestkit.measure.expected import ExpectedEvent, ExpectedMeasurements, events_of, replay

_REGISTERS = (0, 1, 2)


class TdRegisters(Protocol):
    """An object with the registers of a TD, such as a quote."""

    @property
    def mrtd(self) -> bytes:
        """MRTD, 48 bytes."""
        ...

    @property
    def rtmrs(self) -> Rtmrs:
        """RTMR0 to RTMR3, 48 bytes each."""
        ...


class LoggedBoot(NamedTuple):
    """A quote of a TD (or an object with its registers) and its event log."""

    quote: TdRegisters
    event_log: EventLog


def explain(
    expected: ExpectedMeasurements,
    evidence: Attestation | LoggedBoot,
    *,
    inputs: GuestInputs | SnpInputs | None = None,
) -> Difference | None:
    """Return the first difference between expected measurements and evidence; None if they agree.

    Arguments as for `find_differences`: more causes are found with `inputs`, from which `expected`
    was computed.

    Raises:
        FormatError: If quote, report, log or an input is malformed.
        UsageError: If the quote is of an SGX enclave, or the memory in `inputs` is too small for
            the firmware.
    """
    return next(iter(find_differences(expected, evidence, inputs=inputs)), None)


def find_differences(
    expected: ExpectedMeasurements,
    evidence: Attestation | LoggedBoot,
    *,
    inputs: GuestInputs | SnpInputs | None = None,
) -> tuple[Difference, ...]:
    """Return the first difference of MRTD and of each register, with its cause; takes up to 8 s.

    The result is empty if all agree. If the evidence is of another platform, or the log does not
    replay to the registers in the quote, this is the only difference. Expected events without a
    digest are not compared, nor are the registers that `uncompared_registers` returns.

    Args:
        expected: What the guest should have measured.
        evidence: Quote and event log of a TD, or the evidence of an SEV-SNP guest.
        inputs: What `expected` was computed from, so that more causes are found. None: unknown.

    Raises:
        FormatError: If quote, report, log or an input is malformed.
        UsageError: If the quote is of an SGX enclave, or the memory in `inputs` is too small for
            the firmware.
    """
    if isinstance(evidence, Attestation) and evidence.quote is None:
        return _compare_launch_digest(expected, evidence, inputs)
    quote = evidence.quote
    if expected.platform != "tdx" or quote is None:
        return (_other_platform(expected),)
    log = evidence.event_log
    unexplained = _check_log(quote.rtmrs, log)
    if unexplained is not None:
        return (unexplained,)
    found = _compare_mrtd(expected, quote.mrtd)
    known = inputs if isinstance(inputs, GuestInputs) else GuestInputs()
    if _is_shortened(quote, log):
        return (*found, *_compare_registers(expected, quote.rtmrs, log, known))
    return (*found, *_compare_events(expected, log, known))


def uncompared_registers(
    expected: ExpectedMeasurements, evidence: Attestation | LoggedBoot
) -> tuple[str, ...]:
    """Return the registers that `find_differences` cannot compare, such as `rtmr0`.

    These are registers whose events cannot be predicted. If the log explains RTMR3 only, they are
    the registers whose expected value is unknown. Empty for evidence of another platform than a TD.
    """
    quote = evidence.quote
    if expected.platform != "tdx" or quote is None:
        return ()
    log = evidence.event_log
    if not _is_shortened(quote, log):
        return tuple([f"rtmr{number}" for number in expected.incomplete])
    accepted = _accepted_registers(expected, log)
    names = [f"rtmr{number}" for number in _REGISTERS]
    return tuple([name for name in names if not accepted[name]])


def _is_shortened(quote: TdRegisters, log: EventLog) -> bool:
    """Return whether a log has events of RTMR3 only, while RTMR0 to RTMR2 are not zero."""
    shortened = log.explained_registers() == (RUNTIME_REGISTER,)
    return shortened and any(any(value) for value in quote.rtmrs[:3])


def _compare_mrtd(expected: ExpectedMeasurements, mrtd: bytes) -> tuple[Difference, ...]:
    accepted = expected.reference_values()["mrtd"]
    if not accepted or mrtd in accepted:
        return ()
    order = None if expected.mrtds is None else expected.mrtds.order_of(mrtd)
    if order is None:
        cause = Cause("firmware_image", "another firmware, or another build of it")
    else:
        text = f"the host's kernel adds pages in the order {order}, expected was the other one"
        cause = Cause.found("page_order", text, order)
    return (value_difference("mrtd", accepted[0], mrtd, cause),)


def _compare_registers(
    expected: ExpectedMeasurements, rtmrs: Rtmrs, log: EventLog, inputs: GuestInputs
) -> tuple[Difference, ...]:
    """Return the differences of RTMR0 to RTMR2, for a log that has events of RTMR3 only.

    `rtmrs` are RTMR0 to RTMR3 in the quote.
    """
    text = "the log is shortened and does not have the events, so that the cause is unknown"
    cause = Cause("log_without_events", text)
    accepted = _accepted_registers(expected, log)
    found = []
    for number, value in enumerate(rtmrs[:3]):
        register = f"rtmr{number}"
        if not accepted[register] or value in accepted[register]:
            continue
        difference = None if number else _compare_acpi(expected, value, log, inputs)
        expected_value = accepted[register][0]
        found.append(difference or value_difference(register, expected_value, value, cause))
    return tuple(found)


def _accepted_registers(
    expected: ExpectedMeasurements, log: EventLog
) -> dict[str, tuple[bytes, ...]]:
    """Return the accepted values of `mrtd`, `rtmr0`, `rtmr1` and `rtmr2` by name, 48 bytes each.

    A value that is unknown has an empty tuple. If RTMR0 is unknown, its values are those with the
    digests of ACPI tables in the log.
    """
    accepted = expected.reference_values()
    return accepted | {"rtmr0": accepted["rtmr0"] or _with_logged_tables(expected, log)}


def _with_logged_tables(expected: ExpectedMeasurements, log: EventLog) -> tuple[bytes, ...]:
    """Return the values of RTMR0, 48 bytes each, with the ACPI digests of the log.

    No values if the log lacks these digests, or those of other expected events are unknown.
    """
    digests = acpi_digests(log.events)
    if digests is None or 0 in expected.incomplete:
        return ()
    logged: dict[str, bytes] = dict(zip(ACPI_LABELS, digests, strict=True))
    values = []
    for events in (expected.events, *expected.other_events):
        filled = [one._replace(digest=one.digest or logged.get(one.name)) for one in events]
        values.append(replay(filled, 0))
    known = tuple([value for value in values if value is not None])
    return known if len(known) == len(values) else ()


def _compare_acpi(
    expected: ExpectedMeasurements, value: bytes, log: EventLog, inputs: GuestInputs
) -> Difference | None:
    """Return the difference of the ACPI tables, if RTMR0 differs in their three events only.

    Args:
        expected: What the guest should have measured.
        value: RTMR0 in the quote, 48 bytes.
        log: Event log of the guest.
        inputs: What `expected` was computed from.

    Returns:
        None if other events differ too, or the log lacks the digests of the tables.
    """
    digests = acpi_digests(log.events)
    if digests is None:
        return None
    logged: dict[str, bytes] = dict(zip(ACPI_LABELS, digests, strict=True))
    for events in (expected.events, *expected.other_events):
        changed = [event._replace(digest=logged.get(event.name, event.digest)) for event in events]
        if replay(changed, 0) != value:
            continue
        rtmr0 = _of_register(events, 0)
        position = next(
            at
            for at, event in enumerate(rtmr0)
            if event.digest != logged.get(event.name, event.digest)
        )
        event = rtmr0[position]
        cause = find_acpi_cause(ComparedGuest(events, log.events, inputs))
        return Difference(
            "rtmr0",
            position,
            event.name,
            "changed",
            event.digest,
            logged[event.name],
            event.name,
            cause,
        )
    return None


def _compare_events(
    expected: ExpectedMeasurements, log: EventLog, inputs: GuestInputs
) -> tuple[Difference, ...]:
    logged = [events_of(log, number) for number in _REGISTERS]
    candidates = (expected.events, *expected.other_events)
    events = max(candidates, key=lambda events: _agreement(events, logged))
    guest = ComparedGuest(events, logged[0], inputs)
    found = []
    for number in _REGISTERS:
        if number in expected.incomplete:
            continue
        difference = first_difference(_of_register(events, number), logged[number])
        if difference is None:
            continue
        wanted, actual = difference.expected, difference.logged
        found.append(
            Difference(
                register=f"rtmr{number}",
                position=difference.position,
                event=None if wanted is None else wanted.name,
                kind=difference.kind,
                expected=None if wanted is None else wanted.digest,
                actual=None if actual is None else actual.digest,
                logged_event=None if actual is None else name_event(actual),
                cause=find_cause(guest, difference),
            )
        )
    return tuple(found)


def _agreement(events: Sequence[ExpectedEvent], logged: Sequence[Sequence[Event]]) -> int:
    """Return the number of events before the first difference, summed over all registers.

    `logged` has the events of each register, that of RTMR0 first.
    """
    total = 0
    for number in _REGISTERS:
        wanted = _of_register(events, number)
        difference = first_difference(wanted, logged[number])
        total += len(wanted) + 1 if difference is None else difference.position
    return total


def _of_register(events: Sequence[ExpectedEvent], number: int) -> list[ExpectedEvent]:
    return [event for event in events if event.register == number]


def _check_log(rtmrs: Rtmrs, log: EventLog) -> Difference | None:
    """Return how the log contradicts the quote's registers; None if it replays to them.

    `rtmrs` are RTMR0 to RTMR3 in the quote. A shortened log is compared with RTMR3 only.
    """
    replayed = log.replay()
    for number in log.explained_registers():
        if replayed[number] != rtmrs[number]:
            break
    else:
        return None
    after = _events_after(log, number, rtmrs[number])
    if after is None:
        text = "the log is not of this quote: of another boot, altered, or incomplete"
        cause = Cause("log_not_of_quote", text)
    else:
        text = f"the log has {after} more events than the quote: it was read later"
        cause = Cause.found("log_continues", text, after)
    return value_difference(f"rtmr{number}", replayed[number], rtmrs[number], cause, "log")


def _events_after(log: EventLog, register: int, value: bytes) -> int | None:
    """Return how many of the log's last events of a register are not in the quote.

    `register` is 0 to 3, `value` is the register in the quote, 48 bytes; None if the events before
    never give it. A register of zeros, before all events, counts for RTMR3 only: firmware measures
    others before any quote.
    """
    events = events_of(log, register)
    current = bytes(48)
    for position, event in enumerate(events):
        if current == value and (position or register == RUNTIME_REGISTER):
            return len(events) - position
        current = _native.sha384(current + event.digest)
    return None


def _compare_launch_digest(
    expected: ExpectedMeasurements,
    evidence: Attestation,
    inputs: GuestInputs | SnpInputs | None,
) -> tuple[Difference, ...]:
    report = evidence.snp_report
    if expected.platform != "snp" or report is None:
        return (_other_platform(expected),)
    wanted, actual = expected.launch_digest, report.measurement
    if wanted is None or wanted == actual:
        return ()
    cause = find_launch_cause(inputs if isinstance(inputs, SnpInputs) else None, actual)
    return (value_difference("launch_digest", wanted, actual, cause),)


def _other_platform(expected: ExpectedMeasurements) -> Difference:
    tdx = expected.platform == "tdx"
    text = f"the evidence is not of {'a TD' if tdx else 'an SEV-SNP guest'}"
    register, value = ("mrtd", expected.mrtd) if tdx else ("launch_digest", expected.launch_digest)
    return value_difference(register, value, None, Cause.found("other_platform", text))
