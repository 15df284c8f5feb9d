"""QEMU command lines that make a machine with the ACPI tables of a dstack VM.

The PCI topology is that of dstack's VMM; devices that need the host have stand-ins. Only numbers of
a VM configuration enter a command line, never text.
"""

from os import PathLike, fspath
from typing import Final

from attestkit.measure.acpi.acpi_inputs import AcpiInputs, acpi_inputs
from attestkit.measure.machine_shape import MachineShape

DEFAULT_PROGRAM: Final = "qemu-system-x86_64"

STAND_IN: Final = "virtio-rng-pci"
"""QEMU device: an endpoint with a 64-bit prefetchable BAR. It needs nothing of the host."""

CPU: Final = "Skylake-Server,phys-bits=52"
"""CPU model; QEMU compares the address width with the size of the 64-bit PCI window."""

HOTPLUG_OFF: Final = "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"


def dstack_command(
    machine: MachineShape, program: str | PathLike[str] = DEFAULT_PROGRAM
) -> list[str]:
    """Return the command line, as words, for a dstack VM; the caller adds `-accel`.

    Args:
        machine: Shape of the VM.
        program: QEMU's program, a path or a name to search for in PATH.

    Raises:
        UsageError: If `machine.host_share_mode` is unknown.
    """
    return inputs_command(acpi_inputs(machine), program, memory_size=machine.memory_size)


def inputs_command(
    inputs: AcpiInputs, program: str | PathLike[str] = DEFAULT_PROGRAM, *, memory_size: int
) -> list[str]:
    """Return the command line, as words, of a machine with `inputs`; the caller adds `-accel`.

    Args:
        inputs: Number of vCPUs, devices and other properties of the machine.
        program: QEMU's program, a path or a name to search for in PATH.
        memory_size: Bytes of RAM.
    """
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
