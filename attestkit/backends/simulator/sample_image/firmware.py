"""A firmware image with the layout of OVMF (edk2-stable202502), for TDX and SEV-SNP."""

import struct
from collections.abc import Sequence
from hashlib import shake_128
from typing import Final
from uuid import UUID

from attestkit.backends.simulator.images.snp_os_image import (
    HASHES_TABLE_GPA,
    RESET_EIP,
    SNP_SECTIONS,
)
from attestkit.backends.simulator.sample_image.firmware_volume import (
    FFS2,
    ffs_file,
    guid_table,
    lzma_section,
    section,
    variable_volume,
    volume,
)
from attestkit.measure.firmware.guid_table import (
    SEV_ES_RESET,
    SEV_HASH_TABLE,
    SEV_METADATA,
    TDX_METADATA,
)
from attestkit.measure.firmware.tdvf import BFV, CFV, MR_EXTEND, TD_HOB, TEMP_MEM, TdvfSection

_CFV_SIZE: Final = 0x84000  # bytes; as in images of 4 MiB
_STORE_END: Final = 0x40000
_WORKING_BLOCK_AT: Final = 0x41000
# Header of the block with which OVMF writes variables: GUID, checksum, state and size.
_WORKING_BLOCK: Final = UUID("9e58292b-7c68-497d-a0ce-6500fd9f1b95").bytes_le + struct.pack(
    "<IIQ", 0x642CAF2C, 0xFFFFFFFE, 0xFE0
)

_BFV_SIZE: Final = 0x8000
_VOLUME_SIZE: Final = 0x4000
_DRIVERS_SIZE: Final = 0x2000
_SIZE: Final = _CFV_SIZE + _BFV_SIZE
_METADATA_END: Final = 1024  # bytes before the end of the image

_MAIN_VOLUME: Final = UUID("48db5e17-707c-472d-91cd-1613e7ef51b0")
_DRIVER_VOLUME: Final = UUID("7cb8bdc9-f8eb-4f34-aaea-3ee4af6516a1")
_COMPRESSED_FILE: Final = UUID("9e21fd93-9c72-4c15-8c4b-e77f1db2d792")
_DRIVERS: Final = (
    UUID("f062221e-c607-44c2-b0b4-c3886331d351"),  # TdTcg2Dxe
    UUID("462caa21-7614-4503-836e-8ab6f4662331"),  # UiApp
)
_TEXTS: Final = (b"", b"ACPI DATA", b"etc/boot/", b" initrd=initrd", b"")
_DRIVER, _IMAGE, _RAW, _VOLUME_IMAGE = 7, 0x0B, 0x19, 0x17  # types of files and sections


def noise(seed: str, size: int) -> bytes:
    """Return bytes without a pattern, the same for each seed."""
    return shake_128(f"attestkit sample {seed}".encode()).digest(size)


def sample_firmware(seed: str) -> bytes:
    """Return an image; its variables are those of a new OVMF, and the seed is in its code."""
    code = bytearray(_code(seed))
    sections = _tdx_sections()
    tdx = struct.pack("<4sIII", b"TDVF", 16 + 32 * len(sections), 1, len(sections))
    tdx += b"".join(struct.pack("<IIQQII", *row) for row in sections)
    sev = struct.pack("<4sIII", b"ASEV", 16 + 12 * len(SNP_SECTIONS), 1, len(SNP_SECTIONS))
    sev += b"".join(struct.pack("<III", *row) for row in SNP_SECTIONS)
    both = tdx + sev
    code[-_METADATA_END - len(both) : -_METADATA_END] = both
    table = guid_table(
        (
            (SEV_HASH_TABLE, struct.pack("<II", HASHES_TABLE_GPA, 0x400)),
            (SEV_METADATA, struct.pack("<I", _METADATA_END + len(sev))),
            (TDX_METADATA, struct.pack("<I", _METADATA_END + len(both))),
            (SEV_ES_RESET, struct.pack("<I", RESET_EIP)),
        )
    )
    code[-32 - len(table) : -32] = table
    return _variables() + bytes(code)


def _variables() -> bytes:
    """Return OVMF's volume of variables without variables."""
    stored = bytearray(variable_volume(b"", _CFV_SIZE, _STORE_END))
    stored[_WORKING_BLOCK_AT : _WORKING_BLOCK_AT + len(_WORKING_BLOCK)] = _WORKING_BLOCK
    return bytes(stored)


def _code(seed: str) -> bytes:
    """Return the volume with compressed drivers, and what follows it."""
    drivers = [
        ffs_file(guid, _DRIVER, section(_RAW, noise(f"{seed} {guid}", 64))) for guid in _DRIVERS
    ]
    plain = section(_VOLUME_IMAGE, volume(FFS2, _DRIVERS_SIZE, b"".join(drivers), _DRIVER_VOLUME))
    plain += section(_RAW, b"\0".join(_TEXTS))
    packed = ffs_file(_COMPRESSED_FILE, _IMAGE, lzma_section(plain))
    stored = volume(FFS2, _VOLUME_SIZE, packed, _MAIN_VOLUME)
    return stored + noise(f"{seed} code", _BFV_SIZE - len(stored))


def _tdx_sections() -> Sequence[TdvfSection]:
    base = (1 << 32) - _SIZE
    return (
        TdvfSection(_CFV_SIZE, _BFV_SIZE, base + _CFV_SIZE, _BFV_SIZE, BFV, MR_EXTEND),
        TdvfSection(0, _CFV_SIZE, base, _CFV_SIZE, CFV, 0),
        TdvfSection(0, 0, 0x810000, 0x10000, TEMP_MEM, 0),
        TdvfSection(0, 0, 0x80B000, 0x2000, TEMP_MEM, 0),
        TdvfSection(0, 0, 0x809000, 0x2000, TD_HOB, 0),
        TdvfSection(0, 0, 0x800000, 0x6000, TEMP_MEM, 0),
    )
