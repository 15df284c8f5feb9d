"""Attempts on the comparison of evidence with what is expected."""

import struct
import time
from dataclasses import replace
from functools import cache

from attestkit.errors import UsageError
from attestkit.event_log import Event, EventLog
from attestkit.measure import ExpectedMeasurements, tdx
from attestkit.measure.diagnosis.evidence_comparison import (
    LoggedBoot,
    explain,
    find_differences,
)
from attestkit.verifier import AppraisalPolicy
from tests.attacks.attempts import Surfaces
from tests.measure.diagnosis.guests import (
    Quoted,
    arguments,
    boot,
    evidence_of,
    log_of,
)
from tests.measure.firmware_images import (
    tdvf_image,
)

attacks = Surfaces("measure")


@cache
def expected() -> ExpectedMeasurements:
    """Return what the guest of these attempts measures; its own evidence agrees."""
    found = tdx(**arguments())
    assert explain(found, evidence_of(found)) is None
    return found


def differs(other: LoggedBoot, *registers: str) -> None:
    """Check that evidence is found to differ, in these registers, and that the text is plain."""
    found = find_differences(expected(), other)
    assert found, "hostile evidence agrees with what is expected"
    if registers:
        assert tuple(one.register for one in found)[: len(registers)] == registers
    for one in found:
        assert str(one).isprintable()
        assert str(one).isascii() or "\x1b" not in str(one)


def log() -> EventLog:
    """Return the log of the expected guest."""
    return log_of(expected())


@attacks.attempt("relay")
def good_log_beside_the_quote_of_another_guest() -> None:
    """The log is not signed: only what replays to the quote is compared."""
    differs(LoggedBoot(boot(cmdline="console=ttyS0 init=/bin/sh").quote, log()), "rtmr2")


@attacks.attempt("relay")
def good_quote_with_an_empty_log() -> None:
    """Without events the registers themselves are compared, not the empty log."""
    other = boot(cmdline="console=ttyS0 init=/bin/sh")
    differs(LoggedBoot(other.quote, EventLog([])))


@attacks.attempt("forge")
def guest_with_all_registers_at_zero() -> None:
    """Zero is not the absence of a value."""
    zero = bytes(48)
    differs(LoggedBoot(Quoted(zero, (zero, zero, zero, zero)), EventLog([])))


@attacks.attempt("recombine")
def mrtd_of_the_expected_firmware_with_registers_of_another() -> None:
    """Each register counts, also if an earlier one agrees."""
    good, other = evidence_of(expected()), boot(initrd=b"initrd of the attacker")
    differs(LoggedBoot(Quoted(good.quote.mrtd, other.quote.rtmrs), other.event_log), "rtmr2")


@attacks.attempt("forge")
def event_behind_the_last_expected_one() -> None:
    """A further measurement in RTMR2, such as of a second kernel."""
    more = Event(2, 0x0D, bytes(range(48)), "", b"kexec")
    longer = EventLog([*log().events, more])
    differs(evidence_of(expected(), longer), "rtmr2")


@attacks.attempt("forge")
def events_in_another_order() -> None:
    """The same digests, another boot."""
    events = list(log().events)
    own = [at for at, one in enumerate(events) if one.register == 2]
    events[own[0]], events[own[1]] = events[own[1]], events[own[0]]
    differs(evidence_of(expected(), EventLog(events)))


@attacks.attempt("confuse")
def event_whose_text_is_an_escape_sequence() -> None:
    """The host writes what the diagnosis shows."""
    text = b"\x1b[2J\x1b]0;owned\x07 all registers agree\n\xe2\x80\xae"
    events = [
        one if one.register != 2 else Event(2, one.event_type, bytes(48), "", text)
        for one in log().events
    ]
    differs(evidence_of(expected(), EventLog(events)), "rtmr2")


@attacks.attempt("confuse")
def event_whose_name_is_an_escape_sequence() -> None:
    """The name of an event is of the log, and no more trusted than its text."""
    events = list(log().events)
    at = next(index for index, one in enumerate(events) if one.register == 2)
    events[at] = Event(2, events[at].event_type, bytes(48), "\x1b[31mgood\n", b"")
    differs(evidence_of(expected(), EventLog(events)), "rtmr2")


@attacks.attempt("exhaust")
def log_with_twenty_thousand_events() -> None:
    """The comparison stays linear in the events of the evidence."""
    more = [
        Event(2, 0x0D, struct.pack("<48x")[:44] + struct.pack("<I", n), "", b"")
        for n in range(20_000)
    ]
    longer = evidence_of(expected(), EventLog([*log().events, *more]))
    start = time.process_time()
    differs(longer, "rtmr2")
    assert time.process_time() - start < 2


@attacks.attempt("confuse")
def policy_with_digests_of_an_unsigned_log() -> None:
    """A digest from an unsigned log is pinned only with a comment that says so."""
    unknown = tdx(**arguments(acpi=None))
    assert unknown.rtmrs[0] is None
    filled = unknown.with_log_digests(log())
    assert filled.rtmrs[0] is not None
    assert "acpi_tables_from_log" in filled.not_proven
    assert "# Not proven: acpi_tables_from_log" in filled.to_toml()


@attacks.attempt("confuse", UsageError, "missing")
def policy_that_would_accept_everything() -> object:
    """A policy needs at least one reference value."""
    return replace(
        expected(), mrtds=None, events=(), other_events=(), incomplete=(0, 1, 2)
    ).to_toml()


@attacks.attempt("confuse")
def policy_of_a_td_with_evidence_of_snp() -> None:
    """The policy names its platform, and so rejects evidence without these registers."""
    policy = AppraisalPolicy.from_toml(expected().to_toml())
    assert policy.platforms == {"dstack-tdx"}
    assert policy.reference_values.rtmr3 is None
    assert tdvf_image()
