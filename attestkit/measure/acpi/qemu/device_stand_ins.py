"""Devices that take the place of those of a user's QEMU command line, and need nothing of the host.

For the ACPI tables the place of a device counts, not its kind; bridges, displays and some devices
of the ISA bus are exceptions. A boot index is in fw_cfg with the kind of the device.
"""

from typing import Final

from attestkit._sanitize import shown
from attestkit.errors import UsageError
from attestkit.measure.acpi.qemu.qemu_command import STAND_IN
from attestkit.measure.acpi.qemu.qemu_options import (
    Properties,
    check_safe,
    format_properties,
    select,
)

_PLACE: Final = ("id", "bus", "addr", "multifunction", "acpi-index")
_PORT_PLACE: Final = (
    *(*_PLACE, "chassis", "slot", "port", "hotplug"),
    *("bus-reserve", "io-reserve", "mem-reserve", "pref32-reserve", "pref64-reserve"),
)
_KEPT: Final = {  # devices whose kind is in the tables, and the properties that they keep
    "pcie-root-port": _PORT_PLACE,
    **dict.fromkeys(("VGA", "virtio-vga", "cirrus-vga", "qxl-vga"), _PLACE),
    "pvpanic": ("ioport", "events"),
    "vmgenid": ("guid",),
    "isa-serial": ("index",),
}

_NOT_PCI: Final = ("usb-", "scsi-", "ide-", "hda-")  # behind a controller
_NOT_PCI_NAMES: Final = frozenset(
    {
        *("isa-debugcon", "isa-debug-exit", "loader", "nvme-ns", "vmcoreinfo"),
        *("virtconsole", "virtserialport"),
    }
)
_UNKNOWN_TABLES: Final = (
    *("cxl-", "pci-bridge", "pcie-pci-bridge", "pxb", "virtio-iommu", "virtio-mem"),
    "virtio-pmem",
)
_ENDPOINTS: Final = frozenset(  # with names that do not end with -pci
    {
        *("AC97", "ahci", "bochs-display", "e1000", "e1000e", "edu", "ich9-intel-hda", "igb"),
        *("intel-hda", "lsi", "lsi53c895a", "megasas", "nec-usb-xhci", "nvme", "pci-serial"),
        *("pvscsi", "qemu-xhci", "rtl8139", "vfio-pci-nohotplug", "virtio-9p", "virtio-balloon"),
        *("virtio-blk", "virtio-net", "virtio-rng", "virtio-scsi", "virtio-serial", "vmxnet3"),
    }
)
_BOOTABLE_DISKS: Final = frozenset({"virtio-blk", "virtio-blk-pci"})
_BOOTABLE_NETWORKS: Final = frozenset({"virtio-net", "virtio-net-pci"})


def stand_in_options(found: Properties, number: int) -> list[str]:
    """Return the options of a device's stand-in; none for a device behind a controller.

    Args:
        found: Properties of the device, with `driver`.
        number: Number that no other device has.

    Raises:
        UsageError: If the device's influence on the tables is unknown, or a value has unsafe
            characters.
    """
    driver = found.get("driver", "")
    if driver in _NOT_PCI_NAMES or driver.startswith(_NOT_PCI):
        return []
    options, kept = _replace(driver, found, f"attestkit{number}")
    check_safe("-device", kept)
    return [*options, "-device", format_properties(kept, "driver")]


def has_unknown_boot_order(found: Properties) -> bool:
    """Return whether a device has a boot index that its stand-in does not have."""
    driver = found.get("driver")
    return "bootindex" in found and driver not in _BOOTABLE_DISKS | _BOOTABLE_NETWORKS


def _replace(driver: str, found: Properties, name: str) -> tuple[list[str], Properties]:
    """Return the options that a stand-in needs, and its properties."""
    kept = _KEPT.get(driver)
    if kept is not None:
        same = select(found, ("driver", *kept))
        if driver != "isa-serial":
            return [], same
        return ["-chardev", f"null,id={name}"], {**same, "chardev": name}
    if driver.startswith(_UNKNOWN_TABLES) or (
        driver not in _ENDPOINTS and not driver.endswith("-pci")
    ):
        message = f"QEMU device {shown(driver)}: its influence on the tables is unknown"
        raise UsageError(message, reason="unknown_name")
    place = select(found, _PLACE)
    if "bootindex" in found and not has_unknown_boot_order(found):
        same = {"driver": driver, **place, "bootindex": found["bootindex"]}
        if driver in _BOOTABLE_DISKS:
            disk = f"null-co,node-name={name},size=1048576"
            return ["-blockdev", disk], {**same, "drive": name}
        network = f"hubport,id={name},hubid={name.removeprefix('attestkit')}"
        return ["-netdev", network], {**same, "netdev": name, "romfile": ""}
    return [], {"driver": STAND_IN, **place}
