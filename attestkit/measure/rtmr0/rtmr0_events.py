"""The events of RTMR0 in their order, from the TD HOB and fw_cfg items to the boot options."""

import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple
from uuid import UUID

from attestkit._argument_checks import require_bytes
from attestkit._crypto.hashes import sha384
from attestkit._sanitize import shown
from attestkit.attestation.launch import td_hob
from attestkit.errors import FormatError, UsageError
from attestkit.event_log import event_types
from attestkit.event_log.event import ACPI_LABELS
from attestkit.measure.expected import Basis, ExpectedEvent
from attestkit.measure.firmware.tdvf import TD_HOB, TEMP_MEM, TdvfSection, find_section
from attestkit.measure.firmware.tdx_firmware import TdxFirmware
from attestkit.measure.rtmr0.boot_options import firmware_boot_options
from attestkit.measure.rtmr0.smbios import filter_smbios


def build_td_hob(sections: Sequence[TdvfSection], memory: Iterable[td_hob.MemoryRange]) -> bytes:
    """Return the TD HOB as the firmware measures it, without its end block.

    Args:
        sections: Sections of the firmware; TD_HOB and TEMP_MEM are listed as accepted memory.
        memory: Ranges of RAM in guest physical addresses, from `memory_ranges` or QEMU's e820
            table.

    Raises:
        FormatError: If there is not exactly one section for the TD HOB.
        UsageError: If a section is not inside of a range of RAM.
    """
    address = find_section(sections, TD_HOB).address
    ranges = list(memory)
    left = ranges
    resources: list[tuple[int, int, int]] = []
    for section in sections:
        if section.kind not in {TD_HOB, TEMP_MEM}:
            continue
        start, end = section.address, section.end
        if not any(low <= start and end <= high for low, high in ranges):
            message = f"memory_size: too small: the firmware uses memory up to {end:#x}"
            raise UsageError(message, reason="out_of_range")
        left = td_hob.subtract_range(left, start, end)
        resources.append((td_hob.ACCEPTED, start, end))
    resources += [(td_hob.UNACCEPTED, start, end) for start, end in left]
    return td_hob.encode_td_hob(address, sorted(resources, key=lambda resource: resource[1]))


DIRECT_BOOT_ORDER: Final = b"/rom@genroms/linuxboot_dma.bin\0"
"""File `bootorder` of a q35 machine with `-kernel`."""

_MAX_SIZE: Final = 1 << 16
# Names in the order in which firmware from edk2-stable202505 on measures them, and sizes; an item
# of another size is not measured.
_MEASURED: Final = (
    ("etc/extra-pci-roots", 8),
    ("BootMenu", 2),
    ("etc/boot-menu-wait", 2),
    ("etc/reserved-memory-end", 8),
    ("opt/ovmf/X-PciMmio64Mb", None),
    ("bootorder", None),
)


class FwCfgItems(NamedTuple):
    """Contents of the fw_cfg items that recent firmware measures; empty for an absent item.

    Attributes:
        extra_pci_roots: `etc/extra-pci-roots`.
        boot_menu: Item 0x0E, 2 bytes, which is always present; zero unless `-boot menu=on`.
        boot_menu_wait: `etc/boot-menu-wait`.
        reserved_memory_end: `etc/reserved-memory-end`.
        pci_mmio64_mb: `opt/ovmf/X-PciMmio64Mb`.
        boot_order: `bootorder`.
    """

    extra_pci_roots: bytes = b""
    boot_menu: bytes = bytes(2)  # of key 0x0E; always present, and zero unless `-boot menu=on`
    boot_menu_wait: bytes = b""
    reserved_memory_end: bytes = b""
    pci_mmio64_mb: bytes = b""
    boot_order: bytes = b""

    @classmethod
    def direct_boot(cls) -> "FwCfgItems":
        """Return the items of a machine with `-kernel`, and without options that add items."""
        return cls(boot_order=DIRECT_BOOT_ORDER)

    def measured(self) -> list[tuple[str, bytes]]:
        """Return name and contents of each item that is measured, in the firmware's order.

        Left out are items that are empty, or not of the size that the firmware reads.

        Raises:
            UsageError: If an item is not bytes, or has over 65,536.
        """
        found = []
        for (name, size), contents in zip(_MEASURED, self, strict=True):
            require_bytes(name, contents)
            if len(contents) > _MAX_SIZE:
                message = f"{name}: {len(contents)} bytes exceed the limit of {_MAX_SIZE}"
                raise UsageError(message, reason="too_large")
            if contents and size in {None, len(contents)}:
                found.append((name, contents))
        return found


