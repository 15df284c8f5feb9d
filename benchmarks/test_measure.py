"""Expected measurements: MRTD of a large firmware, and all registers of a direct boot.

The tables of ACPI are those of the package, as when a cache has them.
"""

from collections.abc import Callable
from functools import cache
from statistics import median
from time import perf_counter
from typing import Final

import pytest

from attestkit.measure import MachineShape, tdx
from attestkit.measure.acpi import find_tables
from attestkit.measure.expected import ExpectedMeasurements
from attestkit.measure.firmware import Mrtds, compute_mrtds
from benchmarks.cases import OURS
from benchmarks.racing import Ledger
from benchmarks.results import Result
from tests.measure.firmware_images import (
    TD_TCG2,
    UI_APP,
    code_volume,
    noise,
    sections,
    variable_volume,
    with_metadata,
)
from tests.measure.kernel.samples import linux_kernel

ROUNDS: Final = 15
_MIB: Final = 1 << 20
_TEXTS: Final = (b"ACPI DATA", b"etc/boot/", b" initrd=initrd")


@cache
def _firmware(size: int) -> bytes:
    """Return a firmware image whose boot volume has this size and no zeros."""
    flash = variable_volume(b"") + code_volume((TD_TCG2, UI_APP), _TEXTS)
    return with_metadata(flash + noise("boot volume", size - len(flash)), sections(size))


@cache
def _boot_files() -> tuple[bytes, bytes]:
    """Return a kernel of 12 MiB and an initrd of 32 MiB."""
    return linux_kernel() + noise("kernel", 12 * _MIB), noise("initrd", 32 * _MIB)


def _mrtds() -> Mrtds:
    return compute_mrtds(_firmware(16 * _MIB), sections(16 * _MIB))


def _direct_boot() -> ExpectedMeasurements:
    kernel, initrd = _boot_files()
    shape = MachineShape(cpu_count=2, memory_size=2 << 30, qemu_version="10.0.13")
    return tdx(
        firmware=_firmware(4 * _MIB),
        kernel=kernel,
        initrd=initrd,
        cmdline="console=ttyS0",
        shape=shape,
        acpi=find_tables(shape),
    )


CASES: Final = {
    "mrtd": ("MRTD of 16 MiB, both orders of pages", _mrtds),
    "measure": ("all registers of a direct boot, tables at hand", _direct_boot),
}


@pytest.mark.parametrize("row", CASES)
def test_measure(row: str, ledger: Ledger, *, quick: bool) -> None:
    """MRTD alone, and everything."""
    what, call = CASES[row]
    assert call()  # has the files made, and the tables read
    if not quick:
        seconds = median([_took(call) for _ in range(ROUNDS)])
        ledger.add(Result(row, what, "s", {OURS: seconds}, {}, seconds * 1000))


def _took(call: Callable[[], object]) -> float:
    begin = perf_counter()
    call()
    return perf_counter() - begin
