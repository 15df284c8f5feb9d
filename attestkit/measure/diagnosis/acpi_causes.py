"""Causes of differing ACPI tables: properties of the machines, found from the tables' digests."""

import struct
from collections.abc import Iterator, Sequence
from typing import Final

from attestkit._crypto.hashes import sha384
from attestkit.attestation.launch.td_hob import SPLIT_MEMORY
from attestkit.measure.acpi.acpi_tables import AcpiTable, AcpiTables
from attestkit.measure.acpi.packaged_tables import packaged_entries
from attestkit.measure.diagnosis.difference import Cause, CauseName
from attestkit.measure.diagnosis.guest_inputs import ComparedGuest
from attestkit.measure.diagnosis.guest_shape import AcpiShape, PackagedMachine, TableShape

_SLOT: Final = 17  # bytes in the DSDT
_VCPU: Final = 94  # in DSDT and MADT
_VCPU_IN_DSDT: Final = 86
_ROUNDING: Final = 12  # lengths of packages grow with them
_GROWTHS: Final[dict[int, tuple[CauseName, str]]] = {
    110: ("interrupt_trigger", "edge-triggered interrupts, as of a TDX branch of QEMU before 9.2"),
    56: ("hpet", "an HPET, or none"),
}
_MOST_SLOTS: Final = 28
_MADT_FLAGS: Final = 40  # offset; bit 0: there is a PIC
_SMI_COMMAND: Final = 48  # offset in the FADT: port, then commands to enable and disable ACPI
_SMM: Final = bytes.fromhex("b2000000 02 03")  # zeros without SMM
_LOW_MEMORY_STEP: Final = 1 << 20
_FIRST_LOW: Final = 128 << 20
# DWordMemory of the PCI hole after RAM: flags, granularity; then start, end, offset, length.
_PCI_HOLE: Final = bytes.fromhex("8717 0000 0c01 00000000")
_WINDOW: Final = bytes.fromhex("8a2b 0000 0c03 0000000000000000")  # QWordMemory: the same
_WINDOW_STARTS: Final = (7 << 43, 7 << 45)  # with 46 and 48 bits of addresses
_WINDOW_SIZES: Final = tuple(1 << bits for bits in range(31, 51))

_OF_FIELD: Final[dict[str, tuple[CauseName, str]]] = {
    "cpu_count": ("cpu_count", "the guest has {} vCPUs, expected {}"),
    "low_memory": ("low_memory", "the guest has {} bytes of RAM below 4 GiB, expected {}"),
    "endpoints": ("pci_slots", "the guest has {} devices on PCI bus 0, expected {}"),
    "root_ports": ("root_ports", "the guest has {} PCI Express root ports, expected {}"),
    "hotplug_off": ("acpi_hotplug", "ACPI hotplug of PCI devices is off: {}, expected {}"),
    "pci_hole64_size": ("pci_window", "the 64-bit PCI window has {} bytes, expected {}"),
    "pic": ("pic", "the guest has a PIC: {}, expected {}"),
    "line": ("qemu_line", "the tables are of QEMU {}, expected {}"),
    "edge_triggered": (
        "interrupt_trigger",
        "interrupts are edge-triggered, as of a TDX branch of QEMU before 9.2: {}, expected {}",
    ),
}


def find_acpi_cause(guest: ComparedGuest) -> Cause:
    """Return why the ACPI tables of the logged boot differ from the expected ones.

    It takes up to 2 s. `guest` has both boots.

    Raises:
        FormatError: If the ACPI tables in the guest's inputs are malformed.
    """
    logged, expected = guest.logged_acpi, guest.expected_acpi
    if logged is None or expected is None:
        return _unknown("the log does not have the events of all tables")
    if logged.machines and expected.machines:
        return _compare_machines(expected.machines, logged.machines)
    if logged.rsdt is None:
        return _unknown("the RSDP is not of QEMU: another VMM, or another revision")
    if logged.tables is None or expected.tables is None:
        return _from_lengths(expected, logged)
    if logged.tables != expected.tables:
        return _compare_shapes(expected.tables, logged.tables)
    return _find_variation(guest, logged.digests[2]) or _unknown(
        "tables of the same lengths: 64-bit PCI window, numbers of slots, other options of QEMU, "
        "or another line of QEMU"
    )


