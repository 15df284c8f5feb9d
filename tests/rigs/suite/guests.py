"""The guests that the suite runs on: what machine each is, and how a program opens it.

The same tests run in three ways. In the normal test process a guest's files are below a folder. In
a mount namespace, whose maker sets `$OUTER_NAMESPACE`, they are at the kernel's own paths, and
nothing is said to a backend about where to look. As an ordinary user they are below a folder again,
mounted by that user.
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

from attestkit import backends
from attestkit.attester import Attester
from attestkit.backends.base import Backend
from attestkit.backends.configfs_tsm import ConfigfsTsm
from attestkit.backends.linux.paths import KernelPaths
from attestkit.backends.tdx_ioctl import TdxIoctl
from tests.rigs.emulator import PATIENCE, REPORTS, Emulator, emulator
from tests.rigs.namespace import SCRIPT

# Set by whoever starts the suite in a mount namespace of its own: the one that it started from.
OUTER_NAMESPACE: Final = "OUTER_NAMESPACE"
# Where namespace.SCRIPT mounts something, in the order in which it can be taken away again.
COVERED: Final = (
    *("/proc/sys/kernel/random/boot_id", "/run", "/sys/firmware", "/sys/devices/virtual/misc"),
    *("/sys/kernel", "/etc", "/dev"),
)
QGS_PORT: Final = 4050


@dataclass(frozen=True)
class Kind:
    """A kind of guest.

    Attributes:
        machine: Options of the emulator.
        cls: The backend that a program uses there.
        options: What the backend has to be told, besides where to look.
        extends: Whether the kernel lets a program extend a register.
        found: Whether `detect` finds the backend, or it has to be named.
    """

    machine: dict[str, Any]
    cls: type[ConfigfsTsm | TdxIoctl] = ConfigfsTsm
    options: dict[str, Any] = field(default_factory=dict)
    extends: bool = True
    found: bool = True


def _old(driver: str, *, extends: bool) -> Kind:
    """Return a guest with an out-of-tree driver, from before configfs-tsm."""
    machine = {"kernel": "6.6", "driver": driver}
    return Kind(machine, TdxIoctl, {"generation": driver}, extends=extends, found=False)


KINDS: Final = {
    # 6.12 has neither files nor an ioctl to extend registers by; 7.1 tells of a host that failed.
    "configfs-6.12": Kind({"kernel": "6.12"}, extends=False),
    "configfs-6.18": Kind({"kernel": "6.18"}),
    "configfs-7.1": Kind({"kernel": "7.1", "quote_version": 5}),
    "configfs-snp": Kind({"provider": "sev_guest"}, extends=False),
    # dstack's own driver, which extends registers; the quotes come from the host's service.
    "ioctl-qgs": Kind(
        {"kernel": "6.6", "driver": "dstack", "qgs": True, "qgs_port": QGS_PORT}, TdxIoctl
    ),
    "ioctl-C": _old("C", extends=True),
    "ioctl-C'": _old("C'", extends=True),
    "ioctl-D": _old("D", extends=False),
    "ioctl-D'": _old("D'", extends=False),
}

SNP: Final = ["configfs-snp"]
TDX: Final = [name for name in KINDS if name not in SNP]
EXTENDING: Final = [name for name, kind in KINDS.items() if kind.extends]
OTHERS: Final = [name for name, kind in KINDS.items() if not kind.extends]


@dataclass(frozen=True)
class Guest:
    """A guest that runs.

    Attributes:
        name: Of its kind.
        emulator: Its machine, to let something go wrong, or to boot it.
        elsewhere: Whether its files are below a folder, not at the kernel's own paths.
    """

    name: str
    emulator: Emulator
    elsewhere: bool

    @property
    def kind(self) -> Kind:
        """What it is like."""
        return KINDS[self.name]

    @property
    def is_snp(self) -> bool:
        """Whether it is AMD's."""
        return self.name in SNP

    @property
    def has_reports(self) -> bool:
        """Whether its kernel has configfs-tsm."""
        return (self.emulator.root / REPORTS).exists()

    @property
    def options(self) -> dict[str, Any]:
        """What the backend has to be told, besides where to look."""
        service = {"qgs": self.emulator.qgs} if "qgs" in self.kind.machine else {}
        return {**self.kind.options, **service}

    @property
    def paths(self) -> KernelPaths:
        """Where its files are."""
        return KernelPaths.below(self.emulator.root) if self.elsewhere else KernelPaths()

    def boot(self) -> None:
        """Boot it, with nothing going wrong."""
        self.emulator.clear_faults()
        self.emulator.reboot()

    def backend(self) -> Backend:
        """Return a new backend, opened as a program opens it: where to look is said if need be."""
        root = {"root": self.emulator.root} if self.elsewhere else {}
        make: Any = self.kind.cls  # two classes with options of their own
        backend: Backend = make(**root, **self.options)
        return backend

    def probe(self) -> None:
        """Ask the backend's class if it can run here."""
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
    """Mount the machine's files at the kernel's own paths, in the namespace of this process."""
    assert mount_namespace() != os.environ[OUTER_NAMESPACE], "this is everybody's namespace"
    scratch = machine.root.parent / "scratch"
    scratch.mkdir()
    run = partial(subprocess.run, check=True, timeout=PATIENCE)
    run(["sh", "-euc", SCRIPT, "sh", str(machine.root), str(scratch), "true"])
    try:
        yield
    finally:
        run(["umount", "--lazy", *COVERED, str(scratch)])


def mount_namespace() -> str:
    """Return what tells this process's mount namespace from others."""
    return str(Path("/proc/self/ns/mnt").readlink())


class _UsualPaths:
    """In place of KernelPaths where the usual paths are asked for: all of them below a folder."""

    below = KernelPaths.below

    def __init__(self, root: Path) -> None:
        self._root = root

    def __call__(self) -> KernelPaths:
        return KernelPaths.below(self._root)


def look_below(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Let a folder be the usual place of the kernel's files for whoever is told of no other."""
    patch.setattr(backends, "KernelPaths", _UsualPaths(root))
