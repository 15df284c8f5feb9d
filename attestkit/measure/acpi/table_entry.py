"""Entries: the ACPI tables of one machine, as packaged files and the user's cache contain them.

An entry is a line of ASCII text, then the loader script, the RSDP and the tables, the first and the
last without their trailing zeros. The line has the format's name and version, QEMU's version, and
decimal numbers: those of `TableKey`, the three sizes, and the two sizes without trailing zeros.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from attestkit._outcomes.reasons import FormatReason
from attestkit.attestation.launch.qemu_version import QemuVersion
from attestkit.errors import FormatError
from attestkit.measure.acpi.acpi_inputs import AcpiInputs
from attestkit.measure.acpi.acpi_tables import (
    MAX_LOADER,
    MAX_RSDP,
    MAX_TABLES,
    AcpiTables,
    check_tables,
)
from attestkit.measure.acpi.qemu.chipset import DEFAULT_SETUP, ChipsetSetup

MAX_ENTRY: Final = MAX_LOADER + MAX_RSDP + MAX_TABLES + 1024

_NAME: Final = ["acpi-tables", "1"]  # format and version
_MAX_LINE: Final = 512
_KEY_FIELDS: Final = len(AcpiInputs._fields) + len(ChipsetSetup._fields)
_FIELDS: Final = len(_NAME) + 1 + _KEY_FIELDS + 5
_MAX_DIGITS: Final = 20


class TableKey(NamedTuple):
    """Inputs of the tables of a QEMU command: the machine, and the registers that OVMF programs."""

    inputs: AcpiInputs
    setup: ChipsetSetup = DEFAULT_SETUP

    def numbers(self) -> tuple[int, ...]:
        """Return all values of inputs and setup as integers, in order; a boolean is 0 or 1."""
        return tuple(map(int, (*self.inputs, *self.setup)))


class TableEntry(NamedTuple):
    """Tables of a machine, with level-triggered interrupts.

    Attributes:
        qemu_version: Version of the QEMU that made them.
        key: The machine, and registers of the chipset: `TableKey.numbers`.
        files: The tables.
    """

    qemu_version: QemuVersion
    key: tuple[int, ...]  # `TableKey.numbers`
    files: AcpiTables

    @property
    def inputs(self) -> AcpiInputs:
        """The machine's `AcpiInputs`, decoded from `key`."""
        cpus, low, endpoints, ports, hotplug_off, window, pic, *_ = self.key
        return AcpiInputs(
            cpus,
            low,
            endpoints,
            ports,
            hotplug_off=bool(hotplug_off),
            pci_hole64_size=window,
            pic=bool(pic),
        )


def encode_entry(entry: TableEntry) -> bytes:
    """Return an entry as a line of text followed by the tables, without compression.

    The line has QEMU's version, the numbers of the machine, and the sizes of the tables.
    """
    loader, tables = entry.files.loader.rstrip(b"\0"), entry.files.tables.rstrip(b"\0")
    sizes = (*map(len, entry.files), len(loader), len(tables))
    words = [*_NAME, str(entry.qemu_version), *map(str, (*entry.key, *sizes))]
    return " ".join(words).encode("ascii") + b"\n" + loader + entry.files.rsdp + tables


def decode_entry(content: bytes) -> TableEntry:
    """Decode `content`, one entry as `encode_entry` returns it.

    Raises:
        FormatError: If the entry is malformed or truncated, other bytes follow it, or a size
            exceeds the limit of `check_tables`.
    """
    spans = list(entry_spans(content))
    if len(spans) != 1:
        raise _bad(
            f"must be exactly one, not {len(spans)}", "trailing_data" if spans else "missing"
        )
    end = content.index(b"\n")
    version, key, sizes = _decode_line(content[:end], 0)
    offset = end + 1
    parts = []
    for stored, size in zip(_stored_sizes(sizes), sizes[:3], strict=True):
        parts.append(content[offset : offset + stored].ljust(size, b"\0"))
        offset += stored
    return TableEntry(version, key, check_tables(AcpiTables(*parts)))


def entry_spans(content: bytes) -> Iterator[tuple[tuple[int, ...], slice]]:
    """Yield `TableEntry.key` and the slice of each entry in `content`, a sequence of entries.

    Raises:
        FormatError: As for `decode_entry`.
    """
    offset = 0
    while offset < len(content):
        end = content.find(b"\n", offset, offset + _MAX_LINE)
        if end < 0:
            raise _bad(f"no line end in the first {_MAX_LINE} bytes", "truncated", offset)
        _, key, sizes = _decode_line(content[offset:end], offset)
        start, offset = offset, end + 1 + sum(_stored_sizes(sizes))
        if offset > len(content):
            raise _bad(f"{len(content)} bytes, must be {offset}", "truncated", len(content))
        yield key, slice(start, offset)


def _stored_sizes(sizes: tuple[int, ...]) -> tuple[int, int, int]:
    _, rsdp, _, loader, tables = sizes
    return loader, rsdp, tables


def _decode_line(line: bytes, offset: int) -> tuple[QemuVersion, tuple[int, ...], tuple[int, ...]]:
    words = line.decode("ascii", "replace").split(" ")
    if words[:2] != _NAME:
        raise _bad(f"must begin with {' '.join(_NAME)}", "unrecognized", offset)
    numbers = words[3:]
    if len(words) != _FIELDS or not all(
        word.isascii() and word.isdigit() and len(word) <= _MAX_DIGITS for word in numbers
    ):
        raise _bad(f"first line must have {_FIELDS} words, mostly numbers", "syntax", offset)
    values = tuple(map(int, numbers))
    sizes = values[_KEY_FIELDS:]
    limits = (MAX_LOADER, MAX_RSDP, MAX_TABLES, sizes[0], sizes[2])
    if any(size > most for size, most in zip(sizes, limits, strict=True)):
        raise _bad(f"sizes {sizes} exceed the limits {limits}", "too_large", offset)
    return QemuVersion.parse(words[2]), values[:_KEY_FIELDS], sizes


def _bad(problem: str, reason: FormatReason, offset: int | None = None) -> FormatError:
    return FormatError(f"ACPI table entry: {problem}", reason=reason, offset=offset)
