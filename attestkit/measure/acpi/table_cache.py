"""ACPI tables that ship with attestkit or are in a user's cache: encoding, lookup, storage.

The folder of the cache is accessible to its owner only: another writer could replace expected
values. The first line of a file is the SHA-256 of the rest, which is an entry (see below),
compressed with zlib. The file's name consists of the digest of machine and QEMU release line, and
that of the QEMU program. A malformed file, or one of another machine, is ignored and overwritten.

An entry is a line of ASCII text, then the loader script, the RSDP and the tables, the first and the
last without their trailing zeros. The line has the format's name and version, QEMU's version, and
decimal numbers: those of `TableKey`, the three sizes, and the two sizes without trailing zeros.
"""

import hashlib
import logging
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from attestkit._outcomes.reasons import FormatReason
from attestkit._system.cache_folder import (
    MAX_TEMPORARY,
    add_checksum,
    open_cache_folder,
    remove_checksum,
    write_cache_file,
)
from attestkit._system.untrusted_files import read_regular
from attestkit.attestation.launch.qemu_version import QemuVersion
from attestkit.errors import FormatError, UsageError
from attestkit.measure.acpi.acpi_inputs import AcpiInputs, QemuBuild
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
        raise _bad(f"must be one, not {len(spans)}", "trailing_data" if spans else "missing")
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


PACKAGED_LINES: Final = ("8.2", "9.2", "10.0", "11.1")
"""Release lines of QEMU whose tables ship with attestkit."""

_MAX_CONTENT: Final = 1 << 24  # bytes of a line's entries


def packaged_tables(line: str, key: TableKey) -> TableEntry | None:
    """Return the tables of the machine `key` that ship with attestkit, of a QEMU release line.

    `line` is such as `9.2`. None if there are none for this line or machine.
    """
    if line not in PACKAGED_LINES:
        return None
    content, places = _load_line(line)
    place = places.get(key.numbers())
    return None if place is None else decode_entry(content[place])


def packaged_entries(line: str) -> Iterator[TableEntry]:
    """Yield all tables that ship with attestkit of a QEMU release line in `PACKAGED_LINES`."""
    content, places = _load_line(line)
    return (decode_entry(content[place]) for place in places.values())


@lru_cache(len(PACKAGED_LINES))  # together 13 MB; a search for a machine reads all of them
def _load_line(line: str) -> tuple[bytes, dict[tuple[int, ...], slice]]:
    import lzma  # lazy: only needed here
    from importlib.resources import files

    compressed = (files("attestkit.measure.acpi") / "blobs" / f"qemu-{line}.xz").read_bytes()
    content = lzma.LZMADecompressor().decompress(compressed, _MAX_CONTENT)
    return content, dict(entry_spans(content))


_MAX_FILE: Final = 1 << 20  # bytes; real ones have 3 kB
_ENTRY_FILE: Final = re.compile(r"[0-9a-f]{64}-[0-9a-f]{64}\.acpi")
_TEMPORARY_FILE: Final = re.compile(r"\.[0-9a-f]{64}-[0-9a-f]{64}\.acpi\..+")
_logger = logging.getLogger("attestkit.measure")


def cache_folder(environment: Mapping[str, str]) -> Path | None:
    """Return the user's folder for cached tables; None if it is unknown.

    It is `attestkit/acpi` in `$XDG_CACHE_HOME`, else in `.cache` of `$HOME`, if that is an absolute
    path. `environment` has the environment variables by name.
    """
    base, home = environment.get("XDG_CACHE_HOME", ""), environment.get("HOME", "")
    if Path(base).is_absolute():  # as the XDG Base Directory Specification requires
        return Path(base) / "attestkit" / "acpi"
    return Path(home) / ".cache" / "attestkit" / "acpi" if Path(home).is_absolute() else None


