"""TD HOB (a list of memory) and UEFI variables, which the firmware of a TD measures first.

The HOB is measured into RTMR0, without the block that ends the list (UEFI PI, volume 3). UEFI
variables: TCG PC Client Platform Firmware Profile, 10.2.6.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple
from uuid import UUID

EFI_GLOBAL: Final = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
"""Vendor of SecureBoot, PK and KEK."""
IMAGE_SECURITY: Final = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
"""Vendor of db, dbx and dbt."""


class VariableName(NamedTuple):
    """Identity of a UEFI variable: the vendor's GUID and a name."""

    vendor: UUID
    name: str


SECURE_BOOT: Final = VariableName(EFI_GLOBAL, "SecureBoot")
SECURE_BOOT_KEYS: Final = (
    VariableName(EFI_GLOBAL, "PK"),
    VariableName(EFI_GLOBAL, "KEK"),
    VariableName(IMAGE_SECURITY, "db"),
    VariableName(IMAGE_SECURITY, "dbx"),
)
"""Variables with keys, in the order in which they are measured; the first is the platform key."""


def variable_data(variable: VariableName, data: bytes = b"") -> bytes:
    """Return UEFI_VARIABLE_DATA of a variable and its content; empty `data` for a missing one."""
    vendor, name = variable
    sizes = len(name).to_bytes(8, "little") + len(data).to_bytes(8, "little")
    return vendor.bytes_le + sizes + name.encode("utf-16-le") + data


SPLIT_MEMORY: Final = 0xB0000000
"""From this size in bytes on, a part of the memory is above 4 GiB."""
LOW_END: Final = 0x80000000
"""End in bytes of the memory below 4 GiB, if a part is above."""
HIGH_START: Final = 0x1_00000000
"""Start in bytes of the part above: 4 GiB."""

ACCEPTED: Final = 0
UNACCEPTED: Final = 7
"""Resource types of memory: ACCEPTED by the firmware's code itself, UNACCEPTED: accepted later."""


class MemoryRange(NamedTuple):
    """Physical addresses, in bytes: [start, end)."""

    start: int
    end: int


def memory_ranges(memory_size: int) -> tuple[MemoryRange, ...]:
    """Return the ranges of `memory_size` bytes of RAM in QEMU's machine q35.

    Its option max-ram-below-4g must not be set.
    """
    if memory_size < SPLIT_MEMORY:
        return (MemoryRange(0, memory_size),)
    return MemoryRange(0, LOW_END), MemoryRange(HIGH_START, HIGH_START + memory_size - LOW_END)


def memory_below_4g(memory_size: int) -> int:
    """Return the size in bytes of the RAM below 4 GiB of a TD with `memory_size` bytes."""
    return memory_size if memory_size < SPLIT_MEMORY else LOW_END


def subtract_range(ranges: Iterable[MemoryRange], start: int, end: int) -> list[MemoryRange]:
    """Return the ranges, which are disjoint, without the addresses [start, end)."""
    if start >= end:
        return list(ranges)
    pieces = [((low, min(high, start)), (max(low, end), high)) for low, high in ranges]
    return [MemoryRange(*piece) for pair in pieces for piece in pair if piece[0] < piece[1]]


def encode_td_hob(address: int, resources: Iterable[tuple[int, int, int]]) -> bytes:
    """Return the list at `address`, without its end block of 8 bytes.

    Args:
        address: Where QEMU writes the list, in bytes.
        resources: Resource type, and start and end (exclusive) in bytes, of each range, in the
            order of the list.
    """
    listed = b"".join([_resource(kind, start, end) for kind, start, end in resources])
    end = address + 56 + len(listed) + 8
    handoff = _le(1, 2) + _le(56, 2) + _le(0, 4) + _le(9, 4) + _le(0, 4) + bytes(32)
    return handoff + _le(end, 8) + listed


def _resource(kind: int, start: int, end: int) -> bytes:
    head = _le(3, 2) + _le(48, 2) + bytes(20) + _le(kind, 4) + _le(7, 4)
    return head + _le(start, 8) + _le(end - start, 8)


def _le(value: int, size: int) -> bytes:
    return value.to_bytes(size, "little")
