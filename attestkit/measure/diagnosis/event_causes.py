"""The cause of the first difference of a register, by the kind of difference and the event."""

import re
from typing import Final

from attestkit._sanitize import shown
from attestkit.event_log import Event
from attestkit.event_log.event import ACPI_LABELS
from attestkit.event_log.event_types import ACPI_CONFIG, IMAGE_TYPES, IPL, SEPARATOR
from attestkit.measure.diagnosis.acpi_causes import find_acpi_cause
from attestkit.measure.diagnosis.difference import Cause, CauseName, FirstDifference
from attestkit.measure.diagnosis.guest_inputs import ComparedGuest, Search
from attestkit.measure.diagnosis.kernel_causes import find_kernel_cause, find_load_option_cause
from attestkit.measure.diagnosis.logged_event import name_event
from attestkit.measure.diagnosis.rtmr0_causes import (
    NAMED_CAUSES,
    find_boot_option_cause,
    find_fw_cfg_cause,
)
from attestkit.measure.expected import is_same_type

_BOOT_OPTION: Final = re.compile(r"Boot(?:Order|[0-9A-F]{4})")
_UNKNOWN: Final = Cause("unknown", "an event that is not known to vary")

# Changed events whose cause is searched for, and those whose cause is not.
_SEARCHES: Final[dict[str, Search]] = {
    **NAMED_CAUSES,
    **dict.fromkeys(ACPI_LABELS, lambda guest, _event, _name: find_acpi_cause(guest)),
    "kernel": lambda guest, event, _name: find_kernel_cause(guest, event),
    "load-options": lambda guest, event, _name: find_load_option_cause(guest, event),
}
_CHANGED: Final[dict[str, tuple[CauseName, str]]] = {
    "gpt": ("partition_table", "another partition table: identifiers, or a resized partition"),
    "initrd": ("initrd", "another initrd"),
    "shim": ("shim", "another shim"),
    "MokList": ("shim", "keys enrolled in the shim"),
    "MokListX": ("shim", "revocations enrolled in the shim"),
    "MokListTrusted": ("shim", "state of the shim"),
    "SbatLevel": ("shim", "revocations of another shim"),
    "passed-cmdline": ("cmdline", "another command line passed to the unified kernel image"),
}
# Events of which the log has one more or one fewer.
_RELEASE: Final = "another release of the firmware"
_UNPAIRED: Final[dict[str, tuple[CauseName, str]]] = {
    "fw_cfg BootMenu": ("firmware_release", f"{_RELEASE}: measured from edk2-stable202505 on"),
    "fw_cfg bootorder": ("direct_boot", "-kernel given or not, or devices with a bootindex"),
    "fw_cfg etc/boot-menu-wait": ("boot_menu", "-boot menu=on with a splash time"),
    "fw_cfg etc/extra-pci-roots": ("fw_cfg_item", "expander bridges (pxb-pcie)"),
    "smbios": ("firmware_release", f"{_RELEASE}: measured from edk2-stable202505 on"),
    "separator": (
        "firmware_release",
        f"{_RELEASE}: the second one is in RTMR0 until 202408, in RTMR1 from 202411 on",
    ),
    "acpi-loader": ("firmware_release", f"{_RELEASE}: measured from edk2-stable202302 on"),
    "dbt": ("secure_boot_keys", "timestamp keys in the firmware image"),
    "calling": ("boot_attempt", "another number of boot attempts"),
    "returning": ("boot_attempt", "the first boot option failed or returned"),
    "gpt": ("partition_table", "booted from a disk with a partition table, or not"),
    "initrd": ("initrd_presence", "booted with an initrd, or without"),
    "load-options": ("kernel", "a kernel that does not measure them, or no command line"),
    "exit-invocation": ("boot_incomplete", "the guest did not leave the firmware"),
    "exit-success": ("boot_incomplete", "the guest did not leave the firmware"),
    "exit-failure": ("boot_attempt", "the kernel left the firmware at a second attempt"),
    "error-separator": ("boot_incomplete", "the firmware reported an error"),
    "SbatLevel": ("shim", "booted by a shim, or without"),
    "MokList": ("shim", "booted by a shim, or without"),
    "MokListTrusted": ("shim", "booted by a shim, or without"),
}


