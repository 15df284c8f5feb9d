"""A machine shape has only values that measurements can be computed from."""

from typing import Any

from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.errors import FormatError, UsageError
from attestkit.measure.machine_shape import MachineShape
from tests.measure.rows import VECTORS
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import needs_shared

GIB = 1 << 30
SMALL: dict[str, Any] = {"cpu_count": 2, "memory_size": 2 * GIB}


def test_shape_of_minimal_configuration_has_defaults() -> None:
    """Missing and null members have the defaults of a vm_config."""
    expected = MachineShape(cpu_count=2, memory_size=2 * GIB)
    assert MachineShape.from_vm_config(SMALL) == expected
    null = dict.fromkeys(("pic", "qemu_version", "num_nics", "hotplug_off", "numa_nodes"))
    assert MachineShape.from_vm_config(SMALL | null) == expected
    assert (expected.num_nics, expected.slots) == (1, 5)
    assert (expected.qemu_release, expected.page_order) == ((9, 1), "single_pass")


def test_shape_of_full_configuration_has_its_values() -> None:
    """Every member of a configuration that shapes the machine is read; others are ignored."""
    text = (
        '{"cpu_count": 64, "memory_size": 2199023255552, "qemu_version": "9.2.1", "pic": false,'
        '"pci_hole64_size": 1125899906842624, "hotplug_off": true, "num_gpus": 8,'
        '"num_nvswitches": 4, "num_nics": 2, "num_verity_volumes": 3, "host_share_mode": "9p",'
        '"qemu_single_pass_add_pages": true, "hugepages": false, "swtpm": false,'
        '"numa_nodes": [], "spec_version": 2, "image": "dstack-0.5.5", "os_image_hash": ""}'
    )
    found = MachineShape.from_vm_config(VmConfig.parse(text).fields, root_disk=False)
    assert found == MachineShape(
        cpu_count=64,
        memory_size=2 << 40,
        qemu_version="9.2.1",
        pic=False,
        pci_hole64_size=1 << 50,
        hotplug_off=True,
        num_gpus=8,
        num_nvswitches=4,
        num_nics=2,
        num_verity_volumes=3,
        host_share_mode="9p",
        root_disk=False,
        two_pass=True,
    )
    assert found.slots == 20


@every_case(
    ("version", "two_pass", "release", "order"),
    [
        ("8.2.2", None, (8, 2), "two_pass"),
        ("8.2", False, (8, 2), "single_pass"),
        ("9.0.0", None, (9, 0), "single_pass"),
        ("10.0.13", True, (10, 0), "two_pass"),
        ("", None, (9, 1), "single_pass"),
        # Development versions are of the next release; dstack infers the order from the number.
        ("8.2.91", None, (9, 0), "two_pass"),
        ("9.1.50", None, (9, 2), "single_pass"),
        ("9.2.50", None, (10, 0), "single_pass"),
        ("10.0.50", None, (10, 1), "single_pass"),
        ("10.0.13 (Debian 1:10.0.13+ds-0+deb13u1)", None, (10, 0), "single_pass"),
        ("8.2.2+tdx", None, (8, 2), "two_pass"),
    ],
)
def test_shape_order_of_pages_follows_from_the_version_of_qemu(
    version: str, two_pass: bool | None, release: tuple[int, int], order: str
) -> None:
    """The order is stated, or that of the kernels of the version's time."""
    found = MachineShape(**SMALL, qemu_version=version, two_pass=two_pass)
    assert (found.qemu_release, found.page_order) == (release, order)


@every_case(
    ("memory", "below", "ranges"),
    [
        (2 * GIB, 2 * GIB, [(0, 2 * GIB)]),
        (0xB0000000 - 8192, 0xB0000000 - 8192, [(0, 0xB0000000 - 8192)]),
        (0xB0000000, 2 * GIB, [(0, 2 * GIB), (4 * GIB, 4 * GIB + 0x30000000)]),
        (8 * GIB, 2 * GIB, [(0, 2 * GIB), (4 * GIB, 10 * GIB)]),
    ],
)
def test_shape_has_the_ranges_of_memory(
    memory: int, below: int, ranges: list[tuple[int, int]]
) -> None:
    """From 2816 MiB on, all but 2 GiB are above 4 GiB."""
    found = MachineShape(cpu_count=1, memory_size=memory)
    assert found.memory_below_4g == below
    assert list(found.memory) == ranges


