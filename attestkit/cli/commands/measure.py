"""`attestkit measure`: expected registers and launch digests of a guest, from its files.

With `--against`, they are compared with evidence: what differs, and why.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from attestkit.cli.exit_codes import REJECTED, set_exit_code
from attestkit.cli.input.read_input import name_file_in_errors, read_file
from attestkit.cli.options import guest, option
from attestkit.cli.options.option import Command
from attestkit.cli.options.output import Output, output_options
from attestkit.cli.output import console
from attestkit.cli.output.write_output import print_content, write_output
from attestkit.errors import FormatError, UsageError

if TYPE_CHECKING:
    from attestkit.attestation import Attestation
    from attestkit.cli.options.guest import BootData
    from attestkit.event_log import EventLog
    from attestkit.measure import (
        DstackImage,
        ExpectedMeasurements,
        GuestInputs,
        MachineShape,
        SnpInputs,
    )
    from attestkit.measure.acpi import AcpiTables, TableCache
    from attestkit.measure.diagnosis.guest_shape import ShapeSource
    from attestkit.measure.dstack_guest import TableSources
    from attestkit.measure.tdx_guest import TdxBoot

_MAX_SMBIOS: Final = 1 << 20  # bytes
_RARE: Final = (
    *("--shim", "--boot-loader", "--pic", "--pci-hole64-size", "--hotplug-off", "--num-gpus"),
    *("--num-nvswitches", "--num-nics", "--num-verity-volumes", "--cdrom-root", "--two-pass"),
    *("--processor-id", "--acpi", "--smbios", "--cpu-signature", "--guest-features", "--svsm"),
    "--vars-size",
)


class _Measured(NamedTuple):
    """Expected values, and the inputs from which they were computed.

    Attributes:
        expected: The expected values.
        inputs: `inputs` of `find_differences`, for the causes of differences; None with
            COCONUT-SVSM.
        shape_source: Source of the machine's shape, if that is the evidence; None: options.
    """

    expected: "ExpectedMeasurements"
    inputs: "GuestInputs | SnpInputs | None"
    shape_source: "ShapeSource | None" = None


class TableOptions(NamedTuple):
    """Sources of the ACPI tables and the SMBIOS table.

    Attributes:
        qemu: Program of QEMU that makes them; None: no program is run.
        acpi: Folder with the ACPI tables; None: no folder.
        smbios: File with the SMBIOS table; None: unknown.
    """

    qemu: Path | None
    acpi: Path | None
    smbios: Path | None

    def find(
        self, shape: "MachineShape", processor_id: tuple[int, int] | None
    ) -> "tuple[TableSources, AcpiTables | None]":
        """Find the ACPI tables and the SMBIOS table of a machine.

        Args:
            shape: The machine.
            processor_id: EAX and EDX of CPUID leaf 1 on the host; None: unknown.

        Returns:
            All tables with their sources, and the ACPI tables alone (None if no source has them).

        Raises:
            UsageError, ConfigError, BackendError: As `find_tables`.
            FormatError: As `find_tables`, or if the SMBIOS file cannot be read or is over 1 MiB.
        """
        from attestkit.measure.acpi import find_tables
        from attestkit.measure.dstack_guest import TableSources

        cache = None if self.qemu is None else _cache()
        table = None if self.smbios is None else read_file(self.smbios, _MAX_SMBIOS)
        found = find_tables(shape, qemu=self.qemu, folder=self.acpi, cache=cache)
        sources = TableSources(self.qemu, found, table, processor_id, cache)
        return sources, None if found is None else found.files


table_options: Final = option.group(
    "tables",
    option.section(
        "Machine of a TD",
        option.file("--qemu", "Program of QEMU, to make the ACPI tables."),
        option.file("--acpi", "Folder with etc/table-loader and tables.", metavar="DIR"),
        option.file("--smbios", "SMBIOS table of QEMU (etc/smbios/smbios-tables)."),
    ),
    TableOptions,
)


@click.command(
    cls=Command,
    example="measure --image dstack-0.5.5 --vm-config vm.json",
    codes="01235",
    meanings={
        2: "the evidence differs, or its log does not replay to its registers",
        3: "QEMU does not answer",
    },
    rare=_RARE,
)
@guest.boot_options
@guest.machine_options
@table_options
@guest.snp_options
@option.file("--log", "Event log or evidence, for what only it has.")
@option.file("--against", "Evidence to compare: what differs, and why.")
@click.option(
    *("--format", "form"),
    type=click.Choice(["table", "toml"]),
    default="table",
    help="Table (default), or a policy.",
)
@output_options("Write to FILE, with --format toml or --json.")
def measure(
    *,
    boot: guest.BootFiles,
    machine: guest.MachineOptions,
    tables: TableOptions,
    snp: guest.SnpOptions,
    log: Path | None,
    against: Path | None,
    form: str,
    out: Output,
) -> int:
    """Compute the expected registers of a guest, from what it boots and the machine's shape.

    No evidence is needed. The policy of --format toml says what confirms each value, and what is
    not proven.
    """
    if out.as_json and form != "table":
        raise UsageError("--format and --json: give only one", reason="conflict")
    form, output = "json" if out.as_json else form, out.output
    if output is not None and form == "table":
        raise UsageError("-o: requires --format toml or --json", reason="missing")
    if against is not None and (log is not None or form == "toml"):
        raise UsageError("--against: excludes --log and --format toml", reason="conflict")
    extra = tuple(path for path in (tables.smbios, log) if path is not None)
    more = () if against is None else (against,)
    out.check((*boot.inputs, *machine.inputs, *snp.inputs, *extra, *more))
    evidence = None if against is None else _read_evidence(against)
    if snp.snp:
        if machine.given or extra or tables.qemu is not None or tables.acpi is not None:
            message = "--snp: excludes options of TDs, such as --vm-config and --qemu; omit them"
            raise UsageError(message, reason="not_applicable")
        measured = _measure_snp(boot, snp, machine.fields.get("cpu_count"))
    else:
        with console.progress("measuring"):
            measured = _measure_tdx(boot, machine, tables, against, evidence)
    if against is not None and evidence is not None:
        return _compare(measured, against, evidence, form, output)
    expected = measured.expected
    if log is not None:
        expected = expected.with_log_digests(_read_log(log))
    _write(expected, form, output)
    return 0


def _measure_snp(
    boot: guest.BootFiles, snp: guest.SnpOptions, cpu_count: int | None
) -> "_Measured":
    if cpu_count is None:
        raise UsageError("--cpu-count: missing; --snp requires it", reason="missing")
    if boot.image is not None:
        image = _read_image(boot.image)
        firmware = image.firmware if image.firmware_snp is None else image.firmware_snp
        cmdline = image.cmdline.strip()
        found, inputs = snp.measure(cpu_count, firmware, image.kernel, image.initrd, cmdline)
        return _Measured(replace(found, os_image_hash=image.os_image_hash), inputs)
    if boot.boot_loaders or any(given is not None for given in (boot.uki, boot.disk, boot.shim)):
        raise UsageError(
            "--uki, --disk, --shim, --boot-loader: not in the launch digest of an SNP guest; omit "
            "them",
            reason="not_applicable",
        )
    files = boot.read()
    given = (cpu_count, files.firmware, files.kernel, files.initrd, boot.cmdline)
    return _Measured(*snp.measure(*given))


def _measure_tdx(
    boot: guest.BootFiles,
    machine: guest.MachineOptions,
    tables: TableOptions,
    against: Path | None,
    evidence: "Attestation | None",
) -> "_Measured":
    from attestkit.measure.diagnosis.guest_inputs import GuestInputs
    from attestkit.measure.dstack_guest import dstack_image, measure_shape

    if machine.qemu_args is not None:
        if tables.acpi is not None or tables.smbios is not None:
            message = "--acpi, --smbios: excluded by --qemu-args, which makes the tables; omit them"
            raise UsageError(message, reason="conflict")
        return _measure_command(boot, machine, tables.qemu)
    shape, source = _find_shape(machine, against, evidence)
    sources, files = tables.find(shape, machine.processor_id)
    known = GuestInputs(shape=shape, acpi=files, smbios=sources.smbios)
    if boot.image is not None:
        image = _read_image(boot.image)
        expected = dstack_image(image, shape, **sources._asdict())
        inputs = _with_boot(known, image.firmware, image.kernel, image.initrd, image.cmdline)
    else:
        data = boot.read()
        expected = measure_shape(data.firmware, _boot(data, boot.cmdline), shape, sources)
        inputs = _with_boot(known, data.firmware, data.kernel, data.initrd, boot.cmdline)
    return _Measured(expected, inputs, source)


def _read_image(path: Path) -> "DstackImage":
    from attestkit.measure import read_dstack_image

    try:
        return read_dstack_image(path)
    except UsageError as error:  # it cannot be opened, which is exit code 5 for other files too
        raise FormatError(f"--image {error}", reason="unreadable") from error


def _with_boot(
    known: "GuestInputs",
    firmware: bytes,
    kernel: bytes | None,
    initrd: bytes | None,
    cmdline: str | None,
) -> "GuestInputs":
    return replace(known, firmware=firmware, kernel=kernel, initrd=initrd, cmdline=cmdline or "")


def _find_shape(
    machine: guest.MachineOptions, against: Path | None, evidence: "Attestation | None"
) -> "tuple[MachineShape, ShapeSource | None]":
    """Return the machine's shape, and its source, if that is the evidence; else None.

    `against` is the path of the evidence, for errors.
    """
    counts = {"cpu_count", "memory_size"}
    given = machine.vm_config is not None or counts <= machine.fields.keys()
    if against is None or evidence is None or given:
        return machine.shape(), None
    from attestkit.measure.diagnosis.guest_shape import read_machine_shape

    with name_file_in_errors(against, "--against"):
        shape, source = read_machine_shape(evidence)
    return replace(shape, **machine.fields), source


def _measure_command(
    boot: guest.BootFiles, machine: guest.MachineOptions, qemu: Path | None
) -> "_Measured":
    """Measure the machine of a QEMU command line.

    Its boot files are those that the command line names, unless options name others.

    `qemu` is the path of QEMU's program, which is run.

    Raises:
        UsageError: If `qemu` is None, or options exclude each other.
        FormatError, ConfigError, BackendError: As `tdx_command`.
    """
    from attestkit.measure.command_guest import command_files, tdx_command
    from attestkit.measure.diagnosis.guest_inputs import GuestInputs

    command = machine.command() or ""
    if qemu is None:
        raise UsageError("--qemu: missing; --qemu-args needs QEMU's program", reason="missing")
    if boot.image is not None:
        raise UsageError("--image and --qemu-args: give only one", reason="conflict")
    if not (boot.kernel or boot.uki or boot.disk):
        named = command_files(command)
        paths = {name: Path(value) for name, value in named.items() if name != "cmdline"}
        boot = boot._replace(
            kernel=paths.get("kernel"),
            initrd=boot.initrd or paths.get("initrd"),
            shim=boot.shim or paths.get("shim"),
            cmdline=named.get("cmdline") if boot.cmdline is None else boot.cmdline,
        )
    files = boot.read()
    expected = tdx_command(
        command,
        firmware=files.firmware,
        boot=_boot(files, boot.cmdline),
        qemu=qemu,
        qemu_version=machine.fields.get("qemu_version", ""),
        processor_id=machine.processor_id,
    )
    inputs = _with_boot(GuestInputs(), files.firmware, files.kernel, files.initrd, boot.cmdline)
    return _Measured(expected, inputs)


def _boot(files: "BootData", cmdline: str | None) -> "TdxBoot":
    from attestkit.measure.kernel.disk_boot import BootImage, GptTable
    from attestkit.measure.tdx_guest import TdxBoot

    return TdxBoot(
        kernel=files.kernel,
        initrd=files.initrd,
        cmdline=cmdline or "",
        shim=files.shim,
        uki=files.uki,
        disk=None if files.disk is None else GptTable.parse(files.disk),
        boot_loaders=tuple(BootImage(*named) for named in files.boot_loaders),
    )


def _cache() -> "TableCache | None":
    """Return the user's cache of ACPI tables; None without a home directory."""
    from attestkit.measure.acpi import TableCache, cache_folder

    folder = cache_folder(os.environ)
    return None if folder is None else TableCache(folder)