_SECURE_BOOT_ENABLE: Final = td_hob.VariableName(
    UUID("f0a30bc7-af08-4556-99c4-001009c93a44"), "SecureBootEnable"
)
_TIMESTAMP_KEYS: Final = td_hob.VariableName(td_hob.IMAGE_SECURITY, "dbt")
_SEEN_ITEMS: Final = {("BootMenu", bytes(2)), ("bootorder", DIRECT_BOOT_ORDER)}  # on hardware
_PLATFORM_KEY: Final = td_hob.SECURE_BOOT_KEYS[0]
_BOOT_OPTION: Final = re.compile(r"Boot(Order|[0-9A-Fa-f]{4})")

AcpiBlobs = tuple[bytes, bytes, bytes]
"""Files `etc/table-loader`, `etc/acpi/rsdp` and `etc/acpi/tables` of QEMU, whole."""


def expected_rtmr0(
    firmware: TdxFirmware,
    memory: Iterable[td_hob.MemoryRange],
    fw_cfg: FwCfgItems,
    *,
    acpi: AcpiBlobs | None = None,
    smbios: bytes | None = None,
    found_options: Sequence[bytes] = (),
    boot_order: Sequence[int] | None = None,
    second_separator: bool = False,
) -> tuple[ExpectedEvent, ...]:
    """Return the events of RTMR0 in the order in which they are extended.

    These are all events of a boot without a shim, which adds SbatLevel and MokListTrusted.

    Args:
        firmware: The firmware.
        memory: Ranges of RAM: `MachineShape.memory`, or from QEMU's e820 table.
        fw_cfg: Items that recent firmware measures; `FwCfgItems.direct_boot()` with `-kernel`.
        acpi: QEMU's loader script, RSDP and tables. Without them their three events have no digest.
        smbios: SMBIOS table that the firmware publishes. Without it that event has no digest.
        found_options: EFI_LOAD_OPTION of each bootable device; they follow the firmware's own.
        boot_order: Numbers of the boot options; None: ascending.
        second_separator: Whether RTMR0 has a separator after the boot options, as edk2 did until
            202408; `BootLayout.separator_in_rtmr1` excludes it for recent firmware.

    Raises:
        FormatError: If the firmware measures nothing in a TD, its own boot options are unknown, or
            its variables have boot options, which would change the order; or the SMBIOS table is
            malformed.
        UsageError: If the memory is too small for the firmware, an item is too large, `boot_order`
            has a number without a boot option, or the firmware has no second separator in RTMR0.
    """
    layout = firmware.layout
    _check_firmware(firmware, second_separator=second_separator)
    events = [
        _event("td-hob", event_types.HANDOFF_TABLES2, build_td_hob(firmware.sections, memory)),
        ExpectedEvent(0, "cfv", event_types.FIRMWARE_BLOB2, firmware.cfv_digest, "hardware"),
    ]
    if layout.fw_cfg:
        events += _fw_cfg_events(fw_cfg)
    events += _secure_boot_events(firmware)
    events.append(_event("separator", event_types.SEPARATOR, bytes(4)))
    if layout.acpi:
        named = zip(ACPI_LABELS, acpi or (None, None, None), strict=True)
        events += [_event(name, event_types.ACPI_CONFIG, blob) for name, blob in named]
    if layout.smbios:
        measured = None if smbios is None else filter_smbios(smbios)
        events.append(_event("smbios", event_types.HANDOFF_TABLES, measured))
    options = (*firmware_boot_options(layout), *found_options)
    events += _boot_option_events(options, boot_order)
    if second_separator:
        events.append(_event("separator", event_types.SEPARATOR, bytes(4), "source"))
    return tuple(events)


