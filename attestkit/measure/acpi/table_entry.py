"""Encoding of ACPI tables with the machine that they are of, for the package's data and the cache.

An entry is a line of ASCII text, then the loader script, the RSDP and the tables, the first and the
last without their trailing zeros. The line has the format's name and version, QEMU's version, and
decimal numbers: the machine, the chipset's setup, the three sizes, and the two sizes without zeros.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Final, NamedTuple

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
from attestkit.measure.acpi.qemu_version import QemuVersion

MAX_ENTRY: Final = MAX_LOADER + MAX_RSDP + MAX_TABLES + 1024

_NAME: Final = ["acpi-tables", "1"]  # format and version
_MAX_LINE: Final = 512
_KEY_FIELDS: Final = len(AcpiInputs._fields) + len(ChipsetSetup._fields)
_FIELDS: Final = len(_NAME) + 1 + _KEY_FIELDS + 5
_MAX_DIGITS: Final = 20


class TableKey(NamedTuple):
    """The machine that tables are of, without QEMU's version."""

    inputs: AcpiInputs
    setup: ChipsetSetup = DEFAULT_SETUP

    def numbers(self) -> tuple[int, ...]:
        """Return all values as integers."""
        return tuple(map(int, (*self.inputs, *self.setup)))


class TableEntry(NamedTuple):
    """Tables that a QEMU made, level-triggered, and the machine that they are of."""

    qemu_version: QemuVersion
    key: tuple[int, ...]  # `TableKey.numbers`
    files: AcpiTables

    @property
    def inputs(self) -> AcpiInputs:
        """The machine, without the chipset's setup."""
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
    """Return an entry's bytes."""
    loader, tables = entry.files.loader.rstrip(b"\0"), entry.files.tables.rstrip(b"\0")
    sizes = (*map(len, entry.files), len(loader), len(tables))
    words = [*_NAME, str(entry.qemu_version), *map(str, (*entry.key, *sizes))]
    return " ".join(words).encode("ascii") + b"\n" + loader + entry.files.rsdp + tables


def decode_entry(content: bytes) -> TableEntry:
    """Decode one entry.

    Raises:
        FormatError: If it is malformed or truncated, bytes follow, or a size exceeds the limit of
            `check_tables`.
    """
    spans = list(entry_spans(content))
    if len(spans) != 1:
        message = f"ACPI table entry: {len(spans)} entries"
        raise FormatError(message, reason="missing" if not spans else "trailing_data")
    end = content.index(b"\n")
    version, key, sizes = _decode_line(content[:end], 0)
    offset = end + 1
    parts = []
    for stored, size in zip(_stored_sizes(sizes), sizes[:3], strict=True):
        parts.append(content[offset : offset + stored].ljust(size, b"\0"))
        offset += stored
    return TableEntry(version, key, check_tables(AcpiTables(*parts)))


def entry_spans(content: bytes) -> Iterator[tuple[tuple[int, ...], slice]]:
    """Yield key and place of each of the entries that follow each other in `content`.

    Raises:
        FormatError: As for `decode_entry`.
    """
    offset = 0
    while offset < len(content):
        end = content.find(b"\n", offset, offset + _MAX_LINE)
        if end < 0:
            message = "ACPI table entry: first line"
            raise FormatError(message, reason="truncated", offset=offset)
        _, key, sizes = _decode_line(content[offset:end], offset)
        start, offset = offset, end + 1 + sum(_stored_sizes(sizes))
        if offset > len(content):
            raise FormatError("ACPI table entry", reason="truncated", offset=len(content))
        yield key, slice(start, offset)


def _stored_sizes(sizes: tuple[int, ...]) -> tuple[int, int, int]:
    _, rsdp, _, loader, tables = sizes
    return loader, rsdp, tables


def _decode_line(line: bytes, offset: int) -> tuple[QemuVersion, tuple[int, ...], tuple[int, ...]]:
    words = line.decode("ascii", "replace").split(" ")
    if words[:2] != _NAME:
        raise FormatError("ACPI table entry", reason="unrecognized", offset=offset)
    numbers = words[3:]
    if len(words) != _FIELDS or not all(
        word.isascii() and word.isdigit() and len(word) <= _MAX_DIGITS for word in numbers
    ):
        raise FormatError("ACPI table entry: first line", reason="syntax", offset=offset)
    values = tuple(map(int, numbers))
    sizes = values[_KEY_FIELDS:]
    limits = (MAX_LOADER, MAX_RSDP, MAX_TABLES, sizes[0], sizes[2])
    if any(size > most for size, most in zip(sizes, limits, strict=True)):
        raise FormatError("ACPI table entry: size", reason="too_large", offset=offset)
    return QemuVersion.parse(words[2]), values[:_KEY_FIELDS], sizes


PACKAGED_LINES: Final = ("8.2", "9.2", "10.0", "11.1")
"""Lines of QEMU of which the package has tables."""

_MAX_CONTENT: Final = 1 << 24  # bytes of a line's entries


def packaged_tables(line: str, key: TableKey) -> TableEntry | None:
    """Return the package's tables of a machine on a line of QEMU, or None."""
    if line not in PACKAGED_LINES:
        return None
    content, places = _load_line(line)
    place = places.get(key.numbers())
    return None if place is None else decode_entry(content[place])


def packaged_entries(line: str) -> Iterator[TableEntry]:
    """Yield all of the package's tables of a line, one of `PACKAGED_LINES`."""
    content, places = _load_line(line)
    return (decode_entry(content[place]) for place in places.values())


@lru_cache(len(PACKAGED_LINES))  # together 13 MB; a search for a machine reads all of them
def _load_line(line: str) -> tuple[bytes, dict[tuple[int, ...], slice]]:
    import lzma  # lazy: only needed here
    from importlib.resources import files

    compressed = (files("attestkit.measure.acpi") / "blobs" / f"qemu-{line}.xz").read_bytes()
    content = lzma.LZMADecompressor().decompress(compressed, _MAX_CONTENT)
    return content, dict(entry_spans(content))
