"""Simulated GPUs and switches behind the stub driver, and their files on an emulated machine."""

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attestkit._crypto.pem import CERTIFICATE_LABEL, encode_pem
from attestkit.emulator.kernel_files import Link, Tree, constant_file, text_file
from attestkit.emulator.nvml.stub_library import build_stub_libraries
from attestkit.emulator.nvml.stub_server import StubDevice, StubServer, StubState

if TYPE_CHECKING:
    from attestkit.backends.simulator.faults.fault_specs import Faults
    from attestkit.backends.simulator.gpu.gpu_host import GpuHost
    from attestkit.backends.simulator.gpu.simulated_device import SimulatedDevice
    from attestkit.backends.simulator.gpu.simulated_gpus import SimulatedGpus

# Numbers of NVML, and of NSCQ for a switch (nvidia-gpu.md, section 1).
_ARCHITECTURES: Final = {"HOPPER": 9, "BLACKWELL": 10, "LS10": 2}
_NAMES: Final = {
    "HOPPER": "attestkit simulated H100",
    "BLACKWELL": "attestkit simulated B200",
    "LS10": "attestkit simulated NVSwitch",
}
_TDX, _SEV_SNP = 2, 3  # capabilities of the CPU
_PROTECTED_PCIE: Final = 1


class SimulatedStubMachine:
    """The devices of `SimulatedGpus`, as a `StubMachine`."""

    def __init__(self, simulated: "SimulatedGpus") -> None:
        self._simulated = simulated
        self.driver_version: str = simulated.gpus[0].model.driver
        self._gpus, self._switches = _with_fault(simulated)
        self.gpus: tuple[StubDevice, ...] = tuple(map(self._describe, self._gpus))
        self.switches: tuple[StubDevice, ...] = tuple(map(self._describe, self._switches))

    def gpu_report(self, index: int, nonce: bytes) -> bytes:
        """Return the report of a GPU over a nonce of 32 bytes."""
        return self._simulated.report(self._gpus[index], nonce)

    def switch_report(self, index: int, nonce: bytes) -> bytes:
        """Return the report of a switch over a nonce of 32 bytes."""
        return self._simulated.report(self._switches[index], nonce)

    def _describe(self, device: "SimulatedDevice") -> StubDevice:
        architecture, telemetry = device.model.architecture, device.telemetry
        return StubDevice(
            _ARCHITECTURES[architecture],
            self._simulated.chain_pem(device),
            uuid.UUID(device.uuid.partition("-")[2]).bytes,
            device.device.pdi,
            device.model.vbios.lower(),
            _NAMES[architecture],
            telemetry.pci_bus_id,
            telemetry.utilization or (0, 0),
            telemetry.memory or (0, 0, 0),
            telemetry.temperature or 0,
            telemetry.power_usage or 0,
        )


def _with_fault(
    simulated: "SimulatedGpus",
) -> tuple[tuple["SimulatedDevice", ...], tuple["SimulatedDevice", ...]]:
    """Return GPUs and switches, as a fault of the machine changes them."""
    gpus, switches = simulated.gpus, simulated.switches
    fault = simulated.config.deviation.machine
    if fault == "switch-missing":
        return gpus, switches[:-1]
    if fault == "device-twice":
        return (*gpus[:-1], gpus[0]), switches
    return gpus, switches


def add_gpu_files(
    tree: Tree, machine: "GpuHost", faults: "Faults", driver: str | os.PathLike[str]
) -> None:
    """Add the files of the GPUs to a machine's control files.

    These are their roots and endorsements, and a link to their driver.

    Args:
        tree: The machine's files.
        machine: The machine, which has GPUs.
        faults: The armed faults.
        driver: Folder of the stub driver.
    """

    def endorsements() -> bytes:
        found: bytes = machine.gpu_endorsements().to_json()
        return found

    tree.add("/attestkit/gpu-driver", Link(os.fspath(driver)))
    roots = "".join([encode_pem(CERTIFICATE_LABEL, root) for root in machine.gpu_roots])
    tree.add("/attestkit/gpu-roots.pem", constant_file("", faults, roots.encode()))
    tree.add("/attestkit/gpu-endorsements.json", text_file("", faults, endorsements))


def start_stub_driver(simulated: "SimulatedGpus", folder: Path, *, is_snp: bool) -> StubServer:
    """Put the stub libraries into a folder, and start their server.

    Args:
        simulated: The devices.
        folder: An empty folder for the libraries and the server's socket.
        is_snp: Whether the CPU is of AMD.

    Raises:
        BackendUnavailableError: If there is no C compiler.
        BackendError: If the libraries cannot be compiled, or the socket not be created.
    """
    build_stub_libraries(folder)
    protected = simulated.config.is_protected
    state = StubState(
        cpu=_SEV_SNP if is_snp else _TDX, multi_gpu=_PROTECTED_PCIE if protected else 0
    )
    if protected:  # in this mode the feature of single GPUs is off
        state.feature = 0
    server = StubServer(folder, SimulatedStubMachine(simulated), state)
    server.start()
    return server
