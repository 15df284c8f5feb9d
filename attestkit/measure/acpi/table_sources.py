"""ACPI tables of a machine, from the best source at hand: folder, QEMU, cache, package."""

import os
from typing import Final, Literal, NamedTuple, TypeAlias

from attestkit.errors import UsageError
from attestkit.measure.acpi.acpi_inputs import DstackMachine, acpi_inputs, host_version
from attestkit.measure.acpi.acpi_tables import AcpiTables
from attestkit.measure.acpi.chipset import DEFAULT_SETUP, ChipsetSetup, check_setup
from attestkit.measure.acpi.interrupt_form import to_edge_triggered
from attestkit.measure.acpi.qemu_command import inputs_command
from attestkit.measure.acpi.qemu_machine import read_machine, read_version
from attestkit.measure.acpi.qemu_version import QemuVersion
from attestkit.measure.acpi.qtest import DEFAULT_SECONDS
from attestkit.measure.acpi.table_cache import TableCache
from attestkit.measure.acpi.table_entry import TableEntry, TableKey
from attestkit.measure.acpi.table_folder import read_table_folder
from attestkit.measure.acpi.table_store import packaged_tables
from attestkit.measure.expected import Basis

TableOrigin: TypeAlias = Literal["folder", "qemu", "cache", "package"]

_LEVEL_FROM: Final = (9, 2)  # TDX branches of QEMU before it have edge-triggered interrupts
_BASES: Final[dict[str, Basis]] = {"8.2": "hardware", "9.2": "hardware", "10.0": "published"}


class FoundTables(NamedTuple):
    """ACPI tables of a machine, and where they come from.

    Attributes:
        files: The three files.
        origin: `folder`: given by the user; `qemu`: made now; `cache`: made before by the user's
            QEMU; `package`: shipped with attestkit.
        qemu_version: Version of the QEMU that made them; None for those of a folder.
        exact: Whether that QEMU is of the same line as the machine's.
        basis: What confirms that tables of this line equal those that guests measure.
    """

    files: AcpiTables
    origin: TableOrigin
    qemu_version: QemuVersion | None
    exact: bool
    basis: Basis


def find_tables(
    machine: DstackMachine,
    *,
    qemu: str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    cache: TableCache | None = None,
    setup: ChipsetSetup = DEFAULT_SETUP,
    edge_triggered: bool | None = None,
    seconds: float = DEFAULT_SECONDS,
) -> FoundTables | None:
    """Return the ACPI tables of a dstack VM, or None if no source has them.

    `folder` comes first. Then come tables of the machine's QEMU line: cached, from `qemu`, from the
    package. The last is `qemu` of another line, whose tables are not exact.

    Args:
        machine: Shape of the VM, with the version of the host's QEMU.
        qemu: QEMU's program.
        folder: Folder with the three files, which are returned as they are.
        cache: Cache of tables that `qemu` made.
        setup: What the firmware programs before it reads the tables.
        edge_triggered: Whether the interrupts are edge-triggered. None decides by the version: TDs
            of QEMU before 9.2 had them so.
        seconds: Time limit of QEMU's run.

    Raises:
        UsageError: As for `acpi_inputs` and `read_table_folder`; or both `qemu` and `folder`.
        ConfigError: As for `read_machine` and `read_version`.
        BackendError: As for `read_machine` and `read_version`.
        FormatError: If a file of the folder or an answer of QEMU is malformed.
    """
    if folder is not None:
        if qemu is not None:
            raise UsageError("qemu and folder: give only one", reason="conflict")
        return FoundTables(read_table_folder(folder), "folder", None, exact=False, basis="source")
    check_setup(setup)
    key = TableKey(acpi_inputs(machine), setup)
    wanted = host_version(machine)
    found = _find_entry(
        wanted, key, None if qemu is None else os.fspath(qemu), cache, seconds=seconds
    )
    if found is None:
        return None
    origin, entry = found
    return describe_tables(
        entry.files,
        origin,
        made_with=entry.qemu_version,
        wanted=wanted,
        setup=setup,
        edge_triggered=edge_triggered,
    )


def describe_tables(
    files: AcpiTables,
    origin: TableOrigin,
    *,
    made_with: QemuVersion,
    wanted: QemuVersion | None,
    setup: ChipsetSetup = DEFAULT_SETUP,
    edge_triggered: bool | None = None,
) -> FoundTables:
    """Return tables that a QEMU made in the form that a guest sees, and what stands behind them.

    For tables of a user's own command line, which `read_machine` returns.

    Args:
        files: Tables as the QEMU made them.
        origin: Where they come from.
        made_with: Version of that QEMU.
        wanted: Version of the host's QEMU, if known.
        setup: As for `find_tables`.
        edge_triggered: As for `find_tables`.

    Raises:
        FormatError: If the tables are malformed.
    """
    version = wanted or made_with
    edge = version.release < _LEVEL_FROM if edge_triggered is None else edge_triggered
    exact = wanted is not None and wanted.line == made_with.line
    known = exact and setup == DEFAULT_SETUP
    return FoundTables(
        to_edge_triggered(files) if edge else files,
        origin,
        made_with,
        exact=exact,
        basis=_BASES.get(made_with.line, "source") if known else "source",
    )


def _find_entry(
    wanted: QemuVersion | None,
    key: TableKey,
    qemu: str | None,
    cache: TableCache | None,
    *,
    seconds: float,
) -> tuple[TableOrigin, TableEntry] | None:
    """Return tables of the machine's line, else of the line of `qemu`, else None."""
    version = None if qemu is None else read_version(qemu)
    if wanted is not None and (version is None or version.line != wanted.line):
        if cache is not None and (entry := cache.get(wanted.line, key)) is not None:
            return "cache", entry
        if (entry := packaged_tables(wanted.line, key)) is not None:
            return "package", entry
    if qemu is None or version is None:
        return None
    known = None if cache is None else cache.get(version.line, key)
    if known is not None and known.qemu_version == version:
        return "cache", known
    # Memory above 4 GiB does not change the tables, and takes QEMU up to 20 s.
    command = inputs_command(key.inputs, qemu, memory_size=key.inputs.low_memory)
    entry = TableEntry(
        version, key.numbers(), read_machine(command, key.setup, seconds=seconds).acpi
    )
    if cache is not None:
        cache.put(entry)
    return "qemu", entry
