"""Small images with SEV metadata, made by code. They do not boot."""

import struct
from collections.abc import Mapping, Sequence
from uuid import UUID

from attestkit.attestation.launch.snp import OvmfSection
from tests.measure.firmware_images import FOOTER, noise

GUIDS = {
    "metadata": UUID("dc886566-984a-4798-a75e-5585a7bf67cc"),
    "hashes": UUID("7255371f-3a3b-4b04-927b-1da6efa8d454"),
    "reset": UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e"),
    "svsm": UUID("a789a612-0597-4c4b-a49f-cbb1fe9d1ddd"),
}
SECTIONS = tuple(
    OvmfSection(*section)
    for section in (
        (0x800000, 0x9000, 1),
        (0x80A000, 0x3000, 1),
        (0x80D000, 0x1000, 2),
        (0x80E000, 0x1000, 3),
        (0x80F000, 0x1000, 4),
        (0x811000, 0xF000, 1),
        (0x810000, 0x1000, 0x10),
        (0x820000, 0, 1),
    )
)


def sev_image(
    seed: str = "firmware",
    *,
    size: int = 0x4000,
    sections: Sequence[OvmfSection] = SECTIONS,
    reset_eip: int | None = 0x80B004,
    hashes_gpa: int | None = 0x810C00,
    svsm_entry: int | None = None,
    more: Mapping[UUID, bytes] | None = None,
) -> bytes:
    """Return an image whose metadata are before the GUID table at its end."""
    metadata = struct.pack("<4sIII", b"ASEV", 16 + 12 * len(sections), 1, len(sections))
    metadata += b"".join(struct.pack("<III", *section) for section in sections)
    entries: dict[UUID, bytes] = {GUIDS["metadata"]: bytes(4), **(more or {})}
    if hashes_gpa is not None:
        entries[GUIDS["hashes"]] = struct.pack("<II", hashes_gpa, 0x400)
    if reset_eip is not None:
        entries[GUIDS["reset"]] = struct.pack("<I", reset_eip)
    if svsm_entry is not None:
        entries[GUIDS["svsm"]] = struct.pack("<I", svsm_entry)
    table_size = sum(len(data) + 18 for data in entries.values()) + 18
    back = 32 + table_size + len(metadata)
    entries[GUIDS["metadata"]] = struct.pack("<I", back)
    table = b"".join(
        data + struct.pack("<H", len(data) + 18) + guid.bytes_le for guid, data in entries.items()
    )
    table += struct.pack("<H", table_size) + FOOTER.bytes_le
    return noise(seed, size - back) + metadata + table + noise("reset vector", 32)
