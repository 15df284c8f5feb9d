"""Causes of changed events of RTMR0, except ACPI tables: memory, variables, SMBIOS, boot."""

import re
import struct
from collections.abc import Iterator
from itertools import product
from typing import Final

from attestkit._crypto.hashes import sha384
from attestkit._sanitize import key
from attestkit.attestation.launch.td_hob import (
    SECURE_BOOT,
    SECURE_BOOT_KEYS,
    VariableName,
    variable_data,
)
from attestkit.attestation.launch.tdx import BLANK_CFV_DIGEST
from attestkit.errors import FormatError, UsageError
from attestkit.event_log import Event
from attestkit.measure.diagnosis.difference import Cause
from attestkit.measure.diagnosis.guest_inputs import ComparedGuest, Search
from attestkit.measure.diagnosis.guest_shape import other_builds
from attestkit.measure.diagnosis.logged_event import read_variable
from attestkit.measure.firmware.tdx_firmware import read_boot_layout
from attestkit.measure.rtmr0.boot_options import parse_boot_option
from attestkit.measure.rtmr0.rtmr0_events import DIRECT_BOOT_ORDER
from attestkit.measure.rtmr0.smbios import filter_smbios, publish_smbios, set_processor_id

# Volumes of variables without variables, as edk2 builds them.
_BLANK_VOLUMES: Final = {
    BLANK_CFV_DIGEST: "4 MiB",
    bytes.fromhex(
        "f87302177b059d54a2cf0c5f13340dbabf5c9dd60dc3f996c68b776fbe4de959"
        "769443a3d8ef6538b97d7e151c8298e8"
    ): "2 MiB",
}
_STATES: Final = {b"": "not built in", b"\0": "off", b"\1": "on"}
_VARIABLES: Final = {
    name.name: name
    for name in (SECURE_BOOT, *SECURE_BOOT_KEYS, SECURE_BOOT_KEYS[2]._replace(name="dbt"))
}
# CPUID leaf 1 of hosts with TDX: Sapphire Rapids, Emerald Rapids, Granite Rapids.
_CPUS: Final = {
    **dict.fromkeys((0x806F8, 0x806F7, 0x806F6, 0x806F5), "Sapphire Rapids"),
    **dict.fromkeys((0xC06F2, 0xC06F1), "Emerald Rapids"),
    **dict.fromkeys((0xA06D1, 0xA06D0), "Granite Rapids"),
}
_FEATURES: Final = (0x1FA9FBFF, 0x2FABFBFF, 0x0FABFBFF, 0x0F8BFBFF, 0x1FABFBFF, 0xBFEBFBFF)
_MACHINE: Final = re.compile(rb"pc-q35-\d{1,2}\.\d(?:\.\d)?")
_MACHINES: Final = tuple(f"pc-q35-{major}.{minor}" for major in range(6, 13) for minor in range(3))
_MAX_BOOT_OPTIONS: Final = 64
_SHOWN_PATH: Final = 128  # hex digits


def find_td_hob_cause(guest: ComparedGuest) -> Cause:
    """Return why the TD HOB of the logged boot differs from the expected one.

    The cause is the memory, or where the firmware has temporary memory.
    """
    expected, found = guest.expected_memory, guest.logged_memory
    if found is None:
        return Cause("memory_size", "memory size, max-ram-below-4g, or another firmware build")
    if expected is None:
        text = f"the guest has {_size(found.size)} of memory"
        return Cause.found("memory_size", text, found.size)
    other_build = found.sections in other_builds(expected.sections)
    if found.size == expected.size:
        text = "another firmware build: its temporary memory lies elsewhere"
        return Cause.found("temporary_memory", text)
    text = f"the guest has {_size(found.size)} of memory, expected {_size(expected.size)}"
    if other_build:
        text += "; and its firmware is another build"
    return Cause.found("memory_size", text, found.size)


def find_cfv_cause(guest: ComparedGuest, event: Event) -> Cause:
    """Return why the volume of UEFI variables (CFV) differs from that of the expected firmware.

    `event` is the logged event of the volume.
    """
    build = _BLANK_VOLUMES.get(event.digest)
    if build is not None:
        text = f"the variables of the guest's firmware are blank, of a build of {build}"
        return Cause.found("variable_store", text, build)
    if guest.expected_digest("cfv") in _BLANK_VOLUMES:
        text = "variables or keys in the guest's firmware image, or another build"
        return Cause("variable_store", text)
    return Cause("firmware_image", "another firmware build, or other variables in the image")


def find_variable_cause(guest: ComparedGuest, event: Event, name: str) -> Cause:
    """Return why the UEFI variable `name` differs from the expected one.

    It is `SecureBoot`, or a variable with keys such as `PK`. `event` is its logged event.
    """
    variable = _VARIABLES[name]
    if variable == SECURE_BOOT:
        for state, text in _STATES.items():
            if sha384(variable_data(variable, state)) == event.digest:
                return Cause.found("secure_boot", f"secure boot of the guest is {text}", text)
        return Cause("secure_boot", "secure boot on, off or not built in")
    if sha384(variable_data(variable)) == event.digest:
        return Cause.found("secure_boot_keys", f"the guest's firmware has no {name}", 0)
    if guest.expected_digest(name) == sha384(variable_data(variable)):
        text = f"the guest's firmware has {name}: keys or revocations are enrolled"
        return Cause("secure_boot_keys", text, proven=_is_variable(event, variable))
    return Cause("secure_boot_keys", f"the guest's firmware has another {name}")


