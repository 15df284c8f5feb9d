"""Boot options: the variables Boot#### that the firmware makes at a first boot.

TDs have no persistent variables, so every boot is a first one. A variable contains an
EFI_LOAD_OPTION (UEFI, 3.1.3) with a device path (UEFI, 10.3).
"""

import struct
from typing import Final, NamedTuple
from uuid import UUID

from attestkit._outcomes.reasons import FormatReason
from attestkit.errors import FormatError, UsageError
from attestkit.measure.firmware.tdx_firmware import BOOT_MENU_APP, UI_APP, BootLayout

_ACTIVE: Final = 0x01
_CATEGORY_APP: Final = 0x100
_HIDDEN: Final = 0x08
_PCI_ROOT: Final = 0x0A0341D0  # PNP0A03 as EISA id
_AUTO_CREATED: Final = UUID("8108ac4e-9f11-4d59-850e-e21a522c59b2").bytes_le
_MAX_DESCRIPTION: Final = 256


def encode_load_option(
    attributes: int, description: str, device_path: bytes, data: bytes = b""
) -> bytes:
    """Return an EFI_LOAD_OPTION.

    Args:
        attributes: LOAD_OPTION_... flags, 32 bits.
        description: At most 256 characters of the Basic Multilingual Plane.
        device_path: Binary device path with its end node, at most 65,535 bytes.
        data: Optional data at the end.

    Raises:
        UsageError: If description or device path is too large, or the description has an unpaired
            surrogate.
    """
    if len(description) > _MAX_DESCRIPTION or len(device_path) > 0xFFFF:
        sizes = f"{len(description)} characters, {len(device_path)} bytes"
        message = f"boot option: description, path: {sizes}; at most {_MAX_DESCRIPTION}, 65535"
        raise UsageError(message, reason="too_large")
    try:
        text = f"{description}\0".encode("utf-16-le")
    except UnicodeEncodeError as error:
        message = "boot option: description has an unpaired surrogate"
        raise UsageError(message, reason="encoding") from error
    return struct.pack("<IH", attributes, len(device_path)) + text + device_path + data


def firmware_boot_options(layout: BootLayout) -> tuple[bytes, ...]:
    """Return the EFI_LOAD_OPTION of each boot option of the firmware itself, Boot0000 first.

    Raises:
        FormatError: If the volume with UiApp, the application of these options, has no name.
    """
    if layout.boot_options == "none":
        return ()
    volume = layout.ui_volume
    if volume is None:
        message = "firmware: the volume with UiApp has no name, so its boot option is unknown"
        raise FormatError(message, reason="unsupported")
    attributes = _ACTIVE | _CATEGORY_APP
    hidden = attributes | _HIDDEN
    if layout.boot_options == "ui_app":
        return (encode_load_option(hidden, "UiApp", _volume_file(volume, UI_APP)),)
    menu, setup = _volume_file(volume, BOOT_MENU_APP), _volume_file(volume, UI_APP)
    return (
        encode_load_option(hidden, "BootManagerMenuApp", menu),
        encode_load_option(attributes, "EFI Firmware Setup", setup),
    )


def virtio_disk_option(device: int, function: int = 0) -> bytes:
    """Return the EFI_LOAD_OPTION that OVMF makes for a virtio disk on PCI bus 0.

    `device` and `function` are the disk's numbers on the bus.

    Raises:
        UsageError: If `device` is not 0 to 31, or `function` not 0 to 7.
    """
    if not 0 <= device <= 31 or not 0 <= function <= 7:
        message = f"PCI address {device}.{function}: must be 0.0 to 31.7"
        raise UsageError(message, reason="out_of_range")
    root = _node(2, 1, struct.pack("<II", _PCI_ROOT, 0))
    path = root + _node(1, 1, bytes((function, device))) + _END
    return encode_load_option(_ACTIVE, "UEFI Misc Device", path, _AUTO_CREATED)


def _volume_file(volume: UUID, file: UUID) -> bytes:
    return _node(4, 7, volume.bytes_le) + _node(4, 6, file.bytes_le) + _END


def _node(kind: int, subtype: int, data: bytes = b"") -> bytes:
    return struct.pack("<BBH", kind, subtype, 4 + len(data)) + data


_END: Final = _node(0x7F, 0xFF)


_HEAD: Final = struct.Struct("<IH")
_MOST: Final = 1 << 16  # bytes


class BootOption(NamedTuple):
    """A boot option: the content of a variable Boot####.

    Attributes:
        attributes: LOAD_OPTION_... flags, 32 bits.
        description: Name of the option in a menu.
        device_path: Binary device path, with its end node.
        data: Optional data, such as load options; may be empty.
    """

    attributes: int
    description: str
    device_path: bytes
    data: bytes  # optional data


def parse_boot_option(option: bytes) -> BootOption:
    """Parse an EFI_LOAD_OPTION of at most 64 KiB.

    Raises:
        FormatError: If the option is truncated or too large, or its description is not UTF-16.
    """
    if len(option) > _MOST:
        raise _error(f"{len(option)} bytes exceed the limit of {_MOST}", "too_large", 0)
    if len(option) < _HEAD.size:
        raise _error("truncated", "truncated", len(option))
    attributes, path_size = _HEAD.unpack_from(option)
    start = _HEAD.size
    last = min(len(option), start + 2 * _MAX_DESCRIPTION + 2) - 1
    end = next((at for at in range(start, last, 2) if option[at : at + 2] == b"\0\0"), None)
    if end is None:
        raise _error("description must end with NUL within 256 characters", "truncated", start)
    path_at = end + 2
    if path_at + path_size > len(option):
        raise _error(f"device path of {path_size} bytes truncated", "truncated", path_at)
    try:
        description = option[start:end].decode("utf-16-le")
    except UnicodeDecodeError as error:
        raise _error("description is not UTF-16", "encoding", start + error.start) from error
    path_end = path_at + path_size
    return BootOption(attributes, description, option[path_at:path_end], option[path_end:])


def _error(problem: str, reason: FormatReason, offset: int) -> FormatError:
    return FormatError(f"boot option: {problem}", reason=reason, offset=offset)
