"""ACPI tables in a user's cache.

The folder of the cache is accessible to its owner only: another writer could replace expected
values. The first line of a file is the SHA-256 of the rest, which is an entry (`table_entry`),
compressed with zlib. The file's name consists of the digest of machine and QEMU release line, and
that of the QEMU program. A malformed file, or one of another machine, is ignored and overwritten.
"""

import hashlib
import logging
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from attestkit._system.cache_folder import (
    MAX_TEMPORARY,
    add_checksum,
    open_cache_folder,
    remove_checksum,
    write_cache_file,
)
from attestkit._system.untrusted_files import read_regular
from attestkit.errors import FormatError, UsageError
from attestkit.measure.acpi.acpi_inputs import QemuBuild
from attestkit.measure.acpi.table_entry import (
    MAX_ENTRY,
    TableEntry,
    TableKey,
    decode_entry,
    encode_entry,
)

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
