"""Expected registers and launch digests, computed from firmware, kernel and machine shape.

All names are imported on first use.
"""

from typing import TYPE_CHECKING

from attestkit._package import lazy_names

if TYPE_CHECKING:
    from attestkit.measure.diagnosis.difference import Cause, Difference
    from attestkit.measure.diagnosis.evidence_comparison import (
        LoggedBoot,
        explain,
        find_differences,
    )
    from attestkit.measure.diagnosis.guest_inputs import GuestInputs
    from attestkit.measure.diagnosis.guest_shape import read_machine_shape
    from attestkit.measure.diagnosis.launch_digest_causes import SnpInputs
    from attestkit.measure.dstack_guest import dstack_image
    from attestkit.measure.expected import Basis, ExpectedEvent, ExpectedMeasurements, NotProven
    from attestkit.measure.image_folder import DstackImage, read_dstack_image
    from attestkit.measure.kernel.disk_boot import BootImage
    from attestkit.measure.machine_shape import MachineShape
    from attestkit.measure.rtmr0.boot_options import virtio_disk_option
    from attestkit.measure.rtmr0.rtmr0_events import FwCfgItems
    from attestkit.measure.sev_snp.launch_digest import SnpMachine
    from attestkit.measure.snp_guest import snp
    from attestkit.measure.tdx_guest import tdx

__all__ = [
    "Basis",
    "BootImage",
    "Cause",
    "Difference",
    "DstackImage",
    "ExpectedEvent",
    "ExpectedMeasurements",
    "FwCfgItems",
    "GuestInputs",
    "LoggedBoot",
    "MachineShape",
    "NotProven",
    "SnpInputs",
    "SnpMachine",
    "dstack_image",
    "explain",
    "find_differences",
    "read_dstack_image",
    "read_machine_shape",
    "snp",
    "tdx",
    "virtio_disk_option",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "diagnosis.difference": ["Cause", "Difference"],
            "diagnosis.evidence_comparison": ["LoggedBoot", "explain", "find_differences"],
            "diagnosis.guest_inputs": ["GuestInputs"],
            "diagnosis.guest_shape": ["read_machine_shape"],
            "diagnosis.launch_digest_causes": ["SnpInputs"],
            "dstack_guest": ["dstack_image"],
            "expected": ["Basis", "ExpectedEvent", "ExpectedMeasurements", "NotProven"],
            "image_folder": ["DstackImage", "read_dstack_image"],
            "kernel.disk_boot": ["BootImage"],
            "machine_shape": ["MachineShape"],
            "rtmr0.rtmr0_events": ["FwCfgItems"],
            "rtmr0.boot_options": ["virtio_disk_option"],
            "sev_snp.launch_digest": ["SnpMachine"],
            "snp_guest": ["snp"],
            "tdx_guest": ["tdx"],
        },
    )
