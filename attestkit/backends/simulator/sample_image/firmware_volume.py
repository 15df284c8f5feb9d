"""Builders for firmware images: volumes, files, sections and the GUID table.

UEFI Platform Initialization Specification, volume 3.
"""

import lzma
import struct
from collections.abc import Iterable
from uuid import UUID

NVRAM = UUID("fff12b8d-7696-4c8b-a985-2747075b4f50")
"""Format of volumes with variables."""
FFS2 = UUID("8c8ce578-8a3d-4f1c-9935-896185c32dd3")
"""Format of volumes with files."""

_LZMA = UUID("ee4e5898-3914-4259-9d6e-dc7bd79403cf")
_VARIABLE_STORE = UUID("aaf32c78-947b-439a-a180-2e144ec37792")
_FOOTER = UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
_BLOCK = 0x1000  # bytes
_HEADER = 72  # bytes


def volume(kind: UUID, size: int, body: bytes, name: UUID | None = None) -> bytes:
    """Return a firmware volume; `body` is padded with erased flash.

    Args:
        kind: Format of the contents.
        size: Bytes.
        body: Contents.
        name: Name of the volume, in an extended header.
    """
    extended = _HEADER if name else 0
    fields = (size, b"_FVH", 0x4FEFF, _HEADER, 0, extended, 0, 2)
    head = bytes(16) + kind.bytes_le + struct.pack("<Q4sIHHHBB", *fields)
    head += struct.pack("<IIII", size // _BLOCK, _BLOCK, 0, 0)
    checksum = -sum(struct.unpack("<36H", head)) & 0xFFFF
    data = head[:50] + struct.pack("<H", checksum) + head[52:]
    if name:
        data += name.bytes_le + struct.pack("<I", 20) + bytes(4)
    data += body
    assert len(data) <= size
    return data.ljust(size, b"\xff")


def ffs_file(guid: UUID, kind: int, body: bytes) -> bytes:
    """Return a file of a volume, padded to 8 bytes."""
    size = (24 + len(body)).to_bytes(3, "little")
    data = guid.bytes_le + bytes(2) + bytes((kind, 0)) + size + b"\xf8" + body
    return data.ljust(-(-len(data) // 8) * 8, b"\xff")


def section(kind: int, body: bytes) -> bytes:
    """Return a section of a file, padded to 4 bytes."""
    data = (len(body) + 4).to_bytes(3, "little") + bytes((kind,)) + body
    return data.ljust(-(-len(data) // 4) * 4, b"\0")


def guided_section(guid: UUID, data: bytes, attributes: int = 1) -> bytes:
    """Return a section whose data is encoded, or preceded by a checksum."""
    return section(2, guid.bytes_le + struct.pack("<HH", 24, attributes) + data)


def pack_lzma(plain: bytes) -> bytes:
    """Return LZMA data whose header has the size."""
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": 1 << 16}]
    packed = lzma.compress(plain, lzma.FORMAT_ALONE, filters=filters)
    return packed[:5] + struct.pack("<Q", len(plain)) + packed[13:]


def lzma_section(plain: bytes) -> bytes:
    """Return a section with LZMA data."""
    return guided_section(_LZMA, pack_lzma(plain))


def variable_volume(entries: bytes, size: int, store_end: int | None = None) -> bytes:
    """Return a volume with a store of variables.

    Args:
        entries: The variables.
        size: Bytes of the volume.
        store_end: Offset of the end of the store; None: that of the volume.
    """
    store = (store_end or size) - _HEADER
    head = _VARIABLE_STORE.bytes_le + struct.pack("<IBBHI", store, 0x5A, 0xFE, 0, 0)
    return volume(NVRAM, size, head + entries)


def guid_table(entries: Iterable[tuple[UUID, bytes]]) -> bytes:
    """Return a GUID table, first entry first, with its footer."""
    table = b"".join(
        [data + struct.pack("<H", len(data) + 18) + guid.bytes_le for guid, data in entries]
    )
    return table + struct.pack("<H", len(table) + 18) + _FOOTER.bytes_le