@every_case(
    ("changes", "reason", "reason_in_config"),
    [
        ({"cpu_count": 0}, "out_of_range", "wrong_value"),
        ({"cpu_count": 4097}, "out_of_range", "wrong_value"),
        ({"cpu_count": True}, "wrong_type", "wrong_type"),
        ({"memory_size": (1 << 20) - 8192}, "out_of_range", "wrong_value"),
        ({"memory_size": 2 * GIB + 4096}, "wrong_value", "wrong_value"),
        ({"memory_size": (1 << 45) + 8192}, "out_of_range", "wrong_value"),
        ({"memory_size": "2G"}, "wrong_type", "wrong_type"),
        ({"memory_size": 2.0}, "wrong_type", "wrong_type"),
        ({"pci_hole64_size": -1}, "out_of_range", "wrong_value"),
        ({"pci_hole64_size": (1 << 51) + 1}, "out_of_range", "wrong_value"),
        ({"num_gpus": 31}, "out_of_range", "wrong_value"),
        ({"num_nvswitches": -1}, "out_of_range", "wrong_value"),
        ({"num_nics": 10_000}, "out_of_range", "wrong_value"),
        ({"num_gpus": 26}, "too_many", "too_many"),
        ({"num_gpus": 10, "num_verity_volumes": 16}, "too_many", "too_many"),
        ({"hotplug_off": 1}, "wrong_type", "wrong_type"),
        ({"pic": "on"}, "wrong_type", "wrong_type"),
        ({"qemu_version": 9}, "wrong_type", "wrong_type"),
        ({"qemu_version": "9"}, "wrong_value", "wrong_value"),
        ({"qemu_version": "9.2.1 -device x"}, "wrong_value", "wrong_value"),
        ({"qemu_version": "٩.2"}, "wrong_value", "wrong_value"),
        ({"qemu_version": "7.2.0"}, "not_applicable", "unsupported"),
        ({"qemu_version": "7.2.50"}, "not_applicable", "unsupported"),
        ({"host_share_mode": "9" * 33}, "too_large", "too_large"),
        ({"swtpm": True}, "not_applicable", "unsupported"),
        ({"hugepages": True, "num_gpus": 1}, "not_applicable", "unsupported"),
        ({"hugepages": True, "num_nvswitches": 1}, "not_applicable", "unsupported"),
    ],
)
def test_shape_with_wrong_value_fails(
    changes: dict[str, Any], reason: str, reason_in_config: str
) -> None:
    """A wrong argument is a UsageError, a wrong member of a configuration a FormatError."""
    with raises(UsageError, reason):
        MachineShape(**SMALL | changes)
    with raises(FormatError, reason_in_config):
        MachineShape.from_vm_config(SMALL | changes)


def test_shape_accepts_the_largest_values() -> None:
    """Limits are inclusive, and huge pages are accepted without GPUs."""
    MachineShape(cpu_count=4096, memory_size=1 << 45, pci_hole64_size=1 << 51, num_gpus=25)
    MachineShape(cpu_count=1, memory_size=1 << 20, hugepages=True)


@every_case(
    ("config", "reason"),
    [
        ({}, "missing"),
        ({"cpu_count": 1}, "missing"),
        ({"memory_size": GIB, "cpu_count": None}, "missing"),
        (SMALL | {"numa_nodes": [{}]}, "unsupported"),
        (SMALL | {"qemu_single_pass_add_pages": 1}, "wrong_type"),
        (SMALL | {"memory_size": 1 << 64}, "wrong_value"),
    ],
)
def test_shape_of_unsuitable_configuration_fails(config: dict[str, Any], reason: str) -> None:
    """Memory and vCPUs are required, and NUMA nodes are not supported."""
    with raises(FormatError, reason):
        MachineShape.from_vm_config(config)


def test_shape_error_names_the_member_of_the_configuration() -> None:
    """The order of pages has another name in a VM configuration than in a shape."""
    with raises(FormatError, "wrong_type", part="qemu_single_pass_add_pages"):
        MachineShape.from_vm_config(SMALL | {"qemu_single_pass_add_pages": "yes"})


@needs_shared
def test_shape_of_vectors() -> None:
    """The configurations of all guests in the vectors are accepted."""
    rows = VECTORS["real_rtmr0"] + VECTORS["guests"]
    assert len(rows) == 12
    for row in rows:
        assert MachineShape.from_vm_config(row["vm"]).slots >= 5
