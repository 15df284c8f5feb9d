"""NVIDIA's management library NVML, as far as evidence and telemetry of GPUs need it.

It is called through nvidia-ml-py, which has the calls, structures and codes.

Telemetry is what the driver reports; it is not evidence.
"""

import contextlib
import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any, Final, Literal, NamedTuple, TypeVar

from attestkit._argument_checks import needs_extra
from attestkit._sanitize import one_line
from attestkit.errors import BackendBusyError, BackendError, BackendUnavailableError
from attestkit.gpu.architectures import Architecture
from attestkit.gpu.driver.driver_calls import DriverSession

T = TypeVar("T")
TIME_LIMIT: Final = 30.0  # seconds per call, as NVIDIA's tools
MAX_DEVICES: Final = 64
NONCE_SIZE: Final = 32
_LIBRARY: Final = "libnvidia-ml.so.1"
_MAX_TEXT: Final = 96  # characters; buffers of the library are shorter
CpuCapability = Literal["none", "sev", "tdx", "sev-snp", "sev-snp-vtom"]
MultiGpuMode = Literal["none", "protected_pcie", "nvle"]
_CPUS: Final[tuple[CpuCapability, ...]] = ("none", "sev", "tdx", "sev-snp", "sev-snp-vtom")
_MULTI_GPU_MODES: Final[tuple[MultiGpuMode, ...]] = ("none", "protected_pcie", "nvle")
_ENVIRONMENTS: Final = ("unavailable", "simulation", "production")
_ARCHITECTURES: Final[Mapping[int, Architecture]] = {9: "HOPPER", 10: "BLACKWELL"}
_DRIVER: Final = "install NVIDIA's driver, 550 or later"
_RESET: Final = "reset the GPU or reboot"
_CC_ON: Final = "enable it on the host (gpu-admin-tools: nvidia_gpu_tools.py --set-cc-mode=on)"
_SUCCESS: Final = 0
_OLD_DRIVER: Final = frozenset({3, 13, 25})  # has no settings of several GPUs
_TELEMETRY_TIME_LIMIT: Final = 5.0  # seconds per call
_MAX_PROBLEM: Final = 200  # characters of an error


@dataclass(frozen=True, slots=True)
class ConfComputeState:
    """State of confidential computing of all GPUs, as the driver reports it; it is not evidence."""

    cpu: CpuCapability
    environment: str  # "unavailable", "simulation" or "production"
    enabled: bool  # memory is protected; may be False where `multi_gpu` protects it
    dev_tools: bool  # debugging is possible: memory is not protected, even if `enabled`
    multi_gpu: MultiGpuMode
    ready: bool  # whether the GPUs accept work


@dataclass(frozen=True, slots=True)
class GpuDescription:
    """A GPU as its driver describes it; it is not evidence."""

    index: int  # of the driver, from 0
    architecture: Architecture
    uuid: str  # begins with GPU-
    vbios_version: str  # such as 96.00.9F.00.01


_FAILED: Final = partial(BackendError, reason="gpu_error", path=_LIBRARY)
_MISSING: Final = partial(BackendUnavailableError, reason="missing", path=_LIBRARY)
_DENIED: Final = partial(BackendUnavailableError, reason="permission_denied", path=_LIBRARY)
_OTHER_VERSION: Final = partial(BackendUnavailableError, reason="unsupported_driver", path=_LIBRARY)
_ERRORS: Final[Mapping[int, tuple[Callable[[str], BackendError], str]]] = {
    1: (_FAILED, "the library was shut down meanwhile; retry"),
    2: (_FAILED, "invalid argument, or the GPUs' state cannot change any more; reboot"),
    3: (
        partial(BackendUnavailableError, reason="wrong_platform", path=_LIBRARY),
        f"not supported: confidential computing is off or the GPU is older than Hopper; {_CC_ON}",
    ),
    4: (_DENIED, "permission denied; run as root"),
    6: (_FAILED, "no such device; check nvidia-smi -L"),
    9: (_MISSING, f"the driver is not loaded; {_DRIVER} (modprobe nvidia)"),
    10: (
        partial(BackendBusyError, reason="timed_out", path=_LIBRARY),
        "timeout in the driver; retry",
    ),
    12: (_MISSING, f"{_LIBRARY}: not found; {_DRIVER}"),
    13: (_OTHER_VERSION, f"the driver is too old; {_DRIVER}"),
    15: (_FAILED, f"the GPU is lost; {_RESET}"),
    16: (_FAILED, f"the GPU has to be reset; {_RESET}"),
    17: (_DENIED, "blocked by the operating system; check /dev/nvidia*"),
    18: (_OTHER_VERSION, "versions of driver and library differ; reboot"),
    19: (partial(BackendBusyError, reason="device", path=_LIBRARY), "the GPU is in use; retry"),
    25: (_OTHER_VERSION, f"the driver's interface is not the library's; {_DRIVER}"),
    999: (_FAILED, "internal error of the driver; see the kernel log"),
}


