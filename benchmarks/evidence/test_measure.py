"""Expected measurements: MRTD of a large firmware, all registers of a direct boot, launch digests.

ACPI tables are those of the package, as when a cache has them, or of a QEMU that runs for them.
"""

import atexit
import importlib
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import mkdtemp
from time import perf_counter
from typing import Final

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from attestkit.measure import MachineShape, snp, tdx
from attestkit.measure.acpi import find_tables
from attestkit.measure.expected import ExpectedMeasurements
from attestkit.measure.firmware.tdvf import Mrtds, compute_mrtds
from benchmarks.cases import OURS, Case, Samples
from benchmarks.racing import Entry, Ledger, each, play
from benchmarks.results import Result
from benchmarks.timing import Call
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
from tests.measure.sev_snp.images import sev_image

ROUNDS: Final = 15
_MIB: Final = 1 << 20
_QEMU: Final = "qemu-system-x86_64"
_CMDLINE: Final = "console=ttyS0"
_VCPUS: Final = 8
_CPU_TYPE: Final = "EPYC-v4"
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


def _direct_boot(
    cpu_count: int = 2, memory_size: int = 2 << 30, qemu: str | None = None
) -> ExpectedMeasurements:
    kernel, initrd = _boot_files()
    shape = MachineShape(cpu_count=cpu_count, memory_size=memory_size, qemu_version="10.0.13")
    return tdx(
        firmware=_firmware(4 * _MIB),
        kernel=kernel,
        initrd=initrd,
        cmdline=_CMDLINE,
        shape=shape,
        acpi=find_tables(shape, qemu=qemu),
    )


def _large_boot() -> ExpectedMeasurements:
    return _direct_boot(64, 2 << 40, _QEMU)


CASES: Final[dict[str, tuple[str, Callable[[], object]]]] = {
    "mrtd": ("MRTD of 16 MiB, both orders of pages", _mrtds),
    "measure": ("all registers of a direct boot, tables at hand", _direct_boot),
    "measure-qemu": ("the same of 64 vCPUs and 2 TiB, with a run of QEMU", _large_boot),
}


@pytest.mark.parametrize("row", CASES)
def test_measure(row: str, ledger: Ledger, *, quick: bool) -> None:
    """MRTD alone, and all registers."""
    what, call = CASES[row]
    if call is _large_boot and shutil.which(_QEMU) is None:
        pytest.skip("QEMU is not installed")
    assert call()  # has the files made, and the tables read
    if not quick:
        seconds = median([_took(call) for _ in range(ROUNDS)])
        ledger.add(Result(row, what, "s", {OURS: seconds}, {}, seconds * 1000))


def _took(call: Callable[[], object]) -> float:
    begin = perf_counter()
    call()
    return perf_counter() - begin


@cache
def _snp_folder() -> Path:
    """Return a folder with a firmware of 4 MiB, a kernel and an initrd."""
    folder = Path(mkdtemp(prefix="attestkit-measure-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    kernel, initrd = _boot_files()
    files = {"firmware": sev_image(size=4 * _MIB), "kernel": kernel, "initrd": initrd}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def _our_digest(_: Samples) -> Call:
    def measure(folder: Path) -> bytes | None:
        firmware, kernel, initrd = (
            (folder / name).read_bytes() for name in ("firmware", "kernel", "initrd")
        )
        return snp(
            firmware=firmware,
            vcpus=_VCPUS,
            cpu_type=_CPU_TYPE,
            kernel=kernel,
            initrd=initrd,
            cmdline=_CMDLINE,
        ).launch_digest

    return Call(measure, _snp_folder())


def _their_digest(_: Samples) -> Call:
    guest = importlib.import_module("sevsnpmeasure.guest")
    mode = importlib.import_module("sevsnpmeasure.sev_mode").SevMode.SEV_SNP
    signature = importlib.import_module("sevsnpmeasure.vcpu_types").CPU_SIGS[_CPU_TYPE]

    def measure(folder: Path) -> object:
        firmware, kernel, initrd = (str(folder / name) for name in ("firmware", "kernel", "initrd"))
        return guest.calc_launch_digest(
            mode, _VCPUS, signature, firmware, kernel, initrd, _CMDLINE, 1
        )

    return Call(measure, _snp_folder())


SNP: Final = Case(
    "measure-snp",
    "launch digest of an SEV-SNP guest with 8 vCPUs, from files",
    {OURS: _our_digest, "sev-snp-measure": _their_digest},
    bytes,
)


@each([SNP])
def test_snp(benchmark: BenchmarkFixture, ledger: Ledger, entry: Entry) -> None:
    """Launch digest of firmware, kernel and initrd."""
    play(benchmark, ledger, entry)
