"""Tests of the command line of dstack's machine, and of the inputs of its tables."""

from dataclasses import replace
from itertools import pairwise

from attestkit.errors import UsageError
from attestkit.measure.acpi.acpi_inputs import AcpiInputs, acpi_inputs
from attestkit.measure.acpi.qemu.qemu_command import dstack_command, inputs_command
from attestkit.measure.acpi.qemu.qemu_machine import read_machine
from tests.measure.acpi.machines import needs_qemu, shape_of
from tests.raising import raises
from tests.runner.cases import every_case

GIB = 1 << 30
SHAPE = shape_of()


def devices(command: list[str]) -> list[str]:
    """Return the arguments of -device."""
    return [value for option, value in pairwise(command) if option == "-device"]


def test_dstack_command_has_five_devices() -> None:
    """Root disk, data disk, network, vsock and shared files are on bus 0."""
    command = dstack_command(SHAPE)
    assert devices(command) == ["virtio-rng-pci"] * 5
    assert command[command.index("-smp") + 1] == "2"
    assert command[command.index("-m") + 1] == "2097152K"
    assert "-global" not in command


def test_dstack_command_has_port_for_each_gpu_and_switch() -> None:
    """Each GPU and NVSwitch is behind a root port of its own."""
    shape = replace(SHAPE, num_gpus=2, num_nvswitches=1, hotplug_off=True, pci_hole64_size=1 << 44)
    command = dstack_command(shape)
    ports = [device for device in devices(command) if device.startswith("pcie-root-port")]
    assert ports == [f"pcie-root-port,id=pci.{n},bus=pcie.0,chassis={n}" for n in range(3)]
    assert "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off" in command
    assert "q35-pcihost.pci-hole64-size=0x100000000000" in command


@every_case(
    ("changes", "endpoints"),
    [
        ({}, 5),
        ({"num_nics": 0}, 4),
        ({"num_nics": 3}, 7),
        ({"num_verity_volumes": 2}, 7),
        ({"root_disk": False}, 4),
        ({"host_share_mode": "9p"}, 5),
        ({"host_share_mode": "vvfat"}, 5),
    ],
)
def test_acpi_inputs_count_devices(changes: dict[str, object], endpoints: int) -> None:
    """Each device takes a slot; a CD-ROM takes none."""
    assert acpi_inputs(shape_of(**changes)).endpoints == endpoints


@every_case(
    ("version", "pic", "expected"),
    [
        ("", None, False),
        ("8.2.2", None, True),
        ("9.2.1", None, False),
        ("8.2.2", False, False),
        ("9.2.1", True, True),
    ],
)
def test_acpi_inputs_have_pic_before_9_0(version: str, pic: bool | None, expected: bool) -> None:
    """The configuration decides, else the version."""
    shape = replace(SHAPE, qemu_version=version, pic=pic)
    assert acpi_inputs(shape).pic is expected


@every_case(
    ("memory", "low"),
    [
        (GIB, GIB),
        (2 * GIB, 2 * GIB),
        (2815 << 20, 2815 << 20),
        (2816 << 20, 2 * GIB),
        (2048 * GIB, 2 * GIB),
    ],
)
def test_low_memory_is_2_gib_from_2816_mib_on(memory: int, low: int) -> None:
    """From 2816 MiB on, a part of the memory is above 4 GiB."""
    assert acpi_inputs(replace(SHAPE, memory_size=memory)).low_memory == low


@needs_qemu
def test_machines_with_equal_inputs_have_equal_tables() -> None:
    """The tables do not depend on memory above 4 GiB."""
    shapes = [replace(SHAPE, memory_size=size * GIB) for size in (2, 3, 512)]
    found = [read_machine(dstack_command(shape)) for shape in shapes]
    assert len({acpi_inputs(shape) for shape in shapes}) == 1
    assert len({machine.acpi for machine in found}) == 1
    assert len({machine.ranges for machine in found}) == 3


@needs_qemu
def test_each_input_changes_the_tables() -> None:
    """Machines that differ in one input have different tables."""
    base = AcpiInputs(2, 2 * GIB, 5, 1, hotplug_off=False, pci_hole64_size=0, pic=False)
    changes: list[dict[str, object]] = [
        {},
        {"cpu_count": 3},
        {"low_memory": GIB},
        {"endpoints": 6},
        {"root_ports": 2},
        {"hotplug_off": True},
        {"pci_hole64_size": 1 << 44},
        {"pic": True},
    ]
    assert [set(change) for change in changes[1:]] == [{name} for name in AcpiInputs._fields]
    tables = set()
    for change in changes:
        inputs = base._replace(**change)  # type: ignore[arg-type]
        command = inputs_command(inputs, memory_size=inputs.low_memory)
        tables.add(read_machine(command).acpi.digests())
    assert len(tables) == len(changes)


@every_case(
    ("changes", "reason"),
    [
        ({"cpu_count": 0}, "out_of_range"),
        ({"cpu_count": 4097}, "out_of_range"),
        ({"cpu_count": True}, "wrong_type"),
        ({"cpu_count": "2,maxcpus=4"}, "wrong_type"),
        ({"memory_size": 1 << 46}, "out_of_range"),
        ({"memory_size": -1}, "out_of_range"),
        ({"memory_size": (2 << 30) + 1}, "wrong_value"),
        ({"qemu_version": "new"}, "wrong_value"),
        ({"memory_size": 2.5}, "wrong_type"),
        ({"pci_hole64_size": -1}, "out_of_range"),
        ({"pci_hole64_size": 1 << 60}, "out_of_range"),
        ({"num_gpus": -1}, "out_of_range"),
        ({"num_gpus": 16, "num_nvswitches": 16}, "too_many"),
        ({"num_nics": 28}, "too_many"),  # with disks, vsock and shared files
        ({"num_verity_volumes": 10**30}, "out_of_range"),
        ({"host_share_mode": "9p,x=y"}, "wrong_value"),
        ({"swtpm": True}, "not_applicable"),
        ({"hugepages": True, "num_gpus": 1}, "not_applicable"),
    ],
)
def test_dstack_command_rejects_value(changes: dict[str, object], reason: str) -> None:
    """The host states the configuration: only numbers in range, and known devices, are used."""
    with raises(UsageError, reason):
        dstack_command(shape_of(**changes))
