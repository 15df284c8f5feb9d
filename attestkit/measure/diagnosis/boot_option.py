"""Boot options in logs: EFI_LOAD_OPTION (UEFI, 3.1.3)."""

import struct
from typing import Final, NamedTuple

from attestkit._reasons import FormatReason
from attestkit.errors import FormatError

_HEAD: Final = struct.Struct("<IH")
_MOST: Final = 1 << 16  # bytes
_MAX_DESCRIPTION: Final = 256  # characters


class BootOption(NamedTuple):
    """A boot option, as a variable Boot#### has it."""

    attributes: int
    description: str
    device_path: bytes
    data: bytes  # optional data


def parse_boot_option(option: bytes) -> BootOption:
    """Parse an EFI_LOAD_OPTION of at most 64 KiB.

    Raises:
        FormatError: If it is truncated or too large, or its description is not UTF-16.
    """
    if len(option) > _MOST:
        raise _error(f"{len(option)} bytes exceed the limit of {_MOST}", "too_large", 0)
    if len(option) < _HEAD.size:
        raise _error("truncated", "truncated", len(option))
    attributes, path_size = _HEAD.unpack_from(option)
    start = _HEAD.size
    last = min(len(option), start + 2 * _MAX_DESCRIPTION + 2) - 1
    ends = (at for at in range(start, last, 2) if option[at : at + 2] == b"\0\0")
    end = next(ends, None)
    if end is None:
        raise _error("description without end", "truncated", start)
    path_at = end + 2
    if path_at + path_size > len(option):
        raise _error(f"device path of {path_size} bytes truncated", "truncated", path_at)
    try:
        description = option[start:end].decode("utf-16-le")
    except UnicodeDecodeError as error:
        message = "description is not UTF-16"
        raise _error(message, "encoding", start + error.start) from error
    path_end = path_at + path_size
    return BootOption(attributes, description, option[path_at:path_end], option[path_end:])


def _error(problem: str, reason: FormatReason, offset: int) -> FormatError:
    return FormatError(f"boot option: {problem}", reason=reason, offset=offset)
