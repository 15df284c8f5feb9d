"""The TD HOB of a firmware's metadata: RAM, and the parts of it that the firmware accepts."""

from collections.abc import Iterable, Sequence

from attestkit.attestation.launch.td_hob import (
    ACCEPTED,
    UNACCEPTED,
    MemoryRange,
    encode_td_hob,
    subtract_range,
)
from attestkit.errors import UsageError
from attestkit.measure.firmware.tdvf import TD_HOB, TEMP_MEM, TdvfSection, find_section


def build_td_hob(sections: Sequence[TdvfSection], memory: Iterable[MemoryRange]) -> bytes:
    """Return the TD HOB as the firmware measures it, without its end block.

    Args:
        sections: Sections of the firmware; those without data are accepted memory.
        memory: Ranges of RAM, from `memory_ranges` or QEMU's e820 table.

    Raises:
        FormatError: If there is not one section for the TD HOB.
        UsageError: If a section is not inside of a range of RAM.
    """
    address = find_section(sections, TD_HOB).address
    ranges = list(memory)
    left = ranges
    resources: list[tuple[int, int, int]] = []
    for section in sections:
        if section.kind not in {TD_HOB, TEMP_MEM}:
            continue
        start, end = section.address, section.end
        if not any(low <= start and end <= high for low, high in ranges):
            message = f"memory_size: too small: the firmware uses memory up to {end:#x}"
            raise UsageError(message, reason="out_of_range")
        left = subtract_range(left, start, end)
        resources.append((ACCEPTED, start, end))
    resources += [(UNACCEPTED, start, end) for start, end in left]
    return encode_td_hob(address, sorted(resources, key=lambda resource: resource[1]))
