"""Guests of the suite: the machine of each, and how a program opens it.

The tests run in three ways. In the normal test process a guest's files are below a directory. In a
mount namespace, whose creator sets `$OUTER_NAMESPACE`, they are at the kernel's own paths, and the
backend gets no path. As an ordinary user they are below a directory that this user has mounted.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit.attester import Attester
from attestkit.backends.base import Backend
from attestkit.backends.configfs_tsm import ConfigfsTsm
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.backends.tdx_ioctl import TdxIoctl
from tests.rigs.emulator import PATIENCE, REPORTS, Emulator, emulator
from tests.rigs.kernel_paths import SCRIPT

# Set by the creator of a mount namespace: the namespace of the parent.
OUTER_NAMESPACE: Final = "OUTER_NAMESPACE"
# Mount points of namespace.SCRIPT, in the order of unmounting.
COVERED: Final = (
    *("/proc/sys/kernel/random/boot_id", "/run", "/sys/firmware", "/sys/devices/virtual/misc"),
    *("/sys/kernel", "/etc", "/dev"),
)
QGS_PORT: Final = 4050


@dataclass(frozen=True)
class Kind:
    """Type of guest.

    Attributes:
        machine: Options of the emulator.
        cls: The backend of a program on the guest.
        options: Options of the backend, without paths.
        extends: Whether the kernel lets a program extend a register.
        found: Whether `detect` finds the backend.
    """

    machine: dict[str, Any]
    cls: type[ConfigfsTsm | TdxIoctl] = ConfigfsTsm
    options: dict[str, Any] = field(default_factory=dict)
    extends: bool = True
    found: bool = True


def _old(driver: str, *, extends: bool) -> Kind:
    """Return a guest with an out-of-tree driver, before configfs-tsm."""
    machine = {"kernel_release": "6.6", "driver": driver}
    return Kind(machine, TdxIoctl, {"generation": driver}, extends=extends, found=False)


KINDS: Final = {
    # 6.12 has neither files nor an ioctl to extend registers; 7.1 reports a failed host.
    "configfs-6.12": Kind({"kernel_release": "6.12"}, extends=False),
    "configfs-6.18": Kind({"kernel_release": "6.18"}),
    "configfs-7.1": Kind({"kernel_release": "7.1", "quote_version": 5}),
    "configfs-snp": Kind({"provider": "sev_guest"}, extends=False),
    # dstack's driver extends registers; quotes come from the host's service.
    "ioctl-qgs": Kind(
        {"kernel_release": "6.6", "driver": "dstack", "qgs": True, "qgs_port": QGS_PORT}, TdxIoctl
    ),
    "ioctl-C": _old("C", extends=True),
    "ioctl-C'": _old("C'", extends=True),
    "ioctl-D": _old("D", extends=False),
    "ioctl-D'": _old("D'", extends=False),
}

SNP: Final = ["configfs-snp"]
TDX: Final = [name for name in KINDS if name not in SNP]


@dataclass(frozen=True)
class Guest:
    """Running guest.

    Attributes:
        name: Name of its type.
        emulator: Its machine, for faults and reboots.
        elsewhere: Whether its files are below a directory instead of the kernel's own paths.
    """

    name: str
    emulator: Emulator
    elsewhere: bool

    @property
    def kind(self) -> Kind:
        """Return its type."""
        return KINDS[self.name]

    @property
    def has_reports(self) -> bool:
        """Return whether its kernel has configfs-tsm."""
        return (self.emulator.root / REPORTS).exists()

    @property
    def options(self) -> dict[str, Any]:
        """Return the options of the backend, without paths."""
        service = {"qgs": self.emulator.qgs} if "qgs" in self.kind.machine else {}
        return {**self.kind.options, **service}

    @property
    def paths(self) -> KernelPaths:
        """Return the paths of its files."""
        return KernelPaths.below(self.emulator.root) if self.elsewhere else KernelPaths()

    def boot(self) -> None:
        """Boot it, without faults."""
        self.emulator.clear_faults()
        self.emulator.reboot()

    def backend(self) -> Backend:
        """Return a new backend, with a path only if the files are elsewhere."""
        root = {"root": self.emulator.root} if self.elsewhere else {}
        make: Any = self.kind.cls  # the two classes have different options
        backend: Backend = make(**root, **self.options)
        return backend

    def probe(self) -> None:
        """Probe with the backend's class."""
        if self.kind.cls is TdxIoctl:
            TdxIoctl.probe(**self.options)
        else:
            self.kind.cls.probe()

    def attester(self) -> Attester:
        """Return a new attester."""
        return Attester(self.backend())


@contextmanager
def running(name: str) -> Iterator[Guest]:
    """Run a guest."""
    with emulator(**KINDS[name].machine) as machine:
        if OUTER_NAMESPACE in os.environ:
            with _at_kernel_paths(machine):
                yield Guest(name, machine, elsewhere=False)
        else:
            yield Guest(name, machine, elsewhere=True)
        assert machine.errors.read_text() == ""


@contextmanager
def _at_kernel_paths(machine: Emulator) -> Iterator[None]:
    """Mount the machine's files at the kernel's own paths in this process's namespace."""
    assert mount_namespace() != os.environ[OUTER_NAMESPACE], "not in a separate mount namespace"
    scratch = machine.root.parent / "scratch"
    scratch.mkdir()
    run = partial(subprocess.run, check=True, timeout=PATIENCE)
    run(["sh", "-euc", SCRIPT, "sh", str(machine.root), str(scratch), "true"])
    try:
        yield
    finally:
        run(["umount", "--lazy", *COVERED, str(scratch)])


def mount_namespace() -> str:
    """Return the ID of this process's mount namespace."""
    return str(Path("/proc/self/ns/mnt").readlink())


class _DefaultPaths:
    """Replacement of KernelPaths whose default paths are below a directory."""

    below = KernelPaths.below

    def __init__(self, root: Path) -> None:
        self._root = root

    def __call__(self) -> KernelPaths:
        return KernelPaths.below(self._root)


def use_paths_below(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Make a directory the default location of the kernel's files."""
    patch.setattr("attestkit.backends.environment.KernelPaths", _DefaultPaths(root))
