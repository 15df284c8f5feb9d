"""Which events a firmware measures: read from its code, not guessed from a version.

Releases of edk2 differ in the events of RTMR0 and in the load options of the kernel. Each feature
has a file or a text in the image. Releases are written as YYYYMM.
"""

from typing import Final, Literal, NamedTuple
from uuid import UUID

from attestkit.measure.firmware.bios_strings import (
    SMBIOS_PLATFORM,
    BiosStrings,
    find_bios_strings,
)
from attestkit.measure.firmware.firmware_volumes import read_contents

BootOptionKind = Literal["none", "ui_app", "menu_and_setup"]
"""Boot options of the firmware itself: none (IntelTdxX64 from 202605), UiApp (until 202502), or
BootManagerMenuApp and "EFI Firmware Setup" (from 202505)."""

UI_APP: Final = UUID("462caa21-7614-4503-836e-8ab6f4662331")
BOOT_MENU_APP: Final = UUID("eec25bdc-67f2-4d95-b1d5-f81b2039d11d")

_TD_TCG2: Final = UUID("f062221e-c607-44c2-b0b4-c3886331d351")
_SMBIOS_MEASUREMENT: Final = UUID("d27fed59-abb4-4fed-bead-2a878c7e4a7e")
_SECURE_BOOT_CONFIG: Final = UUID("f0e6a44f-7195-41c3-ac64-54f202cd0a21")
_FW_CFG: Final = b"QEMU FW CFG\0"
_ACPI: Final = b"ACPI DATA\0"
_NAMED_BLOBS: Final = b"etc/boot/\0"
_INITRD_FIRST: Final = b"initrd=initrd \0"


class BootLayout(NamedTuple):
    """Features of a firmware that determine the events of a boot."""

    measures: bool  # extends RTMRs at all (TdTcg2Dxe)
    fw_cfg: bool  # measures items of fw_cfg (from 202505)
    acpi: bool  # measures QEMU's ACPI tables (from 202302)
    smbios: bool  # measures the SMBIOS table (from 202505)
    boot_options: BootOptionKind
    named_blobs: bool  # takes the kernel from etc/boot/kernel if QEMU offers it (from 202502)
    initrd_first: bool  # load options begin with "initrd=initrd " (from 202508)
    secure_boot: bool  # built with secure boot: the variable SecureBoot has a value
    ui_volume: UUID | None  # name of the volume with the firmware's own boot options
    bios_strings: BiosStrings | None = None  # in the SMBIOS table; None if they cannot be read

    @property
    def separator_in_rtmr1(self) -> bool | None:
        """Whether RTMR1 has the separator (from 202411), or RTMR0 a second one; None if unknown."""
        return True if self.named_blobs else None


def read_boot_layout(image: bytes) -> BootLayout:
    """Return the features of a firmware image.

    Raises:
        FormatError: If a volume of the image is malformed, or exceeds a limit.
    """
    found = read_contents(image, (_FW_CFG, _ACPI, _NAMED_BLOBS, _INITRD_FIRST), SMBIOS_PLATFORM)
    options: BootOptionKind = "none"
    if UI_APP in found.files:
        options = "menu_and_setup" if BOOT_MENU_APP in found.files else "ui_app"
    return BootLayout(
        measures=_TD_TCG2 in found.files,
        fw_cfg=_FW_CFG in found.strings,
        acpi=_ACPI in found.strings,
        smbios=_SMBIOS_MEASUREMENT in found.files,
        boot_options=options,
        named_blobs=_NAMED_BLOBS in found.strings,
        initrd_first=_INITRD_FIRST in found.strings,
        secure_boot=_SECURE_BOOT_CONFIG in found.files,
        ui_volume=found.files.get(UI_APP),
        bios_strings=None if found.driver is None else find_bios_strings(found.driver),
    )
