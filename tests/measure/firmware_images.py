"""Small firmware images, made by code: metadata, volumes and variables as edk2 arranges them.

They do not boot.
"""

import hashlib
import struct
from collections.abc import Iterable, Mapping
from uuid import UUID

from attestkit.attestation.launch.td_hob import EFI_GLOBAL, IMAGE_SECURITY, VariableName
from attestkit.backends.simulator import sample_image
from attestkit.backends.simulator.sample_image import (
    FFS2,
    ffs_file,
    guid_table,
    pack_lzma,
    volume,
)
from attestkit.measure.firmware.bios_strings import SMBIOS_PLATFORM
from attestkit.measure.firmware.tdvf import BFV, CFV, MR_EXTEND, TD_HOB, TEMP_MEM, TdvfSection
from attestkit.measure.firmware.tdx_firmware import BootLayout

FOOTER = UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
TDX_METADATA = UUID("e47a6535-984a-4798-865e-4685a7bf8ec2")
LZMA = UUID("ee4e5898-3914-4259-9d6e-dc7bd79403cf")
CRC32 = UUID("fc1bcdb0-7d31-49aa-936a-a4600d9dd083")
NOT_FOR_TDS = UUID("ae047c6d-bce9-426c-ae03-a68e3b8a0488")
UI_VOLUME = UUID("7cb8bdc9-f8eb-4f34-aaea-3ee4af6516a1")
MAIN_VOLUME = UUID("48db5e17-707c-472d-91cd-1613e7ef51b0")

TD_TCG2 = UUID("f062221e-c607-44c2-b0b4-c3886331d351")
UI_APP = UUID("462caa21-7614-4503-836e-8ab6f4662331")
MENU_APP = UUID("eec25bdc-67f2-4d95-b1d5-f81b2039d11d")
SMBIOS_MEASUREMENT = UUID("d27fed59-abb4-4fed-bead-2a878c7e4a7e")
SECURE_BOOT_CONFIG = UUID("f0e6a44f-7195-41c3-ac64-54f202cd0a21")

LAYOUT_202502 = BootLayout(  # of edk2-stable202502
    measures=True,
    fw_cfg=False,
    acpi=True,
    smbios=False,
    boot_options="ui_app",
    named_blobs=True,
    initrd_first=False,
    secure_boot=False,
    ui_volume=UI_VOLUME,
)

SIZE = 0x3000
CFV_SIZE = 0x1000
Variables = Mapping[VariableName, bytes]
KEYS: Variables = {
    VariableName(EFI_GLOBAL, "PK"): b"platform key",
    VariableName(EFI_GLOBAL, "KEK"): b"key exchange key" * 3,
    VariableName(IMAGE_SECURITY, "db"): b"allowed" * 9,
    VariableName(IMAGE_SECURITY, "dbx"): b"forbidden" * 5,
}


