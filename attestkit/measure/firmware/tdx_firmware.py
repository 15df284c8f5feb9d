"""The parts of a firmware image on which a TD's measurements depend: events, variables, metadata.

Which events a firmware measures is read from its code, not guessed from a version.

Releases of edk2 differ in the events of RTMR0 and in the load options of the kernel. Each feature
has a file or a text in the image. Releases are written as YYYYMM.
"""

import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal, NamedTuple
from uuid import UUID

from attestkit._crypto.hashes import sha384
from attestkit._outcomes.reasons import FormatReason
from attestkit.attestation.launch.td_hob import VariableName
from attestkit.errors import FormatError
from attestkit.measure.firmware import tdvf
from attestkit.measure.firmware.bios_strings import SMBIOS_PLATFORM, BiosStrings, find_bios_strings
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
    """Features of a firmware that determine the events of a boot.

    Attributes:
        measures: Whether the firmware extends RTMRs at all (TdTcg2Dxe).
        fw_cfg: Whether it measures items of fw_cfg (from 202505).
        acpi: Whether it measures QEMU's ACPI tables (from 202302).
        smbios: Whether it measures the SMBIOS table (from 202505).
        boot_options: Boot options of the firmware itself.
        named_blobs: Whether it takes the kernel from etc/boot/kernel if QEMU offers it (from
            202502).
        initrd_first: Whether load options begin with `initrd=initrd ` (from 202508).
        secure_boot: Whether it was built with secure boot: the variable SecureBoot has a value.
        ui_volume: Name of the volume with the firmware's own boot options; None without one.
        bios_strings: Strings that it adds to the SMBIOS table; None if they cannot be read.
    """

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
        """True if RTMR1 has the second separator (edk2 from 202411), not RTMR0; None if unknown."""
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


_AUTHENTICATED: Final = UUID("aaf32c78-947b-439a-a180-2e144ec37792").bytes_le
_STORE: Final = struct.Struct("<16sIBB6x")
_VARIABLE: Final = struct.Struct("<HB33xII16s")
_START_ID: Final = 0x55AA
_VALID: Final = 0x3F
_FORMATTED, _HEALTHY = 0x5A, 0xFE  # states of a store
_MAX_VARIABLES: Final = 4096


def read_variables(volume: bytes) -> MappingProxyType[VariableName, bytes]:
    """Return the values of the UEFI variables in `volume`, the data of the CFV section, by name.

    Of several with the same name, the last one counts. Offsets in errors are relative to the
    volume.

    Raises:
        FormatError: If the volume has no store of authenticated variables, or the store is
            malformed, or has over 4,096 variables.
    """
    if len(volume) < 56:
        raise _error("truncated", "truncated", len(volume))
    start = int.from_bytes(volume[48:50], "little")
    at = start + _STORE.size
    if at > len(volume):
        raise _error("header truncated", "truncated", len(volume))
    kind, size, formatted, state = _STORE.unpack_from(volume, start)
    if kind != _AUTHENTICATED or (formatted, state) != (_FORMATTED, _HEALTHY):
        raise _error("must be of authenticated variables, and valid", "unsupported", start)
    end = start + size
    if not at <= end <= len(volume):
        raise _error(f"invalid size of {size} bytes", "wrong_size", start + 16)
    return MappingProxyType(_read_entries(volume, at, end))


def _read_entries(volume: bytes, at: int, end: int) -> dict[VariableName, bytes]:
    """Return the values of the variables between the offsets `at` and `end`, by name.

    Raises:
        FormatError: If a variable is truncated, its name is not UTF-16, or there are over 4,096.
    """
    found: dict[VariableName, bytes] = {}
    count = 0
    while at + _VARIABLE.size <= end:
        start_id, state, name_size, size, vendor = _VARIABLE.unpack_from(volume, at)
        if start_id != _START_ID:
            break
        count += 1
        if count > _MAX_VARIABLES:
            raise _error(f"over {_MAX_VARIABLES} variables", "too_many", at)
        data_at = at + _VARIABLE.size + name_size
        if data_at + size > end:
            raise _error("variable truncated", "truncated", at)
        if state == _VALID:
            name = _decode_name(volume[at + _VARIABLE.size : data_at], at)
            found[VariableName(UUID(bytes_le=vendor), name)] = volume[data_at : data_at + size]
        at = -(-(data_at + size) // 4) * 4
    return found


def _decode_name(raw: bytes, at: int) -> str:
    try:
        return raw.decode("utf-16-le").rstrip("\0")
    except UnicodeDecodeError as error:
        raise _error("name of a variable is not UTF-16", "encoding", at) from error


def _error(problem: str, reason: FormatReason, offset: int) -> FormatError:
    return FormatError(f"firmware: variable store: {problem}", reason=reason, offset=offset)


class TdxFirmware(NamedTuple):
    """Properties of a TDX firmware image that registers depend on.

    `compute_mrtds` needs the image, too.

    Attributes:
        sections: Sections of the TDX metadata.
        cfv_digest: SHA-384 of the volume of variables, 48 bytes.
        variables: UEFI variables in the image, such as the keys of secure boot; values by name.
        layout: Features that determine the events of a boot.
    """

    sections: tuple[tdvf.TdvfSection, ...]
    cfv_digest: bytes  # SHA-384 of the volume of variables
    variables: Mapping[VariableName, bytes]  # in the image, such as the keys of secure boot
    layout: BootLayout

    @classmethod
    def parse(cls, image: bytes) -> "TdxFirmware":
        """Parse a complete image, of at most 64 MiB.

        Raises:
            FormatError: If the image is not a firmware for TDX, is malformed, or exceeds a limit.
            UsageError: If `image` is not `bytes`.
        """
        sections = tdvf.read_tdvf_sections(image)
        section = tdvf.find_section(sections, tdvf.CFV)
        cfv = tdvf.section_data(image, section)
        layout = read_boot_layout(image)
        try:
            variables = read_variables(cfv)
        except FormatError as error:
            at = section.data_offset + (error.offset or 0)
            raise FormatError(error.message, reason=error.reason, offset=at) from error
        return cls(sections, sha384(cfv), variables, layout)
