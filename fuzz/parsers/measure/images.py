"""Targets: images whose boot is measured: kernels, disks, dstack images, firmware of SEV-SNP."""

import gzip
import io
from typing import Final

from attestkit.errors import FormatError, UsageError
from attestkit.measure.image_files import ArchiveSource
from attestkit.measure.image_folder import DstackImage, parse_checksums, read_image
from attestkit.measure.kernel.disk_boot import GptTable, gpt_event
from attestkit.measure.kernel.linux_kernel import patch_setup_header
from attestkit.measure.kernel.pe_image import PeImage
from attestkit.measure.kernel.unified_kernel_image import UnifiedKernelImage
from attestkit.measure.sev_snp.sev_metadata import SevMetadata, read_sev_metadata
from fuzz.parsers.contract import ParserTarget, check, check_same, obeys, short, tried
from tests.measure.image_samples import archive, image_files
from tests.measure.kernel.samples import gpt_disk, linux_kernel, pe_image
from tests.measure.sev_snp.images import sev_image

_IMAGE: Final = 8192  # bytes of a PE image
_SECTIONS: Final = [
    (".linux", pe_image([(".text", b"kernel")])),
    (".cmdline", b"quiet"),
    (".osrel", b"ID=x"),
    (".initrd", b"initrd"),
    (".profile", b"ID=main"),
    (".cmdline", b"profile"),
]


def _pe_image(raw: bytes, image: PeImage) -> None:
    check_same("the digest", len(image.authenticode()), 48)
    check(
        "sections end in the image",
        all(s.raw_at + s.raw_size <= len(raw) for s in image.sections if s.raw_size),
    )
    for section in image.sections[:4]:
        tried(lambda section=section: image.section_in_memory(section), len(raw), FormatError)  # type: ignore[misc]


def _uki(raw: bytes, image: UnifiedKernelImage) -> None:
    check("the kernel", image.sections[".linux"])
    tried(lambda: image.rtmr1_events(None, separator=True), None, FormatError)
    tried(image.rtmr2_events, len(raw), FormatError)


def _linux_kernel(raw: bytes) -> bytes:
    """Patch a kernel; the first byte says whether its memory is small."""
    memory = 1 << (28 if raw[:1] == b"s" else 32)
    return patch_setup_header(raw[1:], memory_size=memory, initrd_size=5000, cmdline="vga=ask")


def _patched(raw: bytes, kernel: bytes) -> None:
    check_same("the size", len(kernel), len(raw[1:]))
    check_same("the rest", kernel[0x238:], raw[1:][0x238:])


def _gpt(raw: bytes, table: GptTable) -> None:
    check("entries", len(table.event_data) <= len(raw) + 8)
    check("types", all(any(entry[:16]) for entry in table.entries))
    check("the digest", gpt_event(table).digest)


def _dstack_archive(raw: bytes) -> DstackImage:
    """Read an archive, which the target compresses so that a fuzzer sees its content."""
    return read_image(ArchiveSource(io.BytesIO(gzip.compress(raw, 1))))


def archive_samples() -> list[bytes]:
    """Return archives, not compressed, of older and newer images."""
    files = [image_files(), image_files(newer=True)]
    return [gzip.decompress(archive(one, folder=folder)) for one in files for folder in ("", "x")]


def _sev_metadata(_raw: bytes, found: SevMetadata) -> None:
    check("pages", sum(section.pages for section in found.sections) <= 65_536)
    check("an address of 0", found.reset_eip != 0)


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    image = obeys(PeImage.parse, FormatError, accepted=_pe_image)
    uki = obeys(UnifiedKernelImage.parse, FormatError, accepted=_uki)
    kernel = obeys(_linux_kernel, FormatError, UsageError, accepted=_patched)
    gpt = obeys(GptTable.parse, FormatError, accepted=_gpt)
    dstack = obeys(_dstack_archive, FormatError, grows=True)
    checksums = obeys(parse_checksums, FormatError)
    sev = obeys(read_sev_metadata, FormatError, accepted=_sev_metadata)
    images = [pe_image(_SECTIONS[:3]), pe_image(_SECTIONS[:2], plus=False, certificates=b"x" * 8)]
    kernels = [b"l" + linux_kernel()[:1024], b"s" + linux_kernel(loadflags=0)[:1024]]
    disks = [gpt_disk(count=4), gpt_disk(count=8, entry_size=256)]
    firmware = [sev_image(size=1024), sev_image(size=1024, svsm_entry=16, reset_eip=None)]
    lists = [image_files()["sha256sum.txt"], image_files(newer=True)["sha256sum.txt"]]
    return [
        ParserTarget("pe_image", image, short(lambda: images)),
        ParserTarget("uki", uki, short(lambda: [pe_image(_SECTIONS)], _IMAGE), None, _IMAGE),
        ParserTarget("linux_kernel", kernel, short(lambda: kernels, 2048), None, 2048),
        ParserTarget("gpt", gpt, short(lambda: disks)),
        ParserTarget("dstack_archive", dstack, short(archive_samples, 32_768), None, 32_768),
        ParserTarget("dstack_checksums", checksums, short(lambda: lists, 2048), None, 2048),
        ParserTarget("sev_metadata", sev, short(lambda: firmware, 2048), None, 2048),
    ]
