"""Attempts on firmware, kernels and disks that are measured."""

import time
from collections.abc import Callable
from typing import Any, Final

from attestkit.errors import FormatError, UsageError
from attestkit.measure import snp
from attestkit.measure.firmware.tdvf import TEMP_MEM, TdvfSection, read_tdvf_sections
from attestkit.measure.firmware.tdx_firmware import TdxFirmware
from attestkit.measure.kernel.disk_boot import GptTable
from attestkit.measure.kernel.pe_image import PeImage
from attestkit.measure.kernel.unified_kernel_image import UnifiedKernelImage
from tests.attacks.attempts import Surfaces
from tests.measure.firmware_images import (
    FOOTER,
    SIZE,
    TD_TCG2,
    code_volume,
    sections,
    variable_volume,
    with_metadata,
)
from tests.measure.kernel.samples import gpt_disk, linux_kernel, pe_image
from tests.measure.sev_snp.images import SECTIONS, sev_image

attacks = Surfaces("measure")


def add(
    name: str,
    read: Callable[[Any], object],
    good: Any,
    bad: Callable[[], Any],
    *reasons: str,
) -> None:
    """Add an input that would exhaust a reader; the unaltered one is read."""

    def run() -> object:
        read(good)
        value = bad()
        start = time.process_time()
        try:
            return read(value)
        finally:
            assert time.process_time() - start < 2

    attacks.add("exhaust", name, run, FormatError, *reasons)


# -- images ------------------------------------------------------------------------------------

FLASH: Final = (variable_volume(b"") + code_volume((TD_TCG2,), (b"ACPI DATA",))).ljust(
    SIZE, b"\xff"
)
DISK: Final = gpt_disk()
UKI: Final = [(".linux", linux_kernel()), (".cmdline", b"a"), (".osrel", b"b")]


def with_section(**fields: int) -> bytes:
    """Return firmware with a further section of memory."""
    more = TdvfSection(0, 0, 0x1000000, 0x1000, TEMP_MEM, 0)._replace(**fields)
    return with_metadata(FLASH, [*sections(), more])


def changed(data: bytes, at: int, value: bytes) -> bytes:
    """Return data with other bytes at an offset."""
    return data[:at] + value + data[at + len(value) :]


GOOD_FLASH: Final = with_metadata(FLASH, sections())
COUNT: Final = GOOD_FLASH.index(b"TDVF") + 12
add(
    "firmware with a section of an exbibyte of memory",
    TdxFirmware.parse,
    GOOD_FLASH,
    lambda: with_section(size=1 << 60),
    "too_many",
)
add(
    "firmware with four billion sections",
    read_tdvf_sections,
    GOOD_FLASH,
    lambda: changed(GOOD_FLASH, COUNT, b"\xff" * 4),
    "wrong_size",
)
add(
    "firmware with a section that wraps around the address space",
    TdxFirmware.parse,
    GOOD_FLASH,
    lambda: with_section(address=(1 << 64) - 0x1000, size=0x2000),
    "wrong_value",
)
add(
    "firmware whose sections overlap",
    TdxFirmware.parse,
    GOOD_FLASH,
    lambda: with_section(address=0x800000),
    "inconsistent",
)
add(
    "firmware whose table of GUIDs has an entry of no size",
    TdxFirmware.parse,
    GOOD_FLASH,
    lambda: changed(GOOD_FLASH, GOOD_FLASH.index(FOOTER.bytes_le) - 20, b"\0\0"),
    "wrong_value",
)
add(
    "firmware whose dictionary has four gigabytes",
    TdxFirmware.parse,
    GOOD_FLASH,
    lambda: with_metadata(
        (variable_volume(b"") + code_volume((TD_TCG2,), dictionary=0xFFFFFFFF)).ljust(
            SIZE, b"\xff"
        ),
        sections(),
    ),
    "too_large",
)
add(
    "disk with four billion partitions",
    GptTable.parse,
    DISK,
    lambda: changed(DISK, 512 + 80, b"\xff" * 4),
    "too_large",
)
add(
    "disk with partitions at the end of the address space",
    GptTable.parse,
    DISK,
    lambda: changed(DISK, 512 + 72, b"\xff" * 8),
    "truncated",
)
add(
    "disk with partition entries of no size",
    GptTable.parse,
    DISK,
    lambda: changed(DISK, 512 + 84, bytes(4)),
    "wrong_size",
)
add(
    "image with sixty thousand sections",
    PeImage.parse,
    pe_image([(".text", bytes(512))]),
    lambda: changed(pe_image([(".text", bytes(512))]), 0x46, b"\xff\xff"),
    "too_many",
)
add(
    "image whose header points behind its end",
    PeImage.parse,
    pe_image([(".text", bytes(512))]),
    lambda: changed(pe_image([(".text", bytes(512))]), 0x3C, b"\xff" * 4),
    "truncated",
)
add(
    "image whose header points to itself",
    PeImage.parse,
    pe_image([(".text", bytes(512))]),
    lambda: changed(pe_image([(".text", bytes(512))]), 0x3C, bytes(4)),
    "unrecognized",
)
add(
    "kernel image without a kernel",
    UnifiedKernelImage.parse,
    pe_image(UKI),
    lambda: pe_image([(".cmdline", b"a")]),
    "missing",
)
add(
    "guest memory of SEV-SNP of four gigabytes in each section",
    lambda image: snp(firmware=image, vcpus=1, cpu_signature=1),
    sev_image(),
    lambda: sev_image(sections=[one._replace(size=0xFFFFF000) for one in SECTIONS]),
    "too_large",
)


@attacks.attempt("confuse")
def kernel_image_with_two_kernels() -> None:
    """The stub boots the first section of a name, and so is the measured one."""
    other = linux_kernel(protocol=0x20E)
    both = UnifiedKernelImage.parse(pe_image([*UKI, (".linux", other)]))
    one = UnifiedKernelImage.parse(pe_image(UKI))
    assert both.sections == one.sections
    assert both.rtmr2_events() == one.rtmr2_events()


@attacks.attempt("exhaust", UsageError, "out_of_range")
def snp_guest_with_a_billion_processors() -> object:
    """Each is a page of the launch digest."""
    assert snp(firmware=sev_image(), vcpus=1, cpu_signature=1).launch_digest
    return snp(firmware=sev_image(), vcpus=10**9, cpu_signature=1)
