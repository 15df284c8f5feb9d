"""Differences of logs and shapes found from digests are those of the shared vectors."""

import json
from typing import Any

import pytest

from attestkit.event_log import Event, EventLog
from attestkit.measure import ExpectedMeasurements
from attestkit.measure.diagnosis.difference import CauseName
from attestkit.measure.diagnosis.evidence_comparison import LoggedBoot, find_differences
from attestkit.measure.diagnosis.guest_shape import find_guest_shape, find_memory, find_rsdt
from attestkit.measure.expected import ExpectedEvent
from attestkit.measure.firmware.tdvf import TdvfSection
from attestkit.quote import Quote
from tests.measure.diagnosis.guests import Quoted
from tests.measure.rows import VECTORS, Row
from tests.vectors import SHARED, needs_shared

pytestmark = needs_shared

ROWS: list[Row] = VECTORS.get("diagnosis", [])
LOGS = [row for row in ROWS if "log_digests_rtmr0" in row]
NAMES = (
    *("td-hob", "cfv", "SecureBoot", "PK", "KEK", "db", "dbx", "separator"),
    *("acpi-loader", "acpi-rsdp", "acpi-tables", "BootOrder", "Boot0000"),
)
CAUSES: dict[str, tuple[CauseName, bool]] = {
    "32 GiB instead of 64 GiB": ("memory_size", True),
    "keys enrolled": ("secure_boot_keys", False),
    "one device more (RSDP only)": ("pci_slots", False),
    "separator not in the log": ("unknown", False),
    "an event put in": ("unknown", False),
}


def base_log(row: Row) -> tuple[Quote, EventLog]:
    """Return quote and log of the guest that a row changes."""
    report: dict[str, Any] = json.loads((SHARED / row["base"]).read_text())
    return Quote.parse(bytes.fromhex(report["quote"])), EventLog.parse(report["event_log"])


def expected_of(log: EventLog) -> ExpectedMeasurements:
    """Return the events of RTMR0 of a log as expected ones; those of other registers too."""
    names = {0: iter(NAMES)}
    return ExpectedMeasurements(
        platform="tdx",
        events=tuple(
            ExpectedEvent(
                event.register,
                next(names[0]) if event.register == 0 else event.type_name,
                event.event_type,
                event.digest,
                "hardware",
            )
            for event in log.events
            if event.register < 3
        ),
    )


def changed_log(row: Row, log: EventLog) -> EventLog:
    """Return the log with the row's digests of RTMR0."""
    usual = {event.digest: event for event in log.events if event.register == 0}
    found = []
    for number, text in enumerate(row["log_digests_rtmr0"]):
        digest = bytes.fromhex(text)
        old = [event for event in log.events if event.register == 0]
        same = usual.get(digest) or (
            old[number] if len(old) == len(row["log_digests_rtmr0"]) else Event(0, 0, b"", "", b"")
        )
        found.append(same._replace(digest=digest))
    return EventLog([*found, *[event for event in log.events if event.register]])


@pytest.mark.parametrize("row", LOGS, ids=lambda row: row["name"])
def test_difference_row(row: Row) -> None:
    """Register, position, event and kind are those of the row, and so is the cause."""
    quote, log = base_log(row)
    log.check(quote)
    expected = expected_of(log)
    assert find_differences(expected, LoggedBoot(quote, log)) == ()
    changed = changed_log(row, log)
    evidence = LoggedBoot(Quoted(quote.mrtd, changed.replay()), changed)
    (difference,) = find_differences(expected, evidence)
    assert difference.register == f"rtmr{row['register']}"
    assert difference.position == row["position"]
    assert (difference.event, difference.kind) == (row["expected"], row["kind"])
    cause = difference.cause
    assert (cause.name, cause.proven) == CAUSES[row["name"]]
    assert (cause.value is not None) == cause.proven


@pytest.mark.parametrize("row", [row for row in ROWS if "memory" in row])
def test_memory_row(row: Row) -> None:
    """The memory follows from the digest of the TD HOB."""
    sections = tuple(TdvfSection(0, 0, at, size, kind, 0) for at, size, kind in row["td_sections"])
    digest = bytes.fromhex(row["digest"])
    for given in (sections, None):
        found = find_memory(digest, given)
        assert found is not None
        assert found.size == row["memory"]


@pytest.mark.parametrize("row", [row for row in ROWS if "rsdt_offset" in row])
def test_rsdt_row(row: Row) -> None:
    """The offset of the RSDT follows from the digest of the RSDP."""
    assert find_rsdt(bytes.fromhex(row["digest"])) == row["rsdt_offset"]


@pytest.mark.parametrize("row", VECTORS.get("real_rtmr0", []), ids=lambda row: row["name"])
def test_shape_of_real_guest_is_found(row: Row) -> None:
    """Memory, vCPUs and line of QEMU of captured guests follow from digests of their logs."""
    types = {"td-hob": 0x8000000B, "acpi-loader": 0xA, "acpi-rsdp": 0xA, "acpi-tables": 0xA}
    events = [
        Event(0, types[name], bytes.fromhex(digest), "", b"ACPI DATA" if "acpi" in name else b"")
        for name, digest in row["events"]
        if name in types
    ]
    found = find_guest_shape(events)
    assert found.memory is not None
    assert found.memory.size == row["vm"]["memory_size"]
    assert found.acpi is not None
    assert found.acpi.tables is not None
    assert found.acpi.tables.cpu_count == row["vm"]["cpu_count"]
    assert len(found.acpi.machines) == 1


def test_rows_are_complete() -> None:
    """The tests above run all rows."""
    assert len(ROWS) == 7
    assert len(LOGS) == 5
    assert {row["name"] for row in LOGS} == set(CAUSES)
