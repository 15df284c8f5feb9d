"""The GUID table at the end of an OVMF image, by which a VMM finds its metadata.

The table ends 32 bytes before the image does, and is read backwards. An entry ends with its GUID;
before that are its size in 2 bytes, which counts size and GUID too, and its data. The entry at the
end is the footer; its size is that of the whole table.
"""

from types import MappingProxyType
from typing import Final
from uuid import UUID

from attestkit._argument_checks import require_bytes
from attestkit._outcomes.reasons import FormatReason
from attestkit.errors import FormatError

MAX_IMAGE: Final = 64 << 20
"""Largest firmware image in bytes; QEMU accepts 8 MiB unless told otherwise."""

TDX_METADATA: Final = UUID("e47a6535-984a-4798-865e-4685a7bf8ec2")
SEV_METADATA: Final = UUID("dc886566-984a-4798-a75e-5585a7bf67cc")
SEV_HASH_TABLE: Final = UUID("7255371f-3a3b-4b04-927b-1da6efa8d454")
SEV_ES_RESET: Final = UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
SVSM_INFO: Final = UUID("a789a612-0597-4c4b-a49f-cbb1fe9d1ddd")

_FOOTER: Final = UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
_AFTER: Final = 32  # bytes of the reset vector, which follow the table
_TAIL: Final = 18  # bytes: size and GUID of an entry


def read_guid_table(image: bytes) -> MappingProxyType[UUID, bytes]:
    """Return the data of each entry of the image's GUID table, by its GUID.

    Of entries with the same GUID, the one nearest to the image's end is returned.

    Raises:
        FormatError: If the image has no GUID table or over 64 MiB, or the table is malformed.
        UsageError: If `image` is not `bytes`.
    """
    require_bytes("firmware", image)
    if len(image) > MAX_IMAGE:
        message = f"firmware: {len(image)} bytes exceed the limit of {MAX_IMAGE}"
        raise FormatError(message, reason="too_large")
    at = len(image) - _AFTER - _TAIL
    if at < 0 or image[at + 2 : at + _TAIL] != _FOOTER:
        message = "firmware: no GUID table before the reset vector; not an image of OVMF"
        raise FormatError(message, reason="unrecognized", offset=max(at + 2, 0))
    start = at + _TAIL - int.from_bytes(image[at : at + 2], "little")
    if not 0 <= start <= at:
        raise _error("size must be at least 18, and within the image", "wrong_value", at)
    return MappingProxyType(_read_entries(image, start, at))


def read_end_offset(image: bytes, entry: bytes, what: str) -> int:
    """Return the offset of metadata in the image, from `entry`, the data of a GUID table's entry.

    These are 4 bytes: the distance of the metadata from the image's end. `what` names the metadata
    in errors.

    Raises:
        FormatError: If the entry does not have 4 bytes, or the offset is outside of the image.
    """
    if len(entry) != 4:
        message = f"firmware: entry of {what}: must have 4 bytes, not {len(entry)}"
        raise FormatError(message, reason="wrong_size")
    back = int.from_bytes(entry, "little")
    if not 0 < back <= len(image):
        message = f"firmware: {what}: {back} bytes before the end, outside of the image"
        raise FormatError(message, reason="wrong_value")
    return len(image) - back


def _read_entries(image: bytes, start: int, end: int) -> dict[UUID, bytes]:
    """Return the data of the table's entries by GUID, the last entry first.

    The entries are between the offsets `start` and `end` of the image.
    """
    entries: dict[UUID, bytes] = {}
    while end > start:
        tail = end - _TAIL
        if tail < start:
            raise _error("entry is cut by the start of the table", "truncated", start)
        size = int.from_bytes(image[tail : tail + 2], "little")
        if not _TAIL <= size <= end - start:
            problem = f"entry of {size} bytes, must be {_TAIL} to {end - start}"
            raise _error(problem, "wrong_value", tail)
        entries.setdefault(UUID(bytes_le=image[tail + 2 : end]), image[end - size : tail])
        end -= size
    return entries


def _error(problem: str, reason: FormatReason, offset: int) -> FormatError:
    return FormatError(f"firmware: GUID table: {problem}", reason=reason, offset=offset)
