"""The SMBIOS table: as OVMF publishes it, and as firmware from edk2-stable202505 on measures it.

The measured copy has no values that differ between machines of a model, such as serial numbers
(DMTF DSP0134; TCG PC Client PFP, 3.3.4.1). It still has the processor's CPUID, the memory size and
the name of the machine type.
"""

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from attestkit._argument_checks import require_bytes
from attestkit._outcomes.reasons import FormatReason
from attestkit.errors import FormatError, UsageError
from attestkit.measure.firmware.bios_strings import BiosStrings

_BIOS_INFORMATION, _PROCESSOR, _END_OF_TABLE = 0, 4, 127  # types of structures
_MAX_TABLE: Final = 1 << 20  # bytes; 64 vCPUs have about 4,000
_END: Final = bytes.fromhex("7f04fffe0000")
_BIOS_HEAD: Final = struct.Struct("<BBHBBHBBQBBBBBBH")

# Fields that are cleared by type: offset and size, or offset of the number of a string.
_CLEARED: Final[dict[int, tuple[tuple[int, int], ...]]] = {
    1: ((0x08, 16), (0x18, 1)),
    4: ((0x23, 1), (0x24, 1), (0x25, 1), (0x2A, 2), (0x2C, 2), (0x2E, 2), (0x11, 1), (0x16, 2)),
    22: ((0x10, 2), (0x12, 2)),
    23: ((0x07, 2),),
    27: ((0x0C, 2),),
}
_CLEARED_STRINGS: Final[dict[int, tuple[int, ...]]] = {
    1: (0x07,),
    2: (0x07, 0x0A),
    3: (0x07, 0x08),
    4: (0x20, 0x21, 0x22),
    17: (0x18, 0x19, 0x1A),
    22: (0x07,),
    39: (0x08, 0x09, 0x0A),
}
_CLEARED_WHOLE: Final = frozenset({11, 15, 18, 31, 33, *range(128, 256)})


class _Structure(NamedTuple):
    """A structure: the formatted area, whose first byte is the type, and the strings."""

    area: bytes
    strings: list[bytes]

    def encode(self) -> bytes:
        if not self.strings:
            return self.area + b"\0\0"
        return self.area + b"".join([text + b"\0" for text in self.strings]) + b"\0"


def publish_smbios(table: bytes, firmware: BiosStrings | None = None) -> bytes:
    """Return the SMBIOS table that OVMF publishes for QEMU's table.

    Args:
        table: File `etc/smbios/smbios-tables` of QEMU.
        firmware: Strings of the firmware, which it adds if QEMU has no BIOS information; by
            default those of a build of unmodified edk2.

    Raises:
        FormatError: If the table is malformed, or over 1 MiB.
        UsageError: If a string of `firmware` is over 64 characters, not ASCII, or contains NUL.
    """
    found = [
        structure for structure in _read_structures(table) if structure.area[0] != _END_OF_TABLE
    ]
    if needs_bios_strings(table):
        strings = (firmware or BiosStrings()).published()
        fields = (1, 2, 0xE800, 3, 0, 8, 0, 0x1C, 0, 0, 0xFF, 0xFF, 0)
        area = _BIOS_HEAD.pack(_BIOS_INFORMATION, _BIOS_HEAD.size, 0, *fields)
        found.append(_Structure(area, strings))
    return b"".join([structure.encode() for structure in found]) + _END


def needs_bios_strings(table: bytes) -> bool:
    """Return whether QEMU's SMBIOS table lacks BIOS information, so that the firmware adds its own.

    Raises:
        FormatError: If the table is malformed, or over 1 MiB.
    """
    return all(structure.area[0] != _BIOS_INFORMATION for structure in _read_structures(table))


def set_processor_id(table: bytes, eax: int, edx: int) -> bytes:
    """Return a copy of a table with this processor id in each processor structure (type 4).

    The id is measured. With `-cpu host` it is that of the host's CPU, so a table that was made on a
    different host has a different id. Sapphire Rapids has 0x806F8 as `eax`, Emerald Rapids
    0xC06F2; `edx` depends on CPU flags too, such as 0x1FA9FBFF.

    Args:
        table: SMBIOS table of QEMU, or as OVMF publishes it.
        eax: Register EAX of CPUID leaf 1: family, model and stepping.
        edx: Register EDX of the same leaf: features.

    Raises:
        FormatError: If the table is malformed, or over 1 MiB.
        UsageError: If a register is not 0 to 2**32 - 1.
    """
    if not 0 <= eax < 1 << 32 or not 0 <= edx < 1 << 32:
        raise UsageError("processor id: EAX, EDX must be 0 to 2**32 - 1", reason="out_of_range")
    processor_id = struct.pack("<II", eax, edx)
    found = []
    for area, strings in _read_structures(table):
        is_processor = area[0] == _PROCESSOR and len(area) >= 16
        changed = area[:8] + processor_id + area[16:] if is_processor else area
        found.append(_Structure(changed, strings).encode())
    return b"".join(found)


def filter_smbios(table: bytes) -> bytes:
    """Return the copy of a published table that firmware measures, without machine-specific values.

    Values such as serial numbers are cleared; a table that is such a copy already is unchanged.

    Raises:
        FormatError: If the table is malformed, or over 1 MiB.
    """
    return b"".join([_filter_structure(*found).encode() for found in _read_structures(table)])


def _filter_structure(area: bytes, strings: list[bytes]) -> _Structure:
    kind, cleared = area[0], bytearray(area)
    if kind in _CLEARED_WHOLE:
        return _Structure(area[:4] + bytes(len(area) - 4), strings)
    for offset in _CLEARED_STRINGS.get(kind, ()):
        if offset < len(area):
            number = area[offset]
            if 0 < number <= len(strings):
                strings[number - 1] = b" " * len(strings[number - 1])
            cleared[offset] = 0
    for offset, size in _CLEARED.get(kind, ()):
        if offset + size <= len(area):
            cleared[offset : offset + size] = bytes(size)
    return _Structure(bytes(cleared), strings)


def _read_structures(table: bytes) -> Iterator[_Structure]:
    """Yield the structures up to and including the end-of-table structure (type 127).

    All are yielded if the table has none.

    Raises:
        FormatError: If the table is over `_MAX_TABLE` bytes, or a structure is truncated or has an
            invalid size.
    """
    require_bytes("SMBIOS table", table)
    if len(table) > _MAX_TABLE:
        raise _error(f"{len(table)} bytes exceed the limit of {_MAX_TABLE}", "too_large", 0)
    at = 0
    while at < len(table):
        if at + 4 > len(table):
            raise _error("header of a structure truncated", "truncated", at)
        start = at + table[at + 1]
        if start < at + 4 or start > len(table):
            raise _error(
                f"structure of {table[at + 1]} bytes: under 4, or exceeds the table",
                "wrong_size",
                at,
            )
        end = table.find(b"\0\0", start)
        if end < 0:
            raise _error("strings of a structure truncated", "truncated", at)
        yield _Structure(table[at:start], table[start:end].split(b"\0") if end > start else [])
        if table[at] == _END_OF_TABLE:
            return
        at = end + 2


def _error(problem: str, reason: FormatReason, offset: int) -> FormatError:
    return FormatError(f"SMBIOS table: {problem}", reason=reason, offset=offset)
