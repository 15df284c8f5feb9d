"""ACPI tables of a machine, from the best available source: folder, QEMU, cache, package."""

import os
from typing import Final, Literal, NamedTuple, TypeAlias

from attestkit.attestation.launch.qemu_version import QemuVersion
from attestkit.errors import UsageError
from attestkit.measure.acpi import derived_tables
from attestkit.measure.acpi.acpi_inputs import QemuBuild, acpi_inputs, host_version
from attestkit.measure.acpi.acpi_tables import AcpiTables, read_table_folder
from attestkit.measure.acpi.packaged_tables import packaged_tables
from attestkit.measure.acpi.qemu.chipset import DEFAULT_SETUP, ChipsetSetup, check_setup
from attestkit.measure.acpi.qemu.qemu_command import inputs_command
from attestkit.measure.acpi.qemu.qemu_machine import read_build, read_machine
from attestkit.measure.acpi.qemu.qtest import DEFAULT_SECONDS
from attestkit.measure.acpi.table_cache import TableCache
from attestkit.measure.acpi.table_entry import TableEntry, TableKey
from attestkit.measure.expected import Basis
from attestkit.measure.machine_shape import MachineShape

TableOrigin: TypeAlias = Literal["folder", "qemu", "cache", "package", "derived"]

# TDX branches of QEMU before it have edge-triggered interrupts. The number counts as it is: Intel's
# branch of 9.1 is version 9.1.50.
_LEVEL_FROM: Final = (9, 2)
_BASES: Final[dict[str, Basis]] = {"8.2": "hardware", "9.2": "hardware", "10.0": "published"}


class FoundTables(NamedTuple):
    """ACPI tables of a machine, and where they come from.

    Attributes:
        files: The three files.
        origin: `folder`: given by the user; `qemu`: made now; `cache`: made before by the user's
            QEMU; `package`: shipped with attestkit; `derived`: of QEMU 8.2 or 9.2, derived from
            those of QEMU 10.0 (see `derived_tables`).
        qemu_version: Version of the QEMU that made them, or made those that they are derived from;
            None for those of a folder.
        exact: Whether that QEMU is of the host's release line; False for tables that are derived
            or of a folder.
        basis: What confirms that tables of this release line equal those that guests measure; see
            `Basis`.
    """

    files: AcpiTables
    origin: TableOrigin
    qemu_version: QemuVersion | None
    exact: bool
    basis: Basis


def find_tables(
    machine: MachineShape,
    *,
    qemu: str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    cache: TableCache | None = None,
    setup: ChipsetSetup = DEFAULT_SETUP,
    edge_triggered: bool | None = None,
    seconds: float = DEFAULT_SECONDS,
) -> FoundTables | None:
    """Return the ACPI tables of a dstack VM; None if no source has them.

    With `folder` no other source is used. Else tables of the host's release line of QEMU are
    preferred: made by `qemu`, from the cache, shipped with attestkit, derived. The last choice are
    tables of a `qemu` of another release line. Those and derived ones are not `exact`.

    Args:
        machine: Shape of the VM, with the version of the host's QEMU.
        qemu: QEMU's program, a path or a name. None: no program is run.
        folder: Folder with the three files, which are returned as they are. None: other sources.
        cache: Cache of tables that `qemu` made. None: none are stored.
        setup: Chipset registers that the firmware programs before it reads the tables.
        edge_triggered: Whether the interrupts are edge-triggered. None decides by the version: TDs
            of QEMU before 9.2 had them so.
        seconds: Time limit of QEMU's run.

    Raises:
        UsageError: If `machine.host_share_mode` is unknown, a value of `setup` is out of range, a
            file of the folder is missing or cannot be read, or `qemu` and `folder` are both given.
        ConfigError: If QEMU is missing, cannot be executed, or refuses the options.
        BackendError: If QEMU does not answer in time, or not in the protocol.
        FormatError: If a file of the folder or an answer of QEMU is malformed.
    """
    if folder is not None:
        if qemu is not None:
            raise UsageError("qemu, folder: give only one", reason="conflict")
        return FoundTables(read_table_folder(folder), "folder", None, exact=False, basis="source")
    check_setup(setup)
    key = TableKey(acpi_inputs(machine), setup)
    wanted = host_version(machine)
    run = None
    if qemu is not None:
        program = os.fspath(qemu)
        run = _Run(program, read_build(program), cache, seconds)
    found = _find_entry(wanted, key, run, cache)
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
    """Return tables that a QEMU made in the form that a TD measures, with origin and basis.

    For tables of a user's own command line, which `read_machine` returns. Interrupts become
    edge-triggered if `edge_triggered`, or the version of the host's QEMU, requires it.

    Args:
        files: Tables as the QEMU made them.
        origin: Where they come from, such as `qemu`; see `FoundTables`.
        made_with: Version of that QEMU.
        wanted: Version of the host's QEMU; None if unknown, so that the tables are not `exact`.
        setup: Chipset registers that the firmware programs before it reads the tables.
        edge_triggered: Whether the interrupts are edge-triggered. None decides by the version.

    Raises:
        FormatError: If the tables are malformed.
    """
    version = wanted or made_with
    edge = version[:2] < _LEVEL_FROM if edge_triggered is None else edge_triggered
    exact = wanted is not None and wanted.line == made_with.line
    known = exact and setup == DEFAULT_SETUP
    return FoundTables(
        derived_tables.to_edge_triggered(files) if edge else files,
        origin,
        made_with,
        exact=exact,
        basis=_BASES.get(made_with.line, "source") if known else "source",
    )


