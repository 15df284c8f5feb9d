"""TDX metadata of a firmware image, and the MRTD of the memory that it describes.

Intel TDX Virtual Firmware Design Guide, "TDVF descriptor", with the checks of QEMU and some more:
an image that passes has the layout from which MRTD and RTMR0 can be computed.

The TDX module hashes a record for each page that the VMM adds, and for each 256 bytes that the VMM
has it measure. The order is that of the VMM's calls (Intel TDX Module Base Architecture, 12.1).
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final, Literal, NamedTuple
from uuid import UUID

from attestkit._outcomes.reasons import FormatReason
from attestkit.errors import FormatError
from attestkit.measure.firmware.guid_table import TDX_METADATA, read_end_offset, read_guid_table

BFV: Final = 0
"""Boot firmware volume: code, whose contents are in MRTD."""
CFV: Final = 1
"""Configuration firmware volume: UEFI variables, measured into RTMR0."""
TD_HOB: Final = 2
"""Memory for the TD HOB."""
TEMP_MEM: Final = 3
"""Memory that the firmware uses before it accepts the rest."""

MR_EXTEND: Final = 1
"""Attribute: the contents of the pages are in MRTD."""

PAGE: Final = 4096

_HEAD: Final = struct.Struct("<4sIII")
_SECTION: Final = struct.Struct("<IIQQII")
_MAX_SECTIONS: Final = 64
_MAX_PAGES: Final = 65_536  # 256 MiB; OVMF has 1,053
_NVRAM_VOLUME: Final = UUID("fff12b8d-7696-4c8b-a985-2747075b4f50").bytes_le
_NAMES: Final = ("BFV", "CFV", "TD HOB", "TEMP_MEM")


class TdvfSection(NamedTuple):
    """A section of the metadata; offsets, addresses and sizes in bytes.

    Attributes:
        data_offset: Offset of its data in the image.
        data_size: Size of its data in the image; 0 without data.
        address: Guest physical address.
        size: Size in memory.
        kind: `BFV`, `CFV`, `TD_HOB` or `TEMP_MEM`.
        attributes: `MR_EXTEND`, or 0.
    """

    data_offset: int  # in the image
    data_size: int
    address: int  # guest physical
    size: int  # in memory
    kind: int
    attributes: int

    @property
    def end(self) -> int:
        """Address after the section."""
        return self.address + self.size


def read_tdvf_sections(image: bytes) -> tuple[TdvfSection, ...]:
    """Return the sections of a complete firmware image, in the order in which a VMM adds them.

    They are in the TDX metadata of the image.

    Raises:
        FormatError: If the image has no TDX metadata, they are malformed, or the image is only the
            code part (`OVMF_CODE.fd`) of the one that they describe.
    """
    entry = read_guid_table(image).get(TDX_METADATA)
    if entry is None:
        message = "firmware: no TDX metadata in the GUID table; not a firmware for TDX"
        raise FormatError(message, reason="unrecognized")
    at = read_end_offset(image, entry, "TDX metadata")
    sections = []
    for number in range(_read_count(image, at)):
        offset = at + _HEAD.size + number * _SECTION.size
        section = TdvfSection(*_SECTION.unpack_from(image, offset))
        _check_section(section, len(image), offset)
        sections.append(section)
    _check_all(image, sections, at)
    return tuple(sections)


def find_section(sections: Iterable[TdvfSection], kind: int) -> TdvfSection:
    """Return the only section whose type is `kind`, such as `TD_HOB`.

    Raises:
        FormatError: If the section is missing, or repeated.
    """
    found = [section for section in sections if section.kind == kind]
    if len(found) != 1:
        message = f"firmware: TDX metadata: must have one section {_NAMES[kind]}, not {len(found)}"
        raise FormatError(message, reason="duplicate" if found else "missing")
    return found[0]


def section_data(image: bytes, section: TdvfSection) -> bytes:
    """Return the part of the image that is loaded into a section."""
    return image[section.data_offset : section.data_offset + section.data_size]


def _read_count(image: bytes, at: int) -> int:
    """Check the head of the descriptor at offset `at`, and return its number of sections."""
    if at + _HEAD.size > len(image):
        raise _error("header truncated", "truncated", len(image))
    signature, length, version, count = _HEAD.unpack_from(image, at)
    if signature != b"TDVF":
        raise _error("signature must be TDVF", "unrecognized", at)
    if version != 1:
        raise _error(f"version must be 1, not {version}", "unsupported_version", at + 8)
    if length != _HEAD.size + count * _SECTION.size:
        raise _error(f"{length} bytes, not 16 + 32 * {count} sections", "wrong_size", at + 4)
    if at + length > len(image):
        raise _error("truncated", "truncated", len(image))
    if count < 2:
        raise _error(f"must have at least 2 sections, not {count}", "missing", at + 12)
    if count > _MAX_SECTIONS:
        raise _error(f"{count} sections, at most {_MAX_SECTIONS}", "too_many", at + 12)
    return int(count)


def _check_section(section: TdvfSection, image_size: int, at: int) -> None:
    """Raise FormatError unless a section is valid for an image of `image_size` bytes.

    `at` is the offset of its entry in the image, for errors.
    """
    if section.kind > TEMP_MEM:
        raise _error(f"section of unsupported type {section.kind}", "unsupported", at + 24)
    what = f"section {_NAMES[section.kind]}"
    if section.attributes > MR_EXTEND:
        problem = f"{what}: unsupported attributes {section.attributes:#x}"
        raise _error(problem, "unsupported", at + 28)
    if section.address % PAGE or section.end > 1 << 64:
        raise _error(
            f"{what}: address {section.address:#x}: must be a page address below 2**64",
            "wrong_value",
            at + 8,
        )
    if section.size % PAGE or not section.size:
        raise _error(
            f"{what}: {section.size} bytes, must be one or more pages of 4096",
            "wrong_value",
            at + 16,
        )
    expected = section.size if section.kind in (BFV, CFV) else 0
    if section.data_size != expected:
        problem = f"{what}: {section.data_size} bytes of data, must be {expected}"
        raise _error(problem, "wrong_size", at + 4)
    if section.data_offset + section.data_size > image_size:
        raise _outside(f"{what} ends outside of the image", at)


def _check_all(image: bytes, sections: list[TdvfSection], at: int) -> None:
    """Raise FormatError unless the sections fit together and fit the whole firmware image.

    `at` is the offset of the descriptor in the image, for errors.
    """
    if sum(section.size for section in sections) > _MAX_PAGES * PAGE:
        raise _error(f"sections of over {_MAX_PAGES} pages of memory", "too_many", at)
    code, variables, _ = [find_section(sections, kind) for kind in (BFV, CFV, TD_HOB)]
    if code.data_offset + code.data_size != len(image):
        raise _outside("section BFV does not end at the end of the image", at)
    head = section_data(image, variables)[:44]
    if head[40:44] != b"_FVH" or head[16:32] != _NVRAM_VOLUME:
        raise _outside("section CFV is not a volume of variables", variables.data_offset)
    ordered = sorted(sections, key=lambda section: section.address)
    if any(one.end > other.address for one, other in pairwise(ordered)):
        raise _error("sections overlap in memory", "inconsistent", at)


def _outside(problem: str, offset: int) -> FormatError:
    hint = "; use a whole image such as OVMF.fd, or OVMF_VARS.fd followed by OVMF_CODE.fd"
    return _error(problem + hint, "inconsistent", offset)


def _error(problem: str, reason: FormatReason, offset: int) -> FormatError:
    return FormatError(f"firmware: TDX metadata: {problem}", reason=reason, offset=offset)


PageOrder = Literal["single_pass", "two_pass"]
"""`single_pass`: each page is added and extended before the next one (Linux 6.16 and later, and the
TDX kernels of the time of QEMU 9). `two_pass`: all pages of a section are added, then all are
extended (TDX kernels of the time of QEMU 8)."""

_CHUNK: Final = 256
_ADDED: Final = struct.Struct("<16sQ104x")
_EXTENDED: Final = struct.Struct("<" + f"16sQ104x{_CHUNK}s" * (PAGE // _CHUNK))
_CHUNKS: Final = struct.Struct(f"{_CHUNK}s" * (PAGE // _CHUNK))
_BATCH: Final = 16  # pages whose records are hashed at once


class Mrtds(NamedTuple):
    """MRTD, 48 bytes, for each order in which a VMM adds and measures pages; see `PageOrder`."""

    single_pass: bytes
    two_pass: bytes

    def of(self, order: PageOrder) -> bytes:
        """Return the MRTD for an order in which the VMM adds and measures pages."""
        return self.single_pass if order == "single_pass" else self.two_pass

    def order_of(self, mrtd: bytes) -> PageOrder | None:
        """Return the `PageOrder` for which the MRTD equals `mrtd`; None if neither does."""
        if mrtd == self.single_pass:
            return "single_pass"
        return "two_pass" if mrtd == self.two_pass else None


def compute_mrtds(image: bytes, sections: Sequence[TdvfSection]) -> Mrtds:
    """Return the MRTD of a TD with this firmware, for both values of `PageOrder`.

    The order of adding and measuring pages is that of the host's kernel; only a quote reveals it.

    Args:
        image: Firmware.
        sections: Its sections, from `read_tdvf_sections`.
    """
    single_pass, two_pass = hashlib.sha384(), hashlib.sha384()
    for section in sections:
        added = [
            _ADDED.pack(b"MEM.PAGE.ADD", address)
            for address in range(section.address, section.end, PAGE)
        ]
        two_pass.update(b"".join(added))
        if not section.attributes & MR_EXTEND:
            single_pass.update(b"".join(added))
            continue
        extended = _extension_records(image, section)
        for at in range(0, len(added), _BATCH):
            pages = [next(extended) for _ in added[at : at + _BATCH]]
            two_pass.update(b"".join(pages))
            pairs = zip(added[at : at + _BATCH], pages, strict=True)
            single_pass.update(b"".join([record for pair in pairs for record in pair]))
    return Mrtds(single_pass.digest(), two_pass.digest())


def _extension_records(image: bytes, section: TdvfSection) -> Iterator[bytes]:
    """Yield for each page of a section the records of its contents: 16 of 384 bytes.

    `image` has the section's data; memory without data is zero.
    """
    zeros = (bytes(_CHUNK),) * (PAGE // _CHUNK)
    addresses = tuple(range(0, PAGE, _CHUNK))
    for page in range(0, section.size, PAGE):
        chunks = zeros
        if page < section.data_size:
            chunks = _CHUNKS.unpack_from(image, section.data_offset + page)
        start = section.address + page
        fields: list[bytes | int] = []
        for offset, chunk in zip(addresses, chunks, strict=True):
            fields += (b"MR.EXTEND", start + offset, chunk)
        yield _EXTENDED.pack(*fields)
