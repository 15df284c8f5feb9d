"""ACPI tables that ship with attestkit, by QEMU release line and machine."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from attestkit.measure.acpi.table_entry import TableEntry, TableKey, decode_entry, entry_spans

PACKAGED_LINES: Final = ("8.2", "9.2", "10.0", "11.1")
"""Release lines of QEMU whose tables ship with attestkit."""

_MAX_CONTENT: Final = 1 << 24  # bytes of a line's entries


def packaged_tables(line: str, key: TableKey) -> TableEntry | None:
    """Return the tables of the machine `key` that ship with attestkit, of a QEMU release line.

    `line` is a version such as `9.2`. None if attestkit has no tables for this line or machine.
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
