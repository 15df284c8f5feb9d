"""The shape of the machine that evidence is of: as the host states it, or found from the log."""

from typing import Literal

from attestkit.attestation import Attestation
from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.errors import FormatError
from attestkit.measure.acpi.acpi_inputs import AcpiInputs
from attestkit.measure.diagnosis.guest_shape import GuestShape, find_guest_shape
from attestkit.measure.expected import events_of
from attestkit.measure.machine_shape import OTHER_DEVICES, MachineShape

ShapeSource = Literal["search", "vm_config"]
"""`vm_config`: the host's word, which no signature confirms. `search`: found from digests of the
log, so that events which depend on it are as expected."""


def read_machine_shape(evidence: Attestation) -> tuple[MachineShape, ShapeSource]:
    """Return the shape in the VM configuration of evidence, else the one that its log reveals.

    Raises:
        FormatError: If the configuration is malformed or unsupported, or if it is missing and the
            log does not reveal memory and vCPUs.
    """
    fields = VmConfig.parse(evidence.config).fields
    if "cpu_count" in fields or "memory_size" in fields:
        return MachineShape.from_vm_config(fields), "vm_config"
    shape = to_machine_shape(find_guest_shape(events_of(evidence.event_log, 0)))
    if shape is None:
        message = "evidence: no VM configuration, and its log does not reveal memory and vCPUs"
        raise FormatError(message, reason="missing")
    return shape, "search"


def to_machine_shape(found: GuestShape) -> MachineShape | None:
    """Return a shape with the same tables; None without memory or number of vCPUs.

    Devices are counted, not known: those of PCI bus 0 count as network cards, root ports as GPUs.
    """
    if found.memory is None or found.acpi is None:
        return None
    size = found.memory.size
    for machine in found.acpi.machines:
        return _shape_of(machine.inputs, machine.line, size)
    if found.acpi.tables is None:
        return None
    return MachineShape(cpu_count=found.acpi.tables.cpu_count, memory_size=size)


def _shape_of(inputs: AcpiInputs, line: str, memory_size: int) -> MachineShape:
    disk = inputs.endpoints > OTHER_DEVICES + 1
    return MachineShape(
        cpu_count=inputs.cpu_count,
        memory_size=memory_size,
        qemu_version=line,
        pic=inputs.pic,
        pci_hole64_size=inputs.pci_hole64_size,
        hotplug_off=inputs.hotplug_off,
        num_gpus=inputs.root_ports,
        num_nics=inputs.endpoints - OTHER_DEVICES - disk,
        root_disk=disk,
    )
