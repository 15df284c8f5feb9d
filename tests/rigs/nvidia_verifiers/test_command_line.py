"""NVIDIA's command `python -m verifier.cc_admin`, unmodified, over the stub driver.

It collects evidence through nvidia-ml-py, asks a local OCSP responder and RIM service, and sets the
ready state of the GPUs. Only the two root certificates among its files are replaced.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit._crypto.pem import CERTIFICATE_LABEL, encode_pem
from attestkit.backends.simulator.gpu.gpu_config import GpuConfig
from attestkit.backends.simulator.gpu.gpu_faults import GPU_FAULTS
from attestkit.backends.simulator.gpu.simulated_gpus import SimulatedGpus
from attestkit.emulator.nvml.simulated_machine import SimulatedStubMachine
from attestkit.emulator.nvml.stub_server import StubState
from attestkit.gpu import GpuRoots
from tests.emulator.nvml.stub_programs import Driver, requires_compiler, running
from tests.rigs.nvidia_verifiers.environment import LOCAL_GPU_VERIFIER, make_environment
from tests.rigs.nvidia_verifiers.services import CaseServices, serve
from tests.rigs.nvidia_verifiers.verdicts import LAX, STRICT

pytestmark = [pytest.mark.slow, requires_compiler]

PROGRAM: Final = Path(__file__).with_name("command_line.py")
SEED: Final = b"seed for nvidia's command line  "
NONCE: Final = bytes(range(32))
# Faults of several GPUs that the command does not see.
LAX_OF_MACHINES: Final = {
    "device-twice": "does not compare the devices",
    "nonces-mixed": "an error at a later GPU ends the loop, and keeps the verdict on the first one",
}
FAULTS: Final = [
    name
    for name, fault in GPU_FAULTS.items()
    if fault.nras is None and name != "switch-missing"  # the command refuses protected PCIe
]


def copy_verifier(python: Path, folder: Path, roots: GpuRoots) -> Path:
    """Copy NVIDIA's package with other roots into a folder for PYTHONPATH."""
    command = "import verifier; print(verifier.__path__[0])"  # without __init__.py
    done = subprocess.run(
        [python, "-c", command], capture_output=True, text=True, check=True, cwd=folder
    )
    shutil.copytree(done.stdout.strip(), folder / "verifier")
    names = ("verifier_device_root.pem", "verifier_RIM_root.pem")
    for name, root in zip(names, roots, strict=True):
        place = folder / "verifier/certs" / name
        assert place.exists()
        place.write_text(encode_pem(CERTIFICATE_LABEL, root))
    return folder


class Command:
    """The command on the stub driver."""

    def __init__(self, program: "subprocess.Popen[str]", driver: Driver) -> None:
        self._program = program
        self._driver = driver

    @property
    def state(self) -> StubState:
        """The state of the driver."""
        return self._driver.state

    def run(self, config: GpuConfig, *options: str, **state: Any) -> dict[str, Any]:
        """Run it on a machine; return exit code and output."""
        gpus, now = SimulatedGpus(SEED, config), datetime.fromtimestamp(time.time(), timezone.utc)
        protected = config.is_protected
        changed = {"multi_gpu": 1, "feature": 0} if protected else {}
        self._driver.reset(SimulatedStubMachine(gpus), StubState(**{**changed, **state}))
        case = CaseServices(lambda request: gpus.ocsp.respond(request, now), gpus.rims)
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        with serve({"case": case}) as url:
            urls = ("--ocsp_url", f"{url}/case/ocsp/", "--rim_service_url", f"{url}/case/v1/rim/")
            words = ["--nonce", NONCE.hex(), *urls, *options]
            self._program.stdin.write(f"{json.dumps(words)}\n")
            self._program.stdin.flush()
            found: dict[str, Any] = json.loads(self._program.stdout.readline())
        return found


@contextmanager
def started(python: Path, driver: Driver, folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Start the program that runs the command."""
    environ = {**os.environ, **driver.environ, "PYTHONPATH": str(folder)}
    with subprocess.Popen(
        [str(python), "-W", "ignore", str(PROGRAM)],
        env=environ,
        cwd=folder,  # it writes verifier.log there
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        yield program


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """The command, whose roots are those of the simulated GPUs."""
    folder = tmp_path_factory.mktemp("verifier")
    python = make_environment("local-gpu-verifier", LOCAL_GPU_VERIFIER)
    copy_verifier(python, folder, SimulatedGpus(SEED).roots)
    with running() as driver, started(python, driver, folder) as program:
        yield Command(program, driver)


@pytest.mark.parametrize("architecture", ["HOPPER", "BLACKWELL"])
def test_command_accepts_simulated_gpus(command: Command, architecture: Any) -> None:
    """Two GPUs are accepted, and then set ready."""
    done = command.run(GpuConfig(2, architecture=architecture))
    assert done["code"] == 0, done["output"]
    assert "GPU Attestation is Successful" in done["output"]
    assert "Number of GPUs available : 2" in done["output"]
    assert command.state.ready == 1


def test_command_in_user_mode_keeps_the_ready_state(command: Command) -> None:
    """In user mode the ready state is not set."""
    assert command.run(GpuConfig(1), "--user_mode")["code"] == 0
    assert command.state.ready == 0


def test_command_with_confidential_computing_off_is_refused(command: Command) -> None:
    """The command ends with 1, as on a machine without the mode."""
    done = command.run(GpuConfig(1), feature=0)
    assert done["code"] == 1
    assert "must be running in either confidential compute mode or PPCIE" in done["output"]


def test_command_in_protected_pcie_mode_is_refused(command: Command) -> None:
    """The command is for single GPUs: it recognises the mode by the settings."""
    done = command.run(GpuConfig(8))
    assert done["code"] == 1
    assert "not supported for PPCIE" in done["output"]


@pytest.mark.parametrize("name", FAULTS)
def test_command_refuses_fault_or_is_known_to_miss_it(command: Command, name: str) -> None:
    """Each fault is refused, and the GPUs not set ready, but for those that it is known to miss."""
    done = command.run(GpuConfig(fault=name))
    sound = GPU_FAULTS[name].check is None and name not in STRICT
    accepted = sound or name in LAX or name in LAX_OF_MACHINES
    assert done["code"] == (0 if accepted else 1), done["output"]
    assert command.state.ready == (1 if accepted else 0)