def find_cause(guest: ComparedGuest, difference: FirstDifference) -> Cause:
    """Return the cause of a difference; searches take 3 s at most."""
    expected, logged = difference.expected, difference.logged
    if _is_first_separator(guest, difference):
        return _UNKNOWN
    if logged is None or difference.kind == "missing":
        return _absence_cause(guest, difference)
    if difference.kind == "extra" or expected is None:
        return _unpaired_cause(guest, name_event(logged), logged.event_type)
    if is_same_type(expected, logged):
        return _changed_cause(guest, expected.name, logged)
    return _other_type_cause(guest, expected.name, logged)


def _absence_cause(guest: ComparedGuest, difference: FirstDifference) -> Cause:
    """Return why the log lacks an event."""
    event = difference.expected
    cause = _UNKNOWN if event is None else _unpaired_cause(guest, event.name, event.event_type)
    if difference.kind == "cut" and cause.name == "unknown":
        return Cause("boot_incomplete", "the boot did not get further, or the log is shortened")
    return cause


def _is_first_separator(guest: ComparedGuest, difference: FirstDifference) -> bool:
    """Return whether it is a separator before the last event of RTMR0, which no release lacks."""
    event = difference.logged if difference.kind == "extra" else difference.expected
    if event is None or event.event_type != SEPARATOR or event.register:
        return False
    last = sum(one.register == 0 for one in guest.expected) - 1
    return difference.position < last


def _changed_cause(guest: ComparedGuest, name: str, logged: Event) -> Cause:
    """Return why an event has another digest."""
    search = _find_search(name)
    if search is not None:
        return search(guest, logged, name)
    if (known := _CHANGED.get(name)) is not None:
        return Cause(*known)
    if name.startswith("."):
        return Cause("uki_section", f"another section {name} of the unified kernel image")
    if logged.event_type in IMAGE_TYPES:
        return Cause("boot_image", f"another image {shown(name)}")
    return _unpaired_cause(guest, name_event(logged), logged.event_type)


def _find_search(name: str) -> Search | None:
    """Return the function that finds the cause of a changed event."""
    if name.startswith("fw_cfg "):
        return find_fw_cfg_cause
    if _BOOT_OPTION.fullmatch(name):
        return find_boot_option_cause
    return _SEARCHES.get(name)


def _other_type_cause(guest: ComparedGuest, name: str, logged: Event) -> Cause:
    """Return why an event stands in place of one of another type."""
    cause = _unpaired_cause(guest, name_event(logged), logged.event_type)
    return cause if cause.name != "unknown" else _unpaired_cause(guest, name, 0)


def _unpaired_cause(guest: ComparedGuest, name: str, event_type: int) -> Cause:
    """Return why only one side has an event of this name."""
    if name == "fw_cfg bootorder" and guest.expected_digest("fw_cfg BootMenu") is None:
        name = "fw_cfg BootMenu"  # the expected firmware measures neither
    if (known := _UNPAIRED.get(name)) is not None:
        return Cause(*known)
    if name.startswith("fw_cfg ") or event_type == ACPI_CONFIG:
        return Cause("fw_cfg_item", "items of fw_cfg: expander bridges, or options of QEMU")
    if _BOOT_OPTION.fullmatch(name):
        text = "another number of boot options: bootable devices, or release of the firmware"
        return Cause("boot_options", text)
    if event_type in IMAGE_TYPES:
        return Cause("boot_image", "another number of images: shim, boot loader, or driver")
    if event_type == IPL:
        return Cause("boot_loader", "measured by a boot loader or the stub of a kernel image")
    return _UNKNOWN
