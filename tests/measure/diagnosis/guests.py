"""Guests made by code: what one is expected to measure, and the log of another."""

import hashlib
import struct
from functools import cache
from typing import Any, NamedTuple

from attestkit.event_log import Event, EventLog, Rtmrs
from attestkit.measure import ExpectedMeasurements, MachineShape, tdx
from attestkit.measure.acpi.acpi_inputs import acpi_inputs
from attestkit.measure.acpi.acpi_tables import AcpiTables, build_loader
from attestkit.measure.acpi.packaged_tables import packaged_entries
from attestkit.measure.diagnosis.evidence_comparison import LoggedBoot
from attestkit.measure.diagnosis.guest_inputs import GuestInputs
from tests.measure.firmware_images import (
    CFV_SIZE,
    KEYS,
    MENU_APP,
    SIZE,
    SMBIOS_MEASUREMENT,
    TD_TCG2,
    UI_APP,
    Variables,
    code_volume,
    sections,
    variable_entry,
    variable_volume,
    with_metadata,
)
from tests.measure.kernel.samples import linux_kernel, noise

FILES = (TD_TCG2, UI_APP, MENU_APP, SMBIOS_MEASUREMENT)
TEXTS = (b"ACPI DATA", b"QEMU FW CFG", b"etc/boot/", b"initrd=initrd ")
KERNEL = linux_kernel()
INITRD = noise("initrd", 5000)
CMDLINE = "console=ttyS0 ro quiet"
MACHINE = b"pc-q35-10.0"
SMBIOS = (
    struct.pack("<BBH4B16x2B", 1, 26, 0x100, 1, 2, 3, 0, 6, 0)
    + b"\0QEMU\0Standard PC\0"
    + MACHINE
    + b"\0\0"
    + struct.pack("<BBH4B8s32x", 4, 48, 0x400, 1, 3, 1, 2, bytes.fromhex("f8060800fffba91f"))
    + b"CPU 0\0QEMU\0"
    + MACHINE
    + b"\0\0"
    + bytes.fromhex("7f047f7f0000")
).replace(b"\0\0QEMU\0Standard", b"\0QEMU\0Standard")
SHAPE = MachineShape(cpu_count=4, memory_size=16 << 30, qemu_version="10.0.13", two_pass=False)


class Quoted(NamedTuple):
    """Registers of a quote."""

    mrtd: bytes
    rtmrs: Rtmrs


@cache
def firmware(
    files: tuple[Any, ...] = FILES,
    texts: tuple[bytes, ...] = TEXTS,
    temp_mem: tuple[int, int] = (0x810000, 0x10000),
    keys: bool = False,
) -> bytes:
    """Return firmware that measures as edk2 202508 does, unless changed."""
    variables: Variables = KEYS if keys else {}
    entries = [variable_entry(name, data) for name, data in variables.items()]
    flash = variable_volume(b"".join(entries), CFV_SIZE) + code_volume(files, texts)
    return with_metadata(flash.ljust(SIZE, b"\xff"), sections(temp_mem=temp_mem))


@cache
def tables(line: str, shape: MachineShape) -> AcpiTables:
    """Return the package's tables of a machine on a line of QEMU."""
    wanted = acpi_inputs(shape)
    return next(entry.files for entry in packaged_entries(line) if entry.inputs == wanted)


def with_hpet(files: AcpiTables) -> AcpiTables:
    """Return tables with an HPET behind the MADT."""
    found = {table.signature: table for table in files.list_tables()}
    at = found["APIC"].offset + found["APIC"].length
    hpet = b"HPET" + struct.pack("<I", 56) + bytes(48)
    rsdt = found["RSDT"].offset
    content = bytearray(files.tables[:at] + hpet + files.tables[at:rsdt])
    length = found["RSDT"].length + 4
    content += b"RSDT" + struct.pack("<I", length) + bytes(length - 8)
    changed = AcpiTables(
        b"",
        files.rsdp[:16] + struct.pack("<I", rsdt + 56) + files.rsdp[20:],
        bytes(content).ljust(len(files.tables), b"\0"),
    )
    return changed._replace(loader=build_loader(changed.list_tables()))


def with_pic(files: AcpiTables) -> AcpiTables:
    """Return tables of the same machine with a PIC."""
    madt = next(table for table in files.list_tables() if table.signature == "APIC")
    content = bytearray(files.tables)
    content[madt.offset + 40] |= 1
    return files._replace(tables=bytes(content))


def with_smm(files: AcpiTables) -> AcpiTables:
    """Return tables of the same machine with system management mode."""
    fadt = next(table for table in files.list_tables() if table.signature == "FACP")
    at = fadt.offset + 48
    content = files.tables[:at] + bytes.fromhex("b20000000203") + files.tables[at + 6 :]
    return files._replace(tables=content)


def arguments(**changes: Any) -> dict[str, Any]:
    """Return arguments of `tdx`, with changes; `None` removes one."""
    usual: dict[str, Any] = {
        "firmware": firmware(),
        "kernel": KERNEL,
        "initrd": INITRD,
        "cmdline": CMDLINE,
        "shape": SHAPE,
        "acpi": tables("10.0", SHAPE),
        "smbios": SMBIOS,
    }
    usual |= changes
    return {name: value for name, value in usual.items() if value is not None}


def inputs_of(values: dict[str, Any]) -> GuestInputs:
    """Return the inputs that a diagnosis uses."""
    known = ("firmware", "kernel", "initrd", "cmdline", "shape", "acpi", "smbios")
    return GuestInputs(**{name: values[name] for name in known if name in values})


def log_of(expected: ExpectedMeasurements) -> EventLog:
    """Return the log of a guest that measured this; only events of ACPI tables have data."""
    events = []
    for event in expected.events:
        digest = event.digest or hashlib.sha384(event.name.encode()).digest()
        acpi = event.name.startswith("acpi-")
        name, payload = (event.name, b"ACPI DATA") if acpi else ("", b"")
        events.append(Event(event.register, event.event_type, digest, name, payload))
    return EventLog(events)


def evidence_of(expected: ExpectedMeasurements, log: EventLog | None = None) -> LoggedBoot:
    """Return evidence with registers that the log explains."""
    log = log or log_of(expected)
    assert expected.mrtd is not None
    return LoggedBoot(Quoted(expected.mrtd, log.replay()), log)


def boot(**changes: Any) -> LoggedBoot:
    """Return the evidence of a guest with changes."""
    return evidence_of(tdx(**arguments(**changes)))
