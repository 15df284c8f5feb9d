"""`attestkit run --gpus`: unmodified programs use simulated GPUs through NVIDIA's libraries."""

import json
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest

from attestkit.backends.simulator.gpu.gpu_config import GpuConfig
from attestkit.backends.simulator.gpu.simulated_gpus import SimulatedGpus
from attestkit.gpu import GpuEvidence
from tests.emulator.nvml.stub_programs import requires_binding, requires_compiler
from tests.rigs.emulator import emulator, environment
from tests.rigs.nvidia_verifiers.environment import LOCAL_GPU_VERIFIER, make_environment
from tests.rigs.nvidia_verifiers.services import CaseServices, serve
from tests.rigs.nvidia_verifiers.test_command_line import copy_verifier
from tests.rigs.ordinary_user import find_python_of_nobody, requires_nobody, run_python_as_nobody
from tests.rigs.run.attestkit_run import RUN, execute, requires_run, run

SEED = bytes(range(32))
NONCE = bytes(range(32))
COLLECT = f"""
import sys
from attestkit.gpu import collect
sys.stdout.write(collect({NONCE!r}).to_json().decode())
"""
LIBRARIES = "import ctypes, os; print(os.environ['LD_LIBRARY_PATH'])"

pytestmark = [
    pytest.mark.rig,
    pytest.mark.slow,
    requires_binding,
    requires_compiler,
    requires_run,
]


def options(*words: str) -> tuple[str, ...]:
    """Return options of a machine with the seed."""
    return ("--seed", SEED.hex(), *words)


@pytest.mark.parametrize(
    ("words", "config"),
    [
        (("--gpus", "2"), GpuConfig(2)),
        (("--gpus", "8"), GpuConfig(8)),
        (("--scenario", "gpu-spt-with-mpt"), GpuConfig(fault="spt-with-mpt")),
        (("--gpus", "1", "--platform", "azure-snp"), GpuConfig(1)),
    ],
    ids=["two", "protected", "fault", "cloud"],
)
def test_program_collects_evidence_of_the_simulator(
    words: tuple[str, ...], config: GpuConfig
) -> None:
    """The evidence is that of simulated GPUs with the seed of the machine."""
    done = run(sys.executable, "-c", COLLECT, options=options(*words))
    assert done.returncode == 0, done.stderr
    collected = GpuEvidence.from_json(done.stdout)
    assert collected.devices == SimulatedGpus(SEED, config).evidence(NONCE).devices


@pytest.mark.parametrize(
    ("words", "outcome"),
    [
        (("--gpus", "2"), ("accepted", "")),
        (("--gpus", "1", "--provider", "sev_guest"), ("accepted", "")),
        (("--scenario", "gpu-measurement-9"), ("rejected", "measurements")),
    ],
    ids=["tdx", "snp", "fault"],
)
def test_evidence_of_machine_and_gpus_verifies(
    words: tuple[str, ...], outcome: tuple[str, str], tmp_path: Path
) -> None:
    """Attestkit collects evidence of CPU and GPUs; a verifier needs the files in /run/attestkit."""
    script = f"""
        attestkit() {{ "{sys.executable}" -m attestkit "$@"; }}
        attestkit attest --gpu --nonce {NONCE.hex()} --encoding cbor -o evidence
        cp /run/attestkit/*.der /run/attestkit/*.json /run/attestkit/*.pem .
    """
    done = run("sh", "-euc", script, options=words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    collateral = ("--collateral", "collateral.json")
    done = execute(
        *(sys.executable, "-m", "attestkit", "verify", "evidence", "--nonce", NONCE.hex()),
        *("--trust-anchor", "trust-anchor.der", "--gpu-roots", "gpu-roots.pem"),
        *("--gpu-endorsements", "gpu-endorsements.json", "--json"),
        *(collateral if (tmp_path / "collateral.json").exists() else ()),
        cwd=tmp_path,
    )
    [found] = json.loads(done.stdout)["results"]
    assert (found["verdict"], found.get("reason", "")) == outcome, done.stdout


def test_program_has_stub_first_among_its_libraries() -> None:
    """Other folders of LD_LIBRARY_PATH follow; without GPUs the variable does not change."""
    environ = {**environment(), "LD_LIBRARY_PATH": "/somewhere"}
    words = (sys.executable, "-c", LIBRARIES)
    done = execute(*RUN, "--gpus", "1", "--", *words, environ=environ)
    first, second = done.stdout.strip().split(":")
    assert (first.startswith("/run/attestkit/"), second) == (True, "/somewhere")
    done = execute(*RUN, "--", *words, environ=environ)
    assert done.stdout.strip() == "/somewhere"


def test_gpus_without_compiler_are_a_device_error() -> None:
    """The stub driver is compiled when it is needed; without a compiler the error says so."""
    environ = {**environment(), "CC": "no-such-compiler"}
    done = execute(*RUN, "--gpus", "1", "--", "true", environ=environ)
    assert done.returncode == 3
    assert "no-such-compiler not found" in done.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--gpus", "0"), "must be 1 to 16"),
        (("--gpus", "17"), "must be 1 to 16"),
        (("--scenario", "gpu-no-such-fault"), "unknown fault of GPUs"),
    ],
)
def test_invalid_gpus_are_a_usage_error(words: tuple[str, ...], text: str) -> None:
    """The number and the fault are checked before the start."""
    done = run("true", options=words)
    assert done.returncode == 1
    assert text in done.stderr


@requires_nobody
def test_ordinary_user_collects_evidence() -> None:
    """In a user namespace, the user's programs reach the driver."""
    python = find_python_of_nobody()
    assert python is not None
    done = run_python_as_nobody(*RUN[1:], "--gpus", "1", "--", python, "-c", COLLECT)
    assert (done.returncode, done.stderr) == (0, "")
    assert GpuEvidence.from_json(done.stdout).devices


def test_mount_has_a_folder_with_the_stub_driver() -> None:
    """Below a mount, the folder is a link, for LD_LIBRARY_PATH."""
    with emulator(gpus=1) as machine:
        driver = (machine.root / "attestkit/gpu-driver").resolve()
        environ = {**environment(), "LD_LIBRARY_PATH": str(driver)}
        done = execute(sys.executable, "-c", COLLECT, environ=environ)
        assert GpuEvidence.from_json(done.stdout).devices
    assert not driver.exists()


def test_command_of_nvidia_accepts_the_gpus(tmp_path: Path) -> None:
    """`python -m verifier.cc_admin` collects, verifies, and sets the GPUs ready."""
    python = make_environment("local-gpu-verifier", LOCAL_GPU_VERIFIER)
    gpus, now = SimulatedGpus(SEED, 2), datetime.fromtimestamp(time.time(), timezone.utc)
    copy_verifier(python, tmp_path, gpus.roots)
    case = CaseServices(lambda request: gpus.ocsp.respond(request, now), gpus.rims)
    environ = {**environment(), "PYTHONPATH": str(tmp_path)}
    with serve({"case": case}) as url:
        urls = ("--ocsp_url", f"{url}/case/ocsp/", "--rim_service_url", f"{url}/case/v1/rim/")
        command = (str(python), "-W", "ignore", "-m", "verifier.cc_admin", *urls)
        words = (*RUN, *options("--gpus", "2"), "--", *command)
        done = execute(*words, environ=environ, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "Setting the GPU Ready State to READY" in done.stdout
    assert "GPU Attestation is Successful" in done.stdout
