"""Events of RTMR1 and RTMR2 of a kernel that QEMU's `-kernel` boots."""

from typing import NamedTuple

from attestkit.measure.expected_event import Basis, ExpectedEvent
from attestkit.measure.kernel.boot_events import (
    EXITS,
    before_images,
    image_event,
    kernel_stub_events,
    shim_variable_events,
)
from attestkit.measure.kernel.linux_kernel import (
    QemuRelease,
    loads_patched_kernel,
    measured_kernel_digest,
)
from attestkit.measure.kernel.load_options import direct_boot_options
from attestkit.measure.kernel.pe_image import authenticode_digest


class DirectBoot(NamedTuple):
    """Values of QEMU's `-kernel`, `-initrd`, `-append` and `-shim`."""

    kernel: bytes
    initrd: bytes | None = None
    cmdline: str = ""
    shim: bytes | None = None


class FirmwareTraits(NamedTuple):
    """Traits of the firmware's kernel boot, found in its image."""

    named_blobs: bool  # takes the unchanged kernel if QEMU offers it (edk2 from 202502)
    initrd_first: bool  # `initrd=initrd` before the command line (edk2 from 202508)
    boot_separator: bool = True  # separates in RTMR1 (edk2 from 202411), not in RTMR0


def direct_boot_events(
    boot: DirectBoot, firmware: FirmwareTraits, *, qemu: QemuRelease, memory_size: int
) -> list[ExpectedEvent]:
    """Return the events of RTMR1 and RTMR2 up to the start of the kernel, by register.

    Args:
        boot: Kernel, initrd, command line, shim.
        firmware: Traits of the firmware.
        qemu: Major and minor version of QEMU.
        memory_size: Memory of the machine in bytes.

    Raises:
        FormatError: If kernel or shim are not valid images.
        UsageError: If the initrd does not fit, or the command line is not valid.
    """
    return [
        *_images(boot, firmware, qemu, memory_size),
        *before_images(separator=firmware.boot_separator),
        *EXITS,
        *(shim_variable_events() if boot.shim is not None else ()),
        *kernel_stub_events(_options(boot, firmware), boot.initrd, _options_basis(boot)),
    ]


def _images(
    boot: DirectBoot, firmware: FirmwareTraits, qemu: QemuRelease, memory_size: int
) -> list[ExpectedEvent]:
    patched = loads_patched_kernel(qemu, named_blobs=firmware.named_blobs)
    digest = measured_kernel_digest(
        boot.kernel,
        patched=patched,
        memory_size=memory_size,
        initrd_size=None if boot.initrd is None else len(boot.initrd),
        cmdline=boot.cmdline,
    )
    # That QEMU from 10.1 on leaves the kernel alone for older firmware too is known from source.
    confirmed = patched or firmware.named_blobs
    kernel = image_event("kernel", digest, "independent" if confirmed else "source")
    if boot.shim is None:
        return [kernel]
    return [image_event("shim", authenticode_digest(boot.shim), "source"), kernel]


def _options(boot: DirectBoot, firmware: FirmwareTraits) -> bytes:
    return direct_boot_options(
        boot.cmdline,
        has_initrd=bool(boot.initrd),
        initrd_first=firmware.initrd_first,
        shim=boot.shim is not None,
    )


def _options_basis(boot: DirectBoot) -> Basis:
    """Return what confirms the load options; those of a shim or without initrd are from source."""
    return "independent" if boot.initrd and boot.shim is None else "source"
