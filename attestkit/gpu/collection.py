"""Collection of evidence of the GPUs and NVSwitches of this machine."""

import contextlib
import hmac
import warnings
from typing import Final, NamedTuple

from attestkit._argument_checks import require_bytes
from attestkit._crypto.pem import split_pem
from attestkit.errors import BackendError, BackendUnavailableError, FormatError
from attestkit.gpu.architectures import Architecture
from attestkit.gpu.device.device_chain import MAX_CERTIFICATES
from attestkit.gpu.device.report import stated_nonce
from attestkit.gpu.driver.nscq import read_switches
from attestkit.gpu.driver.nvml import NONCE_SIZE, TIME_LIMIT, ConfComputeState, GpuDescription, Nvml
from attestkit.gpu.evidence import DeviceEvidence, GpuEvidence

_CC_OFF: Final = (
    "confidential computing of the GPUs: off; enable it on the host (gpu-admin-tools: "
    "nvidia_gpu_tools.py --set-cc-mode=on)"
)
_DEV_TOOLS: Final = (
    "GPUs in DevTools mode: their memory is not protected; set the mode on in production"
)


class GpuModeWarning(UserWarning):
    """Warning that the GPUs are in DevTools mode, in which their memory is not protected."""


class GpuCollection(NamedTuple):
    """Evidence of this machine's devices, and the driver's report: state, version, GPUs, warnings.

    Only `evidence` is signed by the devices.
    """

    evidence: GpuEvidence
    state: ConfComputeState
    driver_version: str
    gpus: tuple[GpuDescription, ...]
    warnings: tuple[str, ...]  # one sentence each


def collect(nonce: bytes, *, switches: bool | None = None) -> GpuEvidence:
    """Return evidence of all GPUs of this machine over one nonce.

    Issues a `GpuModeWarning` if the GPUs are in DevTools mode.

    Args:
        nonce: Exactly 32 bytes.
        switches: Whether to add the evidence of all NVSwitches. None: only if the GPUs are in the
            mode protected PCIe.

    Raises:
        UsageError: If the nonce is not 32 bytes.
        BackendUnavailableError: If the driver, its libraries or nvidia-ml-py are missing or too
            old, this process lacks a permission, a GPU is missing, a device is not of Hopper,
            Blackwell or LS10, or confidential computing is off.
        BackendBusyError: If the driver does not answer in time.
        BackendError: If the driver returns any other error, or invalid data.
    """
    found = collect_with_state(nonce, switches=switches)
    for text in found.warnings:
        warnings.warn(text, GpuModeWarning, stacklevel=2)
    return found.evidence


def collect_with_state(
    nonce: bytes, *, switches: bool | None = None, time_limit: float = TIME_LIMIT
) -> GpuCollection:
    """Return evidence of all GPUs, and what their driver reports.

    DevTools mode is listed in `warnings` of the result, and issues no Python warning.

    Args:
        nonce: Exactly 32 bytes.
        switches: Whether to add the evidence of all NVSwitches. None: only if the GPUs are in the
            mode protected PCIe.
        time_limit: Seconds per call of the driver.

    Raises:
        AttestKitError: As for `collect`.
    """
    require_bytes("nonce", nonce, NONCE_SIZE)
    with contextlib.closing(Nvml(time_limit)) as nvml:
        state = nvml.state()
        if not state.enabled and state.multi_gpu != "protected_pcie":
            raise BackendUnavailableError(_CC_OFF, reason="not_configured")
        count = nvml.device_count()
        if not count:
            text = "GPUs: none found; check nvidia-smi -L"
            raise BackendUnavailableError(text, reason="missing")
        version = nvml.driver_version()
        gpus = tuple([nvml.describe(index) for index in range(count)])
        devices = [_read_gpu(nvml, gpu, nonce) for gpu in gpus]
    if switches or (switches is None and state.multi_gpu == "protected_pcie"):
        devices += _read_switches(nonce, time_limit)
    found = (_DEV_TOOLS,) if state.dev_tools else ()
    return GpuCollection(GpuEvidence(tuple(devices)), state, version, gpus, found)


def read_state(*, time_limit: float = TIME_LIMIT) -> ConfComputeState:
    """Return the state of confidential computing of the GPUs, as their driver reports it.

    `time_limit` is in seconds, for each call of the driver.

    Raises:
        BackendError: If the driver is missing, does not answer, or fails, as for `collect`. Some
            drivers fail if confidential computing is off; with others `enabled` is False then.
    """
    with contextlib.closing(Nvml(time_limit)) as nvml:
        return nvml.state()


def set_ready(*, ready: bool = True) -> None:
    """Set whether the GPUs accept work (`ready`), after their evidence was verified. Needs root.

    Raises:
        BackendUnavailableError: If this process lacks the permission; otherwise as for `collect`.
        BackendError: As for `collect`.
    """
    with contextlib.closing(Nvml()) as nvml:
        nvml.set_ready(ready=ready)


def _read_gpu(nvml: Nvml, gpu: GpuDescription, nonce: bytes) -> DeviceEvidence:
    certificates = nvml.certificates(gpu.index)
    report = nvml.report(gpu.index, nonce)
    return _device(f"GPU {gpu.index}", gpu.architecture, report, certificates, nonce)


def _read_switches(nonce: bytes, time_limit: float) -> list[DeviceEvidence]:
    return [
        _device(f"switch {found.label}", "LS10", found.report, found.certificates, nonce)
        for found in read_switches(nonce, time_limit)
    ]


def _device(
    subject: str, architecture: Architecture, report: bytes, pem: bytes, nonce: bytes
) -> DeviceEvidence:
    """Return the evidence of a device from the driver's output: report, and certificates in PEM.

    BackendError, which names `subject`, if the certificates are malformed or the report's nonce is
    not `nonce`.
    """
    try:
        certificates = tuple(split_pem(pem.rstrip(b"\0").decode("ascii")))
    except (FormatError, UnicodeDecodeError) as error:
        text = f"{subject}: certificates must be PEM; update the driver"
        raise BackendError(text, reason="malformed_response") from error
    if len(certificates) > MAX_CERTIFICATES:
        text = f"{subject}: {len(certificates)} certificates, at most {MAX_CERTIFICATES}"
        raise BackendError(text, reason="malformed_response")
    if not hmac.compare_digest(stated_nonce(report), nonce):
        text = f"{subject}: the report's nonce is not the requested one; retry"
        raise BackendError(text, reason="wrong_report_data")
    return DeviceEvidence(architecture, report, certificates, nonce)
