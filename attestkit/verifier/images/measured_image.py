"""Measurements of a TD that boots a dstack image: digests of its files, computed once per image.

Of a VM, only the memory size and the version of QEMU change MRTD and RTMR0 to RTMR2, besides the
ACPI and SMBIOS tables (measurement.md, sections 1 to 3).
"""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit._system.bounded_cache import BoundedCache
from attestkit.attestation.launch.td_hob import LOW_END, SPLIT_MEMORY, memory_below_4g
from attestkit.errors import AttestKitError, FormatError, UsageError
from attestkit.measure.expected import ExpectedEvent
from attestkit.measure.firmware.tdvf import Mrtds, compute_mrtds
from attestkit.measure.firmware.tdx_firmware import TdxFirmware
from attestkit.measure.image_folder import DstackImage
from attestkit.measure.kernel.linux_kernel import (
    DirectBoot,
    FirmwareTraits,
    QemuRelease,
    direct_boot_events,
    loads_patched_kernel,
    measured_kernel_digest,
)
from attestkit.measure.machine_shape import MachineShape
from attestkit.measure.rtmr0.boot_events import FwCfgItems, expected_rtmr0

if TYPE_CHECKING:
    from attestkit._reasons import FormatReason

_NEVER_PATCHED: Final = (10, 1)  # a release of QEMU that leaves the kernel of every TD alone
_MOST_KERNELS: Final = 4096  # sizes of low memory whose kernel digest is remembered


class ImageFacts(NamedTuple):
    """Metadata of an image whose files are intact."""

    version: str | None
    is_dev: bool


class _TdxFiles(NamedTuple):
    """Digests of the files that a TD boots."""

    firmware: TdxFirmware
    mrtds: Mrtds
    boot: tuple[ExpectedEvent, ...]  # RTMR1 and RTMR2 with the kernel as it is; the kernel first
    patched_kernel: bytes  # digest of the kernel as QEMU changes it from 2816 MiB on


class MeasuredImage:
    """Digests of an image; its files are not kept.

    Args:
        image: The image.
        read: Reads the image again, for memory sizes that change the kernel's header.
    """

    def __init__(self, image: DstackImage, read: Callable[[], DstackImage]) -> None:
        self.facts: ImageFacts = ImageFacts(image.version, image.is_dev)
        self._normalized = image.kernel_header_normalized
        self._read = read
        self._lock = threading.Lock()  # of the kernels
        self._kernels = BoundedCache[int, bytes](_MOST_KERNELS)  # digests, by RAM below 4 GiB
        self._problem: tuple[str, FormatReason] | None = None
        self._files: _TdxFiles | None = None
        try:
            self._files = self._measure(image)
        except AttestKitError as error:  # such as of firmware for SEV-SNP only
            # Not the error itself: its traceback refers to the image.
            reason = error.reason if isinstance(error, FormatError) else "wrong_value"
            self._problem = str(error), reason

    @property
    def mrtds(self) -> Mrtds:
        """MRTD for each order of pages.

        Raises:
            FormatError: If firmware or kernel of the image are not those of a TD, or the firmware
                does not measure ACPI tables.
        """
        return self._tdx().mrtds

    @property
    def second_separators(self) -> tuple[bool, ...]:
        """Whether RTMR0 may have a second separator, in place of the one in RTMR1.

        Two values for firmware before 202502, whose image does not reveal the place.

        Raises:
            FormatError: As for `mrtds`.
        """
        return (False,) if self._tdx().firmware.layout.separator_in_rtmr1 else (False, True)

    def firmware_events(
        self, memory_size: int, *, second_separator: bool
    ) -> tuple[ExpectedEvent, ...]:
        """Return the events of RTMR0; those of the host's tables have no digest.

        Args:
            memory_size: Memory of the VM in bytes.
            second_separator: One of `second_separators`.

        Raises:
            FormatError: As for `mrtds`, and if the memory is too small for the firmware.
        """
        firmware, items = self._tdx().firmware, FwCfgItems.direct_boot()
        try:
            memory = MachineShape(cpu_count=1, memory_size=memory_size).memory
            return expected_rtmr0(firmware, memory, items, second_separator=second_separator)
        except UsageError as error:  # of a number that the host stated
            raise FormatError(f"vm_config: {error}", reason="wrong_value") from error

    def kernel_events(
        self, memory_size: int, qemu: QemuRelease, *, second_separator: bool
    ) -> tuple[ExpectedEvent, ...]:
        """Return the events of RTMR1 and RTMR2.

        The image is read again for memory sizes that change the kernel's header, so call this only
        for a memory size that RTMR0 confirms.

        Args:
            memory_size: Memory of the VM in bytes.
            qemu: Release of QEMU.
            second_separator: As for `firmware_events`.

        Raises:
            FormatError: As for `mrtds`, and if the memory is too small for the initrd.
            ConfigError: If the image is read again, and is altered.
        """
        files = self._tdx()
        kernel, *rest = files.boot
        named_blobs = files.firmware.layout.named_blobs
        if not self._normalized and loads_patched_kernel(qemu, named_blobs=named_blobs):
            kernel = kernel._replace(digest=self._patched_kernel(files, memory_size))
        events = (kernel, *rest)
        if second_separator:
            return tuple([event for event in events if event.name != "separator"])
        return events

    def _tdx(self) -> _TdxFiles:
        if self._problem is not None:
            text, reason = self._problem
            raise FormatError(f"image: {text}", reason=reason)
        assert self._files is not None
        return self._files

    def _measure(self, image: DstackImage) -> _TdxFiles:
        firmware = _parse_firmware(image.firmware)
        layout = firmware.layout
        if not layout.acpi:  # edk2 before 202302; RTMR0 would pin no tables
            message = "firmware: does not measure the ACPI tables, which the host chooses"
            raise FormatError(message, reason="unsupported")
        boot = direct_boot_events(
            DirectBoot(image.kernel, image.initrd, image.cmdline),
            FirmwareTraits(layout.named_blobs, layout.initrd_first),
            qemu=_NEVER_PATCHED,
            memory_size=SPLIT_MEMORY,
        )
        return _TdxFiles(
            firmware,
            compute_mrtds(image.firmware, firmware.sections),
            tuple(boot),
            _patched_digest(image, SPLIT_MEMORY),
        )

    def _patched_kernel(self, files: _TdxFiles, memory_size: int) -> bytes:
        low = memory_below_4g(memory_size)
        if low == LOW_END:
            return files.patched_kernel
        with self._lock:
            try:
                return self._kernels.get(low, lambda: _patched_digest(self._read(), memory_size))
            except UsageError as error:
                raise FormatError(f"vm_config: {error}", reason="wrong_value") from error


def _patched_digest(image: DstackImage, memory_size: int) -> bytes:
    return measured_kernel_digest(
        image.kernel,
        patched=True,
        memory_size=memory_size,
        initrd_size=len(image.initrd),
        cmdline=image.cmdline,
    )


def _parse_firmware(image: bytes) -> TdxFirmware:
    try:
        return TdxFirmware.parse(image)
    except FormatError as error:
        message = f"firmware: {error.message}"
        raise FormatError(message, reason=error.reason, offset=error.offset) from error
