"""The TD HOB lists the memory, with the parts that the firmware accepts."""

import struct

from attestkit._crypto.hashes import sha384
from attestkit.attestation.launch.td_hob import MemoryRange, memory_ranges
from attestkit.attestation.launch.tdx import td_hob_digest
from attestkit.errors import FormatError, UsageError
from attestkit.measure.firmware.tdvf import TEMP_MEM, TdvfSection
from attestkit.measure.rtmr0.rtmr0_events import build_td_hob
from tests.measure.firmware_images import sections
from tests.raising import raises
from tests.runner.cases import every_case

GIB = 1 << 30
WITNESS = bytes.fromhex("80100904000609020b021010")  # the same sections, as dstack describes them


def resources(hob: bytes) -> list[tuple[int, int, int]]:
    """Return type, start and end of each range."""
    assert (len(hob) - 56) % 48 == 0
    found = [struct.unpack_from("<24xI4xQQ", hob, at) for at in range(56, len(hob), 48)]
    return [(kind, start, start + size) for kind, start, size in found]


def test_td_hob_lists_accepted_memory() -> None:
    """The firmware's sections without data are accepted, and the rest is not."""
    hob = build_td_hob(sections(), memory_ranges(8 * GIB))
    assert resources(hob) == [
        (7, 0, 0x800000),
        (0, 0x800000, 0x806000),
        (7, 0x806000, 0x809000),
        (0, 0x809000, 0x80B000),
        (0, 0x80B000, 0x80D000),
        (7, 0x80D000, 0x810000),
        (0, 0x810000, 0x820000),
        (7, 0x820000, 2 * GIB),
        (7, 4 * GIB, 10 * GIB),
    ]
    assert struct.unpack_from("<HHIII32xQ", hob) == (1, 56, 0, 9, 0, 0x809000 + len(hob) + 8)


@every_case("memory", [9 << 20, 2 * GIB, 0xB0000000 - 8192, 0xB0000000, 1 << 46])
def test_td_hob_equals_that_of_the_witness(memory: int) -> None:
    """The list from the metadata is the one from the witness in a measurement document."""
    hob = build_td_hob(sections(), memory_ranges(memory))
    assert sha384(hob) == td_hob_digest(WITNESS, memory)


def test_td_hob_of_several_ranges() -> None:
    """Ranges from QEMU's e820 table need not be those of the memory size."""
    memory = [MemoryRange(0x700000, 0x820000), MemoryRange(5 * GIB, 6 * GIB)]
    found = resources(build_td_hob(sections(), memory))
    assert found[0] == (7, 0x700000, 0x800000)
    assert found[-2:] == [(0, 0x810000, 0x820000), (7, 5 * GIB, 6 * GIB)]


@every_case(
    "memory",
    [
        memory_ranges(0x820000 - 8192),
        [MemoryRange(0, 0x815000), MemoryRange(0x815000, GIB)],
        [MemoryRange(0x801000, GIB)],
        [],
    ],
)
def test_td_hob_of_too_little_memory_fails(memory: list[MemoryRange]) -> None:
    """QEMU does not start a TD whose firmware needs memory that is not there."""
    with raises(UsageError, "out_of_range", part="memory_size"):
        build_td_hob(sections(), memory)


def test_td_hob_needs_a_section() -> None:
    """Metadata without a section for the TD HOB are refused."""
    with raises(FormatError, "missing"):
        build_td_hob([TdvfSection(0, 0, 0x1000, 0x1000, TEMP_MEM, 0)], memory_ranges(GIB))
