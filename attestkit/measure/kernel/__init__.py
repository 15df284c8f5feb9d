"""Expected events of RTMR1 and RTMR2: direct boots, disks, unified kernel images, GRUB.

They are computed from the kernel, initrd, command line and partition table alone.
"""

from typing import TYPE_CHECKING

from attestkit._package import lazy_names

if TYPE_CHECKING:
    from attestkit.measure.kernel.direct_boot import (
        DirectBoot,
        FirmwareTraits,
        direct_boot_events,
    )
    from attestkit.measure.kernel.disk_boot import (
        BootImage,
        GrubBoot,
        disk_boot_events,
        grub_single_events,
    )
    from attestkit.measure.kernel.gpt import GptTable, gpt_event
    from attestkit.measure.kernel.kernel_stub import kernel_stub_events, shim_variable_events
    from attestkit.measure.kernel.linux_kernel import (
        QemuRelease,
        loads_patched_kernel,
        measured_kernel_digest,
        patch_setup_header,
    )
    from attestkit.measure.kernel.load_options import direct_boot_options
    from attestkit.measure.kernel.pe_image import PeImage, authenticode_digest
    from attestkit.measure.kernel.unified_kernel_image import UnifiedKernelImage

__all__ = [
    "BootImage",
    "DirectBoot",
    "FirmwareTraits",
    "GptTable",
    "GrubBoot",
    "PeImage",
    "QemuRelease",
    "UnifiedKernelImage",
    "authenticode_digest",
    "direct_boot_events",
    "direct_boot_options",
    "disk_boot_events",
    "gpt_event",
    "grub_single_events",
    "kernel_stub_events",
    "loads_patched_kernel",
    "measured_kernel_digest",
    "patch_setup_header",
    "shim_variable_events",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "direct_boot": [
                "DirectBoot",
                "FirmwareTraits",
                "direct_boot_events",
            ],
            "disk_boot": ["BootImage", "GrubBoot", "disk_boot_events", "grub_single_events"],
            "gpt": ["GptTable", "gpt_event"],
            "kernel_stub": ["kernel_stub_events", "shim_variable_events"],
            "linux_kernel": [
                "QemuRelease",
                "loads_patched_kernel",
                "measured_kernel_digest",
                "patch_setup_header",
            ],
            "load_options": ["direct_boot_options"],
            "pe_image": ["PeImage", "authenticode_digest"],
            "unified_kernel_image": ["UnifiedKernelImage"],
        },
    )