def _read_log(path: Path) -> "EventLog":
    """Return the event log of a TD in a file, which is a log or evidence with one.

    A log in evidence must replay to its quote's registers.

    Raises:
        FormatError: If the file contains no such log.
        VerificationError: If the log does not replay.
    """
    from attestkit.attestation import Attestation
    from attestkit.cli.input.detect_format import identify_file
    from attestkit.event_log import EventLog

    found = identify_file(path, "--log").value
    if isinstance(found, EventLog):
        return found
    if isinstance(found, Attestation) and found.quote is not None:
        log = found.event_log
        with name_file_in_errors(path, "--log"):
            log.check(found.quote, log.explained_registers())
        return log
    raise FormatError(f"--log {path}: contains no event log of a TD", reason="unsupported")


def _read_evidence(path: Path) -> "Attestation":
    """Return the evidence in a file; FormatError if it is in another format."""
    from attestkit.attestation import Attestation
    from attestkit.cli.input.detect_format import identify_file

    found = identify_file(path, "--against").value
    if isinstance(found, Attestation):
        return found
    text = f"--against {path}: must be evidence, as attestkit attest writes it"
    raise FormatError(text, reason="unsupported")


def _compare(
    measured: "_Measured", path: Path, evidence: "Attestation", form: str, output: Path | None
) -> int:
    """Print how evidence differs from expected values; return 2 if it does, else 0.

    Args:
        measured: The expected values.
        path: Path of the evidence, for the output.
        evidence: The evidence.
        form: `json`; other values print a table.
        output: File for JSON; None: stdout.
    """
    from attestkit.cli.output.differences import describe_comparison, show_differences
    from attestkit.measure.diagnosis.evidence_comparison import (
        find_differences,
        uncompared_registers,
    )

    expected = measured.expected
    with name_file_in_errors(path, "--against"):
        found = find_differences(expected, evidence, inputs=measured.inputs)
    rest = uncompared_registers(expected, evidence)
    code = set_exit_code(REJECTED if found else 0)
    if form == "json":
        comparison = describe_comparison(path, found, rest, measured.shape_source)
        _write_text(json.dumps(expected.to_dict() | {"against": comparison}, indent=2), output)
    else:
        show_differences(expected, path, found, rest, measured.shape_source)
    return code


