"""The SEV metadata of a firmware image: pages that the VMM prepares before the guest starts."""

import struct
from collections.abc import Mapping
from typing import Final, NamedTuple
from uuid import UUID

from attestkit._outcomes.reasons import FormatReason
from attestkit.attestation.launch.snp import OvmfSection
from attestkit.errors import FormatError
from attestkit.measure.firmware import guid_table

SEC_MEMORY: Final = 1
SECRETS: Final = 2
CPUID: Final = 3
SVSM_CAA: Final = 4
"""Kind of a section: calling area of an SVSM."""
KERNEL_HASHES: Final = 0x10

_KINDS: Final = frozenset({SEC_MEMORY, SECRETS, CPUID, SVSM_CAA, KERNEL_HASHES})
_HEAD: Final = struct.Struct("<4sIII")
_SECTION: Final = struct.Struct("<III")
_MOST_SECTIONS: Final = 64
_MOST_PAGES: Final = 65_536  # 256 MiB; OVMF has 31
_PAGE: Final = 4096


class SevMetadata(NamedTuple):
    """Metadata of a firmware image for the VMM of an SEV-SNP guest.

    Attributes:
        sections: Ranges of pages that the VMM prepares.
        reset_eip: EIP of all virtual CPUs but the first; None without it.
        hashes_table_gpa: Guest physical address of the table of kernel hashes; None without one.
        svsm_entry: Entry point as an offset in an image of COCONUT-SVSM; None in other images.
    """

    sections: tuple[OvmfSection, ...]
    reset_eip: int | None  # EIP of all virtual CPUs but the first
    hashes_table_gpa: int | None  # address of the table of kernel hashes
    svsm_entry: int | None  # entry point in an image of COCONUT-SVSM, from its start


def read_sev_metadata(image: bytes) -> SevMetadata:
    """Read the metadata of an image of OVMF or COCONUT-SVSM.

    Raises:
        FormatError: If the image has no SEV metadata, or they are malformed or describe over
            256 MiB of memory.
    """
    table = guid_table.read_guid_table(image)
    entry = table.get(guid_table.SEV_METADATA)
    if entry is None:
        message = "firmware: no SEV metadata in the GUID table; not a firmware for SEV-SNP"
        raise FormatError(message, reason="unrecognized")
    at = guid_table.read_end_offset(image, entry, "SEV metadata")
    return SevMetadata(
        _read_sections(image, at),
        _first_number(table, guid_table.SEV_ES_RESET, "reset vector"),
        _first_number(table, guid_table.SEV_HASH_TABLE, "table of kernel hashes"),
        _first_number(table, guid_table.SVSM_INFO, "entry point"),
    )


def _read_sections(image: bytes, at: int) -> tuple[OvmfSection, ...]:
    if at + _HEAD.size > len(image):
        raise _error("truncated", "truncated", len(image))
    signature, _, version, count = _HEAD.unpack_from(image, at)
    if signature != b"ASEV":
        raise _error("signature must be ASEV", "unrecognized", at)
    if version != 1:
        raise _error(f"version must be 1, not {version}", "unsupported_version", at + 8)
    if count > _MOST_SECTIONS:
        raise _error(f"{count} sections, at most {_MOST_SECTIONS}", "too_many", at + 12)
    if at + _HEAD.size + count * _SECTION.size > len(image):
        raise _error("truncated", "truncated", len(image))
    sections = []
    for number in range(count):
        offset = at + _HEAD.size + number * _SECTION.size
        section = OvmfSection(*_SECTION.unpack_from(image, offset))
        if section.kind not in _KINDS:
            raise _error(f"section of unknown type {section.kind:#x}", "unsupported", offset + 8)
        if section.gpa % _PAGE:
            raise _error(
                f"section at {section.gpa:#x}: must be at a multiple of 4096",
                "wrong_value",
                offset,
            )
        sections.append(section)
    if sum(section.pages for section in sections) > _MOST_PAGES:
        raise _error(f"sections of over {_MOST_PAGES} pages", "too_large", at)
    return tuple(sections)


def _first_number(table: Mapping[UUID, bytes], guid: UUID, what: str) -> int | None:
    """Return the first 32 bits of the entry `guid` of a GUID table; None if it is missing or 0.

    `table` has the data of each entry by its GUID; `what` names the entry in errors.
    """
    entry = table.get(guid)
    if entry is None:
        return None
    if len(entry) < 4:
        message = f"firmware: entry of {what}: must have 4 bytes at least, not {len(entry)}"
        raise FormatError(message, reason="wrong_size")
    return int.from_bytes(entry[:4], "little") or None


def _error(problem: str, reason: FormatReason, offset: int) -> FormatError:
    return FormatError(f"firmware: SEV metadata: {problem}", reason=reason, offset=offset)