def driver_error(subject: str, code: int) -> BackendError:
    """Return the error for an error code of NVML; `subject` names the call."""
    create, meaning = _ERRORS.get(code, (_FAILED, "undocumented error; see the kernel log"))
    return create(f"{subject}: {meaning} (NVML error {code})")


def _load_binding() -> ModuleType:
    with needs_extra("nvidia-ml-py", "gpu", BackendUnavailableError):
        pynvml = import_module("pynvml")  # lazy
    if not hasattr(pynvml, "nvmlSystemGetConfComputeSettings"):
        text = "pynvml: too old, or not nvidia-ml-py; pip uninstall pynvml, then install "
        text += "'attestkit[gpu]' again"
        raise BackendUnavailableError(text, reason="missing_dependency")
    return pynvml


class Nvml(DriverSession):
    """Calls of NVML, from its initialisation by the constructor to its shutdown by `close`.

    Constructor and methods raise the subclass of BackendError for the code that the library
    returns, BackendError for invalid values, and BackendBusyError if a call exceeds the time limit.

    `index` is the driver's number of a GPU, from 0 on.

    Args:
        time_limit: Seconds per call.
    """

    def __init__(self, time_limit: float = TIME_LIMIT) -> None:
        super().__init__(time_limit)
        self._nvml = _load_binding()
        self._call("GPU driver", self._nvml.nvmlInit)

    def close(self) -> None:
        """Shut the library down, unless a call hangs, which could hang the shutdown or crash."""
        if not self._hangs:
            with contextlib.suppress(BackendError):  # the results are complete without it
                self._call("GPU driver", self._nvml.nvmlShutdown)

    def _call(self, subject: str, function: Callable[..., T], *arguments: Any) -> T:
        try:
            return super()._call(subject, function, *arguments)
        except self._nvml.NVMLError as error:
            raise driver_error(subject, error.value) from error

    def driver_version(self) -> str:
        """Return the version of the driver, such as 550.90.07."""
        return self._text("driver version", self._nvml.nvmlSystemGetDriverVersion)

    def state(self) -> ConfComputeState:
        """Return the state of confidential computing."""
        nvml, subject = self._nvml, "GPU state"
        capabilities = self._call(subject, nvml.nvmlSystemGetConfComputeCapabilities)
        state = self._call(subject, nvml.nvmlSystemGetConfComputeState)
        ready = self._call(subject, nvml.nvmlSystemGetConfComputeGpusReadyState)
        return ConfComputeState(
            cpu=_named("CPU capability", _CPUS, capabilities.cpuCaps),
            environment=_named("environment", _ENVIRONMENTS, state.environment),
            enabled=state.ccFeature != 0,
            dev_tools=state.devToolsMode != 0,
            multi_gpu=self._multi_gpu_mode(),
            ready=ready != 0,
        )

    def _multi_gpu_mode(self) -> MultiGpuMode:
        """Return the multi-GPU mode; "none" if the driver is too old to report it."""
        nvml, subject = self._nvml, "GPU settings"
        settings = nvml.c_nvmlSystemConfComputeSettings_v1_t()
        try:  # this function of the binding returns its code
            code = self._call(
                subject, nvml.nvmlSystemGetConfComputeSettings, ctypes.byref(settings)
            )
        except BackendUnavailableError as error:
            if error.reason != "unsupported_driver":
                raise
            return "none"
        if code in _OLD_DRIVER:
            return "none"
        if code != _SUCCESS:
            raise driver_error(subject, code)
        return _named("multi-GPU mode", _MULTI_GPU_MODES, settings.multiGpuMode)

    def set_ready(self, *, ready: bool) -> None:
        """Set whether the GPUs accept work, by `ready`; needs root."""
        self._call("GPU ready state", self._nvml.nvmlSystemSetConfComputeGpusReadyState, int(ready))

    def device_count(self) -> int:
        """Return the number of GPUs; BackendError if it is over 64."""
        count: int = self._call("GPU count", self._nvml.nvmlDeviceGetCount)
        if not 0 <= count <= MAX_DEVICES:
            raise _malformed("GPU count", f"must be 0 to {MAX_DEVICES}, not {count}")
        return count

    def describe(self, index: int) -> GpuDescription:
        """Return index, architecture, UUID and VBIOS version of a GPU.

        BackendUnavailableError if it is neither Hopper nor Blackwell.
        """
        nvml, subject = self._nvml, f"GPU {index}"
        handle = self._handle(index)
        number = self._call(subject, nvml.nvmlDeviceGetArchitecture, handle)
        if number not in _ARCHITECTURES:
            text = f"{subject}: its architecture (number {number} of NVML) cannot create evidence; "
            text += "use Hopper or Blackwell GPUs"
            raise BackendUnavailableError(text, reason="wrong_platform")
        return GpuDescription(
            index,
            _ARCHITECTURES[number],
            self._text(f"{subject}: UUID", nvml.nvmlDeviceGetUUID, handle),
            self._text(f"{subject}: VBIOS version", nvml.nvmlDeviceGetVbiosVersion, handle),
        )

    def certificates(self, index: int) -> bytes:
        """Return the attestation certificates of the GPU with this index: PEM, leaf first."""
        subject = f"GPU {index}: certificates"
        found = self._call(
            subject, self._nvml.nvmlDeviceGetConfComputeGpuCertificate, self._handle(index)
        )
        return _content(subject, found.attestationCertChain, found.attestationCertChainSize)

    def report(self, index: int, nonce: bytes) -> bytes:
        """Return the attestation report of the GPU with this index over a `nonce` of 32 bytes."""
        subject = f"GPU {index}: report"
        found = self._call(
            subject,
            self._nvml.nvmlDeviceGetConfComputeGpuAttestationReport,
            self._handle(index),
            nonce,
        )
        return _content(subject, found.attestationReport, found.attestationReportSize)

    def uuid(self, index: int) -> str:
        """Return the UUID of the GPU with this index, of any architecture: "GPU-00010203-…"."""
        return self._text(f"GPU {index}: UUID", self._nvml.nvmlDeviceGetUUID, self._handle(index))

    def pci_bus_id(self, index: int) -> str:
        """Return the PCI address of the GPU with this index: "00000000:0A:00.0"."""
        subject, handle = f"GPU {index}: PCI address", self._handle(index)
        return self._text(subject, lambda: self._nvml.nvmlDeviceGetPciInfo(handle).busId)

    def utilization(self, index: int) -> tuple[int, int]:
        """Return recent use of processors and memory of the GPU with this index in percent."""
        subject, handle = f"GPU {index}: utilization", self._handle(index)
        found = self._call(subject, self._nvml.nvmlDeviceGetUtilizationRates, handle)
        return found.gpu, found.memory

    def memory(self, index: int) -> tuple[int, int, int]:
        """Return total, used and free memory of the GPU with this index, in bytes."""
        subject, handle = f"GPU {index}: memory", self._handle(index)
        found = self._call(subject, self._nvml.nvmlDeviceGetMemoryInfo, handle)
        return found.total, found.used, found.free

    def temperature(self, index: int) -> int:
        """Return the temperature of the GPU with this index in degrees Celsius."""
        nvml, handle = self._nvml, self._handle(index)
        subject, sensor = f"GPU {index}: temperature", nvml.NVML_TEMPERATURE_GPU
        return int(self._call(subject, nvml.nvmlDeviceGetTemperature, handle, sensor))

    def power_usage(self, index: int) -> int:
        """Return the power consumption of the GPU with this index in milliwatts."""
        subject, handle = f"GPU {index}: power", self._handle(index)
        return int(self._call(subject, self._nvml.nvmlDeviceGetPowerUsage, handle))

    def _handle(self, index: int) -> object:
        return self._call(f"GPU {index}", self._nvml.nvmlDeviceGetHandleByIndex, index)

    def _text(self, subject: str, function: Callable[..., Any], *arguments: Any) -> str:
        try:
            found = self._call(subject, function, *arguments)
        except UnicodeDecodeError as error:
            raise _malformed(subject, "must be UTF-8") from error
        return one_line(found if isinstance(found, str) else found.decode("latin-1"), _MAX_TEXT)


