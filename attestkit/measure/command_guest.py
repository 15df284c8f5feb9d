"""Expected measurements of a TD, from the command line of its QEMU."""

import os
from collections.abc import Sequence

from attestkit.attestation.launch.td_hob import MemoryRange
from attestkit.attestation.launch.tdx import is_two_pass
from attestkit.errors import FormatError, UsageError
from attestkit.measure import acpi
from attestkit.measure.expected import ExpectedMeasurements
from attestkit.measure.rtmr0.rtmr0_events import DIRECT_BOOT_ORDER, FwCfgItems
from attestkit.measure.rtmr0.smbios import set_processor_id
from attestkit.measure.tdx_guest import TdxBoot, TdxMachine, measure_tdx


def tdx_command(
    command: str | Sequence[str],
    *,
    firmware: bytes,
    boot: TdxBoot,
    qemu: str | os.PathLike[str],
    qemu_version: str = "",
    processor_id: tuple[int, int] | None = None,
) -> ExpectedMeasurements:
    """Return the expected MRTD and RTMR0 to RTMR2 of a TD, from the command line of its QEMU.

    The command line is not executed as given, and no file that it names is opened. A cleaned one
    without TDX and KVM starts a QEMU that executes no guest instruction.

    Args:
        command: Command line of the guest's QEMU, as text or as words.
        firmware: Image of OVMF.
        boot: Kernel, initrd and command line, or disk, that the guest boots.
        qemu: QEMU's program to run, which should be of the release line of the host's QEMU.
        qemu_version: Version of the host's QEMU; empty if it is that of `qemu`.
        processor_id: EAX and EDX of CPUID leaf 1 of the host, for firmware that measures the SMBIOS
            table. None: the digest of that table is unknown.

    Raises:
        FormatError: If an input is malformed or exceeds a limit.
        UsageError: If an option of the command line is not supported, `qemu_version` is not a
            version, or files of `boot` exclude each other.
        ConfigError: If QEMU is missing, cannot be executed, or refuses the options.
        BackendError: If QEMU does not answer in time, or not in the protocol.
    """
    program = os.fspath(qemu)
    made_with = acpi.read_version(program)
    wanted = _parse_version(qemu_version) if qemu_version else made_with
    cleaned = acpi.clean_command(command, wanted, program)
    machine = acpi.read_machine(cleaned.command)
    smbios = None
    if processor_id is not None and made_with.release == wanted.release:
        smbios = set_processor_id(machine.smbios_tables, *processor_id)
    two_pass = is_two_pass({"qemu_version": str(wanted)})
    given = TdxMachine(
        memory=tuple(MemoryRange(*found) for found in machine.ranges),
        memory_size=cleaned.memory_size,
        qemu=wanted.release,
        page_order="two_pass" if two_pass else "single_pass",
        acpi=acpi.describe_tables(machine.acpi, "qemu", made_with=made_with, wanted=wanted),
        smbios=smbios,
        fw_cfg=_fw_cfg(machine, direct=boot.disk is None),
        qemu_version=str(wanted),
        boot_order_known=cleaned.boot_order_known,
    )
    return measure_tdx(firmware, boot, given)


def _fw_cfg(machine: acpi.QemuMachine, *, direct: bool) -> FwCfgItems:
    """Return the fw_cfg items of a machine that was read without `-kernel`.

    If `direct`, the boot order is that of a machine with `-kernel`.
    """
    # QEMU puts the loader of -kernel before all devices.
    first = DIRECT_BOOT_ORDER if direct else b""
    items = FwCfgItems(*(getattr(machine, name) for name in FwCfgItems._fields))
    return items._replace(boot_order=first + machine.boot_order)


def command_files(command: str | Sequence[str]) -> dict[str, str]:
    """Return the values of -kernel, -initrd, -append and -shim of a QEMU command line, by name.

    The command line is text or words. The names are `kernel`, `initrd`, `cmdline` and `shim`;
    absent options are left out.

    Raises:
        UsageError: If an option, device or value is unknown or has an unknown effect on the ACPI
            tables; the machine is not q35; or -nodefaults or -m is missing.
    """
    found = acpi.clean_command(command, acpi.QemuVersion(10, 0))
    named = {
        "kernel": found.kernel,
        "initrd": found.initrd,
        "cmdline": found.cmdline,
        "shim": found.shim,
    }
    return {name: value for name, value in named.items() if value is not None}


def _parse_version(text: str) -> acpi.QemuVersion:
    try:
        return acpi.QemuVersion.parse(text)
    except FormatError as error:
        raise UsageError(str(error), reason="wrong_value") from error
