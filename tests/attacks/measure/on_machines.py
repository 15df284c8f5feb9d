"""Attempts on machines, command lines of QEMU, and ACPI tables."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from attestkit.attestation.launch.qemu_version import QemuVersion
from attestkit.errors import ConfigError, FormatError, UsageError
from attestkit.measure import MachineShape
from attestkit.measure.acpi import TableCache
from attestkit.measure.acpi.acpi_tables import AcpiTables, check_tables, read_table_folder
from attestkit.measure.acpi.qemu.user_command import clean_command
from tests.attacks.attempts import Surfaces
from tests.measure.diagnosis.guests import (
    SHAPE,
    tables,
)

attacks = Surfaces("measure")


def changed(data: bytes, at: int, value: bytes) -> bytes:
    """Return data with other bytes at an offset."""
    return data[:at] + value + data[at + len(value) :]


# -- machines ----------------------------------------------------------------------------------

MACHINES: Final[dict[str, dict[str, Any]]] = {
    "a billion processors": {"cpu_count": 10**9},
    "no processor": {"cpu_count": 0},
    "processors that are true": {"cpu_count": True},
    "processors as text": {"cpu_count": "2"},
    "a fraction of memory": {"memory_size": 2147483648.5},
    "memory of an exbibyte": {"memory_size": 1 << 60},
    "a negative number of graphics cards": {"num_gpus": -1},
    "a thousand graphics cards": {"num_gpus": 1000},
    "a version of QEMU with digits of another script": {"qemu_version": "\u0661\u0660.0"},
    "a version of QEMU with a line break": {"qemu_version": "10.0\n"},
    "a TPM that nothing measures": {"swtpm": True},
}


def machine(changes: dict[str, Any]) -> object:
    """Read a VM configuration."""
    good = {"cpu_count": 2, "memory_size": 2 << 30, "qemu_version": "10.0.13"}
    assert MachineShape.from_vm_config(good).cpu_count == 2
    return MachineShape.from_vm_config(good | changes)


for title, changes in MACHINES.items():
    attacks.add(
        "confuse",
        f"machine with {title}",
        partial(machine, changes),
        FormatError,
        "wrong_value",
        "wrong_type",
        "unsupported",
    )

VERSION: Final = QemuVersion(10, 0, 13)
BASE: Final = ["-nodefaults", "-machine", "q35", "-m", "2G"]
COMMANDS: Final[dict[str, tuple[list[str], str]]] = {
    "a plugin": (["-plugin", "/tmp/evil.so"], "unknown_name"),
    "a module of another folder": (["-L", "/tmp", "-device", "evil"], "unknown_name"),
    "tables of a file": (["-acpitable", "file=/etc/shadow"], "unknown_name"),
    "a program for migration": (["-incoming", "exec:touch /tmp/x"], "unknown_name"),
    "another command line in a file": (["-readconfig", "/etc/passwd"], "unknown_name"),
    "a device with two drivers in JSON": (
        ["-device", '{"driver":"virtio-net-pci","driver":"intel-iommu"}'],
        "wrong_value",
    ),
    "memory without end": (["-m", "9" * 40 + "G"], "wrong_value"),
    "memory as a number of floating point": (["-m", "1e30"], "wrong_value"),
    "a second machine": (["-machine", "microvm"], "not_applicable"),
    "a device of no name": (["-device", ""], "unknown_name"),
    "a hundred thousand words": (["-S"] * 100_000, "too_large"),
}
CLEANED: Final[dict[str, list[str]]] = {
    "a ROM of a file": ["-device", "virtio-net-pci,romfile=/etc/shadow"],
    "a ROM in other letters": ["-device", "virtio-net-pci,ROMFILE=/etc/shadow"],
    "a ROM in JSON": ["-device", '{"driver":"virtio-net-pci","romfile":"/etc/shadow"}'],
    "a firmware configuration of a file": ["-fw_cfg", "name=opt/x,file=/etc/shadow"],
    "a kernel that is a socket": ["-kernel", "/etc/shadow"],
    "a disk of this machine": ["-drive", "file=/etc/shadow,if=virtio"],
}


def command(options: list[str]) -> object:
    """Clean a user's command line of QEMU, whose effect is not known."""
    assert clean_command(BASE, VERSION).memory_size == 2 << 30
    return clean_command([*BASE, *options], VERSION)


def cleaned(options: list[str]) -> None:
    """Clean a command line: what is run names no file of the user."""
    assert "/etc/shadow" not in " ".join(clean_command([*BASE, *options], VERSION).command)


for title, (options, reason) in COMMANDS.items():
    run_command = partial(command, options)
    attacks.add("confuse", f"QEMU command with {title}", run_command, UsageError, reason)

for title, options in CLEANED.items():
    attacks.add("confuse", f"QEMU command that opens {title}", partial(cleaned, options))


# -- ACPI tables -------------------------------------------------------------------------------


def table_files() -> AcpiTables:
    """Return the tables of the machine, which are valid."""
    return check_tables(tables("10.0", SHAPE))


TABLES: Final[dict[str, Callable[[AcpiTables], AcpiTables]]] = {
    "a table of no length": lambda files: files._replace(
        tables=changed(files.tables, table(files, "APIC") + 4, bytes(4))
    ),
    "a table longer than the file": lambda files: files._replace(
        tables=changed(files.tables, table(files, "APIC") + 4, b"\xff" * 4)
    ),
    "a script of no command": lambda files: files._replace(loader=b""),
    "a script of half a command": lambda files: files._replace(loader=files.loader[:-1]),
    "a root pointer of another size": lambda files: files._replace(rsdp=files.rsdp * 40),
    "a root pointer without its signature": lambda files: files._replace(
        rsdp=bytes(8) + files.rsdp[8:]
    ),
    "tables of twenty megabytes": lambda files: files._replace(tables=bytes(20 << 20)),
}


def table(files: AcpiTables, signature: str) -> int:
    """Return the offset of a table."""
    return next(one.offset for one in files.list_tables() if one.signature == signature)


def hostile_tables(change: Callable[[AcpiTables], AcpiTables], tmp_path: Path) -> object:
    """Read a folder of tables of a guest."""
    folder = tmp_path / "tables"
    folder.mkdir()
    for files in (table_files(), change(table_files())):
        for name, content in zip(("table-loader", "rsdp", "tables"), files, strict=True):
            (folder / name).write_bytes(content)
        found = read_table_folder(folder)
        found.list_tables()
    return found


for title, change in TABLES.items():
    attacks.add(
        "exhaust",
        f"ACPI tables with {title}",
        partial(hostile_tables, change),
        FormatError,
        "truncated",
        "missing",
        "wrong_size",
        "unrecognized",
        "too_large",
    )


@attacks.attempt("exhaust", UsageError, "cannot_read")
def acpi_tables_that_are_a_pipe(tmp_path: Path) -> object:
    """Reading a pipe would wait for ever."""
    files = table_files()
    (tmp_path / "table-loader").write_bytes(files.loader)
    (tmp_path / "rsdp").write_bytes(files.rsdp)
    os.mkfifo(tmp_path / "tables")
    return read_table_folder(tmp_path)


@attacks.attempt("confuse", ConfigError, "permissions")
def cache_of_tables_in_a_folder_of_another_user(tmp_path: Path) -> object:
    """A writer of the cache could choose the expected RTMR0."""
    folder = tmp_path / "acpi"
    TableCache(folder)
    if os.geteuid() != 0:
        raise ConfigError("only root can give a folder away", reason="permissions")
    os.chown(folder, 12345, 12345)
    return TableCache(folder)
