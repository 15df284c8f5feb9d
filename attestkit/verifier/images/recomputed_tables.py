"""Digests of the ACPI tables that QEMU makes for a VM of a given shape.

They are those of the tables that ship with attestkit: no QEMU is run for evidence.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

from attestkit.errors import FormatError, UsageError
from attestkit.measure.acpi import find_tables
from attestkit.measure.machine_shape import MachineShape

AcpiDigests: TypeAlias = tuple[bytes, bytes, bytes]
"""SHA-384 of loader script, RSDP and tables, in the order of measurement."""

_MOST_SHAPES: Final = 256  # whose digests stay in memory


class RecomputedTables(NamedTuple):
    """ACPI tables of a VM's shape.

    Attributes:
        digests: Digests with and without a root disk, which the shape in evidence does not state.
            Empty if no source has tables of the shape.
        conclusive: Whether a TD of the shape has these tables and no others: those of a machine
            with a root disk are of QEMU's own release line, and guests were seen to measure those
            of that line.
    """

    digests: tuple[AcpiDigests, ...]
    conclusive: bool


UNKNOWN: Final = RecomputedTables((), conclusive=False)


def recompute_tables(vm_config: Mapping[str, Any]) -> RecomputedTables:
    """Return the ACPI tables of the shape that a VM configuration states.

    Args:
        vm_config: `fields` of a `VmConfig`, which are the host's word.
    """
    try:
        shapes = [MachineShape.from_vm_config(vm_config, root_disk=disk) for disk in (True, False)]
        found = [_digests_of(shape) for shape in shapes]
    except (FormatError, UsageError):  # a shape whose tables are not known
        return UNKNOWN
    with_disk, without_disk = found
    digests = [each[0] for each in found if each is not None]
    conclusive = with_disk is not None and with_disk[1] and without_disk is not None
    return RecomputedTables(tuple(digests), conclusive=conclusive)


@lru_cache(_MOST_SHAPES)
def _digests_of(shape: MachineShape) -> tuple[AcpiDigests, bool] | None:
    found = find_tables(shape)
    if found is None:
        return None
    return found.files.digests(), found.exact and found.basis != "source"
