"""ACPI tables that QEMU shows a guest, which the firmware measures into RTMR0.

A real QEMU makes them, stopped and without KVM; tables of common machines ship with attestkit.
"""

from attestkit.attestation.launch.qemu_version import QemuVersion
from attestkit.measure.acpi.acpi_tables import AcpiTables, read_table_folder
from attestkit.measure.acpi.derived_tables import to_edge_triggered
from attestkit.measure.acpi.qemu.chipset import ChipsetSetup
from attestkit.measure.acpi.qemu.qemu_command import dstack_command
from attestkit.measure.acpi.qemu.qemu_machine import QemuMachine, read_machine, read_version
from attestkit.measure.acpi.qemu.user_command import UserCommand, clean_command
from attestkit.measure.acpi.table_cache import TableCache, cache_folder
from attestkit.measure.acpi.table_sources import FoundTables, describe_tables, find_tables

__all__ = [
    "AcpiTables",
    "ChipsetSetup",
    "FoundTables",
    "QemuMachine",
    "QemuVersion",
    "TableCache",
    "UserCommand",
    "cache_folder",
    "clean_command",
    "describe_tables",
    "dstack_command",
    "find_tables",
    "read_machine",
    "read_table_folder",
    "read_version",
    "to_edge_triggered",
]
