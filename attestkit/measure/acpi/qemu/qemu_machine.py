"""Data that a stopped QEMU shows a guest's firmware, read from its fw_cfg device by DMA.

docs/specs/fw_cfg.rst of QEMU.
"""

import hashlib
import re
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from attestkit._sanitize import key as shown_key
from attestkit._sanitize import shown
from attestkit.attestation.launch.qemu_version import QemuVersion
from attestkit.errors import BackendError, ConfigError, FormatError
from attestkit.measure.acpi import acpi_tables
from attestkit.measure.acpi.acpi_inputs import QemuBuild
from attestkit.measure.acpi.qemu import chipset, qtest

BOOT_MENU: Final = 0x0E
_DIRECTORY: Final = 0x19

_DMA_HIGH, _DMA_LOW = 0x514, 0x518  # ports of the address register
_ERROR, _READ, _SELECT = 1, 2, 8  # bits of the control field
_CONTROL, _BUFFER = 0x2000, 0x10000  # guest memory that this reader uses
_CHUNK: Final = 1 << 19  # bytes; the buffer ends below 640 KiB

MAX_ITEM: Final = 1 << 22
"""Maximum size of a fw_cfg file, in bytes."""

_ENTRY: Final = struct.Struct(">IHH56s")  # size, key, reserved, name
_MAX_FILES: Final = 1024

_E820_ENTRY: Final = struct.Struct("<QQI")  # start, length, type
_E820_RAM: Final = 1
_MAX_E820: Final = 128


class FwCfgFile(NamedTuple):
    """Item key, and size in bytes, of a file in the fw_cfg directory."""

    key: int
    size: int


class FwCfg:
    """The fw_cfg device of a stopped QEMU, which has items by number (key), and files by name.

    All methods also raise the errors of `StoppedQemu`.
    """

    def __init__(self, qemu: qtest.StoppedQemu) -> None:
        self._qemu = qemu

    def read_item(self, key: int, size: int, most: int = MAX_ITEM) -> bytes:
        """Return the first `size` bytes of the item with the number `key`, 16 bits.

        Raises:
            FormatError: If `size` exceeds `most`, both in bytes.
            BackendError: If QEMU reports that the item cannot be read.
        """
        if size > most:
            message = f"fw_cfg item {key:#x}: {size} bytes exceed the limit of {most}"
            raise FormatError(message, reason="too_large")
        data = bytearray()
        control = key << 16 | _SELECT | _READ
        while len(data) < size:
            count = min(size - len(data), _CHUNK)
            self._qemu.write_memory(_CONTROL, struct.pack(">IIQ", control, count, _BUFFER))
            self._qemu.port_write(_DMA_HIGH, 0)
            self._qemu.port_write(_DMA_LOW, int.from_bytes(_CONTROL.to_bytes(4, "big"), "little"))
            if any(self._qemu.read_memory(_CONTROL, 4)):
                raise BackendError(
                    f"QEMU: fw_cfg item {key:#x} cannot be read", reason="malformed_response"
                )
            data += self._qemu.read_memory(_BUFFER, count)
            control = _READ  # goes on where the last read ended
        return bytes(data)

    def read_directory(self) -> dict[str, FwCfgFile]:
        """Return the number of the item (key) and the size in bytes of each fw_cfg file, by name.

        Raises:
            FormatError: As for `parse_directory`.
        """
        count = _count_files(self.read_item(_DIRECTORY, 4))
        return parse_directory(self.read_item(_DIRECTORY, 4 + _ENTRY.size * count))

    def read_file(self, directory: Mapping[str, FwCfgFile], name: str) -> bytes:
        """Return the content of the file `name`, such as `etc/e820`.

        b"" if `directory`, a result of `read_directory`, does not list it.

        Raises:
            FormatError: If the file is over 4 MiB.
        """
        found = directory.get(name)
        return b"" if found is None else self.read_item(found.key, found.size)


def parse_directory(content: bytes) -> dict[str, FwCfgFile]:
    """Return key and size of each file by its name, from the content of item 0x19, the directory.

    It has a count of 4 bytes, and 64 bytes for each file.

    Raises:
        FormatError: If the directory is truncated, has over 1024 files, or a name is not ASCII or
            occurs twice.
    """
    count = _count_files(content)
    if len(content) < 4 + count * _ENTRY.size:
        raise FormatError(
            f"fw_cfg directory: truncated: must have 64 bytes for each of {count} files",
            reason="truncated",
            offset=len(content),
        )
    files: dict[str, FwCfgFile] = {}
    for index in range(count):
        offset = 4 + index * _ENTRY.size
        size, key, _, raw = _ENTRY.unpack_from(content, offset)
        try:
            name = raw.partition(b"\0")[0].decode("ascii")
        except UnicodeDecodeError as error:
            message = "fw_cfg directory: name of a file is not ASCII"
            raise FormatError(message, reason="encoding", offset=offset + 8) from error
        if name in files:
            message = f"fw_cfg directory: {shown_key(name)} occurs twice"
            raise FormatError(message, reason="duplicate", offset=offset + 8)
        files[name] = FwCfgFile(key, size)
    return files


def _count_files(directory: bytes) -> int:
    count = int.from_bytes(directory[:4], "big")
    if count > _MAX_FILES:
        message = f"fw_cfg directory: {count} files, at most {_MAX_FILES}"
        raise FormatError(message, reason="too_many", offset=0)
    return count


