"""Machines of the tests: shapes with the names of vm_config, and a search for QEMU."""

import shutil
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, TypeVar

import pytest

from attestkit.measure.acpi.qemu.qemu_command import DEFAULT_PROGRAM
from attestkit.measure.acpi.qemu.qemu_machine import read_version
from attestkit.measure.acpi.qemu_version import QemuVersion

_have_qemu = pytest.mark.skipif(
    shutil.which(DEFAULT_PROGRAM) is None, reason=f"{DEFAULT_PROGRAM} is missing"
)
_Test = TypeVar("_Test", bound=Callable[..., object])


def needs_qemu(test: _Test) -> _Test:
    """Mark a test that runs the installed QEMU."""
    marked: _Test = pytest.mark.rig(_have_qemu(test))
    return marked


class Machine(NamedTuple):
    """A shape; the defaults are those of vm_config."""

    cpu_count: int = 2
    memory_size: int = 2 << 30
    qemu_version: str = ""
    pic: bool | None = None
    pci_hole64_size: int = 0
    hotplug_off: bool = False
    num_gpus: int = 0
    num_nvswitches: int = 0
    num_nics: int = 1
    num_verity_volumes: int = 0
    root_disk: bool = True
    host_share_mode: str = ""
    hugepages: bool = False
    swtpm: bool = False


def machine(vm_config: dict[str, Any]) -> Machine:
    """Return the shape in a row of the vectors."""
    values = dict(vm_config)
    values["root_disk"] = values.pop("root_verity", True)
    return Machine(**values)


@cache
def installed_version() -> QemuVersion:
    """Return the version of the installed QEMU."""
    return read_version(DEFAULT_PROGRAM)