def _write(expected: "ExpectedMeasurements", form: str, output: Path | None) -> None:
    if form == "table":
        _show(expected)
        return
    _write_text(expected.to_toml() if form == "toml" else expected.to_json(), output)


def _write_text(text: str, output: Path | None) -> None:
    text = text if text.endswith("\n") else f"{text}\n"
    if output is None:
        print_content(text)
    elif write_output("-o", output, text):
        console.verdict(f"{output}: expected measurements", good=True)


def _show(expected: "ExpectedMeasurements") -> None:
    from attestkit.measure.expected import describe_gap

    title = {"tdx": "TDX", "snp": "SEV-SNP"}[expected.platform]
    bases = expected.bases
    found = expected.reference_values()
    lines: list[tuple[str, str, str]] = []
    for name, values in found.items():
        basis = bases["launch_digest" if name == "measurement" else name]
        lines += [(name, value.hex(), basis) for value in values] or [(name, "unknown", "-")]
    console.fields(f"{title}: expected measurements", dict(expected.settings))
    console.lines([""])
    console.rows(("value", "hex", "basis"), lines)
    if expected.events:
        console.lines([""])
        events = [
            (event.register, event.name, event.digest.hex() if event.digest else "-", event.basis)
            for event in expected.events
        ]
        console.rows(("rtmr", "event", "digest", "basis"), events, brief=True)
    if expected.not_proven:
        console.lines([""])
    for word in expected.not_proven:
        console.warning(f"{word}: {describe_gap(word)}")
