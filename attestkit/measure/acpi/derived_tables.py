"""ACPI tables derived from others: QEMU 8.2 and 9.2 from 10.0, and with edge-triggered interrupts.

Between these release lines two methods of the DSDT differ: CSCN, which scans vCPUs, and in 8.2 also
PDSM, which names PCI devices. The older methods are taken from the measured tables that ship with
attestkit. The result equals all measured tables of 8.2 and 9.2, of machines with 2 to 64 vCPUs and
up to 12 root ports. It was compared with no other machine, so `FoundTables.exact` is False.

QEMU's TDX branches before 9.2 could not deliver level-triggered interrupts to a TD, so their tables
declare all legacy interrupts as edge-triggered. Apart from that the tables are those of the
upstream release, so they are derived from it; the result equals registers that hardware signed.
"""

import re
import struct
from functools import lru_cache
from typing import Final

from attestkit.errors import FormatError
from attestkit.measure.acpi.acpi_inputs import AcpiInputs
from attestkit.measure.acpi.acpi_tables import TABLES_NAME, AcpiTables, check_tables, resize_table
from attestkit.measure.acpi.packaged_tables import packaged_entries

# Extended interrupt descriptor (ACPI 6.4.3.6) of 1 or 3 level-triggered interrupts.
_LEVEL_TRIGGERED: Final = re.compile(rb"\x89(?:\x06\x00\x09(?=\x01)|\x0e\x00\x09(?=\x03))")
_EDGE: Final = b"\x0b"

_MADT_HEADER: Final = 44  # bytes before the first interrupt controller structure
_SOURCE_OVERRIDE: Final = 2  # type of an interrupt source override
_EDGE_HIGH: Final = 5  # its flags
_TIMER_GSI: Final = 2  # of IRQ 0


def to_edge_triggered(files: AcpiTables) -> AcpiTables:
    """Return the files with edge-triggered interrupts; files that have them are unchanged.

    The sizes of the files stay the same: the padding shrinks.

    Raises:
        FormatError: If the files are malformed, have no DSDT or MADT, or no padding is left.
    """
    check_tables(files)
    found = {table.signature: table for table in files.list_tables()}
    for signature in ("DSDT", "APIC"):
        if signature not in found:
            raise FormatError(f"{TABLES_NAME}: must have a table {signature}", reason="missing")
    dsdt, madt = found["DSDT"], found["APIC"]
    content = bytearray(files.tables)
    part = slice(dsdt.offset, dsdt.offset + dsdt.length)
    content[part] = _LEVEL_TRIGGERED.sub(lambda hit: hit[0][:-1] + _EDGE, content[part])
    new = _override_all(bytes(content[madt.offset : madt.offset + madt.length]), madt.offset)
    return resize_table(files._replace(tables=bytes(content)), madt, new)


def _override_all(madt: bytes, offset: int) -> bytes:
    """Return `madt`, a whole table, with 16 edge-triggered interrupt source overrides for its own.

    `offset` is that of the MADT in `etc/acpi/tables`, in bytes; it is only for errors.
    """
    entries: list[bytes] = []
    place = None
    position = _MADT_HEADER
    while position < len(madt):
        length = madt[position + 1] if position + 1 < len(madt) else 0
        if length < 2 or position + length > len(madt):  # type and length
            message = f"{TABLES_NAME}: MADT: structure of {length} bytes: too short or too long"
            raise FormatError(message, reason="truncated", offset=offset + position)
        if madt[position] != _SOURCE_OVERRIDE:
            entries.append(madt[position : position + length])
        elif place is None:
            place = len(entries)
        position += length
    if place is None:
        message = f"{TABLES_NAME}: MADT: must have an interrupt source override"
        raise FormatError(message, reason="missing", offset=offset)
    overrides = [
        struct.pack("<BBBBIH", _SOURCE_OVERRIDE, 10, 0, irq, irq or _TIMER_GSI, _EDGE_HIGH)
        for irq in range(16)
    ]
    entries[place:place] = overrides
    body = b"".join(entries)
    length = _MADT_HEADER + len(body)
    return madt[:4] + length.to_bytes(4, "little") + madt[8:_MADT_HEADER] + body


