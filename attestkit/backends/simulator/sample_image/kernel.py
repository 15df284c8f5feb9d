"""A Linux kernel with setup header and PE header, which is nothing but both."""

import struct
from typing import Final

from attestkit.attestation.launch.td_hob import SPLIT_MEMORY
from attestkit.backends.simulator.sample_image.firmware import noise
from attestkit.measure.kernel.linux_kernel import patch_setup_header

_HEADERS: Final = 0x400  # bytes
_SETUP: Final = 0x200
_TEXT: Final = 0x2A00
_PE_AT: Final = 0x40
_OPTIONAL: Final = 240  # bytes of the optional header of PE32+ with 16 directories


def sample_kernel(seed: str) -> bytes:
    """Return a bzImage of boot protocol 2.15 that is a PE image, with a section of noise."""
    sections = ((b".setup", _HEADERS, _SETUP), (b".text", _HEADERS + _SETUP, _TEXT))
    table = b"".join(
        struct.pack("<8s4I16x", name, size, at, size, at) for name, at, size in sections
    )
    optional = bytearray(_OPTIONAL)
    struct.pack_into("<H", optional, 0, 0x20B)
    struct.pack_into("<I", optional, 60, _HEADERS)
    struct.pack_into("<I", optional, 108, 16)
    head = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", _PE_AT)
    head += struct.pack("<4s2H12x2H", b"PE\0\0", 0x8664, len(sections), _OPTIONAL, 0x206)
    kernel = bytearray((head + optional + table).ljust(_HEADERS, b"\0"))
    kernel += bytes(_SETUP) + noise(f"{seed} kernel", _TEXT)
    kernel[0x1F1] = 1  # sectors of setup
    struct.pack_into("<H", kernel, 0x1FA, 0xFFFF)  # video mode
    kernel[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", kernel, 0x206, 0x20F)
    kernel[0x211] = 1  # loaded high
    struct.pack_into("<I", kernel, 0x22C, 0x7FFFFFFF)  # highest address of the initrd
    struct.pack_into("<H", kernel, 0x236, 0x7F)
    return bytes(kernel)


def normalize_header(kernel: bytes, initrd_size: int, cmdline: str) -> bytes:
    """Return a kernel with the header that QEMU writes for machines of 2816 MiB and more."""
    return patch_setup_header(
        kernel, memory_size=SPLIT_MEMORY, initrd_size=initrd_size, cmdline=cmdline
    )
