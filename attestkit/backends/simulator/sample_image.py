"""Folders of dstack OS images with made-up files, for tests and examples.

Their files have the formats from which measurements are computed, but do not boot: firmware with
the layout of OVMF (edk2-stable202502; UEFI Platform Initialization Specification, volume 3), and a
Linux kernel that is nothing but setup header and PE header.
"""

import json
import lzma
import os
import struct
from collections.abc import Iterable, Sequence
from hashlib import shake_128
from pathlib import Path
from typing import Final, Literal
from uuid import UUID

from attestkit._crypto.hashes import sha256, sha384
from attestkit.attestation.launch.snp import SnpImage
from attestkit.attestation.launch.td_hob import SPLIT_MEMORY
from attestkit.backends.simulator.images import image_documents
from attestkit.backends.simulator.images.os_image import HASHES_TABLE_GPA, RESET_EIP, SNP_SECTIONS
from attestkit.errors import UsageError
from attestkit.measure.firmware import tdvf
from attestkit.measure.firmware.guid_table import (
    SEV_ES_RESET,
    SEV_HASH_TABLE,
    SEV_METADATA,
    TDX_METADATA,
)
from attestkit.measure.firmware.tdvf import compute_mrtds
from attestkit.measure.image_folder import CHECKSUMS, DIGEST, METADATA
from attestkit.measure.kernel.linux_kernel import patch_setup_header
from attestkit.measure.kernel.pe_image import authenticode_digest
from attestkit.measure.sev_snp.launch_digest import firmware_digest