BASE_LINE: Final = "10.0"
"""Release line of QEMU from whose tables others are derived."""

_METHOD: Final = 0x14
_ONE: Final = b"\x01"
_BYTE_CONSTANT: Final = b"\x0a"
_MAX_VCPUS: Final = 255  # more have MADT structures of another kind
_MADT_FLAGS: Final = 40  # offset; bit 0 is set if there is a PIC

# Packages around what is replaced: opcode, before the length. Of the DSDT: scopes and devices; of
# the method CSCN: the method and its loops.
_SCOPES: Final = re.compile(
    rb"(\x10|\x5b\x82)(?:[\x40-\x4f].|[\x80-\x8f]..|[\xc0-\xcf]...|[\x06-\x3f])"
    rb"(?:\x5c?_SB_|\x5c?\x2e_SB_(?:PCI0|CPUS))",
    re.DOTALL,
)
_LOOPS: Final = re.compile(rb"(\x14|\xa2)")


def can_derive(line: str, inputs: AcpiInputs) -> bool:
    """Return whether a machine's tables of QEMU's release line `line` can be derived from others.

    They can if its properties are like those of the machines of that line whose tables ship with
    attestkit: for 8.2 ACPI hotplug, no root port and the default PCI window, for 9.2 no ACPI
    hotplug; for both at most 255 vCPUs. False for other release lines.
    """
    if inputs.cpu_count > _MAX_VCPUS:
        return False
    if line == "8.2":
        return not inputs.hotplug_off and not inputs.root_ports and not inputs.pci_hole64_size
    return line == "9.2" and inputs.hotplug_off


def derive_tables(line: str, inputs: AcpiInputs, base: AcpiTables) -> AcpiTables:
    """Return a machine's ACPI tables of an older QEMU release line, derived from those of 10.0.

    Args:
        line: `8.2` or `9.2`; see `can_derive`.
        inputs: Properties of the machine.
        base: The machine's tables of QEMU 10.0, with or without a PIC.

    Raises:
        FormatError: If `base` is not what QEMU 10.0 makes for a machine with `inputs`.
    """
    check_tables(base)
    found = {table.signature: table for table in base.list_tables()}
    if "DSDT" not in found or "APIC" not in found:
        raise FormatError(f"{TABLES_NAME}: must have DSDT and MADT", reason="missing")
    place, madt = found["DSDT"], found["APIC"]
    dsdt = base.tables[place.offset : place.offset + place.length]
    dsdt = _replace_method(dsdt, b"CSCN", _scan_method(line, inputs.cpu_count))
    if line == "8.2":
        dsdt = _replace_method(dsdt, b"PDSM", _old_method(line, b"PDSM"))
    flags = bytearray(base.tables)
    flags[madt.offset + _MADT_FLAGS] &= 0xFE
    flags[madt.offset + _MADT_FLAGS] |= inputs.pic
    dsdt = dsdt[:4] + len(dsdt).to_bytes(4, "little") + dsdt[8:]
    return resize_table(base._replace(tables=bytes(flags)), place, dsdt)


def _scan_method(line: str, cpu_count: int) -> bytes:
    """Return the AML method CSCN of release line `line`, which contains `cpu_count`."""
    head, tail = _scan_method_parts(line)
    method = head + _BYTE_CONSTANT + bytes([cpu_count]) + tail
    return method if cpu_count > 1 else _splice(method, len(head), len(head) + 2, _ONE, _LOOPS)


