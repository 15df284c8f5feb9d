"""Unified kernel images, and disks with a GPT and a FAT file system that boot one of them."""

import struct
import zlib
from uuid import UUID

_SYSTEM_PARTITION = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
_DATA_PARTITION = UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
_BLOCK = 512
_CLUSTER = 4096
_FIRST_BLOCK = 2048  # of the file system


def make_uki(stub: bytes, sections: dict[str, bytes]) -> bytes:
    """Return the stub with more sections, each of which is a part of the image in memory."""
    image = bytearray(stub)
    header = struct.unpack_from("<I", image, 60)[0]
    (count,) = struct.unpack_from("<H", image, header + 6)
    (optional_size,) = struct.unpack_from("<H", image, header + 20)
    table = header + 24 + optional_size
    (headers_size,) = struct.unpack_from("<I", image, header + 24 + 60)
    assert table + 40 * (count + len(sections)) < headers_size, "no room for section headers"
    end = max(
        at + size
        for size, at in (struct.unpack_from("<II", image, table + 40 * n + 8) for n in range(count))
    )
    for name, content in sections.items():
        image += bytes(-len(image) % _BLOCK)
        end += -end % 4096
        raw = len(content) + -len(content) % _BLOCK
        row = struct.pack("<8s4I", name.encode(), len(content), end, raw, len(image))
        row += struct.pack("<12xI", 0x40000040)
        image[table + 40 * count : table + 40 * (count + 1)] = row
        count += 1
        image += content.ljust(raw, b"\0")
        end += len(content)
    struct.pack_into("<H", image, header + 6, count)
    struct.pack_into("<I", image, header + 24 + 56, end + -end % 4096)
    return bytes(image)


def make_disk(program: bytes) -> bytes:
    """Return a disk whose system partition starts a program, with one partition more."""
    files = _file_system(program)
    blocks = len(files) // _BLOCK
    last = _FIRST_BLOCK + blocks
    total = last + 2048 + 34
    entries = bytearray(128 * 128)
    for at, kind, first, end, name in (
        (0, _SYSTEM_PARTITION, _FIRST_BLOCK, last - 1, "system"),
        (5, _DATA_PARTITION, last, last + 2047, "data"),  # entries between them are unused
    ):
        row = kind.bytes_le + UUID(int=at + 1).bytes_le + struct.pack("<QQQ", first, end, 0)
        entries[128 * at : 128 * at + 128] = row + name.encode("utf-16-le").ljust(72, b"\0")
    disk = bytearray(total * _BLOCK)
    disk[446:462] = struct.pack("<8B2I", 0, 0, 2, 0, 0xEE, 0xFF, 0xFF, 0xFF, 1, total - 1)
    disk[510:512] = b"\x55\xaa"
    disk[_FIRST_BLOCK * _BLOCK : last * _BLOCK] = files
    for own, other, at in ((1, total - 1, 2), (total - 1, 1, total - 33)):
        head = struct.pack("<8s4I4Q", b"EFI PART", 0x10000, 92, 0, 0, own, other, 34, total - 34)
        head += UUID(int=9).bytes_le + struct.pack("<Q3I", at, 128, 128, zlib.crc32(entries))
        head = head[:16] + struct.pack("<I", zlib.crc32(head)) + head[20:]
        disk[own * _BLOCK : own * _BLOCK + 92] = head
        disk[at * _BLOCK : at * _BLOCK + len(entries)] = entries
    return bytes(disk)


def _file_system(program: bytes) -> bytes:
    """Return a file system (FAT16) with `/EFI/BOOT/BOOTX64.EFI`."""
    used = -(-len(program) // _CLUSTER)
    clusters = max(used + 100, 8192)
    table_blocks = -(-(2 * (clusters + 2)) // _BLOCK)
    total = 1 + table_blocks + 32 + clusters * (_CLUSTER // _BLOCK)
    sizes = (_BLOCK, _CLUSTER // _BLOCK, 1, 1, _BLOCK, 0, 0xF8, table_blocks, 63, 255, 0)
    boot = b"\xeb\x3c\x90MSWIN4.1" + struct.pack("<HBHBHHBHHHI", *sizes)
    boot += struct.pack("<IBBBI11s8s", total, 0x80, 0, 0x29, 5, b"NO NAME    ", b"FAT16   ")
    boot = boot.ljust(510, b"\0") + b"\x55\xaa"
    table = [0xFFF8, 0xFFFF, 0xFFFF, 0xFFFF]  # clusters 2 and 3: the folders
    table += [*range(5, 4 + used), 0xFFFF]
    links = struct.pack(f"<{len(table)}H", *table).ljust(table_blocks * _BLOCK, b"\0")
    root = _entry("EFI", 2, folder=True).ljust(32 * _BLOCK, b"\0")
    folders = [
        _entry(".", 2, folder=True) + _entry("..", 0, folder=True) + _entry("BOOT", 3, folder=True),
        _entry(".", 3, folder=True)
        + _entry("..", 2, folder=True)
        + _entry("BOOTX64 EFI", 4, len(program)),
    ]
    data = b"".join(folder.ljust(_CLUSTER, b"\0") for folder in folders) + program
    return (boot + links + root + data).ljust(total * _BLOCK, b"\0")


def _entry(name: str, cluster: int, size: int = 0, *, folder: bool = False) -> bytes:
    kind = 0x10 if folder else 0x20
    return struct.pack("<11sB14xHI", name.ljust(11).encode(), kind, cluster, size)
