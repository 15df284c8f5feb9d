"""Modes of GPUs, and that those of one machine fit together (nvidia-gpu.md, sections 2 and 4.4)."""

from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

from attestkit.errors import GpuEvidenceError
from attestkit.gpu.device.report import Report
from attestkit.gpu.device_label import DeviceLabel

DeviceMode: TypeAlias = Literal["single", "multi", "protected_pcie"]
"""`single`: passed through alone (SPT); `multi`: several, with their NVLinks (MPT)."""

_MODES: Final[dict[int, DeviceMode]] = {0: "single", 1: "multi", 2: "protected_pcie"}


def device_mode(report: Report) -> DeviceMode | None:
    """Return the mode of a device; None if the report does not have it."""
    if report.feature is None:
        return "protected_pcie" if report.protected_pcie else None
    found: DeviceMode | None = _MODES.get(report.feature)
    return found


def check_modes(reports: Sequence[Report]) -> DeviceMode | None:
    """Check the modes of a machine's devices, and return the first one that a report has.

    Old firmware has no feature flag (field 36), and Blackwell has no status of protected PCIe
    (field 21). What is not stated is compared with nothing, except that each GPU beside one in
    multi-GPU passthrough must state this mode.

    Raises:
        GpuEvidenceError: If a mode is unknown, the two fields of a report contradict each other, or
            the GPUs are in different modes (`modes`), with the index of the device.
    """
    for at, report in enumerate(reports):
        _check_fields(DeviceLabel(report.kind, at), report)
    gpus = {at: report for at, report in enumerate(reports) if report.kind == "gpu"}
    modes: dict[int, DeviceMode] = {}
    for at, report in gpus.items():
        if (mode := device_mode(report)) is not None:
            modes[at] = mode
    first = next(iter(modes.values()), None)
    for at, mode in modes.items():
        if mode != first:
            raise _differs(at, f"in mode {mode}, but GPU {min(modes)} is in mode {first}")
    protected = {at: one for at, report in gpus.items() if (one := _protects(report)) is not None}
    for at, one in protected.items():
        if one is not protected[min(protected)]:
            raise _differs(at, f"protected PCIe is {_on(one)}, unlike at GPU {min(protected)}")
    if first == "multi" and (silent := gpus.keys() - modes.keys()):
        raise _differs(min(silent), f"states no mode, but GPU {min(modes)} is in mode multi")
    return first


def _check_fields(label: DeviceLabel, report: Report) -> None:
    feature, protected = report.feature, report.protected_pcie
    if feature is not None and feature not in _MODES:
        raise label.error(f"in unknown mode {feature}; update attestkit", "modes")
    if None in (feature, protected):
        return
    if protected != (device_mode(report) == "protected_pcie"):
        problem = f"in mode {device_mode(report)}, but protected PCIe is {_on(protected)}"
        raise label.error(problem, "modes")


def _protects(report: Report) -> bool | None:
    """Return whether protected PCIe is on; None if the report does not have it."""
    if report.feature is not None:
        return device_mode(report) == "protected_pcie"
    return report.protected_pcie


def _on(value: bool | None) -> str:  # noqa: FBT001 - a status
    return "on" if value else "off"


def _differs(index: int, problem: str) -> GpuEvidenceError:
    return DeviceLabel("gpu", index).error(problem, "modes")