def _malformed(subject: str, problem: str) -> BackendError:
    text = f"{subject}: invalid answer of the driver: {problem}; update the driver"
    return BackendError(text, reason="malformed_response", path=_LIBRARY)


def _content(subject: str, buffer: "ctypes.Array[ctypes.c_uint8]", size: int) -> bytes:
    """Return the first `size` bytes of a buffer; BackendError if `size` is not 1 to its length.

    `subject` names the value in the error.
    """
    if not 0 < size <= len(buffer):
        raise _malformed(subject, f"size must be 1 to {len(buffer)}, not {size}")
    return bytes(buffer[:size])


Name = TypeVar("Name", bound=str)


def _named(subject: str, names: tuple[Name, ...], number: int) -> Name:
    if not 0 <= number < len(names):
        raise _malformed(subject, f"unknown value {number}")
    return names[number]


class GpuTelemetry(NamedTuple):
    """Telemetry of one GPU; None, or an empty text, if the driver did not return the value."""

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


def read_telemetry() -> MachineTelemetry:
    """Return the telemetry of all GPUs of this machine, of any architecture.

    A value that a GPU does not have is an error of this GPU only.

    Raises:
        BackendUnavailableError: If the driver, its library or nvidia-ml-py are missing or too old.
        BackendBusyError: If the driver does not answer in time.
        BackendError: If the driver fails otherwise.
    """
    with contextlib.closing(Nvml(_TELEMETRY_TIME_LIMIT)) as nvml:
        gpus = tuple([_read_telemetry(nvml, index) for index in range(nvml.device_count())])
        try:
            state = nvml.state()
        except BackendUnavailableError:  # off, or GPUs and drivers that do not have it
            return MachineTelemetry(gpus)
    return MachineTelemetry(gpus, state.enabled or state.multi_gpu == "protected_pcie", state.ready)


def _read_telemetry(nvml: Nvml, index: int) -> GpuTelemetry:
    errors: list[str] = []
    return GpuTelemetry(
        index,
        _value_of(nvml.uuid, index, errors) or "",
        _value_of(nvml.pci_bus_id, index, errors) or "",
        _value_of(nvml.utilization, index, errors),
        _value_of(nvml.memory, index, errors),
        _value_of(nvml.temperature, index, errors),
        _value_of(nvml.power_usage, index, errors),
        tuple(errors),
    )


def _value_of(read: Callable[[int], T], index: int, errors: list[str]) -> T | None:
    """Return `read(index)`; on an error of the driver add its text to `errors` and return None.

    BackendBusyError is not caught: a driver that does not answer would delay each value.
    """
    try:
        return read(index)
    except BackendBusyError:
        raise
    except BackendError as error:
        errors.append(one_line(str(error), _MAX_PROBLEM))
        return None
