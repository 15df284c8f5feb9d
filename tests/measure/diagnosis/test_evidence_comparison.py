"""Evidence is compared only as far as its quote authenticates it, and no further."""

from dataclasses import replace

import pytest
from hypothesis import strategies as st

import attestkit
from attestkit.event_log import Event, EventLog
from attestkit.measure import ExpectedMeasurements, tdx
from attestkit.measure.diagnosis.difference import Difference
from attestkit.measure.diagnosis.evidence_comparison import (
    LoggedBoot,
    explain,
    find_differences,
    uncompared_registers,
)
from attestkit.measure.diagnosis.guest_shape import find_guest_shape
from tests.measure.diagnosis.guests import (
    SHAPE,
    SMBIOS,
    Quoted,
    arguments,
    boot,
    evidence_of,
    firmware,
    inputs_of,
    log_of,
    tables,
)
from tests.thorough import thorough

EXPECTED = tdx(**arguments())
LOG = log_of(EXPECTED)
EVENTS = LOG.events


def only(differences: tuple[Difference, ...]) -> Difference:
    """Return the only difference."""
    (found,) = differences
    return found


def test_explain_returns_the_first_difference() -> None:
    """The result is None for equal values; a difference of MRTD precedes those of registers."""
    assert explain(EXPECTED, evidence_of(EXPECTED)) is None
    other = boot(firmware=firmware(texts=(b"ACPI DATA", b"QEMU FW CFG", b"etc/boot/")))
    found = explain(EXPECTED, other)
    assert found is not None
    assert found.register == "mrtd"
    assert [one.register for one in find_differences(EXPECTED, other)] == ["mrtd", "rtmr2"]


def test_both_orders_of_pages_are_accepted_if_none_is_stated() -> None:
    """The order of pages is that of the host's kernel, which the user may not know."""
    other = boot(shape=replace(SHAPE, two_pass=True))
    assert find_differences(tdx(**arguments(shape=replace(SHAPE, two_pass=None))), other) == ()
    assert only(find_differences(EXPECTED, other)).cause.name == "page_order"


def test_log_of_another_quote_is_the_answer() -> None:
    """A log that does not replay to the quote is not compared with what is expected."""
    other = boot(cmdline="other")
    found = only(find_differences(EXPECTED, LoggedBoot(other.quote, LOG)))
    assert (found.kind, found.register, found.position) == ("log", "rtmr2", None)
    assert (found.cause.name, found.cause.proven) == ("log_not_of_quote", False)
    assert (found.expected, found.actual) == (LOG.replay()[2], other.quote.rtmrs[2])


def test_log_longer_than_quote_is_named() -> None:
    """A log that was read after the quote has more events."""
    longer = LOG.with_runtime([Event(3, 0x08000001, b"", "app-id", b"x")])
    found = only(find_differences(EXPECTED, evidence_of(EXPECTED, LOG)._replace(event_log=longer)))
    assert (found.kind, found.register) == ("log", "rtmr3")
    assert (found.cause.name, found.cause.proven, found.cause.value) == ("log_continues", True, 1)


def test_log_of_a_quote_without_events_is_another() -> None:
    """A quote whose RTMR1 is zero did not come before the events that the firmware measures."""
    rtmrs = LOG.replay()
    quote = Quoted(evidence_of(EXPECTED).quote.mrtd, (rtmrs[0], bytes(48), rtmrs[2], rtmrs[3]))
    found = only(find_differences(EXPECTED, LoggedBoot(quote, LOG)))
    assert (found.register, found.cause.name) == ("rtmr1", "log_not_of_quote")


def test_shortened_log_is_not_compared() -> None:
    """A log as in certificates has no events, so that only the registers are compared."""
    stripped = LoggedBoot(evidence_of(EXPECTED).quote, LOG.stripped())
    assert find_differences(EXPECTED, stripped) == ()
    found = only(find_differences(tdx(**arguments(cmdline="other")), stripped))
    assert (found.register, found.event, found.kind) == ("rtmr2", None, "value")
    assert found.cause.name == "log_without_events"