def _compare_machines(
    expected: tuple[PackagedMachine, ...], logged: tuple[PackagedMachine, ...]
) -> Cause:
    """Return the differences between machines that have the expected and the logged tables.

    Of all pairs of machines, the one with the fewest differences counts.
    """
    pairs = [_differing(want, found) for want in expected for found in logged]
    return _joined([_cause_of(name, found, wanted) for name, found, wanted in min(pairs, key=len)])


def _joined(causes: Sequence[Cause]) -> Cause:
    if len(causes) == 1:
        return causes[0]
    return Cause.found("several_properties", "; ".join([cause.text for cause in causes]))


def _cause_of(name: str, found: int | str, wanted: int | str) -> Cause:
    cause, text = _OF_FIELD[name]
    return Cause.found(cause, text.format(found, wanted), found)


def _differing(
    expected: PackagedMachine, logged: PackagedMachine
) -> list[tuple[str, int | str, int | str]]:
    """Return name, logged value and expected value of each property that differs."""
    wanted, found = (
        {**one.inputs._asdict(), "line": one.line, "edge_triggered": one.edge_triggered}
        for one in (expected, logged)
    )
    return [(name, found[name], wanted[name]) for name in wanted if wanted[name] != found[name]]


def _compare_shapes(expected: TableShape, logged: TableShape) -> Cause:
    """Return why the lengths of the tables differ.

    `expected` and `logged` have the numbers that determine the lengths; the loader scripts' digests
    have confirmed them.
    """
    found = []
    if logged.cpu_count != expected.cpu_count:
        found.append(_cause_of("cpu_count", logged.cpu_count, expected.cpu_count))
    if logged.hpet != expected.hpet:
        text = f"the guest has {'an' if logged.hpet else 'no'} HPET"
        found.append(Cause.found("hpet", text, int(logged.hpet)))
    if logged.edge_triggered != expected.edge_triggered:
        cause = _cause_of("edge_triggered", logged.edge_triggered, expected.edge_triggered)
        found.append(cause._replace(value=int(logged.edge_triggered)))
    growth = logged.dsdt_length - expected.dsdt_length
    growth -= _VCPU_IN_DSDT * (logged.cpu_count - expected.cpu_count)
    if not found:
        return _explain_growth(growth)
    if abs(growth) > _ROUNDING and logged.hpet == expected.hpet:
        text = f"{_joined(found).text}; and other devices, or line of QEMU"
        return Cause("several_properties", text)
    return _joined(found)


def _explain_growth(growth: int) -> Cause:
    """Return the usual cause of a DSDT that is longer by `growth` bytes (shorter if negative)."""
    return _of_slots(growth) or _unknown(
        f"the DSDT differs by {growth} bytes: root ports, ACPI hotplug, or line of QEMU"
    )


def _of_slots(growth: int) -> Cause | None:
    slots, rest = divmod(growth, _SLOT)
    if rest or abs(slots) > _MOST_SLOTS:
        return None
    return Cause("pci_slots", f"{_count(slots, 'slots')} in use on PCI bus 0")


def _from_lengths(expected: AcpiShape, logged: AcpiShape) -> Cause:
    """Return the likely cause from the offsets of the RSDT alone.

    The offset is the length of the tables before it. The lengths of single tables are not known.
    """
    if logged.rsdt is None or expected.rsdt is None:
        return _unknown("the RSDP is not of QEMU")
    growth = logged.rsdt - expected.rsdt
    if not growth:
        text = "tables of the same length in all: other properties, or another order of tables"
        return _unknown(text)
    if abs(growth) in _GROWTHS:
        return Cause(*_GROWTHS[abs(growth)])
    vcpus, rest = divmod(growth, _VCPU)
    if not rest:
        return Cause("cpu_count", f"{_count(vcpus, 'vCPUs')}")
    return _of_slots(growth) or _unknown(
        f"the tables before the RSDT differ by {growth} bytes: NUMA, TPM, other devices, vCPUs, "
        "or another line of QEMU"
    )


def _count(number: int, things: str) -> str:
    return f"{abs(number)} {'more' if number > 0 else 'fewer'} {things}"


