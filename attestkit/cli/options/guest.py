"""Options that describe a guest: what it boots, the machine of a TD, or an SEV-SNP guest."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from attestkit.cli.input.read_input import name_file_in_errors, open_input, read_file
from attestkit.cli.options import option
from attestkit.cli.options.option import read_hex
from attestkit.errors import FormatError, UsageError

if TYPE_CHECKING:
    from attestkit.measure import ExpectedMeasurements, MachineShape, SnpInputs
    from attestkit.measure.sev_snp.launch_digest import Vmm

_MAX_FIRMWARE: Final = 64 << 20  # bytes
_MAX_KERNEL: Final = 256 << 20
_MAX_INITRD: Final = 1 << 30
_DISK_HEAD: Final = 4 << 20  # bytes; the partition table is at the start of the disk
_MAX_TEXT: Final = 1 << 20  # bytes
_SIZES: Final = ("memory_size", "pci_hole64_size")


class BootData(NamedTuple):
    """Contents of the boot files of a guest; None for files that are not given.

    Attributes:
        firmware: Image of OVMF.
        kernel: Linux kernel.
        initrd: Initrd of the kernel.
        shim: Shim of QEMU's `-shim`.
        uki: Unified kernel image.
        disk: First 4 MiB of the raw disk image.
        boot_loaders: Names and contents of images that are loaded before.
    """

    firmware: bytes
    kernel: bytes | None
    initrd: bytes | None
    shim: bytes | None
    uki: bytes | None
    disk: bytes | None  # its start
    boot_loaders: tuple[tuple[str, bytes], ...]  # names and contents


class BootFiles(NamedTuple):
    """Values of the options that name the boot files of a guest; None for those not given."""

    image: Path | None
    firmware: Path | None
    kernel: Path | None
    initrd: Path | None
    cmdline: str | None
    shim: Path | None
    uki: Path | None
    disk: Path | None
    boot_loaders: tuple[Path, ...]

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Files that are read."""
        found = (self.image, self.firmware, self.kernel, self.initrd)
        return tuple(filter(None, (*found, self.shim, self.uki, self.disk, *self.boot_loaders)))

    def check(self) -> "BootFiles":
        """Return this object; raise UsageError if --image is given with other boot options."""
        if self.image is not None and (len(self.inputs) > 1 or self.cmdline is not None):
            message = "--image: contains the other boot files and the command line; omit them"
            raise UsageError(message, reason="conflict")
        return self

    def read(self) -> BootData:
        """Read the boot files that are given in place of --image; of a disk, the first 4 MiB.

        Raises:
            FormatError: If a file cannot be read, or is too large.
            UsageError: If the firmware is missing.
        """
        if self.firmware is None:
            raise UsageError("--firmware: missing; give it, or --image", reason="missing")
        return BootData(
            firmware=read_file(self.firmware, _MAX_FIRMWARE),
            kernel=_read(self.kernel, _MAX_KERNEL),
            initrd=_read(self.initrd, _MAX_INITRD),
            shim=_read(self.shim, _MAX_KERNEL),
            uki=_read(self.uki, _MAX_INITRD),
            disk=None if self.disk is None else _read_head(self.disk),
            boot_loaders=tuple(
                (_loader_name(path), read_file(path, _MAX_KERNEL)) for path in self.boot_loaders
            ),
        )


def _read(path: Path | None, most: int) -> bytes | None:
    return None if path is None else read_file(path, most)


def _read_head(path: Path) -> bytes:
    with open_input(path) as file:
        return file.read(_DISK_HEAD)


def _loader_name(path: Path) -> str:
    """Return the name of a boot loader's event: `shim` for a shim's file, else the file name."""
    return "shim" if path.name.lower().startswith("shim") else path.name


