"""PE images, kernels and disks made by code, for tests without stored samples."""

import struct
from hashlib import shake_128


def noise(seed: str, size: int) -> bytes:
    """Return reproducible bytes without a pattern."""
    return shake_128(seed.encode()).digest(size)


def pe_image(
    sections: list[tuple[str, bytes]],
    *,
    plus: bool = True,
    directories: int = 16,
    trailing: bytes = b"",
    certificates: bytes = b"",
    memory_sizes: dict[str, int] | None = None,
    image_version: int = 1,
) -> bytes:
    """Return a PE image with these sections, in order, each at a multiple of 512 bytes."""
    optional_size = (112 if plus else 96) + 8 * directories
    headers_size = -(-(0x40 + 24 + optional_size + 40 * len(sections)) // 512) * 512
    table, body, at = b"", b"", headers_size
    for name, content in sections:
        memory = (memory_sizes or {}).get(name, len(content))
        raw = content.ljust(-(-len(content) // 512) * 512, b"\0")
        table += struct.pack("<8s4I16x", name.encode(), memory, at, len(raw), at if raw else 0)
        body += raw
        at += len(raw)
    head = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    head += struct.pack("<4s2H12x2H", b"PE\0\0", 0x8664, len(sections), optional_size, 0x206)
    optional = bytearray(optional_size)
    struct.pack_into("<H", optional, 0, 0x20B if plus else 0x10B)
    struct.pack_into("<H", optional, 44, image_version)
    struct.pack_into("<II", optional, 60, headers_size, 0xDEADBEEF)
    struct.pack_into("<I", optional, (112 if plus else 96) - 4, directories)
    if certificates:
        security = (112 if plus else 96) + 32
        struct.pack_into("<II", optional, security, at + len(trailing), len(certificates))
    return (head + optional + table).ljust(headers_size, b"\0") + body + trailing + certificates


def linux_kernel(
    *,
    protocol: int = 0x20F,
    loadflags: int = 1,
    xloadflags: int = 0x7F,
    initrd_max: int = 0x7FFFFFFF,
) -> bytes:
    """Return a bzImage of 12 KiB that is a PE image as well."""
    kernel = bytearray(
        pe_image([(".setup", noise("setup", 512)), (".text", noise("text", 10_752))])
    )
    # The setup header begins behind the section headers and ends in the first section.
    kernel[0x1F1] = 1
    kernel[0x1FA:0x1FC] = b"\xff\xff"
    kernel[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", kernel, 0x206, protocol)
    kernel[0x211] = loadflags
    struct.pack_into("<I", kernel, 0x22C, initrd_max)
    struct.pack_into("<H", kernel, 0x236, xloadflags)
    return bytes(kernel)


def gpt_disk(
    *, used: int = 2, count: int = 128, entry_size: int = 128, block_size: int = 512
) -> bytes:
    """Return the beginning of a disk with a GPT, whose entries begin in block 2."""
    entries = b"".join(noise(f"partition {n}", entry_size) for n in range(used))
    header = b"EFI PART" + struct.pack("<4I4Q", 0x10000, 92, 0, 0, 1, 4095, 34, 4062)
    header += noise("disk", 16) + struct.pack("<Q3I", 2, count, entry_size, 0)
    blocks = bytes(block_size) + header.ljust(block_size, b"\0")
    return blocks + entries.ljust(count * entry_size, b"\0")
