"""Telemetry of the machine's GPUs for metrics and GpuInfo (guest-agent-v1.md, 7.4 and 7.6)."""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, runtime_checkable

from attestkit._sanitize import one_line
from attestkit.errors import BackendError, BackendUnavailableError
from attestkit.serve.machine_info import has_nvidia_gpu

if TYPE_CHECKING:
    from attestkit.gpu.driver.telemetry import GpuTelemetry, MachineTelemetry

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
    """The GPUs of a machine at one time, and its state (None: unknown)."""

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
    """Reads the GPUs at most once a second, in a thread, one reading at a time.

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
        """Return the GPUs; None if the machine has no GPU of NVIDIA.

        While the driver is being read, the previous values are returned.

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
        from attestkit.gpu.driver.telemetry import read_telemetry  # lazy: loads NVIDIA's library

        try:
            found = read_telemetry()
        except BackendError as error:
            is_absent = isinstance(error, BackendUnavailableError) and error.reason in _ABSENT
            if is_absent and self.on_bus() is False:
                return None
            return GpuSample(_clock(), error=one_line(str(error), _MAX_TEXT))
        return GpuSample(_clock(), found.gpus, found.enabled, found.ready)
