"""QEMU's command line: its syntax, and stand-ins for a user's devices that need the host.

The ACPI tables depend on the bus and address of a device, not on its kind, except for bridges,
displays and some devices of the ISA bus. fw_cfg contains the kind of a device with a boot index.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from attestkit._formats import strict_json
from attestkit._sanitize import shown
from attestkit.errors import FormatError, UsageError
from attestkit.measure.acpi.qemu.qemu_command import STAND_IN

MAX_TEXT: Final = 1 << 16
"""Maximum length of a command line, in characters."""

_MAX_WORDS: Final = 4096
_SAFE: Final = re.compile(r"[A-Za-z0-9._:/+\-]*")
_SIZE: Final = re.compile(r"([0-9]{1,15})([BKMGT]?)", re.IGNORECASE)
_UNITS: Final = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

Properties = dict[str, str]


def split_command(text: str) -> list[str]:
    """Return the words of a command line: text in shell syntax, or words separated by NULs.

    The latter is the form of `/proc/PID/cmdline`. Nothing is executed or expanded. Backslashes at
    line ends continue the line.

    Raises:
        UsageError: If a quotation is not closed, or the text ends in a backslash, is empty, or has
            over 65,536 characters or 4096 words.
    """
    import shlex  # lazy: only needed here

    if len(text) > MAX_TEXT:
        message = f"QEMU command line: {len(text)} characters exceed the limit of {MAX_TEXT}"
        raise UsageError(message, reason="too_large")
    try:
        words = text.rstrip("\0").split("\0") if "\0" in text else shlex.split(_join_lines(text))
    except ValueError as error:
        raise UsageError(
            f"QEMU command line: must be in shell syntax: {error}", reason="wrong_value"
        ) from error
    if not words or not words[0]:
        raise UsageError("QEMU command line: must not be empty", reason="missing")
    return check_words(words)


def check_words(words: list[str]) -> list[str]:
    """Return `words`, those of a command line, if their number and size are within the limits.

    Raises:
        UsageError: If there are over 4096 words or 65,536 characters, or a NUL character.
    """
    if sum(map(len, words)) > MAX_TEXT:
        message = f"QEMU command line: over {MAX_TEXT} characters in all words"
        raise UsageError(message, reason="too_large")
    if len(words) > _MAX_WORDS:
        message = f"QEMU command line: {len(words)} words, at most {_MAX_WORDS}"
        raise UsageError(message, reason="too_many")
    if any("\0" in word for word in words):
        raise UsageError("QEMU command line: must not have a NUL character", reason="wrong_value")
    return words


def _join_lines(text: str) -> str:
    return text.replace("\\\r\n", " ").replace("\\\n", " ")


def parse_properties(option: str, text: str, first: str) -> Properties:
    """Return the properties, names with values as text, in an option's argument, `text`.

    It is `value,name=value,...` or a JSON object. In the former, two commas stand for one, and a
    first part without `=` is the value of the property `first`. A later part without `=` is a
    property with the value `on`. In JSON, booleans become `on` and `off`, and lists and objects are
    left out. `option`, such as `-device`, is the subject of errors.

    Raises:
        UsageError: If a property occurs twice, or the JSON is malformed or not an object.
    """
    if text.startswith("{"):
        return _parse_json(option, text)
    found: Properties = {}
    for name, value in list_properties(text, first):
        if name in found:
            raise UsageError(f"{option}: {shown(name)} occurs twice", reason="conflict")
        found[name] = value
    return found


def list_properties(text: str, first: str) -> list[tuple[str, str]]:
    """Return name and value of each property in `text`, `value,name=value,...`, repeated ones too.

    `first` is the name of a value without a name at the start.
    """
    found = []
    for index, part in enumerate(text.replace(",,", "\0").split(",")):
        name, sign, value = part.replace("\0", ",").partition("=")
        if not sign:
            name, value = (first, name) if index == 0 else (name, "on")
        found.append((name, value))
    return found


def _parse_json(option: str, text: str) -> Properties:
    try:
        values = strict_json.read_object(text, option)
    except FormatError as error:
        raise UsageError(str(error), reason="wrong_value") from error
    found: Properties = {}
    for name, value in values.items():
        if isinstance(value, bool):
            found[name] = "on" if value else "off"
        elif isinstance(value, str | int):
            found[name] = str(value)
        # Other values are of properties that no stand-in has, such as lists of host resources.
    return found


def format_properties(values: Mapping[str, str], first: str) -> str:
    """Return properties, values by name, as `value,name=value,...`, which QEMU parses.

    The property `first` is put at the start without its name; "" names none.
    """
    rest = [f"{name}={value}" for name, value in values.items() if name != first]
    return ",".join([values[first], *rest] if first in values else rest)


def select(values: Mapping[str, str], names: Iterable[str]) -> Properties:
    """Return those of the properties `values` that `names` contains, in the order of `names`."""
    return {name: values[name] for name in names if name in values}


def check_safe(option: str, values: Mapping[str, str]) -> None:
    """Raise UsageError if a name or value has other characters than letters, digits, `._:/+-`.

    `option`, such as `-device`, is the subject of the error.
    """
    for text in (*values, *values.values()):
        if not _SAFE.fullmatch(text):
            message = f"{option}: {shown(text)}: must have only letters, digits and ._:/+-"
            raise UsageError(message, reason="wrong_value")


def parse_size(option: str, text: str, unit: int) -> int:
    """Return the size in `text` in bytes; a number without suffix counts `unit` bytes each.

    `option`, such as `-m`, is the subject of errors.

    Raises:
        UsageError: If the text is not a number of at most 15 digits with an optional suffix B, K,
            M, G or T.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        message = (
            f"{option}: size must be up to 15 digits, optionally with B, K, M, G or T: "
            f"{shown(text)}"
        )
        raise UsageError(message, reason="wrong_value")
    return int(match[1]) * _UNITS.get(match[2].upper(), unit)


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
    """Return QEMU's options, as words, for a device's stand-in; none for one that is not on PCI.

    Args:
        found: Properties of the device by name, as `parse_properties` returns them, with `driver`.
        number: Unique number of the stand-in: ids of its disk or network have it as a suffix.

    Raises:
        UsageError: If the device's effect on the tables is unknown, or a value has other characters
            than `check_safe` allows.
    """
    driver = found.get("driver", "")
    if driver in _NOT_PCI_NAMES or driver.startswith(_NOT_PCI):
        return []
    options, kept = _replace(driver, found, f"attestkit{number}")
    check_safe("-device", kept)
    return [*options, "-device", format_properties(kept, "driver")]


