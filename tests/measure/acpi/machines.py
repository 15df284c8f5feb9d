"""Machines of the tests: shapes with the names of vm_config, and a search for QEMU."""

import shutil
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

import pytest

from attestkit.attestation.launch.qemu_version import QemuVersion
from attestkit.measure.acpi.qemu.qemu_command import DEFAULT_PROGRAM
from attestkit.measure.acpi.qemu.qemu_machine import FwCfg, read_version
from attestkit.measure.acpi.qemu.qtest import StoppedQemu
from attestkit.measure.machine_shape import MachineShape

_have_qemu = pytest.mark.skipif(
    shutil.which(DEFAULT_PROGRAM) is None, reason=f"{DEFAULT_PROGRAM} is missing"
)
_Test = TypeVar("_Test", bound=Callable[..., object])


def needs_qemu(test: _Test) -> _Test:
    """Mark a test that runs the installed QEMU."""
    marked: _Test = pytest.mark.rig(_have_qemu(test))
    return marked


def shape_of(**changes: Any) -> MachineShape:
    """Return a shape with these values; the others are usual ones."""
    return MachineShape(**{"cpu_count": 2, "memory_size": 2 << 30, **changes})


def machine(vm_config: dict[str, Any]) -> MachineShape:
    """Return the shape in a row of the vectors."""
    values = dict(vm_config)
    values["root_disk"] = values.pop("root_verity", True)
    return shape_of(**values)


def read_kernel(command: Sequence[str]) -> bytes:
    """Return setup and data of the kernel of `-kernel`, as QEMU passes them to the firmware."""
    with StoppedQemu(command) as qemu:
        device = FwCfg(qemu)
        found = b""
        for size_key, data_key in ((0x17, 0x18), (0x08, 0x11)):  # setup, kernel
            size = int.from_bytes(device.read_item(size_key, 4), "little")
            found += device.read_item(data_key, size, 1 << 28)
        return found


@cache
def installed_version() -> QemuVersion:
    """Return the version of the installed QEMU."""
    return read_version(DEFAULT_PROGRAM)
