"""`attestkit measure`: expected registers and launch digests of a guest, from its files."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from attestkit.cli.input.detect_format import identify_file, name_file_in_errors
from attestkit.cli.input.read_input import read_file
from attestkit.cli.options.boot_files import BootFiles, boot_options
from attestkit.cli.options.click_types import PATH, json_option, output_option
from attestkit.cli.options.machine_shape import MachineOptions, machine_options
from attestkit.cli.options.snp_guest import SnpOptions, snp_options
from attestkit.cli.output import console
from attestkit.cli.output.write_output import check_output, refuse_stdout, write_output
from attestkit.errors import FormatError, UsageError

if TYPE_CHECKING:
    from attestkit.cli.options.boot_files import BootData
    from attestkit.event_log import EventLog
    from attestkit.measure import ExpectedMeasurements
    from attestkit.measure.acpi import TableCache
    from attestkit.measure.tdx_guest import TdxBoot

_EPILOG: Final = (
    "Example: attestkit measure --image dstack-0.5.5 --vm-config vm.json --format toml "
    "-o policy.toml\n\n"
    "Exit codes: 0 good, 1 usage, 2 the log does not replay to the registers of its quote, "
    "3 QEMU does not answer, 5 unreadable input."
)
_MAX_SMBIOS: Final = 1 << 20  # bytes


@click.command(epilog=_EPILOG)
@boot_options
@machine_options
@click.option("--qemu", type=PATH, help="Program of QEMU, to make the ACPI tables.")
@click.option("--acpi", type=PATH, help="Folder with etc/table-loader, etc/acpi/rsdp and tables.")
@click.option("--smbios", type=PATH, help="SMBIOS table of QEMU (etc/smbios/smbios-tables).")
@click.option("--log", type=PATH, help="Event log or evidence, for digests that only a log has.")
@snp_options
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "toml", "json"]),
    default="table",
    show_default=True,
    help="Output: a table, a policy, or all values.",
)
@output_option("Write the output to FILE, with --format toml or json. Default: stdout.")
@json_option
def measure(
    *,
    boot: BootFiles,
    machine: MachineOptions,
    qemu: Path | None,
    acpi: Path | None,
    smbios: Path | None,
    log: Path | None,
    snp: SnpOptions,
    form: str,
    output: Path | None,
    as_json: bool,
) -> int:
    """Compute the expected registers of a guest, from what it boots and the machine's shape.

    No evidence is needed. The policy that --format toml writes is for attestkit verify --policy;
    its comments say what confirms each value, and what is not proven.
    """
    form = "json" if as_json else form
    _check_output(form, output, as_json=as_json)
    extra = tuple(path for path in (smbios, log) if path is not None)
    check_output("-o", output, (*boot.inputs, *machine.inputs, *snp.inputs, *extra))
    if snp.snp:
        if machine.given or extra or qemu is not None or acpi is not None:
            message = "--snp: options of TDs do not apply, such as --vm-config and --qemu"
            raise UsageError(message, reason="not_applicable")
        expected = _measure_snp(boot, snp)
    else:
        expected = _measure_tdx(boot, machine, qemu=qemu, acpi=acpi, smbios=smbios)
    if log is not None:
        expected = expected.with_log_digests(_read_log(log))
    _write(expected, form, output)
    return 0


def _check_output(form: str, output: Path | None, *, as_json: bool) -> None:
    refuse_stdout(output, as_json=as_json)
    if output is not None and form == "table":
        raise UsageError("-o: needs --format toml or json", reason="missing")


def _measure_snp(boot: BootFiles, snp: SnpOptions) -> "ExpectedMeasurements":
    if boot.image is not None:
        from attestkit.measure import read_dstack_image

        image = read_dstack_image(boot.image)
        firmware = image.firmware if image.firmware_snp is None else image.firmware_snp
        found = snp.measure(firmware, image.kernel, image.initrd, image.cmdline.strip())
        return replace(found, os_image_hash=image.os_image_hash)
    if boot.uki is not None or boot.disk is not None or boot.shim is not None:
        message = "--uki, --disk, --shim: what they name is not measured at the launch of a guest"
        raise UsageError(message, reason="not_applicable")
    files = boot.read()
    return snp.measure(files.firmware, files.kernel, files.initrd, boot.cmdline)


def _measure_tdx(
    boot: BootFiles,
    machine: MachineOptions,
    *,
    qemu: Path | None,
    acpi: Path | None,
    smbios: Path | None,
) -> "ExpectedMeasurements":
    from attestkit.measure.dstack_guest import TableSources, dstack_image, measure_shape

    if machine.qemu_args is not None:
        if acpi is not None or smbios is not None:
            message = "--acpi, --smbios: with --qemu-args, the tables are those of its machine"
            raise UsageError(message, reason="conflict")
        return _measure_command(boot, machine, qemu)
    shape = machine.shape()
    cache = None if qemu is None else _cache()
    table = None if smbios is None else read_file(smbios, _MAX_SMBIOS)
    sources = TableSources(qemu, acpi, table, machine.processor_id, cache)
    if boot.image is not None:
        return dstack_image(boot.image, shape, **sources._asdict())
    files = boot.read()
    return measure_shape(files.firmware, _boot(files, boot.cmdline), shape, sources)


def _measure_command(
    boot: BootFiles, machine: MachineOptions, qemu: Path | None
) -> "ExpectedMeasurements":
    """Measure the machine of a QEMU command line, whose boot files are the default."""
    from attestkit.measure.command_guest import command_files, tdx_command

    command = machine.command() or ""
    if qemu is None:
        raise UsageError("--qemu: missing; --qemu-args needs it", reason="missing")
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
    return tdx_command(
        command,
        firmware=files.firmware,
        boot=_boot(files, boot.cmdline),
        qemu=qemu,
        qemu_version=machine.fields.get("qemu_version", ""),
        processor_id=machine.processor_id,
    )


def _boot(files: "BootData", cmdline: str | None) -> "TdxBoot":
    from attestkit.measure.kernel import BootImage, GptTable
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
    """Return the user's cache of tables; None without a home directory."""
    from attestkit.measure.acpi import TableCache, cache_folder

    folder = cache_folder(os.environ)
    return None if folder is None else TableCache(folder)


def _read_log(path: Path) -> "EventLog":
    """Return the log of a file; that of evidence has to replay to the registers of the quote."""
    from attestkit.attestation import Attestation
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


def _write(expected: "ExpectedMeasurements", form: str, output: Path | None) -> None:
    if form == "table":
        _show(expected)
        return
    text = expected.to_toml() if form == "toml" else expected.to_json()
    if output is None:
        sys.stdout.write(text)
    elif write_output("-o", output, text):
        console.verdict(f"{output}: expected measurements", good=True)


def _show(expected: "ExpectedMeasurements") -> None:
    from attestkit.measure.policy_text import describe_gap

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
