"""QEMU command lines that make a machine with the ACPI tables of a dstack VM.

The PCI topology is that of dstack's VMM; devices that need the host have stand-ins. Only numbers of
a VM configuration enter a command line, never text.
"""

from os import PathLike, fspath
from typing import Final

from attestkit.errors import UsageError
from attestkit.measure.acpi.acpi_inputs import AcpiInputs, DstackMachine, acpi_inputs

DEFAULT_PROGRAM: Final = "qemu-system-x86_64"

STAND_IN: Final = "virtio-rng-pci"
"""Endpoint with a 64-bit prefetchable BAR that needs nothing of the host."""

CPU: Final = "Skylake-Server,phys-bits=52"
"""CPU model; QEMU compares the address width with the size of the 64-bit PCI window."""

HOTPLUG_OFF: Final = "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"


def dstack_command(
    machine: DstackMachine,
    program: str | PathLike[str] = DEFAULT_PROGRAM,
    *,
    kernel: str | PathLike[str] | None = None,
    initrd: str | PathLike[str] | None = None,
    cmdline: str | None = None,
) -> list[str]:
    """Return the command line for a dstack VM, without accelerator.

    Args:
        machine: Shape of the VM.
        program: QEMU's program.
        kernel: Kernel file. It does not change the ACPI tables, but the boot order and the
            kernel that QEMU passes to the firmware.
        initrd: Initrd file.
        cmdline: Kernel command line.

    Raises:
        UsageError: As for `acpi_inputs`; or `initrd` or `cmdline` without `kernel`.
    """
    command = inputs_command(acpi_inputs(machine), program, memory_size=machine.memory_size)
    return command + kernel_options(kernel, initrd, cmdline)


def inputs_command(
    inputs: AcpiInputs, program: str | PathLike[str] = DEFAULT_PROGRAM, *, memory_size: int
) -> list[str]:
    """Return the command line of a machine that has these inputs."""
    size = f"{memory_size // 1024}K"
    pic = "on" if inputs.pic else "off"
    command = [fspath(program), "-nodefaults", "-cpu", CPU, "-smp", str(inputs.cpu_count)]
    # Memory that is not reserved: a host with less can compute the tables of a guest with more.
    command += ["-m", size, "-object", f"memory-backend-ram,id=mem0,size={size},reserve=off"]
    command += ["-machine", f"q35,memory-backend=mem0,hpet=off,smm=off,pic={pic}"]
    command += ["-serial", "null"]
    command += ["-device", STAND_IN] * inputs.endpoints
    for number in range(inputs.root_ports):
        port = f"pcie-root-port,id=pci.{number},bus=pcie.0,chassis={number}"
        command += ["-device", port, "-device", f"{STAND_IN},bus=pci.{number}"]
    if inputs.hotplug_off:
        command += ["-global", HOTPLUG_OFF]
    if inputs.pci_hole64_size:
        command += ["-global", f"q35-pcihost.pci-hole64-size={inputs.pci_hole64_size:#x}"]
    return command


def kernel_options(
    kernel: str | PathLike[str] | None,
    initrd: str | PathLike[str] | None = None,
    cmdline: str | None = None,
) -> list[str]:
    """Return the options of a direct boot; none without a kernel.

    Raises:
        UsageError: If there is an initrd or a command line without a kernel, or a NUL in one.
    """
    if kernel is None:
        if initrd is not None or cmdline is not None:
            raise UsageError("initrd and cmdline: no kernel is given", reason="missing")
        return []
    options = ["-kernel", fspath(kernel)]
    if initrd is not None:
        options += ["-initrd", fspath(initrd)]
    if cmdline is not None:
        options += ["-append", cmdline]
    if any("\0" in option for option in options):
        raise UsageError("kernel, initrd, cmdline: NUL character", reason="wrong_value")
    return options
