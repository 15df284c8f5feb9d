"""Expected events of kernels and disks, against the event log of real boots.

Debian's OVMF, systemd-stub and kernel run in QEMU with a software TPM. What TDX extends into RTMR1
and RTMR2 they extend into PCRs, by the same code: PCR 4 and 5 instead of RTMR1, PCR 9, 11 and 12
instead of RTMR2.
"""

from pathlib import Path

import pytest

from attestkit.event_log.tcg import TpmEvent
from attestkit.measure.expected import ExpectedEvent
from attestkit.measure.firmware import read_boot_layout
from attestkit.measure.kernel import (
    DirectBoot,
    FirmwareTraits,
    GptTable,
    UnifiedKernelImage,
    direct_boot_events,
)
from tests.rigs.apt import MissingError
from tests.rigs.kernel.packages import OWN, fetch
from tests.rigs.measured_boot.disk import make_disk, make_uki
from tests.rigs.measured_boot.packages import BootPackages, fetch_packages
from tests.rigs.measured_boot.vm import boot, check_programs, make_initrd, make_microcode

pytestmark = [pytest.mark.rig, pytest.mark.slow]

REGISTERS = {4: 1, 5: 1, 9: 2, 11: 2, 12: 2}  # PCR: RTMR
CONSOLE = "console=ttyS0 quiet loglevel=0 panic=-1"


@pytest.fixture(scope="module")
def packages() -> BootPackages:
    """Return firmware and stub, or skip the tests."""
    try:
        check_programs()
        return fetch_packages()
    except MissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def kernel() -> bytes:
    """Return Debian's kernel, or skip the tests."""
    try:
        return fetch(OWN).image.read_bytes()
    except MissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def initrd() -> bytes:
    """Return an initrd that prints the event log, or skip the tests."""
    try:
        return make_initrd()
    except MissingError as error:
        pytest.skip(str(error))


def check_events(log: list[TpmEvent], expected: list[ExpectedEvent]) -> None:
    """Compare types and digests of the events by register, in order."""
    for register in (1, 2):
        logged = [
            (event.event_type, event.digest("sha384"))
            for event in log
            if REGISTERS.get(event.pcr) == register
            # Every PCR of the firmware has a separator, RTMR1 only one.
            and (event.pcr, event.event_type) != (5, 4)
        ]
        ours = [event for event in expected if event.register == register]
        assert [
            event.name for event in ours if (event.event_type, event.digest) not in logged
        ] == []
        assert logged == [(event.event_type, event.digest) for event in ours]


def traits(packages: BootPackages) -> FirmwareTraits:
    """Return the traits that are found in the firmware."""
    layout = read_boot_layout(packages.code.read_bytes())
    assert layout.separator_in_rtmr1
    return FirmwareTraits(named_blobs=layout.named_blobs, initrd_first=layout.initrd_first)


def test_direct_boot_has_the_expected_events(
    packages: BootPackages, kernel: bytes, initrd: bytes, tmp_path: Path
) -> None:
    """Kernel, load options and initrd of QEMU's -kernel are measured as expected."""
    paths = tmp_path / "kernel", tmp_path / "initrd"
    for path, content in zip(paths, (kernel, initrd), strict=True):
        path.write_bytes(content)
    cmdline = f"{CONSOLE} rig=1"
    options = ["-kernel", str(paths[0]), "-initrd", str(paths[1]), "-append", cmdline]
    log = boot(packages, tmp_path, options)
    # The firmware takes the unchanged kernel, which QEMU offers from 10.0 on.
    expected = direct_boot_events(
        DirectBoot(kernel, initrd, cmdline), traits(packages), qemu=(10, 0), memory_size=2 << 30
    )
    check_events(log, expected)


def test_unified_kernel_image_on_a_disk_has_the_expected_events(
    packages: BootPackages, kernel: bytes, initrd: bytes, tmp_path: Path
) -> None:
    """Partition table, image, sections, and the initrd that the stub extends are as expected."""
    sections = {
        ".cmdline": f" {CONSOLE}\trig=2\n".encode(),
        ".osrel": b"ID=rig\nVERSION_ID=1\n",
        ".uname": b"6",
        ".linux": kernel,
        ".initrd": initrd + bytes(3),
        ".pcrpkey": b"public key",
        ".pcrsig": b"{}",
    }
    disk = make_disk(make_uki(packages.stub, sections))
    (tmp_path / "disk").write_bytes(disk)
    options = ["-drive", f"if=none,id=disk,format=raw,file={tmp_path / 'disk'}"]
    log = boot(packages, tmp_path, [*options, "-device", "virtio-blk-pci,drive=disk"])
    image = UnifiedKernelImage.parse(make_uki(packages.stub, sections))
    expected = image.rtmr1_events(GptTable.parse(disk), separator=True)
    check_events(log, [*expected, *image.rtmr2_events().with_tpm_support])


def test_unified_kernel_image_with_passed_command_line_has_the_expected_events(
    packages: BootPackages, kernel: bytes, initrd: bytes, tmp_path: Path
) -> None:
    """Microcode, the first profile and a passed command line are measured as expected."""
    sections = {
        ".osrel": b"ID=rig\n",
        ".linux": kernel,
        ".initrd": initrd,
        ".ucode": make_microcode() + bytes(5),
        ".profile": b"ID=main\n",
        ".cmdline": b"replaced",
    }
    data = make_uki(packages.stub, sections)
    (tmp_path / "uki").write_bytes(data)
    passed = f" {CONSOLE}  rig=3"
    log = boot(packages, tmp_path, ["-kernel", str(tmp_path / "uki"), "-append", passed])
    image = UnifiedKernelImage.parse(data)
    expected = image.rtmr1_events(None, separator=True)
    check_events(log, [*expected, *image.rtmr2_events(passed).with_tpm_support])
