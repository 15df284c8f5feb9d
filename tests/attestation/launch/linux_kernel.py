"""A Linux kernel as QEMU patches it, and its Authenticode hash."""

import hashlib
import struct


def patch_header(kernel: bytes, memory: int, initrd_size: int) -> bytes:
    """Return the kernel with the setup header that QEMU before 10.0 writes for a TD.

    The kernel loads high, and its initrd may be above 0x37FFFFFF, as all kernels of images.
    """
    low = 0x80000000 if memory >= 0xB0000000 else memory
    initrd_at = (low - 0x28000 - 1 - initrd_size) & ~4095
    patched = bytearray(kernel)
    patched[0x210] = 0xB0
    patched[0x211] |= 0x80
    struct.pack_into("<II", patched, 0x218, initrd_at, initrd_size)
    struct.pack_into("<H", patched, 0x224, 0xFE00)
    struct.pack_into("<I", patched, 0x228, 0x20000)
    return bytes(patched)


def authenticode(image: bytes) -> bytes:
    """Return the SHA-384 of a PE32+ image without certificates, whose sections are in order."""
    optional = struct.unpack_from("<I", image, 0x3C)[0] + 24
    checksum, security = optional + 64, optional + 112 + 4 * 8
    return hashlib.sha384(
        image[:checksum] + image[checksum + 4 : security] + image[security + 8 :]
    ).digest()
