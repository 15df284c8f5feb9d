"""MRTD is the hash of the TDX module's records, in the order of the VMM's calls."""

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator

from attestkit.measure.firmware.tdvf import (
    BFV,
    CFV,
    MR_EXTEND,
    TEMP_MEM,
    Mrtds,
    TdvfSection,
    compute_mrtds,
    read_tdvf_sections,
)
from tests.bounds.counting import lines, peak
from tests.measure.firmware_images import noise, tdvf_image
from tests.runner.cases import every_case

Records = Callable[[bytes, TdvfSection], Iterator[bytes]]


def add(section: TdvfSection, page: int) -> bytes:
    """Return the record of an added page."""
    return struct.pack("<16sQ104x", b"MEM.PAGE.ADD", section.address + page)


def extend(image: bytes, section: TdvfSection, page: int) -> Iterator[bytes]:
    """Yield the records of a page's contents."""
    if section.attributes & MR_EXTEND:
        start = section.data_offset
        memory = image[start : start + section.data_size].ljust(section.size, b"\0")
        for at in range(page, page + 4096, 256):
            yield struct.pack("<16sQ104x", b"MR.EXTEND", section.address + at)
            yield memory[at : at + 256]


def page_by_page(image: bytes, section: TdvfSection) -> Iterator[bytes]:
    """Yield the records of a section, each page's together."""
    for page in range(0, section.size, 4096):
        yield add(section, page)
        yield from extend(image, section, page)


def pages_first(image: bytes, section: TdvfSection) -> Iterator[bytes]:
    """Yield the records of a section, those of added pages first."""
    for page in range(0, section.size, 4096):
        yield add(section, page)
    for page in range(0, section.size, 4096):
        yield from extend(image, section, page)


def hash_records(image: bytes, sections: Iterable[TdvfSection], records: Records) -> bytes:
    """Return the hash of all records, one at a time."""
    digest = hashlib.sha384()
    for section in sections:
        for record in records(image, section):
            digest.update(record)
    return digest.digest()


@every_case("pages", [1, 2, 15, 16, 17, 33])
def test_mrtd_hashes_the_records_in_both_orders(pages: int) -> None:
    """Records that are hashed in batches give the same as one at a time."""
    image = noise("mrtd", pages * 4096)
    sections = [
        TdvfSection(0, len(image), 0xFFF00000, len(image), BFV, MR_EXTEND),
        TdvfSection(0, 4096, 0xFFE00000, 4096, CFV, 0),
        TdvfSection(0, 0, 0x810000, 0x3000, TEMP_MEM, MR_EXTEND),  # pages without data
        TdvfSection(0, 0, (1 << 64) - 4096, 4096, TEMP_MEM, MR_EXTEND),
        TdvfSection(0, 4096, 0x900000, 8192, TEMP_MEM, MR_EXTEND),  # one page of data
    ]
    expected = Mrtds(
        hash_records(image, sections, page_by_page), hash_records(image, sections, pages_first)
    )
    found = compute_mrtds(image, sections)
    assert found == expected
    assert found.of("single_pass") == found.single_pass
    assert found.of("two_pass") == found.two_pass != found.single_pass
    assert [found.order_of(mrtd) for mrtd in found] == ["single_pass", "two_pass"]
    assert found.order_of(bytes(48)) is None


def test_mrtd_of_large_firmware_is_cheap() -> None:
    """A page of code takes few steps, and records are not collected."""
    image = bytes(1 << 20)
    section = TdvfSection(0, len(image), 0xFFF00000, len(image), BFV, MR_EXTEND)
    assert lines(lambda: compute_mrtds(image, [section])) < 60 * 256
    assert peak(lambda: compute_mrtds(image, [section])) < 400_000


def test_mrtd_covers_the_code_only() -> None:
    """MRTD changes with a byte of the code, and not with one of the variables."""
    image = tdvf_image()
    sections = read_tdvf_sections(image)
    code, variables = bytearray(image), bytearray(image)
    code[0x1800] ^= 1
    variables[0x800] ^= 1
    expected = compute_mrtds(image, sections)
    assert compute_mrtds(bytes(variables), sections) == expected
    changed = compute_mrtds(bytes(code), sections)
    assert changed.single_pass != expected.single_pass
    assert changed.two_pass != expected.two_pass
