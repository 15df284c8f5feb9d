"""What the machine says of itself: its maker, its system, memory, load and disks.

Nothing signs these figures. Files are read below a root that is handed in, the rest is psutil's,
which is loaded with the first figures and not before.
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
"""The mount points that are shown where nobody says which."""

_OS_RELEASE: Final = ("etc/os-release", "usr/lib/os-release")
_FIELD: Final = re.compile(r"""(\w+)=(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|(\S*))\s*""")
_NUMBER: Final = re.compile(rb"[0-9]{1,15}(?:\.[0-9]{1,9})?")
_ESCAPED: Final = re.compile(r"\\(.)")
_logger = logging.getLogger("attestkit.serve")


class Machine(NamedTuple):
    """What firmware and boot say of the machine below."""

    cloud_vendor: str = ""
    cloud_product: str = ""
    gpu_attestation: Path = Path("/run/nvidia-gpu-attestation/attestation.out")

    @classmethod
    def read(cls, dmi: Path = Path("/sys/class/dmi/id")) -> "Machine":
        """Return what firmware calls this machine; empty where it cannot be read."""
        return cls(_text(dmi / "sys_vendor").strip(), _text(dmi / "product_name").strip())

    @classmethod
    def simulated(cls) -> "Machine":
        """Return the machine that is none, saying so."""
        return cls("attestkit simulator", "simulated, not a TEE")

    def gpu_text(self) -> str:
        """Return what the GPU attestation left at boot, or nothing."""
        return _text(self.gpu_attestation)


class Memory(NamedTuple):
    """Bytes of main memory, or of swap, where `available` is what is free."""

    total: int
    available: int
    free: int

    @property
    def used(self) -> int:
        """What cannot be had without taking it from somebody."""
        return self.total - self.available


class Load(NamedTuple):
    """Load averages of the last 1, 5 and 15 minutes, in hundredths."""

    one: int
    five: int
    fifteen: int


class Disk(NamedTuple):
    """A mounted file system, sizes in bytes."""

    name: str  # the device
    mount_point: str
    total: int
    free: int  # for whoever is not root

    @property
    def used(self) -> int:
        """All but what is free."""
        return self.total - self.free

    @property
    def percentage(self) -> float:
        """How full it is; 0 where it has no size."""
        return self.used / self.total * 100 if self.total else 0.0


class Figures(NamedTuple):
    """The machine at this moment."""

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
    """Return what the machine says of itself now.

    Args:
        data_disks: Mount points of the file systems to tell about.
        root: The folder that has etc, usr and proc.

    Raises:
        BackendError: The system does not tell; the text says what.
    """
    import psutil  # late: whoever never asks for figures does without

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
    except LookupError as error:  # psutil's, where a file of /proc lacks a line
        raise BackendError(f"the machine does not tell its figures: no {error}") from error
    except (OSError, ValueError, psutil.Error) as error:
        raise BackendError(f"the machine does not tell its figures: {error}") from error


def _os_release(root: Path) -> dict[str, str]:
    """Return what os-release says; it is written as a shell would have it."""
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
        raise ValueError(f"{path} does not begin with {count} numbers")
    return [float(word) for word in words]


def _megahertz(psutil: "ModuleType") -> int:
    """Return the frequency of the first processor; 0 where nobody knows."""
    try:
        each = psutil.cpu_freq(percpu=True)
    except (AttributeError, NotImplementedError, OSError):  # psutil's ways to say no
        return 0
    return int(each[0].current) if each else 0


def _disks(psutil: "ModuleType", mount_points: frozenset[str]) -> tuple[Disk, ...]:
    """Return the file systems at the mount points; of several at one, the last covers the rest."""
    mounted = {part.mountpoint: part.device for part in psutil.disk_partitions(all=True)}
    found = []
    for place in sorted(mount_points & mounted.keys()):
        try:
            space = os.statvfs(place)
        except OSError as error:  # a disk that is gone is no reason to hide the others
            _logger.warning("cannot tell the size of %s: %s", ascii(place), error)
            continue
        total, free = space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize
        found.append(Disk(_shown(mounted[place]), _shown(place), total, free))
    return tuple(found)


def _shown(name: str) -> str:
    """Return a file name as text that can be sent, whatever bytes it has."""
    return os.fsencode(name).decode("utf-8", "replace")


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        _logger.warning("cannot read %s: %s", path, error)
        return ""
