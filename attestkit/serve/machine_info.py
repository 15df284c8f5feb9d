"""Information about the machine: vendor, operating system, memory, load, disks; not attested.

psutil and platform are loaded lazily.
"""

import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit.dstack.host_shared_folder import read_file
from attestkit.errors import BackendError, ConfigError

if TYPE_CHECKING:
    from types import ModuleType

DATA_DISKS: Final = ("/",)
"""Default mount points."""

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

    def boot_gpu_evidence(self) -> bytes | None:
        """Return the output of the GPU attestation at boot; None if missing or unreadable."""
        try:
            return read_file(self.gpu_attestation, folder=self.gpu_attestation.parent)
        except ConfigError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                _logger.warning("cannot read %s", error)
            return None


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


def read_figures(data_disks: Iterable[str] = DATA_DISKS) -> Figures:
    """Return the current system information, with the file systems at these mount points.

    Raises:
        BackendError: If a value cannot be read.
    """
    import psutil  # lazy

    try:
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        release = _os_release()
        return Figures(
            os_name=release.get("NAME", ""),
            os_version=release.get("VERSION_ID", ""),
            kernel=os.uname().release,
            cpu=f"cpu0 @{_megahertz(psutil)} MHz",
            cpus=psutil.cpu_count() or 1,
            memory=Memory(memory.total, memory.available, memory.free),
            swap=Memory(swap.total, swap.free, swap.free),
            uptime=int(time.clock_gettime(time.CLOCK_BOOTTIME)),
            load=Load(*[int(average * 100) for average in os.getloadavg()]),
            disks=_disks(psutil, frozenset(data_disks)),
        )
    except (LookupError, ValueError) as error:  # of psutil, for an incomplete file in /proc
        raise BackendError(f"system information: {error}", reason="malformed_response") from error
    except (OSError, psutil.Error) as error:
        raise BackendError(f"system information: {error}", reason="unreadable") from error


def has_nvidia_gpu(pci: Path = Path("/sys/bus/pci/devices")) -> bool | None:
    """Return whether the PCI bus has a display controller of NVIDIA; None if it is unreadable."""
    try:
        return any(
            (device / "vendor").read_text().strip() == "0x10de"
            and (device / "class").read_text().startswith("0x03")
            for device in pci.iterdir()
        )
    except (OSError, UnicodeDecodeError):
        return None


def _os_release() -> dict[str, str]:
    """Return the fields of os-release; empty if it is missing or unreadable."""
    import platform  # lazy

    try:
        return platform.freedesktop_os_release()
    except (OSError, UnicodeDecodeError) as error:
        _logger.debug("cannot read os-release: %s", error)
        return {}


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