def _check_firmware(firmware: TdxFirmware, *, second_separator: bool) -> None:
    """Raise an error for a firmware whose events are unknown.

    Raises:
        FormatError: If it does not measure into RTMRs, or contains boot options.
        UsageError: If `second_separator` (in RTMR0) is true, but the firmware has it in RTMR1.
    """
    if not firmware.layout.measures:
        message = "firmware: must contain TdTcg2Dxe, which measures into RTMRs; use an OVMF with it"
        raise FormatError(message, reason="unsupported")
    stored = min([name.name for name in firmware.variables if _is_boot_option(name)], default="")
    if stored:
        message = f"firmware: variable {shown(stored)}: images with boot options are unsupported"
        raise FormatError(message, reason="unsupported")
    if second_separator and firmware.layout.separator_in_rtmr1:
        message = "second_separator: this firmware measures its second separator into RTMR1"
        raise UsageError(message, reason="conflict")


def _fw_cfg_events(items: FwCfgItems) -> Iterator[ExpectedEvent]:
    for name, contents in items.measured():
        basis: Basis = "hardware" if (name, contents) in _SEEN_ITEMS else "source"
        yield _event(f"fw_cfg {name}", event_types.ACPI_CONFIG, contents, basis)


def measured_variables(firmware: TdxFirmware) -> list[tuple[td_hob.VariableName, bytes]]:
    """Return name and data of the measured variables; the data of absent ones are empty.

    They are SecureBoot, PK, KEK, db, dbx and, only if the image has it, dbt.
    """
    variables, state = firmware.variables, b""
    if firmware.layout.secure_boot:
        has_keys = _PLATFORM_KEY in variables
        state = bytes((has_keys and variables.get(_SECURE_BOOT_ENABLE) != b"\0",))
    measured = [(td_hob.SECURE_BOOT, state)]
    measured += [(name, variables.get(name, b"")) for name in td_hob.SECURE_BOOT_KEYS]
    if _TIMESTAMP_KEYS in variables:
        measured.append((_TIMESTAMP_KEYS, variables[_TIMESTAMP_KEYS]))
    return measured


def _secure_boot_events(firmware: TdxFirmware) -> Iterator[ExpectedEvent]:
    has_keys = _PLATFORM_KEY in firmware.variables
    for name, value in measured_variables(firmware):
        basis: Basis = "source" if has_keys or name == _TIMESTAMP_KEYS else "hardware"
        yield _event(
            name.name, event_types.VARIABLE_DRIVER_CONFIG, td_hob.variable_data(name, value), basis
        )


def _boot_option_events(
    options: Sequence[bytes], boot_order: Sequence[int] | None
) -> Iterator[ExpectedEvent]:
    """Yield the events of BootOrder and of the boot options in it; none without boot options.

    Args:
        options: EFI_LOAD_OPTION of each boot option; its index is the number.
        boot_order: Numbers of the options in their order; None: ascending.

    Raises:
        UsageError: If a number has no boot option.
    """
    order = range(len(options)) if boot_order is None else boot_order
    if any(not 0 <= number < len(options) for number in order):
        message = f"boot_order: must be numbers from 0 on of the {len(options)} boot options"
        raise UsageError(message, reason="out_of_range")
    if not order:
        return
    yield _event("BootOrder", event_types.VARIABLE_BOOT, struct.pack(f"<{len(order)}H", *order))
    for number in order:
        yield _event(f"Boot{number:04X}", event_types.VARIABLE_BOOT, options[number])


def _is_boot_option(variable: td_hob.VariableName) -> bool:
    return variable.vendor == td_hob.EFI_GLOBAL and bool(_BOOT_OPTION.fullmatch(variable.name))


def _event(
    name: str, event_type: int, data: bytes | None, basis: Basis = "hardware"
) -> ExpectedEvent:
    return ExpectedEvent(0, name, event_type, None if data is None else sha384(data), basis)