def find_fw_cfg_cause(guest: ComparedGuest, event: Event, name: str) -> Cause:
    """Return why an item of fw_cfg differs from the expected one.

    Args:
        guest: The expected boot and the logged one.
        event: The logged event of the item.
        name: Name of the expected event, `fw_cfg ITEM`.
    """
    if name == "fw_cfg BootMenu":
        for value in (b"\0\0", b"\1\0"):
            if sha384(value) == event.digest:
                text = f"-boot menu={'on' if value[0] else 'off'}"
                return Cause.found("boot_menu", text, "on" if value[0] else "off")
        return Cause("boot_menu", "-boot menu")
    if name == "fw_cfg bootorder":
        direct = sha384(DIRECT_BOOT_ORDER)
        if event.digest == direct:
            return Cause.found("direct_boot", "the guest was booted with -kernel")
        if guest.expected_digest(name) == direct:
            text = "the guest was not booted with -kernel, or other devices have a bootindex"
            return Cause("direct_boot", text)
        return Cause("device_boot_order", "bootindex of devices")
    item = name.removeprefix("fw_cfg ")
    return Cause("fw_cfg_item", f"another {item}: expander bridges, or options of QEMU")


def find_smbios_cause(guest: ComparedGuest, event: Event) -> Cause:
    """Return why the SMBIOS table differs from the expected one.

    48 processor ids and 21 machine names are tried. `event` is the logged event of the table.

    Raises:
        FormatError: If the firmware or the SMBIOS table in the guest's inputs is malformed.
    """
    text = "CPU model, machine type, memory size, -smbios, or version strings of the firmware"
    table = guest.inputs.smbios
    if table is None:
        return Cause("smbios", text)
    firmware = guest.inputs.firmware
    strings = None if firmware is None else read_boot_layout(firmware).bios_strings
    for cause, changed in _smbios_variations(publish_smbios(table, strings)):
        if sha384(filter_smbios(changed)) == event.digest:
            return cause
    return Cause("smbios", text)


def find_boot_option_cause(_guest: ComparedGuest, event: Event, name: str) -> Cause:
    """Return why the variable `name`, `BootOrder` or `Boot####`, differs from the expected one.

    `event` is the logged event. If its digest covers its data, the cause contains the logged value.
    """
    variable = read_variable(event)
    if variable is None or sha384(variable.data) != event.digest:
        return Cause("boot_options", "boot options of the firmware or of devices")
    if name == "BootOrder":
        count = len(variable.data) // 2
        if len(variable.data) % 2 or count > _MAX_BOOT_OPTIONS:
            return Cause.found("boot_options", "the guest's BootOrder is malformed")
        order = " ".join([f"{one:04X}" for one in struct.unpack(f"<{count}H", variable.data)])
        return Cause.found("boot_options", f"the guest's boot order is {order}", order)
    try:
        option = parse_boot_option(variable.data)
    except FormatError as error:
        return Cause.found("boot_options", f"the guest's {name} is malformed: {error}")
    description = f"{key(option.description)} ({option.device_path.hex()[:_SHOWN_PATH]})"
    return Cause.found("boot_options", f"the guest's {name} is {description}", description)


NAMED_CAUSES: Final[dict[str, Search]] = {
    **dict.fromkeys(_VARIABLES, find_variable_cause),
    "td-hob": lambda guest, _event, _name: find_td_hob_cause(guest),
    "cfv": lambda guest, event, _name: find_cfv_cause(guest, event),
    "smbios": lambda guest, event, _name: find_smbios_cause(guest, event),
}
"""Functions that find why the digest of an event differs, by the event's name."""


def _is_variable(event: Event, variable: VariableName) -> bool:
    """Return whether the event's data are this variable, and its digest is their SHA-384."""
    found = read_variable(event)
    return (
        found is not None
        and (found.vendor, found.name) == variable
        and sha384(event.payload) == event.digest
    )


def _smbios_variations(table: bytes) -> Iterator[tuple[Cause, bytes]]:
    """Yield causes, and tables with other processor ids or machine names; none if malformed."""
    try:
        for eax, edx in product(_CPUS, _FEATURES):
            text = f"the host's CPU is {_CPUS[eax]} (EAX {eax:#x}, EDX {edx:#x})"
            cause = Cause.found("processor_id", text, f"{eax:#x}:{edx:#x}")
            yield cause, set_processor_id(table, eax, edx)
    except (FormatError, UsageError):
        return
    for name in _MACHINES:
        changed = _MACHINE.sub(name.encode(), table)
        yield Cause.found("machine_name", f"the machine type is {name}", name), changed


def _size(size: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB")):
        if size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} bytes"