def test_shortened_log_has_the_acpi_tables() -> None:
    """Events of ACPI tables in a shortened log are compared if the rest of RTMR0 is as expected."""
    other = boot(acpi=tables("10.0", replace(SHAPE, cpu_count=8)))
    stripped = other._replace(event_log=other.event_log.stripped())
    found = only(find_differences(EXPECTED, stripped))
    assert (found.register, found.event, found.kind) == ("rtmr0", "acpi-loader", "changed")
    assert (found.cause.name, found.cause.value) == ("cpu_count", 8)
    expected = tdx(**arguments(smbios=SMBIOS.replace(b"QEMU", b"other")))
    found = only(find_differences(expected, stripped))
    assert found.cause.name == "log_without_events"


def test_shortened_log_is_compared_with_its_own_tables() -> None:
    """Without expected tables, those of the log show whether the rest of RTMR0 is as expected."""
    unknown = tdx(**{**arguments(), "acpi": None})
    assert unknown.rtmrs[0] is None
    same = LoggedBoot(evidence_of(EXPECTED).quote, LOG.stripped())
    assert find_differences(unknown, same) == ()
    other = boot(shape=replace(SHAPE, memory_size=SHAPE.memory_size + (1 << 30)))
    found = only(find_differences(unknown, other._replace(event_log=other.event_log.stripped())))
    assert (found.register, found.event, found.kind) == ("rtmr0", None, "value")
    assert found.cause.name == "log_without_events"


@pytest.mark.parametrize(
    "content",
    [
        b"APIC" + (8).to_bytes(4, "little"),
        b"FACP" + (8).to_bytes(4, "little"),
        b"DSDT"
        + (24).to_bytes(4, "little")
        + bytes.fromhex("8717 0000 0c01 00000000 00000000 0000"),
        b"DSDT"
        + (30).to_bytes(4, "little")
        + bytes.fromhex("8a2b 0000 0c03 0000000000000000 0000000000000000"),
    ],
)
def test_tables_that_are_too_short_have_no_cause(content: bytes) -> None:
    """Given tables need not be those that the loader script describes."""
    found = tables("10.0", SHAPE)._replace(tables=content)
    values = arguments(acpi=found)
    difference = only(
        find_differences(tdx(**values), evidence_of(EXPECTED), inputs=inputs_of(values))
    )
    assert (difference.event, difference.cause.name) == ("acpi-tables", "acpi_tables")


def test_registers_that_are_not_compared_are_listed() -> None:
    """Of a shortened log a register is compared only if its value is known."""
    quote = evidence_of(EXPECTED).quote
    full, stripped = LoggedBoot(quote, LOG), LoggedBoot(quote, LOG.stripped())
    unknown = tdx(**arguments(smbios=None))
    assert uncompared_registers(EXPECTED, stripped) == ()
    assert uncompared_registers(unknown, full) == ()
    assert uncompared_registers(unknown, stripped) == ("rtmr0",)
    assert find_differences(unknown, stripped) == ()
    assert uncompared_registers(replace(EXPECTED, incomplete=(2,)), full) == ("rtmr2",)
    assert uncompared_registers(ExpectedMeasurements(platform="snp"), full) == ()


@pytest.mark.parametrize(
    ("register", "kept", "event", "cause"),
    [
        (1, 3, "exit-invocation", "boot_incomplete"),
        (2, 1, "initrd", "initrd_presence"),
        (0, 10, "acpi-loader", "firmware_release"),
    ],
)
def test_log_that_ends_early_is_cut(register: int, kept: int, event: str, cause: str) -> None:
    """A log with fewer events, and a quote to match, is cut."""
    listed = [one for one in EVENTS if one.register == register][:kept]
    log = EventLog([*listed, *[one for one in EVENTS if one.register != register]])
    found = only(find_differences(EXPECTED, evidence_of(EXPECTED, log)))
    assert (found.register, found.position, found.event) == (f"rtmr{register}", kept, event)
    assert (found.kind, found.actual, found.logged_event) == ("cut", None, None)
    assert (found.cause.name, found.cause.proven) == (cause, False)


def test_log_with_event_behind_the_last_is_extra() -> None:
    """An event behind the last expected one has no expected digest."""
    log = EventLog([*EVENTS, Event(2, 0xD, bytes(48), "", b"")])
    found = only(find_differences(EXPECTED, evidence_of(EXPECTED, log)))
    assert (found.event, found.expected, found.kind) == (None, None, "extra")
    assert (found.logged_event, found.cause.name) == ("EV_IPL", "boot_loader")