def noise(seed: str, size: int) -> bytes:
    """Return bytes that do not compress, the same for each seed."""
    parts = [hashlib.sha256(f"{seed} {n}".encode()).digest() for n in range(-(-size // 32))]
    return b"".join(parts)[:size]


def large_file(guid: UUID, kind: int, body: bytes) -> bytes:
    """Return a file with the header of large files."""
    head = guid.bytes_le + bytes(2) + bytes((kind, 1)) + b"\xff" * 3 + b"\xf8"
    data = head + struct.pack("<Q", 32 + len(body)) + body
    return data.ljust(-(-len(data) // 8) * 8, b"\xff")


def section(kind: int, body: bytes, *, large: bool = False) -> bytes:
    """Return a section of a file, padded to 4 bytes, with the header of large sections if asked."""
    if not large:
        return sample_image.section(kind, body)
    data = b"\xff" * 3 + bytes((kind,)) + struct.pack("<I", len(body) + 8) + body
    return data.ljust(-(-len(data) // 4) * 4, b"\0")


def variable_entry(name: VariableName, data: bytes, state: int = 0x3F) -> bytes:
    """Return an entry of a variable store."""
    text = (name.name + "\0").encode("utf-16-le")
    head = struct.pack(
        "<HBBIQ16sIII", 0x55AA, state, 0, 0x27, 0, bytes(16), 0, len(text), len(data)
    )
    entry = head + name.vendor.bytes_le + text + data
    return entry.ljust(-(-len(entry) // 4) * 4, b"\xff")


def variable_volume(entries: bytes, size: int = CFV_SIZE) -> bytes:
    """Return a volume with a variable store."""
    return sample_image.variable_volume(entries, size)


def bios_driver(*texts: str) -> bytes:
    """Return the sections of a driver that adds BIOS information, with its strings in order."""
    program = b"MZ" + "unknown\0".encode("utf-16-le") + "02/02/2022\0".encode("utf-16-le")
    program += bytes.fromhex("001a0000010200e803000800000000000000001c0000ffff0000")
    for text in texts:
        program += bytes.fromhex("662e0f1f8400000000000f1f4000") + f"{text}\0\0".encode("utf-16-le")
    name = section(0x15, "SmbiosPlatformDxe\0".encode("utf-16-le"))
    return section(0x10, program + bytes(8)) + name


def code_volume(
    files: Iterable[UUID],
    texts: Iterable[bytes] = (),
    hidden: Iterable[UUID] = (),
    *,
    unpacked: bytes = b"",
    dictionary: int | None = None,
    bios_texts: Iterable[str] = ("EDK II",),
) -> bytes:
    """Return a volume with compressed drivers, and some in a volume that TDs do not load.

    Args:
        files: Names of the drivers.
        texts: Texts of their code.
        hidden: Names of the drivers that TDs do not load.
        unpacked: Further content of the compressed data.
        dictionary: Size of the dictionary in the header of the LZMA data, in bytes.
        bios_texts: Strings of the driver that adds BIOS information, if SMBIOS is measured.
    """
    bodies = {guid: section(0x19, noise(str(guid), 64)) for guid in files}
    if SMBIOS_MEASUREMENT in bodies:
        bodies[SMBIOS_PLATFORM] = bios_driver(*bios_texts)
    inner = b"".join([ffs_file(guid, 7, body) for guid, body in bodies.items()])
    plain = section(0x17, volume(FFS2, 0x4000, inner, UI_VOLUME))
    inner = b"".join([ffs_file(guid, 7, section(0x19, b"hidden")) for guid in hidden])
    plain += section(0x17, volume(FFS2, 0x2000, inner, NOT_FOR_TDS))
    plain += section(0x19, b"\0" + b"\0".join(texts) + b"\0")
    plain += section(0x19, unpacked, large=True) if unpacked else b""
    packed = pack_lzma(plain)
    if dictionary is not None:
        packed = packed[:1] + struct.pack("<I", dictionary) + packed[5:]
    name = UUID("9e21fd93-9c72-4c15-8c4b-e77f1db2d792")
    file = ffs_file(name, 0x0B, sample_image.guided_section(LZMA, packed))
    return volume(FFS2, max(0x1800, -(-(len(file) + 200) // 0x1000) * 0x1000), file, MAIN_VOLUME)


def sections(
    size: int = SIZE, temp_mem: tuple[int, int] = (0x810000, 0x10000)
) -> list[TdvfSection]:
    """Return the sections that OVMF has."""
    base, code = (1 << 32) - size, size - CFV_SIZE
    return [
        TdvfSection(CFV_SIZE, code, base + CFV_SIZE, code, BFV, MR_EXTEND),
        TdvfSection(0, CFV_SIZE, base, CFV_SIZE, CFV, 0),
        TdvfSection(0, 0, *temp_mem, TEMP_MEM, 0),
        TdvfSection(0, 0, 0x80B000, 0x2000, TEMP_MEM, 0),
        TdvfSection(0, 0, 0x809000, 0x2000, TD_HOB, 0),
        TdvfSection(0, 0, 0x800000, 0x6000, TEMP_MEM, 0),
    ]


def with_metadata(flash: bytes, described: Iterable[TdvfSection]) -> bytes:
    """Return the image with TDX metadata before its last 1,024 bytes, and a GUID table."""
    rows = b"".join([struct.pack("<IIQQII", *row) for row in described])
    descriptor = struct.pack("<4sIII", b"TDVF", 16 + len(rows), 1, len(rows) // 32) + rows
    table = guid_table([(TDX_METADATA, struct.pack("<I", 1024 + len(descriptor)))])
    image = bytearray(flash)
    image[-1024 - len(descriptor) : -1024] = descriptor
    image[-32 - len(table) : -32] = table
    return bytes(image)


def tdvf_image(
    files: Iterable[UUID] = (TD_TCG2, UI_APP),
    texts: Iterable[bytes] = (b"ACPI DATA", b"etc/boot/", b" initrd=initrd"),
    variables: Variables | None = None,
    hidden: Iterable[UUID] = (),
    bios_texts: Iterable[str] = ("EDK II",),
) -> bytes:
    """Return an image of 12 KiB; by default one that measures as edk2 202502 does."""
    entries = [variable_entry(name, data) for name, data in (variables or {}).items()]
    flash = variable_volume(b"".join(entries)) + code_volume(
        files, texts, hidden, bios_texts=bios_texts
    )
    return with_metadata(flash.ljust(SIZE, b"\xff"), sections())