def parse_e820(content: bytes) -> list[tuple[int, int]]:
    """Return the RAM ranges in the content of `etc/e820`, in its order, without other ranges.

    A range is a pair of guest physical addresses: its first byte, and the byte after its last.

    Raises:
        FormatError: If the size is not a multiple of 20, there are over 128 entries, or a range
            exceeds 64 bits.
    """
    if len(content) % _E820_ENTRY.size:
        message = f"etc/e820: {len(content)} bytes, not a multiple of {_E820_ENTRY.size}"
        raise FormatError(message, reason="wrong_size")
    if len(content) > _MAX_E820 * _E820_ENTRY.size:
        count = len(content) // _E820_ENTRY.size
        raise FormatError(f"etc/e820: {count} entries, at most {_MAX_E820}", reason="too_many")
    ranges = []
    for offset in range(0, len(content), _E820_ENTRY.size):
        start, length, kind = _E820_ENTRY.unpack_from(content, offset)
        if start + length > 1 << 64:
            message = f"etc/e820: range of {length:#x} bytes at {start:#x} exceeds 64 bits"
            raise FormatError(message, reason="wrong_value", offset=offset)
        if kind == _E820_RAM:
            ranges.append((start, start + length))
    return ranges


_VERSION_SECONDS: Final = 10.0
_VERSION_LINE: Final = re.compile(r"QEMU emulator version (\S.*)")
_MAX_VERSION: Final = 4096  # bytes
_PIECE: Final = 1 << 20  # bytes


class QemuMachine(NamedTuple):
    """Firmware configuration of a machine. A file that QEMU does not have is empty.

    Attributes:
        ranges: Start and end (the address after it) of each RAM range, of `etc/e820`.
        acpi: ACPI tables, as the firmware reads them.
        boot_menu: Content of item 0x0E, 2 bytes.
        boot_menu_wait: Content of `etc/boot-menu-wait`.
        boot_order: Content of `bootorder`.
        extra_pci_roots: Content of `etc/extra-pci-roots`.
        reserved_memory_end: Content of `etc/reserved-memory-end`.
        pci_mmio64_mb: Content of `opt/ovmf/X-PciMmio64Mb`.
        smbios_tables: Content of `etc/smbios/smbios-tables`.
    """

    ranges: tuple[tuple[int, int], ...]
    acpi: acpi_tables.AcpiTables
    boot_menu: bytes
    boot_menu_wait: bytes
    boot_order: bytes
    extra_pci_roots: bytes
    reserved_memory_end: bytes
    pci_mmio64_mb: bytes
    smbios_tables: bytes


def read_machine(
    command: Sequence[str],
    setup: chipset.ChipsetSetup = chipset.DEFAULT_SETUP,
    *,
    seconds: float = qtest.DEFAULT_SECONDS,
) -> QemuMachine:
    """Start QEMU, read the data that OVMF reads at a boot, and kill QEMU.

    Args:
        command: Program and options of the machine, such as `dstack_command` returns.
        setup: Chipset registers that the firmware programs before it reads the tables.
        seconds: Time limit from the start to the end.

    Raises:
        ConfigError: If QEMU is missing, cannot be executed, or refuses the options.
        BackendError: If QEMU does not answer in time, or not in the protocol.
        FormatError: If its data are malformed or too large.
        UsageError: If a value of `setup` is out of range.
    """
    chipset.check_setup(setup)
    with qtest.StoppedQemu(command, seconds=seconds) as qemu:
        chipset.set_up_chipset(qemu, setup)
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


def read_acpi_tables(device: FwCfg, directory: dict[str, FwCfgFile]) -> acpi_tables.AcpiTables:
    """Read the three ACPI files, which must be the first files that are read after QEMU's start.

    `directory` is the result of `device.read_directory()`.

    Raises:
        FormatError: If a file is missing or malformed.
        ConfigError, BackendError: As for `StoppedQemu`.
    """
    loader, rsdp, tables = (
        device.read_file(directory, name)
        for name in (acpi_tables.LOADER_NAME, acpi_tables.RSDP_NAME, acpi_tables.TABLES_NAME)
    )
    return acpi_tables.check_tables(acpi_tables.AcpiTables(loader, rsdp, tables))


def read_version(program: str) -> QemuVersion:
    """Return the version that a QEMU program prints.

    `program` is its path, or a name to search for in PATH.

    Raises:
        ConfigError: If the program is missing, cannot be executed, or is not QEMU.
        BackendError: If the program does not end within 10 s.
    """
    return _parse_version(program, _print_version(program))


def read_build(program: str) -> QemuBuild:
    """Return version and digest of a QEMU program; the digest is None if its file cannot be read.

    `program` is its path, or a name to search for in PATH. The digest, a SHA-256, covers the file
    and the version that it prints, such as `10.0.13 (Debian 1:10.0.13+ds-0+deb13u1)`, because the
    file may be a script that starts QEMU.

    Raises:
        ConfigError: As for `read_version`.
        BackendError: As for `read_version`.
    """
    printed = _print_version(program)
    version = _parse_version(program, printed)
    digest = hashlib.sha256(hashlib.sha256(printed).digest())
    try:
        with Path(qtest.find_program(program)).open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    except OSError:
        return QemuBuild(version, None)
    return QemuBuild(version, digest.digest())


def _print_version(program: str) -> bytes:
    import subprocess  # lazy: only needed for a run

    process = qtest.start_program(
        program, ["-version"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    output = b""
    part: bytes | None = b""
    deadline = time.monotonic() + _VERSION_SECONDS
    try:
        while len(output) < _MAX_VERSION and (part := qtest.wait_for_output(process, deadline)):
            output += part
    finally:
        qtest.stop_program(process)
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
