"""Devices of one machine, and how NVLink connects them (nvidia-gpu.md, section 3.5).

Only machines with protected PCIe have switches with evidence; the links of others are not checked.
"""

import hmac
from collections.abc import Sequence
from typing import NamedTuple

from attestkit.gpu.device.device_chain import DeviceChain
from attestkit.gpu.device.report import Report
from attestkit.gpu.device_label import DeviceLabel


class TopologyDevice(NamedTuple):
    """A device whose chain and report are verified."""

    chain: DeviceChain
    report: Report

    def label(self, index: int) -> DeviceLabel:
        """Return the name of the device with this index in the evidence."""
        return DeviceLabel(self.report.kind, index)


def check_topology(devices: Sequence[TopologyDevice]) -> bool:
    """Check that devices are distinct, have one nonce, and are connected with each other only.

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
            problem = "the report has another PDI than the certificate"
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
            problem = f"the report has another nonce than that of {devices[0].label(0)}"
            raise device.label(at).error(problem, "topology")