def has_unknown_boot_order(found: Properties) -> bool:
    """Return whether the device `found` (its properties) has a boot index that its stand-in lacks.

    True for all devices with a boot index except virtio disks and network interfaces.
    """
    return "bootindex" in found and found.get("driver") not in _BOOTABLE_DISKS | _BOOTABLE_NETWORKS


def _replace(driver: str, found: Properties, name: str) -> tuple[list[str], Properties]:
    """Return options of the backend that a stand-in needs, and the stand-in's properties by name.

    Args:
        driver: QEMU's name of the device, such as `virtio-blk-pci`.
        found: All properties of the device.
        name: Id of the backend.

    Raises:
        UsageError: If the device's effect on the tables is unknown.
    """
    kept = _KEPT.get(driver)
    if kept is not None:
        same = select(found, ("driver", *kept))
        if driver != "isa-serial":
            return [], same
        return ["-chardev", f"null,id={name}"], {**same, "chardev": name}
    if driver.startswith(_UNKNOWN_TABLES) or (
        driver not in _ENDPOINTS and not driver.endswith("-pci")
    ):
        message = f"QEMU device {shown(driver)}: not supported: its effect on ACPI is unknown"
        raise UsageError(message, reason="unknown_name")
    place = select(found, _PLACE)
    if "bootindex" in found and not has_unknown_boot_order(found):
        same = {"driver": driver, **place, "bootindex": found["bootindex"]}
        if driver in _BOOTABLE_DISKS:
            return ["-blockdev", f"null-co,node-name={name},size=1048576"], {**same, "drive": name}
        network = f"hubport,id={name},hubid={name.removeprefix('attestkit')}"
        return ["-netdev", network], {**same, "netdev": name, "romfile": ""}
    return [], {"driver": STAND_IN, **place}
