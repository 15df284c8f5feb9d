"""Information about the machine: vendor, operating system, memory, load, disks; not attested.

Files are read below a root folder, which tests replace; the rest comes from psutil, which is loaded
lazily.
"""

import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit.errors import BackendError

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["DATA_DISKS", "Disk", "Figures", "Load", "Machine", "Memory", "read_figures"]

DATA_DISKS: Final = ("/",)
"""Default mount points."""

_OS_RELEASE: Final = ("etc/os-release", "usr/lib/os-release")
_FIELD: Final = re.compile(r"""(\w+)=(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|(\S*))\s*""")
_NUMBER: Final = re.compile(rb"[0-9]{1,15}(?:\.[0-9]{1,9})?")
_ESCAPED: Final = re.compile(r"\\(.)")
_logger = logging.getLogger("attestkit.serve")


class Machine(NamedTuple):
    """Static information from firmware and boot."""

    cloud_vendor: str = ""
    cloud_product: str = ""
    gpu_attestation: Path = Path("/run/nvidia-gpu-attestation/attestation.out")

    @classmethod
    def read(cls, dmi: Path = Path("/sys/class/dmi/id")) -> "Machine":
        """Return the vendor and product name in DMI; empty if unreadable."""
        return cls(_text(dmi / "sys_vendor").strip(), _text(dmi / "product_name").strip())

    @classmethod
    def simulated(cls) -> "Machine":
        """Return the values for a simulator."""
        return cls("attestkit simulator", "simulated, not a TEE")

    def gpu_text(self) -> str:
        """Return the output of the GPU attestation at boot; empty if missing."""
        return _text(self.gpu_attestation)


class Memory(NamedTuple):
    """Main memory or swap in bytes; for swap, `available` equals `free`."""

    total: int
    available: int
    free: int

    @property
    def used(self) -> int:
        """Memory that is not available to new processes."""
        return self.total - self.available


class Load(NamedTuple):
    """Load averages of the last 1, 5 and 15 minutes, in hundredths."""

    one: int
    five: int
    fifteen: int


class Disk(NamedTuple):
    """A mounted file system, sizes in bytes."""

    name: str  # device
    mount_point: str
    total: int
    free: int  # for unprivileged users

    @property
    def used(self) -> int:
        """Size that is not free."""
        return self.total - self.free

    @property
    def percentage(self) -> float:
        """Used part in percent; 0 for a file system without a size."""
        return self.used / self.total * 100 if self.total else 0.0


class Figures(NamedTuple):
    """Current system information."""

    os_name: str
    os_version: str
    kernel: str
    cpu: str
    cpus: int
    memory: Memory
    swap: Memory
    uptime: int  # seconds
    load: Load
    disks: tuple[Disk, ...]


def read_figures(data_disks: Iterable[str] = DATA_DISKS, root: Path = Path("/")) -> Figures:
    """Return the current system information.

    Args:
        data_disks: Mount points of the file systems to include.
        root: Folder that contains etc, usr and proc.

    Raises:
        BackendError: If a value cannot be read.
    """
    import psutil  # lazy

    try:
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        release = _os_release(root)
        return Figures(
            os_name=release.get("NAME", ""),
            os_version=release.get("VERSION_ID", ""),
            kernel=_text(root / "proc/sys/kernel/osrelease").strip(),
            cpu=f"cpu0 @{_megahertz(psutil)} MHz",
            cpus=psutil.cpu_count() or 1,
            memory=Memory(memory.total, memory.available, memory.free),
            swap=Memory(swap.total, swap.free, swap.free),
            uptime=int(_numbers(root / "proc/uptime", 1)[0]),
            load=Load(*[int(average * 100) for average in _numbers(root / "proc/loadavg", 3)]),
            disks=_disks(psutil, frozenset(data_disks)),
        )
    except LookupError as error:  # of psutil, if a file in /proc lacks a line
        raise BackendError(
            f"system information: missing in /proc: {error}", reason="malformed_response"
        ) from error
    except ValueError as error:
        raise BackendError(f"system information: {error}", reason="malformed_response") from error
    except (OSError, psutil.Error) as error:
        raise BackendError(f"system information: {error}", reason="unreadable") from error


def _os_release(root: Path) -> dict[str, str]:
    """Return the fields of os-release, which has shell syntax."""
    text = next(filter(None, (_text(root / name) for name in _OS_RELEASE)), "")
    found = {}
    for line in text.splitlines():
        if field := _FIELD.fullmatch(line.strip()):
            name, double, single, bare = field.groups()
            found[name] = single or bare or _ESCAPED.sub(r"\1", double or "")
    return found


def _numbers(path: Path, count: int) -> list[float]:
    """Return the first numbers in a file of /proc."""
    words = path.read_bytes().split()[:count]
    if len(words) < count or not all(map(_NUMBER.fullmatch, words)):
        raise ValueError(f"{path}: must start with {count} numbers")
    return [float(word) for word in words]


def _megahertz(psutil: "ModuleType") -> int:
    """Return the frequency of the first processor; 0 if unknown."""
    try:
        each = psutil.cpu_freq(percpu=True)
    except (AttributeError, NotImplementedError, OSError):  # unsupported
        return 0
    return int(each[0].current) if each else 0


def _disks(psutil: "ModuleType", mount_points: frozenset[str]) -> tuple[Disk, ...]:
    """Return the file systems at the mount points; the last one mounted at a point counts."""
    mounted = {part.mountpoint: part.device for part in psutil.disk_partitions(all=True)}
    found = []
    for mount_point in sorted(mount_points & mounted.keys()):
        try:
            space = os.statvfs(mount_point)
        except OSError as error:  # still show the other disks
            _logger.warning("cannot get the size of %s: %s", ascii(mount_point), error)
            continue
        total, free = space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize
        found.append(Disk(_shown(mounted[mount_point]), _shown(mount_point), total, free))
    return tuple(found)


def _shown(name: str) -> str:
    """Return a file name as valid Unicode."""
    return os.fsencode(name).decode("utf-8", "replace")


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        _logger.warning("cannot read %s: %s", path, error)
        return ""
