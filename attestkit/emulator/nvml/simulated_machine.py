"""Simulated GPUs and switches behind the stub driver libraries, and their files on a machine.

The libraries are compiled from C.
"""

import os
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attestkit._crypto.pem import CERTIFICATE_LABEL, encode_pem
from attestkit.emulator.kernel_files import Link, Tree, constant_file, text_file
from attestkit.emulator.nvml.stub_server import StubDevice, StubServer, StubState
from attestkit.errors import BackendError, BackendUnavailableError

if TYPE_CHECKING:
    from attestkit.backends.simulator.faults.fault_specs import Faults
    from attestkit.backends.simulator.gpu.gpu_host import GpuHost
    from attestkit.backends.simulator.gpu.simulated_device import SimulatedDevice
    from attestkit.backends.simulator.gpu.simulated_gpus import SimulatedGpus

SOURCES: Final = Path(__file__).parent
FLAGS: Final = ("-std=gnu11", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")
# File of each library, and the names by which programs load it: by the loader, and by `ld`.
_LIBRARIES: Final = (
    ("nvml_stub.c", "libnvidia-ml.so.1", "libnvidia-ml.so"),
    ("nscq_stub.c", "libnvidia-nscq.so.2", "libnvidia-nscq.so"),
)
_TIME_LIMIT: Final = 120.0  # seconds


def build_stub_libraries(folder: Path) -> None:
    """Compile the stub libraries into an empty folder, with the compiler of `$CC` or else `cc`.

    Warnings are errors with `ATTESTKIT_STRICT_BUILD=1`.

    Raises:
        BackendUnavailableError: If there is no C compiler.
        BackendError: If a library cannot be compiled.
    """
    compiler = find_compiler()
    strict = ("-Werror",) if os.environ.get("ATTESTKIT_STRICT_BUILD") == "1" else ()
    for source, library, link in _LIBRARIES:
        command = (
            *(compiler, *FLAGS, *strict, "-shared", f"-Wl,-soname,{library}"),
            *("-o", str(folder / library)),
            *(str(SOURCES / name) for name in (source, "stub_client.c")),
            "-ldl",  # before glibc 2.34, for dladdr
        )
        _compile(command, library)
        (folder / link).symlink_to(library)


def find_compiler() -> str:
    """Return the path of the C compiler; raise BackendUnavailableError without one."""
    name = os.environ.get("CC") or "cc"
    if found := shutil.which(name):
        return found
    text = f"C compiler: {name} not found; install one for simulated GPUs (Debian: apt install gcc)"
    raise BackendUnavailableError(text, reason="missing_dependency")


def _compile(command: tuple[str, ...], library: str) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - the compiler that the user configured
            command, capture_output=True, text=True, timeout=_TIME_LIMIT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendError(f"{library}: cannot be compiled: {error}", reason="io_error") from error
    if done.returncode:
        why = "; ".join(done.stderr.split("\n")[:3]).strip("; ")
        raise BackendError(f"{library}: cannot be compiled: {why}", reason="io_error")


# Numbers of NVML, and of NSCQ for a switch.
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
        """Return the SPDM report of the GPU `index` (from 0) over a nonce of 32 bytes."""
        return self._simulated.report(self._gpus[index], nonce)

    def switch_report(self, index: int, nonce: bytes) -> bytes:
        """Return the SPDM report of the switch `index` (from 0) over a nonce of 32 bytes."""
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
    """Return GPUs and switches, after a fault of the whole machine is applied, if any.

    With such a fault, a switch is missing, or a GPU occurs twice.
    """
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
        is_snp: Whether the CPU is of AMD; else it is of Intel.

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
