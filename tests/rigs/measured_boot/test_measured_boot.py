"""Expected events of kernels and disks, against the event log of real boots.

Debian's OVMF, systemd-stub and kernel run in QEMU with a software TPM. The events of
RTMRs are in PCRs here, extended by the same code: those of RTMR0 in PCR 1 and 7, of RTMR1 in PCR 4
and 5, of RTMR2 in PCR 9, 11 and 12. Only a TD measures its memory list, the volume of
variables, and items of fw_cfg.
"""

from collections.abc import Iterable, Iterator
from hashlib import sha384
from pathlib import Path

import pytest

from attestkit.event_log.tcg import TpmEvent
from attestkit.measure import tdx
from attestkit.measure.acpi import read_version
from attestkit.measure.expected import ExpectedEvent
from attestkit.measure.firmware.tdx_firmware import read_boot_layout
from attestkit.measure.kernel.disk_boot import GptTable
from attestkit.measure.kernel.unified_kernel_image import UnifiedKernelImage
from tests.rigs.apt import MissingError
from tests.rigs.kernel.packages import OWN, fetch
from tests.rigs.measured_boot.disk import make_disk, make_uki
from tests.rigs.measured_boot.packages import (
    RECENT_STRINGS,
    BootPackages,
    fetch_packages,
    fetch_recent_firmware,
)
from tests.rigs.measured_boot.vm import (
    MEMORY,
    QEMU,
    boot,
    check_programs,
    make_initrd,
    make_microcode,
    read_tables,
)

pytestmark = [pytest.mark.rig, pytest.mark.slow]

REGISTERS = {1: 0, 7: 0, 4: 1, 5: 1, 9: 2, 11: 2, 12: 2}  # PCR: RTMR
ONLY_IN_TDS = ("td-hob", "cfv", "fw_cfg ")
SEPARATOR = 4
# A machine with a TPM has one blob more, for the log of older firmware; it is empty.
TPM_LOG = ExpectedEvent(0, "acpi-tpm-log", 0xA, sha384(bytes(65536)).digest(), "source")
CONSOLE = "console=ttyS0 quiet loglevel=0 panic=-1"


@pytest.fixture(scope="module")
def packages() -> BootPackages:
    """Return firmware and stub, or skip the tests."""
    try:
        check_programs()
        found = fetch_packages()
    except MissingError as error:
        pytest.skip(str(error))
    if not read_boot_layout(found.code.read_bytes()).named_blobs:
        pytest.skip("OVMF of this Debian release is older than edk2-stable202502")
    return found


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


def check_events(
    log: list[TpmEvent], expected: Iterable[ExpectedEvent], registers: Iterable[int] = (1, 2)
) -> None:
    """Compare types and digests of the events by register, in order."""
    events = [event for event in expected if not event.name.startswith(ONLY_IN_TDS)]
    for register in registers:
        logged = [
            (event.event_type, event.digest("sha384"))
            for event in log
            if REGISTERS.get(event.pcr) == register
            # Every PCR of the firmware has a separator, an RTMR only one.
            and (event.pcr, event.event_type) not in {(1, SEPARATOR), (5, SEPARATOR)}
        ]
        ours = [event for event in events if event.register == register]
        assert [
            event.name for event in ours if (event.event_type, event.digest) not in logged
        ] == []
        assert logged == [(event.event_type, event.digest) for event in ours]


def with_tpm_log(events: Iterable[ExpectedEvent]) -> Iterator[ExpectedEvent]:
    """Yield the events of a machine with a TPM; its blob is allocated before the tables."""
    for event in events:
        if event.name == "acpi-tables":
            yield TPM_LOG
        yield event


def check_direct_boot(
    firmware: BootPackages,
    boot_files: tuple[bytes, bytes],
    folder: Path,
) -> None:
    """Boot kernel and initrd by QEMU's -kernel, and compare the log."""
    kernel, initrd = boot_files
    paths = folder / "kernel", folder / "initrd"
    for path, content in zip(paths, boot_files, strict=True):
        path.write_bytes(content)
    cmdline = f"{CONSOLE} rig=1"
    options = ["-kernel", str(paths[0]), "-initrd", str(paths[1]), "-append", cmdline]
    (folder / "boot").mkdir()
    log = boot(firmware, folder / "boot", options)
    (folder / "tables").mkdir()
    machine = read_tables(folder / "tables")
    expected = tdx(
        firmware=firmware.variables.read_bytes() + firmware.code.read_bytes(),
        kernel=kernel,
        initrd=initrd,
        cmdline=cmdline,
        cpu_count=1,
        memory_size=MEMORY,
        qemu_version=str(read_version(QEMU)),
        acpi=machine.acpi,
        smbios=machine.smbios_tables,
    )
    assert not expected.other_events
    check_events(log, with_tpm_log(expected.events), registers=(0, 1, 2))


def test_direct_boot_has_the_expected_events(
    packages: BootPackages, kernel: bytes, initrd: bytes, tmp_path: Path
) -> None:
    """Variables, ACPI tables, boot options, kernel and initrd are measured as expected."""
    check_direct_boot(packages, (kernel, initrd), tmp_path)


def test_direct_boot_by_recent_firmware_has_the_expected_events(
    packages: BootPackages, kernel: bytes, initrd: bytes, tmp_path: Path
) -> None:
    """Firmware of edk2-stable202608 measures SMBIOS and two boot options as expected."""
    del packages  # the programs are there
    try:
        firmware = fetch_recent_firmware()
    except MissingError as error:
        pytest.skip(str(error))
    layout = read_boot_layout(firmware.code.read_bytes())
    assert layout.smbios
    assert layout.initrd_first
    assert layout.boot_options == "menu_and_setup"
    assert layout.bios_strings == RECENT_STRINGS
    check_direct_boot(firmware, (kernel, initrd), tmp_path)


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
    check_events(log, [*expected, *image.rtmr2_events()[0]])


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
    check_events(log, [*expected, *image.rtmr2_events(passed)[0]])
