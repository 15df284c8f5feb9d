"""NVIDIA's verifier of switches, in nv-attestation-sdk 2.7.3, on simulated switches.

It collects the evidence through the stub of libnvidia-nscq, and asks a local OCSP responder and RIM
service.
"""

import json
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit._crypto.pem import CERTIFICATE_LABEL, encode_pem
from attestkit.backends.simulator.gpu.simulated_gpus import SimulatedGpus
from attestkit.emulator.nvml.simulated_machine import SimulatedStubMachine
from tests.emulator.nvml.stub_programs import NONCE, requires_compiler, running
from tests.rigs.nvidia_verifiers.environment import LOCAL_GPU_VERIFIER, make_environment
from tests.rigs.nvidia_verifiers.services import CaseServices, serve

pytestmark = [pytest.mark.slow, requires_compiler]

PROGRAM: Final = Path(__file__).with_name("switch_verifier.py")
SDK: Final = ("nv-attestation-sdk==2.7.3", *LOCAL_GPU_VERIFIER)
_NONCE_AT, _MEASUREMENT_AT, _SIGNATURE_AT = 4, 60, -1  # bytes of a report


def ask(folder: Path, flipped: int | None) -> dict[str, Any]:
    """Return what the verifier says of the switches of a protected-PCIe machine."""
    python = make_environment("switch-verifier", SDK)
    gpus, now = SimulatedGpus(bytes(32), 8), datetime.now(timezone.utc)
    case: dict[str, Any] = {"nonce": NONCE.hex(), "flipped": flipped}
    for name, root in zip(("device_root", "rim_root"), gpus.roots, strict=True):
        path = folder / f"{name}.pem"
        path.write_text(encode_pem(CERTIFICATE_LABEL, root))
        case[name] = str(path)
    services = CaseServices(lambda request: gpus.ocsp.respond(request, now), gpus.rims)
    with running() as driver, serve({"case": services}) as url:
        driver.reset(SimulatedStubMachine(gpus))
        driver.state.pcie_mode = 3
        case |= {"ocsp_url": f"{url}/case/ocsp/", "rim_url": f"{url}/case/v1/rim/"}
        done = subprocess.run(
            [str(python), "-W", "ignore", str(PROGRAM)],
            input=json.dumps(case),
            env=driver.environ,
            cwd=folder,  # it writes a log there
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return {**found, "log": done.stderr}


def test_simulated_switches_are_accepted(tmp_path: Path) -> None:
    """The evidence of the four switches is accepted, with OCSP nonces."""
    found = ask(tmp_path, flipped=None)
    assert (found["accepted"], found["switches"]) == (True, 4), found["log"]


@pytest.mark.parametrize("flipped", [_NONCE_AT, _MEASUREMENT_AT, _SIGNATURE_AT])
def test_altered_report_of_switch_is_refused(tmp_path: Path, flipped: int) -> None:
    """One altered bit of a report is noticed."""
    assert not ask(tmp_path, flipped)["accepted"]
