"""Firmware images of TDs: metadata, MRTD, and which events a boot measures into RTMR0."""

from typing import TYPE_CHECKING

from attestkit._package import lazy_names

if TYPE_CHECKING:
    from attestkit.measure.firmware.bios_strings import BiosStrings
    from attestkit.measure.firmware.boot_layout import BootLayout, BootOptionKind, read_boot_layout
    from attestkit.measure.firmware.mrtd import Mrtds, PageOrder, compute_mrtds
    from attestkit.measure.firmware.tdvf import TdvfSection, read_tdvf_sections
    from attestkit.measure.firmware.tdx_firmware import TdxFirmware
    from attestkit.measure.firmware.uefi_variables import read_variables

__all__ = [
    "BiosStrings",
    "BootLayout",
    "BootOptionKind",
    "Mrtds",
    "PageOrder",
    "TdvfSection",
    "TdxFirmware",
    "compute_mrtds",
    "read_boot_layout",
    "read_tdvf_sections",
    "read_variables",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "bios_strings": ["BiosStrings"],
            "boot_layout": ["BootLayout", "BootOptionKind", "read_boot_layout"],
            "mrtd": ["Mrtds", "PageOrder", "compute_mrtds"],
            "tdvf": ["TdvfSection", "read_tdvf_sections"],
            "tdx_firmware": ["TdxFirmware"],
            "uefi_variables": ["read_variables"],
        },
    )
