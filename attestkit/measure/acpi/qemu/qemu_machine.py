"""Data that QEMU shows a guest's firmware, read from a stopped QEMU."""

import hashlib
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from attestkit._sanitize import shown
from attestkit.errors import BackendError, ConfigError
from attestkit.measure.acpi.acpi_tables import (
    LOADER_NAME,
    RSDP_NAME,
    TABLES_NAME,
    AcpiTables,
    check_tables,
)
from attestkit.measure.acpi.qemu.chipset import (
    DEFAULT_SETUP,
    ChipsetSetup,
    check_setup,
    set_up_chipset,
)
from attestkit.measure.acpi.qemu.fw_cfg import (
    BOOT_MENU,
    FwCfg,
    FwCfgFile,
    parse_e820,
)
from attestkit.measure.acpi.qemu.qtest import (
    DEFAULT_SECONDS,
    StoppedQemu,
    find_program,
    start_program,
    stop_program,
    wait_for_output,
)
from attestkit.measure.acpi.qemu_version import QemuBuild, QemuVersion

_VERSION_SECONDS: Final = 10.0
_VERSION_LINE: Final = re.compile(r"QEMU emulator version (\S.*)")
_MAX_VERSION: Final = 4096  # bytes
_PIECE: Final = 1 << 20  # bytes


class QemuMachine(NamedTuple):
    """Firmware configuration of a machine. A file that QEMU does not have is empty.

    Attributes:
        ranges: Start and end of each RAM range, of `etc/e820`.
        acpi: ACPI tables, as the firmware reads them.
        boot_menu: Item 0x0E, 2 bytes.
        boot_menu_wait: `etc/boot-menu-wait`.
        boot_order: `bootorder`.
        extra_pci_roots: `etc/extra-pci-roots`.
        reserved_memory_end: `etc/reserved-memory-end`.
        pci_mmio64_mb: `opt/ovmf/X-PciMmio64Mb`.
        smbios_tables: `etc/smbios/smbios-tables`.
    """

    ranges: tuple[tuple[int, int], ...]
    acpi: AcpiTables
    boot_menu: bytes
    boot_menu_wait: bytes
    boot_order: bytes
    extra_pci_roots: bytes
    reserved_memory_end: bytes
    pci_mmio64_mb: bytes
    smbios_tables: bytes


def read_machine(
    command: Sequence[str],
    setup: ChipsetSetup = DEFAULT_SETUP,
    *,
    seconds: float = DEFAULT_SECONDS,
) -> QemuMachine:
    """Start QEMU, read the machine as OVMF would, and kill QEMU.

    Args:
        command: Program and options of the machine, such as `dstack_command` returns.
        setup: What the firmware programs before it reads the tables.
        seconds: Time limit.

    Raises:
        ConfigError: If QEMU is missing, cannot be executed, or refuses the options.
        BackendError: If QEMU does not answer in time, or not in the protocol.
        FormatError: If what it answers is malformed or too large.
        UsageError: If a value of `setup` is out of range.
    """
    check_setup(setup)
    with StoppedQemu(command, seconds=seconds) as qemu:
        set_up_chipset(qemu, setup)
        device = FwCfg(qemu)
        directory = device.read_directory()
        # First the loader script: at this read QEMU builds all tables, with the chipset's registers
        # as they are, and never again.
        acpi = read_acpi_tables(device, directory)
        return QemuMachine(
            ranges=tuple(parse_e820(device.read_file(directory, "etc/e820"))),
            acpi=acpi,
            boot_menu=device.read_item(BOOT_MENU, 2),
            boot_menu_wait=device.read_file(directory, "etc/boot-menu-wait"),
            boot_order=device.read_file(directory, "bootorder"),
            extra_pci_roots=device.read_file(directory, "etc/extra-pci-roots"),
            reserved_memory_end=device.read_file(directory, "etc/reserved-memory-end"),
            pci_mmio64_mb=device.read_file(directory, "opt/ovmf/X-PciMmio64Mb"),
            smbios_tables=device.read_file(directory, "etc/smbios/smbios-tables"),
        )


def read_acpi_tables(device: FwCfg, directory: dict[str, FwCfgFile]) -> AcpiTables:
    """Return the three ACPI files; the first read after the start has to be this one.

    Raises:
        FormatError: If one is missing or malformed.
        BackendError: As for `read_machine`.
    """
    loader, rsdp, tables = (
        device.read_file(directory, name) for name in (LOADER_NAME, RSDP_NAME, TABLES_NAME)
    )
    return check_tables(AcpiTables(loader, rsdp, tables))


def read_version(program: str) -> QemuVersion:
    """Return the version that a QEMU program prints.

    Raises:
        ConfigError: If the program is missing, cannot be executed, or is not QEMU.
        BackendError: If it does not end within 10 s.
    """
    return _parse_version(program, _print_version(program))


def read_build(program: str) -> QemuBuild:
    """Return version and digest of a QEMU program.

    Of a script that starts QEMU the digest is that of the script, and of the version with that of
    the package, such as `10.0.13 (Debian 1:10.0.13+ds-0+deb13u1)`.

    Raises:
        ConfigError: As for `read_version`.
        BackendError: As for `read_version`.
    """
    printed = _print_version(program)
    version = _parse_version(program, printed)
    digest = hashlib.sha256(hashlib.sha256(printed).digest())
    try:
        with Path(find_program(program)).open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    except OSError:
        return QemuBuild(version, None)
    return QemuBuild(version, digest.digest())


def _print_version(program: str) -> bytes:
    import subprocess  # lazy: only needed for a run

    process = start_program(
        program, ["-version"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    output = b""
    part: bytes | None = b""
    deadline = time.monotonic() + _VERSION_SECONDS
    try:
        while len(output) < _MAX_VERSION and (part := wait_for_output(process, deadline)):
            output += part
    finally:
        stop_program(process)
    if part is None:
        message = f"{program}: -version has not ended within {_VERSION_SECONDS:g} s"
        raise BackendError(message, reason="timed_out", path=program)
    return output[:_MAX_VERSION]


def _parse_version(program: str, printed: bytes) -> QemuVersion:
    text = printed.decode("utf-8", "replace")
    match = _VERSION_LINE.search(text)
    if match is None:
        message = f"{program}: not a QEMU system emulator: -version printed {shown(text)}"
        raise ConfigError(message, reason="wrong_value")
    return QemuVersion.parse(match[1])