@lru_cache(2)
def _scan_method_parts(line: str) -> tuple[bytes, bytes]:
    """Return the AML of the method CSCN of release line `line`, split at the number of vCPUs.

    The parts are the bytes before and after that number. The methods in the line's shipped tables
    differ in this number only.
    """
    methods = {
        _BYTE_CONSTANT + bytes([entry.inputs.cpu_count]): _find_method(_dsdt(entry.files), b"CSCN")
        for entry in packaged_entries(line)
    }
    splits = {
        (method[: hit.start()], method[hit.end() :])
        for constant, method in methods.items()
        for hit in re.finditer(re.escape(constant), method)
    }
    fitting = [
        (head, tail)
        for head, tail in splits
        if all(head + constant + tail == method for constant, method in methods.items())
    ]
    assert len(fitting) == 1, "the package's tables of a line are of several machines"
    return fitting[0]


@lru_cache(2)
def _old_method(line: str, name: bytes) -> bytes:
    return _find_method(_dsdt(next(packaged_entries(line)).files), name)


def _dsdt(files: AcpiTables) -> bytes:
    place = next(table for table in files.list_tables() if table.signature == "DSDT")
    return files.tables[place.offset : place.offset + place.length]


def _find_method(dsdt: bytes, name: bytes) -> bytes:
    start, end = _method_span(dsdt, name)
    return dsdt[start:end]


def _method_span(dsdt: bytes, name: bytes) -> tuple[int, int]:
    """Return the offsets of start and end of the method `name`, 4 ASCII characters, in a DSDT.

    Raises:
        FormatError: If the DSDT does not have exactly one definition of the method.
    """
    spans = []
    for hit in re.finditer(re.escape(name), dsdt):
        for width in range(1, 5):
            start = hit.start() - width - 1
            if start < 0 or dsdt[start] != _METHOD:
                continue
            length, size = _package_length(dsdt, start + 1)
            end = start + 1 + length
            if size == width and hit.end() < end <= len(dsdt):
                spans.append((start, end))
    if len(spans) != 1:
        message = f"DSDT: must have one method {name.decode('ascii')}, not {len(spans)}"
        raise FormatError(message, reason="inconsistent")
    return spans[0]


def _replace_method(dsdt: bytes, name: bytes, method: bytes) -> bytes:
    """Return `dsdt` with the AML `method` in place of the method `name`.

    The lengths of the scopes and devices around it are corrected, but not that in the table's
    header.
    """
    return _splice(dsdt, *_method_span(dsdt, name), method, _SCOPES)


def _splice(
    code: bytes, start: int, end: int, content: bytes, packages: "re.Pattern[bytes]"
) -> bytes:
    """Return AML with `content` for its bytes `start` to `end`; packages around them are corrected.

    `packages` matches the opcode of a package; its first group ends before the length. The lengths
    of all packages around the bytes are adjusted.
    """
    around = []
    for hit in packages.finditer(code, 0, start):
        length, size = _package_length(code, hit.end(1))
        if end <= hit.end(1) + length <= len(code):
            around.append((hit.end(1), length, size))
    if not around:
        raise FormatError(
            "AML: no known scope, device or loop around the code to replace",
            reason="inconsistent",
            offset=start,
        )
    for at, length, size in reversed(around):
        content = code[at + size : start] + content + code[end : at + length]
        content = _encode_length(len(content)) + content
        start, end = at, at + length
    return code[:start] + content + code[end:]


def _package_length(dsdt: bytes, at: int) -> tuple[int, int]:
    """Return the value of the PkgLength at offset `at` (ACPI 20.2.4), and its size, 1 to 4 bytes.

    The value counts the bytes of the package from `at` on, so it includes that size.
    """
    lead = dsdt[at]
    more = lead >> 6
    if not more:
        return lead, 1
    return lead & 0xF | int.from_bytes(dsdt[at + 1 : at + 1 + more], "little") << 4, 1 + more


def _encode_length(content: int) -> bytes:
    """Return the shortest PkgLength of a package that has `content` bytes after the PkgLength."""
    if content + 1 < 1 << 6:
        return bytes([content + 1])
    for more in (1, 2, 3):
        length = content + 1 + more
        if length < 1 << (4 + 8 * more):
            return bytes([more << 6 | length & 0xF]) + (length >> 4).to_bytes(more, "little")
    raise FormatError(f"AML: package of {content} bytes is too long", reason="too_large")