def test_informative_events_do_not_count() -> None:
    """Events that extend nothing are not compared."""
    log = EventLog([Event(0, 3, bytes(48), "", b"Spec ID"), *EVENTS])
    assert find_differences(EXPECTED, evidence_of(EXPECTED, log)) == ()


def test_the_list_of_events_that_fits_best_is_compared() -> None:
    """Of several possible lists, the difference is that of the one that the log follows."""
    older = {"firmware": firmware(texts=(b"ACPI DATA",)), "smbios": None}
    expected = tdx(**arguments(**older))
    assert expected.other_events
    for place in (False, True):
        other = boot(**older, separator_in_rtmr1=place)
        assert find_differences(expected, other) == ()
        changed = boot(**older, separator_in_rtmr1=place, initrd=b"other")
        # The initrd's size is in the kernel's header, too.
        assert [one.register for one in find_differences(expected, changed)] == ["rtmr1", "rtmr2"]


def test_registers_that_cannot_be_predicted_are_not_compared() -> None:
    """A register without all events is not compared."""
    assert find_differences(replace(EXPECTED, incomplete=(2,)), boot(cmdline="other")) == ()


def test_evidence_of_another_platform_is_named() -> None:
    """Expected values of SEV-SNP cannot be compared with a TD."""
    expected = ExpectedMeasurements(platform="snp", launch_digest=bytes(48))
    found = only(find_differences(expected, boot()))
    assert (found.register, found.cause.name) == ("launch_digest", "other_platform")


@pytest.mark.slow
def test_attestation_is_compared() -> None:
    """An `Attestation` of a simulated TD differs in all values; one of SEV-SNP is named."""
    with attestkit.open("simulator") as tee:
        evidence = tee.attest(report_data=bytes(64))
    names = [one.register for one in find_differences(EXPECTED, evidence)]
    assert names == ["mrtd", "rtmr0", "rtmr1", "rtmr2"]
    with attestkit.open("simulator", platform="snp") as tee:
        evidence = tee.attest(report_data=bytes(64))
    found = only(find_differences(EXPECTED, evidence))
    assert (found.register, found.cause.name) == ("mrtd", "other_platform")
    assert found.actual is None


def test_difference_has_values_for_json() -> None:
    """All members are plain values, digests in hex."""
    found = explain(EXPECTED, boot(cmdline="other"), inputs=inputs_of(arguments()))
    assert found is not None
    assert found.to_dict() == {
        "register": "rtmr2",
        "position": 0,
        "event": "load-options",
        "kind": "changed",
        "expected": EXPECTED.events[-2].digest.hex() if EXPECTED.events[-2].digest else None,
        "actual": None if found.actual is None else found.actual.hex(),
        "logged_event": "EV_EVENT_TAG",
        "cause": {
            "name": "cmdline",
            "text": found.cause.text,
            "proven": False,
            "value": None,
        },
    }


_EVENT = st.builds(
    Event,
    st.integers(0, 2),
    st.sampled_from((3, 4, 6, 0xA, 0xD, 0x80000001, 0x80000002, 0x80000003, 0x8000000B)),
    st.sampled_from([event.digest for event in EVENTS]) | st.binary(min_size=48, max_size=48),
    st.just(""),
    st.sampled_from((b"", b"ACPI DATA", b"QEMU FW CFG\0x")) | st.binary(max_size=64),
    st.just(1),
)


@thorough(st.lists(_EVENT, max_size=24), few=6, many=40)
def test_any_log_is_explained(events: list[Event]) -> None:
    """For any log, the diagnosis ends with differences and no other error."""
    evidence = evidence_of(EXPECTED, EventLog(events))
    for one in find_differences(EXPECTED, evidence, inputs=inputs_of(arguments())):
        assert one.expected != one.actual
        assert str(one)
    find_guest_shape(events)


def test_shape_of_unknown_guest_is_found() -> None:
    """Memory and machine follow from the log alone."""
    found = find_guest_shape([event for event in EVENTS if event.register == 0])
    assert found.memory is not None
    assert found.memory.size == SHAPE.memory_size
    assert found.acpi is not None
    assert found.acpi.machines[0].inputs.cpu_count == SHAPE.cpu_count
    bare = [event._replace(name="", payload=b"") for event in EVENTS if event.register == 0]
    assert find_guest_shape(bare) == found
    assert find_guest_shape([]) == (None, None)
