"""Information about the machine, not attested: system, memory, load, disks, and GPU telemetry.

psutil and platform are loaded lazily. The telemetry of GPUs is for metrics and GpuInfo.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, runtime_checkable

from attestkit._sanitize import one_line
from attestkit.dstack.host_shared_folder import read_file
from attestkit.errors import BackendError, BackendUnavailableError, ConfigError

if TYPE_CHECKING:
    from types import ModuleType

    from attestkit.gpu.driver.nvml import GpuTelemetry, MachineTelemetry

DATA_DISKS: Final = ("/",)
"""Default mount points."""

_logger = logging.getLogger("attestkit.serve")


class Machine(NamedTuple):
    """Information that is constant since boot: vendor and product from DMI.

    `gpu_attestation` is the path of the output of the GPU attestation at boot.
    """

    cloud_vendor: str = ""
    cloud_product: str = ""
    gpu_attestation: Path = Path("/run/nvidia-gpu-attestation/attestation.out")

    @classmethod
    def read(cls, dmi: Path = Path("/sys/class/dmi/id")) -> "Machine":
        """Return the vendor and product name in the folder `dmi`; each is empty if unreadable."""
        return cls(_text(dmi / "sys_vendor").strip(), _text(dmi / "product_name").strip())

    @classmethod
    def simulated(cls) -> "Machine":
        """Return the values for a simulator."""
        return cls("attestkit simulator", "simulated, not a TEE")

    def boot_gpu_evidence(self) -> bytes | None:
        """Return the content of the file `gpu_attestation`; None if missing or unreadable."""
        try:
            return read_file(self.gpu_attestation, folder=self.gpu_attestation.parent)
        except ConfigError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                _logger.warning("cannot read %s", error)
            return None


class Memory(NamedTuple):
    """Sizes of main memory or swap in bytes; for swap, `available` equals `free`."""

    total: int
    available: int
    free: int

    @property
    def used(self) -> int:
        """Bytes that are not available to new processes."""
        return self.total - self.available


class Load(NamedTuple):
    """Load averages of the last 1, 5 and 15 minutes, in hundredths: 150 is a load of 1.5."""

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
        """Bytes that are not free for unprivileged users."""
        return self.total - self.free

    @property
    def percentage(self) -> float:
        """Used part in percent; 0 for a file system without a size."""
        return self.used / self.total * 100 if self.total else 0.0


class Figures(NamedTuple):
    """Current system information.

    `cpu` is a text with the frequency of the first processor, `cpus` the number of logical ones.
    """

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
    """Return the current system information.

    `data_disks` are the mount points of the file systems to include; one is left out if nothing is
    mounted there, or its size is unknown.

    Raises:
        BackendError: If another value cannot be read.
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
        raise BackendError(
            f"system information: unexpected content of a file in /proc or /sys: {error}",
            reason="malformed_response",
        ) from error
    except (OSError, psutil.Error) as error:
        raise BackendError(f"system information: {error}", reason="unreadable") from error


def has_nvidia_gpu(pci: Path = Path("/sys/bus/pci/devices")) -> bool | None:
    """Return whether the PCI bus has a display controller of NVIDIA; None if it is unreadable.

    `pci` is the folder with a folder for each device.
    """
    try:
        return any(
            (device / "vendor").read_text().strip() == "0x10de"
            and (device / "class").read_text().startswith("0x03")
            for device in sorted(pci.iterdir())
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
    """Return the frequency of the first processor in MHz; 0 if unknown."""
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
    """Return a file name as valid Unicode: undecodable bytes are replaced."""
    return os.fsencode(name).decode("utf-8", "replace")


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        _logger.warning("cannot read %s: %s", path, error)
        return ""


_MAX_AGE: Final = 1.0  # seconds until the driver is read again
_MAX_TEXT: Final = 200  # characters of an error
_ABSENT: Final = frozenset({"missing", "missing_dependency"})  # driver, or nvidia-ml-py
_clock = time.monotonic


@runtime_checkable
class SimulatedMachine(Protocol):
    """A simulator that may have GPUs."""

    has_gpus: bool

    def gpu_telemetry(self) -> "MachineTelemetry":
        """Return the values of its GPUs."""
        ...

    def gpu_boot_evidence(self) -> bytes:
        """Return the output of `nvattest attest` at boot."""
        ...


class GpuSample(NamedTuple):
    """Telemetry of a machine's GPUs at one time, as `MachineTelemetry`.

    `enabled` is whether their confidential computing is on, `ready` whether they accept work; None
    is unknown.
    """

    taken: float  # seconds of the monotonic clock
    gpus: "tuple[GpuTelemetry, ...]" = ()
    enabled: bool | None = None
    ready: bool | None = None
    error: str = ""  # reason why the driver could not be read

    @property
    def age(self) -> float:
        """Seconds since the values were read."""
        return max(0.0, _clock() - self.taken)


@dataclass(eq=False)
class GpuSampler:
    """Reads the telemetry of the GPUs at most once a second, in a thread, one reading at a time.

    A simulator's GPUs are those of the simulation; otherwise NVIDIA's driver is read.

    Args:
        backend: Backend of the attester.
        simulated: Whether it is a simulator.
        on_bus: Returns whether the PCI bus has a GPU of NVIDIA; None: unknown.
    """

    backend: object
    _: KW_ONLY
    simulated: bool
    on_bus: Callable[[], bool | None] = has_nvidia_gpu
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _last: GpuSample | None = field(default=None, init=False)
    _until: float | None = field(default=None, init=False)  # time of the next reading

    async def sample(self, wait: float | None = None) -> GpuSample | None:
        """Return the telemetry of the GPUs; None if the machine has no GPU of NVIDIA.

        A failure of the driver is not raised, but in `error` of the result. While another call
        reads the driver, the previous values are returned.

        Args:
            wait: Seconds to wait for a reading; then the previous values are returned, or None
                before the first reading has ended. None: wait for it.
        """
        if self.simulated:
            return self._simulation()
        is_first = self._until is None
        if self._is_fresh() or (self._lock.locked() and not (is_first and wait is None)):
            return self._last
        reading = asyncio.ensure_future(asyncio.to_thread(self._refresh))
        await asyncio.wait({reading}, timeout=wait)
        return reading.result() if reading.done() else self._last

    def _simulation(self) -> GpuSample | None:
        backend = self.backend
        if not isinstance(backend, SimulatedMachine) or not backend.has_gpus:
            return None
        found = backend.gpu_telemetry()
        return GpuSample(_clock(), found.gpus, found.enabled, found.ready)

    def _is_fresh(self) -> bool:
        return self._until is not None and _clock() < self._until

    def _refresh(self) -> GpuSample | None:
        with self._lock:
            if not self._is_fresh():
                self._last = self._read()
                self._until = _clock() + _MAX_AGE
            return self._last

    def _read(self) -> GpuSample | None:
        from attestkit.gpu.driver.nvml import read_telemetry  # lazy: loads NVIDIA's library

        try:
            found = read_telemetry()
        except BackendError as error:
            is_absent = isinstance(error, BackendUnavailableError) and error.reason in _ABSENT
            if is_absent and self.on_bus() is False:
                return None
            return GpuSample(_clock(), error=one_line(str(error), _MAX_TEXT))
        return GpuSample(_clock(), found.gpus, found.enabled, found.ready)
