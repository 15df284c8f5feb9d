"""Telemetry of the GPUs of this machine, as their driver reports it; it is not evidence."""

import contextlib
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

from attestkit._sanitize import one_line
from attestkit.errors import BackendBusyError, BackendError, BackendUnavailableError
from attestkit.gpu.driver.nvml import Nvml

T = TypeVar("T")

TIME_LIMIT: Final = 5.0  # seconds per call
_MAX_TEXT: Final = 200  # characters of an error


class GpuTelemetry(NamedTuple):
    """Values of one GPU; None, or an empty text, if the driver did not return the value."""

    position: int  # the driver's index
    uuid: str = ""
    pci_bus_id: str = ""
    utilization: tuple[int, int] | None = None  # of processors and memory, in percent
    memory: tuple[int, int, int] | None = None  # total, used and free, in bytes
    temperature: int | None = None  # degrees Celsius
    power_usage: int | None = None  # milliwatts
    errors: tuple[str, ...] = ()  # one for each value that could not be read


class MachineTelemetry(NamedTuple):
    """The GPUs of a machine, and the state of their confidential computing (None: unknown)."""

    gpus: tuple[GpuTelemetry, ...]
    enabled: bool | None = None  # as `collect` requires it, which includes protected PCIe
    ready: bool | None = None  # whether the GPUs accept work


def read_telemetry(*, time_limit: float = TIME_LIMIT) -> MachineTelemetry:
    """Return the telemetry of all GPUs of this machine, of any architecture.

    A value that a GPU does not have is an error of this GPU only.

    Args:
        time_limit: Seconds per call of the driver.

    Raises:
        BackendUnavailableError: If the driver, its library or nvidia-ml-py are missing.
        BackendBusyError: If the driver does not answer in time.
        BackendError: If the driver fails otherwise.
    """
    with contextlib.closing(Nvml(time_limit)) as nvml:
        gpus = tuple([_read(nvml, index) for index in range(nvml.device_count())])
        try:
            state = nvml.state()
        except BackendUnavailableError:  # off, or GPUs and drivers that do not have it
            return MachineTelemetry(gpus)
    return MachineTelemetry(gpus, state.enabled or state.multi_gpu == "protected_pcie", state.ready)


def _read(nvml: Nvml, index: int) -> GpuTelemetry:
    errors: list[str] = []
    return GpuTelemetry(
        index,
        _value(nvml.uuid, index, errors) or "",
        _value(nvml.pci_bus_id, index, errors) or "",
        _value(nvml.utilization, index, errors),
        _value(nvml.memory, index, errors),
        _value(nvml.temperature, index, errors),
        _value(nvml.power_usage, index, errors),
        tuple(errors),
    )


def _value(read: Callable[[int], T], index: int, errors: list[str]) -> T | None:
    """Return a value, or add its error; a driver that does not answer ends the reading."""
    try:
        return read(index)
    except BackendBusyError:
        raise
    except BackendError as error:
        errors.append(one_line(str(error), _MAX_TEXT))
        return None
