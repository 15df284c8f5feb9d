"""Options that describe a virtual machine: a VM configuration, single values, or QEMU's options."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from attestkit.cli.input.detect_format import name_file_in_errors
from attestkit.cli.input.read_input import read_file
from attestkit.cli.options.click_types import PATH, group_options, read_hex
from attestkit.errors import FormatError, UsageError

if TYPE_CHECKING:
    from attestkit.measure import MachineShape

_MAX_TEXT: Final = 1 << 20  # bytes
_SIZES: Final = ("memory_size", "pci_hole64_size")

_OPTIONS: Final = (
    click.option("--vm-config", type=PATH, help="VM configuration of the evidence (JSON)."),
    click.option("--cpu-count", type=int, metavar="N", help="Virtual CPUs."),
    click.option("--memory-size", metavar="SIZE", help="Memory in bytes, or such as 2G or 512M."),
    click.option("--qemu-version", metavar="VERSION", help="Version of the host's QEMU."),
    click.option(
        "--pic/--no-pic", default=None, help="Whether there is an 8259. Default: by QEMU."
    ),
    click.option("--pci-hole64-size", metavar="SIZE", help="64-bit PCI window."),
    click.option("--hotplug-off", is_flag=True, default=None, help="No ACPI hotplug of bridges."),
    click.option("--num-gpus", type=int, metavar="N", help="GPUs."),
    click.option("--num-nvswitches", type=int, metavar="N", help="NVSwitches."),
    click.option("--num-nics", type=int, metavar="N", help="Network cards. Default: 1."),
    click.option("--num-verity-volumes", type=int, metavar="N", help="Read-only disks."),
    click.option(
        "--cdrom-root", is_flag=True, default=None, help="The root file system is on a CD-ROM."
    ),
    click.option(
        "--two-pass/--single-pass",
        default=None,
        help="Order of the pages in MRTD. Default: both are accepted.",
    ),
    click.option(
        "--qemu-args",
        type=PATH,
        help="File with the command line of the guest's QEMU, such as /proc/PID/cmdline.",
    ),
    click.option(
        "--processor-id",
        metavar="EAX,EDX",
        help="CPUID leaf 1 of the host in hex, for firmware that measures the SMBIOS table.",
    ),
)


class MachineOptions(NamedTuple):
    """Values of the options."""

    vm_config: Path | None
    fields: dict[str, Any]  # of `MachineShape`, as given
    qemu_args: Path | None
    processor_id: tuple[int, int] | None

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Files that are read."""
        return tuple(path for path in (self.vm_config, self.qemu_args) if path is not None)

    @property
    def given(self) -> bool:
        """Whether there is any option of a machine."""
        return bool(self.inputs or self.fields)

    def shape(self) -> "MachineShape":
        """Return the shape: the VM configuration, in which the single values replace members.

        Raises:
            FormatError: If the VM configuration is malformed or not supported.
            UsageError: If a value is missing or out of range.
        """
        from dataclasses import replace

        from attestkit.attestation.launch.vm_config import VmConfig
        from attestkit.measure import MachineShape

        if self.vm_config is not None:
            text = _read_text(self.vm_config)
            with name_file_in_errors(self.vm_config, "--vm-config"):
                found = MachineShape.from_vm_config(VmConfig.parse(text).fields)
            return replace(found, **self.fields)
        for name in ("cpu_count", "memory_size"):
            if name not in self.fields:
                option = f"--{name.replace('_', '-')}"
                raise UsageError(f"{option}: missing; or give --vm-config", reason="missing")
        return MachineShape(**self.fields)

    def command(self) -> str | None:
        """Return QEMU's command line, if it is given.

        Raises:
            FormatError: If the file cannot be read, or is not text.
        """
        return None if self.qemu_args is None else _read_text(self.qemu_args)


def _gather(
    *,
    vm_config: Path | None,
    qemu_args: Path | None,
    processor_id: str | None,
    cpu_count: int | None,
    memory_size: str | None,
    qemu_version: str | None,
    pic: bool | None,
    pci_hole64_size: str | None,
    hotplug_off: bool | None,
    num_gpus: int | None,
    num_nvswitches: int | None,
    num_nics: int | None,
    num_verity_volumes: int | None,
    cdrom_root: bool | None,
    two_pass: bool | None,
) -> MachineOptions:
    from attestkit.measure.acpi.qemu.qemu_options import parse_size

    given: dict[str, Any] = {
        "cpu_count": cpu_count,
        "memory_size": memory_size,
        "qemu_version": qemu_version,
        "pic": pic,
        "pci_hole64_size": pci_hole64_size,
        "hotplug_off": hotplug_off,
        "num_gpus": num_gpus,
        "num_nvswitches": num_nvswitches,
        "num_nics": num_nics,
        "num_verity_volumes": num_verity_volumes,
        "root_disk": False if cdrom_root else None,
        "two_pass": two_pass,
    }
    fields = {name: value for name, value in given.items() if value is not None}
    for name in _SIZES:
        if name in fields:
            fields[name] = parse_size(f"--{name.replace('_', '-')}", fields[name], 1)
    extra = sorted(fields.keys() - {"qemu_version"})
    if qemu_args is not None and (vm_config is not None or extra):
        raise UsageError("--qemu-args: already describes the machine", reason="conflict")
    return MachineOptions(vm_config, fields, qemu_args, _read_processor_id(processor_id))


def _read_processor_id(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = [
        read_hex("--processor-id", part[2:].zfill(8) if part[:2] in {"0x", "0X"} else part.zfill(8))
        for part in text.split(",")
    ]
    if len(parts) != 2 or any(len(part) != 4 for part in parts):
        message = "--processor-id: must be EAX,EDX, of up to 8 hex digits each"
        raise UsageError(message, reason="wrong_value")
    return int.from_bytes(parts[0], "big"), int.from_bytes(parts[1], "big")


def _read_text(path: Path) -> str:
    try:
        return read_file(path, _MAX_TEXT).decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8", reason="encoding", offset=error.start) from error


machine_options: Final = group_options("machine", _OPTIONS, _gather)