boot_options: Final = option.group(
    "boot",
    option.section(
        "Boot files",
        option.file("--image", "Folder or archive of a dstack image."),
        option.file("--firmware", "Image of OVMF, with its variables."),
        option.file("--kernel", "Linux kernel."),
        option.file("--initrd", "Initrd of the kernel."),
        option.value("--cmdline", "TEXT", "Command line of the kernel."),
        option.file("--uki", "Unified kernel image."),
        option.file("--disk", "Raw disk image; kernel or UKI are booted from it."),
        option.file("--shim", "Shim of QEMU's -shim."),
        option.file("--boot-loader", "Image that is loaded before, as GRUB.", many=True),
    ),
    BootFiles.check,
    BootFiles,
)


# -- the machine of a TD -------------------------------------------------------------------------


class MachineOptions(NamedTuple):
    """Values of options about the machine of a TD.

    Attributes:
        vm_config: File with the VM configuration; None: not given.
        fields: Fields of `MachineShape` that options give, by name.
        qemu_args: File with QEMU's command line; None: not given.
        processor_id: EAX and EDX of CPUID leaf 1; None: not given.
    """

    vm_config: Path | None
    fields: dict[str, Any]  # of `MachineShape`, as given
    qemu_args: Path | None
    processor_id: tuple[int, int] | None

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Files that are read."""
        return tuple(filter(None, (self.vm_config, self.qemu_args)))

    @property
    def given(self) -> bool:
        """Whether there is an option that an SEV-SNP guest does not have."""
        return bool(self.inputs or self.fields.keys() - {"cpu_count"})

    def shape(self) -> "MachineShape":
        """Return the shape in the VM configuration; options of single values replace its members.

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
                raise UsageError(f"{option}: missing; give it, or --vm-config", reason="missing")
        return MachineShape(**self.fields)

    def command(self) -> str | None:
        """Return QEMU's command line, as it is in the file of --qemu-args; None without the option.

        Raises:
            FormatError: If the file cannot be read, or is not UTF-8.
        """
        return None if self.qemu_args is None else _read_text(self.qemu_args)


def _read_machine(
    *, vm_config: Path | None, qemu_args: Path | None, processor_id: str | None, **given: Any
) -> MachineOptions:
    from attestkit.measure.acpi.qemu.qemu_options import parse_size

    fields = {name: value for name, value in given.items() if value is not None}
    if fields.pop("cdrom_root", False):
        fields["root_disk"] = False
    for name in fields.keys() & _SIZES:
        fields[name] = parse_size(f"--{name.replace('_', '-')}", fields[name], 1)
    described = vm_config is not None or fields.keys() - {"qemu_version"}
    if qemu_args is not None and described:
        raise UsageError("--qemu-args: describes the machine; omit its options", reason="conflict")
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


machine_options: Final = option.group(
    "machine",
    option.section(
        "Machine of a TD",
        option.file("--vm-config", "VM configuration of the evidence (JSON)."),
        option.value("--cpu-count", "N", "Virtual CPUs, also with --snp.", type=int),
        option.value("--memory-size", "SIZE", "Memory in bytes, or such as 2G or 512M."),
        option.value("--qemu-version", "VERSION", "Version of the host's QEMU."),
        option.value("--num-gpus", "N", "GPUs.", type=int),
        option.file("--qemu-args", "Command line of QEMU, as /proc/PID/cmdline."),
        click.option("--pic/--no-pic", default=None, help="Whether there is an 8259."),
        option.value("--pci-hole64-size", "SIZE", "64-bit PCI window."),
        click.option("--hotplug-off", is_flag=True, default=None, help="No ACPI hotplug."),
        option.value("--num-nvswitches", "N", "NVSwitches.", type=int),
        option.value("--num-nics", "N", "Network cards. Default: 1.", type=int),
        option.value("--num-verity-volumes", "N", "Read-only disks.", type=int),
        click.option("--cdrom-root", is_flag=True, default=None, help="Root is on a CD-ROM."),
        click.option("--two-pass/--single-pass", default=None, help="Order of pages in MRTD."),
        option.value("--processor-id", "EAX,EDX", "CPUID leaf 1 in hex, for SMBIOS."),
    ),
    _read_machine,
)


# -- SEV-SNP -------------------------------------------------------------------------------------


def _number(text: str) -> int:
    """Return the number in `text`, decimal or with 0x; an error names the option."""
    try:
        return int(text, 0)
    except ValueError:
        raise click.BadParameter("must be a number, such as 0x21") from None


