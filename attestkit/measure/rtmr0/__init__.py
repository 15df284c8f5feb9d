"""RTMR0 of a TD under QEMU, event by event: from firmware, memory, and items and tables of QEMU."""

from typing import TYPE_CHECKING

from attestkit._package import lazy_names

if TYPE_CHECKING:
    from attestkit.measure.firmware.bios_strings import BiosStrings
    from attestkit.measure.rtmr0.boot_events import AcpiBlobs, expected_rtmr0, measured_variables
    from attestkit.measure.rtmr0.boot_options import (
        encode_load_option,
        firmware_boot_options,
        virtio_disk_option,
    )
    from attestkit.measure.rtmr0.fw_cfg_items import DIRECT_BOOT_ORDER, FwCfgItems
    from attestkit.measure.rtmr0.smbios import (
        filter_smbios,
        needs_bios_strings,
        publish_smbios,
        set_processor_id,
    )
    from attestkit.measure.rtmr0.td_hob import build_td_hob

__all__ = [
    "DIRECT_BOOT_ORDER",
    "AcpiBlobs",
    "BiosStrings",
    "FwCfgItems",
    "build_td_hob",
    "encode_load_option",
    "expected_rtmr0",
    "filter_smbios",
    "firmware_boot_options",
    "measured_variables",
    "needs_bios_strings",
    "publish_smbios",
    "set_processor_id",
    "virtio_disk_option",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "boot_events": ["AcpiBlobs", "expected_rtmr0", "measured_variables"],
            "boot_options": ["encode_load_option", "firmware_boot_options", "virtio_disk_option"],
            "fw_cfg_items": ["DIRECT_BOOT_ORDER", "FwCfgItems"],
            "smbios": [
                "BiosStrings",
                "filter_smbios",
                "needs_bios_strings",
                "publish_smbios",
                "set_processor_id",
            ],
            "td_hob": ["build_td_hob"],
        },
    )