def _find_variation(guest: ComparedGuest, digest: bytes) -> Cause | None:
    """Return the cause whose single change of the expected tables gives the digest, or None.

    `digest` is the SHA-384 of `etc/acpi/tables` in the log.
    """
    files = guest.inputs.acpi or _packaged_files(guest)
    if files is None:
        return None
    for cause, tables in _variations(files):
        if sha384(tables) == digest:
            return cause
    return None


def _packaged_files(guest: ComparedGuest) -> AcpiTables | None:
    """Return the expected tables if tables of that machine ship with attestkit, else None."""
    machines = guest.expected_acpi.machines if guest.expected_acpi else ()
    for machine in machines:
        if machine.edge_triggered:
            continue
        for entry in packaged_entries(machine.line):
            if entry.inputs == machine.inputs:
                return entry.files
    return None


def _variations(files: AcpiTables) -> Iterator[tuple[Cause, bytes]]:
    """Yield about 3,000 causes, each with `etc/acpi/tables` of a machine to which it applies.

    The tables are those of `files` with one change.
    """
    places = {table.signature: table for table in files.list_tables()}
    if (madt := places.get("APIC")) is not None and madt.length > _MADT_FLAGS:
        flipped = bytearray(files.tables)
        flipped[madt.offset + _MADT_FLAGS] ^= 1
        has_pic = flipped[madt.offset + _MADT_FLAGS] & 1
        text = f"the guest has {'a' if has_pic else 'no'} PIC"
        yield Cause.found("pic", text, has_pic), bytes(flipped)
    if (fadt := places.get("FACP")) is not None and fadt.length >= _SMI_COMMAND + len(_SMM):
        at = fadt.offset + _SMI_COMMAND
        has_smm = files.tables[at : at + len(_SMM)] != _SMM
        text = f"the guest has {'' if has_smm else 'no '}system management mode (smm)"
        commands = _SMM if has_smm else bytes(len(_SMM))
        yield Cause.found("smm", text, int(has_smm)), _replaced(files.tables, at, commands)
    if (dsdt := places.get("DSDT")) is not None:
        yield from _window_variations(files.tables, dsdt)
        yield from _low_memory_variations(files.tables, dsdt)


def _low_memory_variations(tables: bytes, dsdt: AcpiTable) -> Iterator[tuple[Cause, bytes]]:
    """Yield causes, and tables whose PCI hole starts after other sizes of RAM below 4 GiB.

    `tables` is the content of `etc/acpi/tables`, `dsdt` the position of the DSDT in it.
    """
    at = tables.find(_PCI_HOLE, dsdt.offset, dsdt.offset + dsdt.length) + len(_PCI_HOLE)
    if at < len(_PCI_HOLE) or at + 16 > dsdt.offset + dsdt.length:
        return
    _, last = struct.unpack_from("<II", tables, at)
    for low in range(_FIRST_LOW, SPLIT_MEMORY, _LOW_MEMORY_STEP):
        if low > last:
            return
        text = f"the guest has {low} bytes of RAM below 4 GiB"
        hole = struct.pack("<IIII", low, last, 0, last - low + 1)
        yield Cause.found("low_memory", text, low), _replaced(tables, at, hole)


def _window_variations(tables: bytes, dsdt: AcpiTable) -> Iterator[tuple[Cause, bytes]]:
    """Yield causes, and tables with other windows for 64-bit PCI memory.

    `tables` is the content of `etc/acpi/tables`, `dsdt` the position of the DSDT in it.
    """
    at = tables.find(_WINDOW, dsdt.offset, dsdt.offset + dsdt.length) + len(_WINDOW)
    if at < len(_WINDOW) or at + 32 > dsdt.offset + dsdt.length:
        return
    for start in _WINDOW_STARTS:
        for size in _WINDOW_SIZES:
            text = f"the 64-bit PCI window has {size} bytes from {start:#x}"
            window = struct.pack("<QQQQ", start, start + size - 1, 0, size)
            yield Cause.found("pci_window", text, size), _replaced(tables, at, window)


def _replaced(tables: bytes, at: int, content: bytes) -> bytes:
    return tables[:at] + content + tables[at + len(content) :]


def _unknown(text: str) -> Cause:
    return Cause("acpi_tables", text)