class SnpOptions(NamedTuple):
    """Values of the options about an SEV-SNP guest; None for those not given.

    Attributes:
        snp: Whether an SEV-SNP guest is measured, not a TD.
        cpu_type: CPU type of QEMU, such as `EPYC-v4`.
        cpu_signature: EAX of CPUID leaf 1.
        guest_features: SEV_FEATURES.
        vmm: `qemu`, `ec2` or `gce`.
        svsm: Image of COCONUT-SVSM.
        vars_size: Size in bytes of the UEFI variables below the firmware.
    """

    snp: bool
    cpu_type: str | None
    cpu_signature: int | None
    guest_features: int | None
    vmm: "Vmm | None"
    svsm: Path | None
    vars_size: int | None

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Files that are read."""
        return () if self.svsm is None else (self.svsm,)

    def check(self) -> "SnpOptions":
        """Return this object; raise UsageError if other options are given without --snp."""
        if not self.snp and any(value is not None for value in self[1:]):
            message = "--cpu-type and other options of SEV-SNP: require --snp"
            raise UsageError(message, reason="not_applicable")
        return self

    def measure(
        self,
        cpu_count: int,
        firmware: bytes,
        kernel: bytes | None,
        initrd: bytes | None,
        cmdline: str | None,
    ) -> "tuple[ExpectedMeasurements, SnpInputs | None]":
        """Return the launch digest that a guest with these boot files has, and its inputs.

        The inputs explain differences; they are None with COCONUT-SVSM.

        Args:
            cpu_count: Number of virtual CPUs.
            firmware: Image of OVMF.
            kernel: Linux kernel; None: the VMM measures no kernel.
            initrd: Initrd of the kernel; None: no initrd.
            cmdline: Command line of the kernel; None: an empty one.

        Raises:
            FormatError: If a file is malformed.
            UsageError: If a value is out of range.
        """
        from attestkit.measure import SnpInputs, snp
        from attestkit.measure.sev_snp.launch_digest import (
            KernelFiles,
            SnpMachine,
            find_cpu_signature,
        )
        from attestkit.measure.snp_guest import DEFAULT_VARIABLES_SIZE

        size = DEFAULT_VARIABLES_SIZE if self.vars_size is None else self.vars_size
        expected = snp(
            firmware=firmware,
            vcpus=cpu_count,
            cpu_type=self.cpu_type,
            cpu_signature=self.cpu_signature,
            guest_features=1 if self.guest_features is None else self.guest_features,
            vmm=self.vmm or "qemu",
            kernel=kernel,
            initrd=initrd,
            cmdline=cmdline,
            svsm=_read(self.svsm, _MAX_FIRMWARE),
            variables_size=size,
        )
        if self.svsm is not None:
            return expected, None
        signature = self.cpu_signature or 0
        if self.cpu_type is not None:
            signature = find_cpu_signature(self.cpu_type)
        machine = SnpMachine(cpu_count, signature, self.guest_features or 1, self.vmm or "qemu")
        files = None if kernel is None else KernelFiles(kernel, initrd or b"", cmdline or "")
        return expected, SnpInputs(firmware=firmware, machine=machine, kernel=files)


snp_options: Final = option.group(
    "snp",
    option.section(
        "SEV-SNP",
        option.flag("--snp", text="Measure an SEV-SNP guest, not a TD."),
        option.value("--cpu-type", "NAME", "CPU type of QEMU, as EPYC-v4."),
        click.option("--vmm", type=click.Choice(["qemu", "ec2", "gce"]), help="Default: qemu."),
        option.value("--cpu-signature", "NUMBER", "EAX of CPUID leaf 1.", type=_number),
        option.value(
            "--guest-features", "NUMBER", "SEV_FEATURES, as 0x21. Default: 0x1.", type=_number
        ),
        option.file("--svsm", "Image of COCONUT-SVSM."),
        option.value("--vars-size", "BYTES", "Variables below the firmware.", type=_number),
    ),
    SnpOptions.check,
    SnpOptions,
)