class TableCache:
    """Folder of ACPI tables, by machine and QEMU program; processes may share it."""

    def __init__(self, folder: str | os.PathLike[str], *, limit: int = 256) -> None:
        """Open a cache.

        Args:
            folder: Folder of the cache, created with its parents if missing; its mode is set to
                0700.
            limit: Maximum number of entries, of 3 kB each. The oldest are removed first.

        Raises:
            ConfigError: If the folder cannot be created, or belongs to another user.
            UsageError: If `limit` is below 1.
        """
        if limit < 1:
            raise UsageError(f"limit: {limit}, must be at least 1", reason="out_of_range")
        self._folder = open_cache_folder(folder)
        self._limit = limit

    def get(self, build: QemuBuild, key: TableKey) -> TableEntry | None:
        """Return the tables that this QEMU program made for a machine; None if not stored."""
        if build.digest is None:
            return None
        line, numbers = build.version.line, key.numbers()
        entry = _read_entry(self._path(line, numbers, build.digest), line, numbers)
        return entry if entry is not None and entry.qemu_version == build.version else None

    def find(self, line: str, key: TableKey) -> TableEntry | None:
        """Return the tables of a machine that any QEMU of the release line `line` (`9.2`) made.

        None if the cache has none, or if QEMU programs of that line made different tables.
        """
        numbers = key.numbers()
        prefix = _machine_digest(line, numbers)
        try:
            with os.scandir(self._folder) as found:
                names = [entry.name for entry in found if entry.name.startswith(prefix)]
        except OSError:
            return None
        paths = [self._folder / name for name in sorted(names) if _ENTRY_FILE.fullmatch(name)]
        read = [_read_entry(path, line, numbers) for path in paths]
        entries = [entry for entry in read if entry is not None]
        return entries[0] if len({entry.files for entry in entries}) == 1 else None

    def put(self, build: QemuBuild, entry: TableEntry) -> None:
        """Store tables that the QEMU program `build` made.

        Do nothing if its digest is unknown. If the folder cannot be written, log a warning to
        `attestkit.measure`.
        """
        if build.digest is None:
            return
        path = self._path(entry.qemu_version.line, entry.key, build.digest)
        try:
            limits = {_ENTRY_FILE: self._limit, _TEMPORARY_FILE: MAX_TEMPORARY}
            write_cache_file(path, encode_cache_file(entry), limits)
        except OSError as error:
            _logger.warning("cannot store ACPI tables in %s: %s", self._folder, error)

    def _path(self, line: str, numbers: tuple[int, ...], build: bytes) -> Path:
        return self._folder / f"{_machine_digest(line, numbers)}-{build.hex()}.acpi"


def _machine_digest(line: str, numbers: tuple[int, ...]) -> str:
    return hashlib.sha256(f"{line} {numbers}".encode("ascii")).hexdigest()


def _read_entry(path: Path, line: str, numbers: tuple[int, ...]) -> TableEntry | None:
    """Return the entry of a cache file.

    None if it is missing or invalid, its QEMU is not of the release line `line`, or `numbers`
    (`TableKey.numbers`) are not those of its machine.
    """
    try:
        entry = decode_cache_file(read_regular(path, _MAX_FILE + 1))
    except (OSError, FormatError):
        return None  # the next `put` overwrites it
    return entry if entry.qemu_version.line == line and entry.key == numbers else None


def encode_cache_file(entry: TableEntry) -> bytes:
    """Return the content of an entry's cache file: its SHA-256, and the entry in zlib."""
    return add_checksum(zlib.compress(encode_entry(entry), 9))


def decode_cache_file(content: bytes) -> TableEntry:
    """Return the entry in the content of a cache file, see `encode_cache_file`.

    Raises:
        FormatError: If the file is over 1 MiB, its checksum differs, or it is not one entry.
    """
    if len(content) > _MAX_FILE:
        raise FormatError(f"ACPI table cache: over {_MAX_FILE} bytes", reason="inconsistent")
    compressed = remove_checksum(content)
    expander = zlib.decompressobj()
    try:
        expanded = expander.decompress(compressed, MAX_ENTRY)
    except zlib.error as error:
        raise FormatError("ACPI table cache: zlib data are malformed", reason="syntax") from error
    if not expander.eof:
        raise FormatError("ACPI table cache: zlib data truncated or too long", reason="truncated")
    return decode_entry(expanded)
