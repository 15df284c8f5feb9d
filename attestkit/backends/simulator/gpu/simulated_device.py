"""A simulated GPU or switch: what its driver returns."""

import hashlib
import hmac
import uuid
from functools import cached_property
from typing import Final, NamedTuple

from attestkit._crypto.pem import CERTIFICATE_LABEL, encode_pem
from attestkit.backends.simulator.gpu import gpu_reports
from attestkit.backends.simulator.gpu import gpu_reports as others
from attestkit.backends.simulator.gpu.gpu_pki import DeviceCredentials
from attestkit.backends.simulator.pki.cloud_pki import Derive
from attestkit.gpu.device import opaque_data as fields
from attestkit.gpu.device.opaque_data import OFF, ON
from attestkit.gpu.driver.nvml import GpuTelemetry

_LINKS: Final = 18  # NVLinks of a GPU
_PDIS: Final = 8  # GPUs in the report of a switch
# Telemetry of an idle GPU: bytes of memory, degrees Celsius, milliwatts.
_MEMORY: Final = {"HOPPER": 80 << 30, "BLACKWELL": 180 << 30}
_TEMPERATURE: Final = 30
_POWER_USAGE: Final = 70_000


class MachineFacts(NamedTuple):
    """Facts about a machine in the reports of all its devices.

    `gpu_pdis` and `switch_pdis` are the lasting identifiers of its devices, 8 bytes each.
    """

    protected_pcie: bool = False
    feature: int | None = None  # 0 SPT, 1 MPT, 2 protected PCIe; None: the field is absent
    gpu_pdis: tuple[bytes, ...] = ()
    switch_pdis: tuple[bytes, ...] = ()


def golden_measurement(derive: Derive, model: gpu_reports.DeviceModel, index: int) -> bytes:
    """Return the measurement of a RIM index of up-to-date firmware: 48 bytes, zero if unused."""
    if index in model.driver_indexes or index in model.vbios_indexes:
        return derive(f"measurement/{model.product}/{index}", 48)
    return bytes(48)


class SimulatedDevice:
    """A simulated GPU or NVSwitch, which signs its reports.

    Attributes:
        device: Keys and certificates.
        position: Index among the GPUs, or among the switches.
        machine: Facts about the machine in its reports.
    """

    def __init__(
        self, derive: Derive, device: DeviceCredentials, position: int, machine: MachineFacts
    ) -> None:
        self._derive = derive
        self.device: DeviceCredentials = device
        self.position: int = position
        self.machine: MachineFacts = machine

    @property
    def model(self) -> gpu_reports.DeviceModel:
        """The model: architecture, and names and versions in certificates and reports."""
        return self.device.model

    @property
    def is_switch(self) -> bool:
        """Whether it is an NVSwitch."""
        return not self.model.driver_indexes

    @property
    def uuid(self) -> str:
        """The UUID, as the driver reports it: "GPU-" or "SWX-" and the UUID's text."""
        value = uuid.UUID(bytes=self._derive(f"uuid/{self.device.pdi.hex()}", 16))
        return f"{'SWX' if self.is_switch else 'GPU'}-{value}"

    @property
    def pci_bus_id(self) -> str:
        """The PCI address, as the driver reports it, such as "00000000:19:00.0"."""
        return f"00000000:{0x19 + self.position:02X}:00.0"

    @property
    def telemetry(self) -> GpuTelemetry:
        """The telemetry of an idle device: memory, temperature, power; a switch has no memory."""
        total = _MEMORY.get(self.model.architecture, 0)
        return GpuTelemetry(
            self.position,
            self.uuid,
            self.pci_bus_id,
            utilization=(0, 0),
            memory=(total, 0, total),
            temperature=_TEMPERATURE,
            power_usage=_POWER_USAGE,
        )

    def content(self, nonce: bytes) -> gpu_reports.ReportContent:
        """Return the content of a report over a nonce of 32 bytes: the same for equal nonces."""
        secret = self._derive(f"responder-nonce/{self.device.pdi.hex()}", 32)
        return gpu_reports.ReportContent(
            nonce,
            # A function of the nonce, so that equal requests give equal reports.
            hmac.digest(secret, nonce, hashlib.sha256),
            self._measurements,
            self._switch_fields() if self.is_switch else self._gpu_fields(),
        )

    def report(self, nonce: bytes) -> bytes:
        """Return a signed report over a nonce of 32 bytes, without faults."""
        return self.content(nonce).sign(self.device.key)

    @cached_property
    def _measurements(self) -> tuple[bytes, ...]:
        indexes = range(self.model.blocks)
        return tuple([golden_measurement(self._derive, self.model, index) for index in indexes])

    def _gpu_fields(self) -> tuple[tuple[int, bytes], ...]:
        model, machine = self.model, self.machine
        found: list[tuple[int, bytes]] = [
            (fields.VBIOS_VERSION, gpu_reports.encode_vbios_version(model.vbios)),
            (others.BOARD, others.BOARD_ID.to_bytes(4, "little")),
            (fields.CHIP_SKU, gpu_reports.encode_text(model.chip_sku, 9)),
            (others.CHIP_SKU_MODIFIER, gpu_reports.encode_text("0", 5)),
            (fields.PROJECT, gpu_reports.encode_text(model.project, 5)),
            (fields.PROJECT_SKU, gpu_reports.encode_text(model.project_sku, 5)),
            (others.PROJECT_SKU_MODIFIER, bytes(2)),
            (fields.DRIVER_VERSION, gpu_reports.encode_text(model.driver)),
            (others.GPU_INFO, bytes.fromhex("8001000000000000")),
            (others.COUNTS, b"\1\0\0\0" * model.blocks),
            (others.CPR_INFO, bytes.fromhex("00c00100")),
            (fields.NVDEC0_STATUS, ON),
            (fields.FWID, self.device.fwid),
        ]
        if model.architecture == "HOPPER":
            found.append((fields.PROTECTED_PCIE_STATUS, ON if machine.protected_pcie else OFF))
        else:
            found.append((others.SYSTEM_ENABLE, b"\7\7"))
        if machine.protected_pcie:
            links = [machine.switch_pdis[link % len(machine.switch_pdis)] for link in range(_LINKS)]
            # The bytes of each are reversed.
            found.append((fields.SWITCH_PDIS, b"".join(pdi[::-1] for pdi in links)))
        if machine.feature is not None:
            found.append((fields.OPAQUE_VERSION, b"\1\0"))
            if model.architecture == "BLACKWELL":
                found.append((fields.CHIP_INFO, gpu_reports.encode_text(model.product)))
            found.append((fields.FEATURE_FLAG, machine.feature.to_bytes(2, "little")))
        return tuple(found)

    def _switch_fields(self) -> tuple[tuple[int, bytes], ...]:
        pdis = b"".join(self.machine.gpu_pdis).ljust(8 * _PDIS, b"\0")
        return (
            (fields.VBIOS_VERSION, self.model.vbios.encode("ascii")),
            (fields.SWITCH_PDIS, self.device.pdi),
            (others.COUNTS, bytes(104)),
            (fields.GPU_PDIS, pdis + b"\xff" * (8 * _PDIS)),
            (others.DISABLED_PORTS, b"\xec\0"),
            (others.SWITCH_POSITION, self.position.to_bytes(2, "little")),
            (others.SWITCH_LOCK, b"\1\0"),
        )


def encode_chain(certificates: tuple[bytes, ...]) -> bytes:
    """Return certificates, given in DER, as PEM text (ASCII), as the driver returns them."""
    return "".join([encode_pem(CERTIFICATE_LABEL, der) for der in certificates]).encode("ascii")
