"""Files of a made-up dstack image, with measurement documents that fit them."""

import json
import os
from pathlib import Path
from typing import Final, Literal

from attestkit._crypto.hashes import sha256, sha384
from attestkit.attestation.launch.snp import SnpImage
from attestkit.backends.simulator.images.image_documents import (
    OVMF_VARIANT,
    SNP_DOCUMENT,
    TDX_DOCUMENT,
    TdxMeasurement,
    checksum_list,
    encode_cbor,
    snp_document,
)
from attestkit.backends.simulator.images.snp_os_image import (
    HASHES_TABLE_GPA,
    RESET_EIP,
    SNP_SECTIONS,
)
from attestkit.backends.simulator.sample_image.firmware import noise, sample_firmware
from attestkit.backends.simulator.sample_image.kernel import normalize_header, sample_kernel
from attestkit.errors import UsageError
from attestkit.measure.firmware.tdvf import compute_mrtds, read_tdvf_sections
from attestkit.measure.image_folder import CHECKSUMS, DIGEST, METADATA
from attestkit.measure.kernel.pe_image import authenticode_digest
from attestkit.measure.sev_snp.launch_digest import firmware_digest

_INITRD_SIZE: Final = 5000  # bytes
_VERSIONS: Final[dict[int | None, str]] = {None: "0.5.5", 3: "0.6.0", 4: "0.6.6"}
_NAMES: Final = {"bios": "ovmf.fd", "kernel": "bzImage", "initrd": "initramfs.cpio.gz"}


def sample_image_files(
    seed: str = "image", *, document_version: Literal[3, 4] | None = 4
) -> dict[str, bytes]:
    """Return the files of a made-up dstack image by name, the same for each seed.

    Args:
        seed: Any text, from which firmware, kernel, initrd and root file system follow.
        document_version: Version of its measurement documents. None: without them, as in dstack
            0.5.

    Raises:
        UsageError: If the version is another.
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
        metadata["ovmf_variant"] = OVMF_VARIANT
        if document_version == 4:
            metadata["kernel_header_normalized"] = True
        files |= _documents(contents, cmdline, document_version)
    files[METADATA] = json.dumps(metadata, indent=2).encode() + b"\n"
    checksums = checksum_list(files)
    return {**files, CHECKSUMS: checksums, DIGEST: f"{sha256(checksums).hex()}\n".encode()}


def write_sample_image(
    folder: str | os.PathLike[str],
    seed: str = "image",
    *,
    document_version: Literal[3, 4] | None = 4,
) -> Path:
    """Write a made-up dstack image to a folder, which is created, and return its path.

    The arguments are those of `sample_image_files`.

    Raises:
        UsageError: As for `sample_image_files`, or if the folder cannot be written.
    """
    found = Path(folder)
    try:
        found.mkdir(exist_ok=True)
        for name, content in sample_image_files(seed, document_version=document_version).items():
            (found / name).write_bytes(content)
    except OSError as error:
        message = f"{os.fspath(folder)}: {error.strerror or 'cannot be written'}"
        raise UsageError(message, reason="cannot_write") from error
    return found


def _documents(
    contents: dict[str, bytes], cmdline: str, version: Literal[3, 4]
) -> dict[str, bytes]:
    firmware, kernel, initrd = contents.values()
    sections = read_tdvf_sections(firmware)
    tdx = TdxMeasurement(
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
    return {TDX_DOCUMENT: tdx.encode(), SNP_DOCUMENT: encode_cbor(snp_document(snp))}