class _Run(NamedTuple):
    """A QEMU program that may be run.

    Attributes:
        qemu: Path of the program, or a name to search for in PATH.
        build: Its version and digest.
        cache: Cache of its tables; None: they are not stored.
        seconds: Time limit of a run.
    """

    qemu: str
    build: QemuBuild
    cache: TableCache | None
    seconds: float

    @property
    def line(self) -> str:
        """Release line of this QEMU, such as `9.2`."""
        return self.build.version.line

    def make(self, key: TableKey) -> tuple[TableOrigin, TableEntry]:
        """Return this QEMU's tables of a machine and their origin, `cache` or `qemu`."""
        known = None if self.cache is None else self.cache.get(self.build, key)
        if known is not None:
            return "cache", known
        # Memory above 4 GiB does not change the tables, and takes QEMU up to 20 s.
        command = inputs_command(key.inputs, self.qemu, memory_size=key.inputs.low_memory)
        files = read_machine(command, key.setup, seconds=self.seconds).acpi
        entry = TableEntry(self.build.version, key.numbers(), files)
        if self.cache is not None:
            self.cache.put(self.build, entry)
        return "qemu", entry


def _find_entry(
    wanted: QemuVersion | None,
    key: TableKey,
    run: _Run | None,
    cache: TableCache | None,
) -> tuple[TableOrigin, TableEntry] | None:
    """Return tables of the release line of `wanted`, the host's QEMU, and their origin.

    Stored tables come first, from `cache` or the package, then derived ones. Without these, without
    `wanted`, and for `run`'s own release line, `run` makes the tables; without `run` the result is
    None.
    """
    if wanted is not None and (run is None or run.line != wanted.line):
        found = _stored(wanted.line, key, cache) or _derive(wanted.line, key, run, cache)
        if found is not None:
            return found
    return None if run is None else run.make(key)


def _stored(
    line: str, key: TableKey, cache: TableCache | None
) -> tuple[TableOrigin, TableEntry] | None:
    if cache is not None and (entry := cache.find(line, key)) is not None:
        return "cache", entry
    if (entry := packaged_tables(line, key)) is not None:
        return "package", entry
    return None


def _derive(
    line: str, key: TableKey, run: _Run | None, cache: TableCache | None
) -> tuple[TableOrigin, TableEntry] | None:
    """Return `derived` and the tables of release line `line`, derived from those of QEMU 10.0.

    Those of 10.0 are from `cache` or the package, else made by `run`. None without them, or if the
    machine's tables of `line` cannot be derived.
    """
    if not derived_tables.can_derive(line, key.inputs):
        return None
    base_key = key._replace(inputs=key.inputs._replace(pic=False))  # as those of the package
    base = _stored(derived_tables.BASE_LINE, base_key, cache)
    if base is None and run is not None and run.line == derived_tables.BASE_LINE:
        base = run.make(base_key)
    if base is None:
        return None
    entry = base[1]
    files = derived_tables.derive_tables(line, key.inputs, entry.files)
    return "derived", TableEntry(entry.qemu_version, key.numbers(), files)
