"""Devices of one machine: their modes and how NVLink connects them.

Only machines with protected PCIe have switches with evidence; the links of others are not checked.
"""

import hmac
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from attestkit.errors import GpuEvidenceError
from attestkit.gpu.architectures import DeviceLabel
from attestkit.gpu.device.report import Report

if TYPE_CHECKING:
    from attestkit.gpu.device.device_chain import DeviceChain

DeviceMode: TypeAlias = Literal["single", "multi", "protected_pcie"]
"""Mode of confidential computing. `single`: a GPU is passed through alone (SPT); `multi`: several
with their NVLinks (MPT); `protected_pcie`: all GPUs and switches of the host."""
_MODES: Final[dict[int, DeviceMode]] = {0: "single", 1: "multi", 2: "protected_pcie"}


def device_mode(report: Report) -> DeviceMode | None:
    """Return a device's mode: `single`, `multi`, `protected_pcie`; None if missing or unknown."""
    if report.feature is None:
        return "protected_pcie" if report.protected_pcie else None
    found: DeviceMode | None = _MODES.get(report.feature)
    return found


def check_modes(reports: Sequence[Report]) -> DeviceMode | None:
    """Check that a machine's GPUs are in one mode; return it, or None if no report states it.

    Old firmware has no feature flag (field 36), and Blackwell has no status of protected PCIe
    (field 21). Only stated modes are compared, except that if a GPU is in multi-GPU passthrough,
    all must state this mode.

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
    """Return whether protected PCIe is on; None if the report does not state it."""
    if report.feature is not None:
        return device_mode(report) == "protected_pcie"
    return report.protected_pcie


def _on(value: bool | None) -> str:  # noqa: FBT001 - a status
    return "on" if value else "off"


def _differs(index: int, problem: str) -> GpuEvidenceError:
    return DeviceLabel("gpu", index).error(problem, "modes")


class TopologyDevice(NamedTuple):
    """A device whose chain and report are verified."""

    chain: "DeviceChain"
    report: Report

    def label(self, index: int) -> DeviceLabel:
        """Return the name of the device with this index in the evidence."""
        return DeviceLabel(self.report.kind, index)


def check_topology(devices: Sequence[TopologyDevice]) -> bool:
    """Check that devices are distinct, have one nonce, and are connected only with each other.

    Connections are those of GPUs with switches, by the device identifiers (PDI) in the reports.

    Returns:
        Whether the connections were checked: False without switches, or without GPUs.

    Raises:
        GpuEvidenceError: If a check fails (`topology`), with the index of the device.
    """
    _check_distinct(devices)
    gpus = {at: device for at, device in enumerate(devices) if device.report.kind == "gpu"}
    switches = {at: device for at, device in enumerate(devices) if at not in gpus}
    for at, device in switches.items():
        if device.report.pdi != device.chain.pdi:
            problem = "the device identifier (PDI) of the report is not that of the certificate"
            raise device.label(at).error(problem, "topology")
    if not switches or not gpus:
        return False
    gpu_pdis = {device.chain.pdi for device in gpus.values()}
    switch_pdis = {device.chain.pdi for device in switches.values()}
    for at, device in gpus.items():
        if set(device.report.switch_pdis) != switch_pdis:
            problem = "is not connected to exactly the switches of the evidence"
            raise device.label(at).error(problem, "topology")
    for at, device in switches.items():
        if set(device.report.gpu_pdis) != gpu_pdis:
            problem = "is not connected to exactly the GPUs of the evidence"
            raise device.label(at).error(problem, "topology")
    return True


def _check_distinct(devices: Sequence[TopologyDevice]) -> None:
    seen: dict[bytes, int] = {}
    for at, device in enumerate(devices):
        first = seen.setdefault(device.chain.pdi, at)
        if first != at:
            problem = f"is the same device as {devices[first].label(first)}"
            raise device.label(at).error(problem, "topology")
        if not hmac.compare_digest(device.report.nonce, devices[0].report.nonce):
            problem = f"the report's nonce differs from that of {devices[0].label(0)}"
            raise device.label(at).error(problem, "topology")