__all__ = ["sample_image_files", "write_sample_image"]

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
    """Return a firmware volume; `body` is padded with 0xFF bytes, as in erased flash.

    Args:
        kind: Format of the contents: NVRAM or FFS2.
        size: Size of the volume in bytes.
        body: Contents, which must fit behind the headers of 72 or, with a name, 96 bytes.
        name: Name of the volume, in an extended header; None: without that header.
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
    """Return a file of a firmware volume (FFS): type `kind`, content `body`, padded to 8 bytes."""
    size = (24 + len(body)).to_bytes(3, "little")
    data = guid.bytes_le + bytes(2) + bytes((kind, 0)) + size + b"\xf8" + body
    return data.ljust(-(-len(data) // 8) * 8, b"\xff")


def section(kind: int, body: bytes) -> bytes:
    """Return a section of a firmware file: type `kind`, content `body`, padded to 4 bytes."""
    data = (len(body) + 4).to_bytes(3, "little") + bytes((kind,)) + body
    return data.ljust(-(-len(data) // 4) * 4, b"\0")


def guided_section(guid: UUID, data: bytes, attributes: int = 1) -> bytes:
    """Return a GUID-defined section (PI, volume 3); `attributes` 1: readers must decode `data`."""
    return section(2, guid.bytes_le + struct.pack("<HH", 24, attributes) + data)


def pack_lzma(plain: bytes) -> bytes:
    """Return `plain` as LZMA data, with its size in the header."""
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": 1 << 16}]
    packed = lzma.compress(plain, lzma.FORMAT_ALONE, filters=filters)
    return packed[:5] + struct.pack("<Q", len(plain)) + packed[13:]


def lzma_section(plain: bytes) -> bytes:
    """Return a section with `plain`, compressed by LZMA."""
    return guided_section(_LZMA, pack_lzma(plain))


def variable_volume(entries: bytes, size: int, store_end: int | None = None) -> bytes:
    """Return a volume with a store of variables.

    Args:
        entries: The encoded variables, without the header of the store.
        size: Size of the volume in bytes.
        store_end: Offset of the end of the store; None: that of the volume.
    """
    store = (store_end or size) - _HEADER
    head = _VARIABLE_STORE.bytes_le + struct.pack("<IBBHI", store, 0x5A, 0xFE, 0, 0)
    return volume(NVRAM, size, head + entries)


def guid_table(entries: Iterable[tuple[UUID, bytes]]) -> bytes:
    """Return a GUID table, as at the end of OVMF: entries of GUID and data, then the footer."""
    table = b"".join(
        [data + struct.pack("<H", len(data) + 18) + guid.bytes_le for guid, data in entries]
    )
    return table + struct.pack("<H", len(table) + 18) + _FOOTER.bytes_le


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
    """Return `size` bytes without a pattern, a function of `seed`, which is any text."""
    return shake_128(f"attestkit sample {seed}".encode()).digest(size)


def sample_firmware(seed: str) -> bytes:
    """Return a firmware image with the variables of a new OVMF, and code derived from `seed`."""
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
    """Return an empty OVMF volume for variables."""
    stored = bytearray(variable_volume(b"", _CFV_SIZE, _STORE_END))
    stored[_WORKING_BLOCK_AT : _WORKING_BLOCK_AT + len(_WORKING_BLOCK)] = _WORKING_BLOCK
    return bytes(stored)


def _code(seed: str) -> bytes:
    """Return the code of a firmware image: a volume with compressed drivers, then noise.

    Both follow from `seed`, any text.
    """
    drivers = [
        ffs_file(guid, _DRIVER, section(_RAW, noise(f"{seed} {guid}", 64))) for guid in _DRIVERS
    ]
    plain = section(_VOLUME_IMAGE, volume(FFS2, _DRIVERS_SIZE, b"".join(drivers), _DRIVER_VOLUME))
    plain += section(_RAW, b"\0".join(_TEXTS))
    packed = ffs_file(_COMPRESSED_FILE, _IMAGE, lzma_section(plain))
    stored = volume(FFS2, _VOLUME_SIZE, packed, _MAIN_VOLUME)
    return stored + noise(f"{seed} code", _BFV_SIZE - len(stored))


def _tdx_sections() -> Sequence[tdvf.TdvfSection]:
    base = (1 << 32) - _SIZE
    return (
        tdvf.TdvfSection(
            _CFV_SIZE, _BFV_SIZE, base + _CFV_SIZE, _BFV_SIZE, tdvf.BFV, tdvf.MR_EXTEND
        ),
        tdvf.TdvfSection(0, _CFV_SIZE, base, _CFV_SIZE, tdvf.CFV, 0),
        tdvf.TdvfSection(0, 0, 0x810000, 0x10000, tdvf.TEMP_MEM, 0),
        tdvf.TdvfSection(0, 0, 0x80B000, 0x2000, tdvf.TEMP_MEM, 0),
        tdvf.TdvfSection(0, 0, 0x809000, 0x2000, tdvf.TD_HOB, 0),
        tdvf.TdvfSection(0, 0, 0x800000, 0x6000, tdvf.TEMP_MEM, 0),
    )


_HEADERS: Final = 0x400  # bytes
_SETUP: Final = 0x200
_TEXT: Final = 0x2A00
_PE_AT: Final = 0x40
_OPTIONAL: Final = 240  # bytes of the optional header of PE32+ with 16 directories


def sample_kernel(seed: str) -> bytes:
    """Return a bzImage of boot protocol 2.15 that is a PE image, with noise derived from `seed`."""
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
    """Return a kernel with the header that QEMU writes for machines of 2816 MiB and more.

    The header has the addresses of initrd and `cmdline`; `initrd_size` is in bytes.

    Raises:
        FormatError: If the setup header is malformed.
        UsageError: If the initrd does not fit into the memory, or `cmdline` is not valid.
    """
    return patch_setup_header(
        kernel, memory_size=SPLIT_MEMORY, initrd_size=initrd_size, cmdline=cmdline
    )


_INITRD_SIZE: Final = 5000  # bytes
_VERSIONS: Final[dict[int | None, str]] = {None: "0.5.5", 3: "0.6.0", 4: "0.6.6"}
_NAMES: Final = {"bios": "ovmf.fd", "kernel": "bzImage", "initrd": "initramfs.cpio.gz"}


def sample_image_files(
    seed: str = "image", *, document_version: Literal[3, 4] | None = 4
) -> dict[str, bytes]:
    """Return the contents of the files of a made-up dstack image, by name.

    Args:
        seed: Any text, from which firmware, kernel, initrd and root file system follow.
        document_version: Version of its measurement documents. None: without them, as in dstack
            0.5.

    Raises:
        UsageError: If `document_version` is not 3, 4 or None.
    """
    if document_version not in {None, 3, 4}:
        message = f"document_version: must be 3, 4 or None, not {document_version!r}"
        raise UsageError(message, reason="wrong_value")
    cmdline = f"console=ttyS0 dstack.rootfs_hash={noise(f'{seed} root', 32).hex()}"
    initrd = noise(f"{seed} initrd", _INITRD_SIZE)
    kernel, firmware = sample_kernel(seed), sample_firmware(seed)
    if document_version is not None:
        kernel = normalize_header(kernel, len(initrd), cmdline)
    contents = {"bios": firmware, "kernel": kernel, "initrd": initrd}
    files = {_NAMES[key]: content for key, content in contents.items()}
    metadata: dict[str, object] = {**_NAMES, "cmdline": cmdline, "is_dev": False}
    metadata["version"] = _VERSIONS[document_version]
    if document_version is not None:
        metadata["ovmf_variant"] = image_documents.OVMF_VARIANT
        if document_version == 4:
            metadata["kernel_header_normalized"] = True
        files |= _documents(contents, cmdline, document_version)
    files[METADATA] = json.dumps(metadata, indent=2).encode() + b"\n"
    checksums = image_documents.checksum_list(files)
    return {**files, CHECKSUMS: checksums, DIGEST: f"{sha256(checksums).hex()}\n".encode()}


def write_sample_image(
    folder: str | os.PathLike[str],
    seed: str = "image",
    *,
    document_version: Literal[3, 4] | None = 4,
) -> Path:
    """Write a made-up dstack image to a folder, created if missing, and return its path.

    Args:
        folder: Path of the folder, whose parent must exist.
        seed: Any text, from which the contents of the files follow.
        document_version: Version of its measurement documents. None: without them, as in dstack
            0.5.

    Raises:
        UsageError: As for `sample_image_files`, or if the folder cannot be written.
    """
    found = Path(folder)
    try:
        found.mkdir(exist_ok=True)
        for name, content in sample_image_files(seed, document_version=document_version).items():
            (found / name).write_bytes(content)
    except OSError as error:
        message = f"{os.fspath(folder)}: cannot be written: {error.strerror or error}"
        raise UsageError(message, reason="cannot_write") from error
    return found


def _documents(
    contents: dict[str, bytes], cmdline: str, version: Literal[3, 4]
) -> dict[str, bytes]:
    firmware, kernel, initrd = contents.values()
    sections = tdvf.read_tdvf_sections(firmware)
    tdx = image_documents.TdxMeasurement(
        version=version,
        cmdline=cmdline,
        kernel=authenticode_digest(kernel),
        initrd=sha384(initrd),
        mrtds=compute_mrtds(firmware, sections),
        sections=sections,
        kernel_header_normalized=True,
    )
    snp = SnpImage(
        cmdline=cmdline,
        ovmf_hash=firmware_digest(firmware),
        kernel_hash=sha256(kernel),
        initrd_hash=sha256(initrd),
        hashes_table_gpa=HASHES_TABLE_GPA,
        reset_eip=RESET_EIP,
        ovmf_sections=SNP_SECTIONS,
    )
    return {
        image_documents.TDX_DOCUMENT: tdx.encode(),
        image_documents.SNP_DOCUMENT: image_documents.encode_cbor(
            image_documents.snp_document(snp)
        ),
    }
