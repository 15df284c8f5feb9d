"""NVIDIA's nv-local-gpu-verifier 2.7.3 on simulated evidence, and on the fabricated cases.

The verifier is unmodified; it gets the simulated roots, and asks a local OCSP responder and RIM
service.
"""

import json
import subprocess
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from attestkit._crypto.pem import CERTIFICATE_LABEL, encode_pem
from attestkit._crypto.x509.ocsp.answer_writer import write_ocsp_error
from attestkit._crypto.x509.ocsp.request import read_ocsp_request
from attestkit.backends.simulator.gpu.gpu_config import GpuConfig
from attestkit.backends.simulator.gpu.gpu_faults import GPU_FAULTS
from attestkit.backends.simulator.gpu.simulated_gpus import SimulatedGpus
from tests.rigs.nvidia_verifiers.environment import LOCAL_GPU_VERIFIER, make_environment
from tests.rigs.nvidia_verifiers.services import CaseServices, serve
from tests.rigs.nvidia_verifiers.verdicts import LAX, STRICT
from tests.vectors import SHARED, needs_shared

pytestmark = pytest.mark.slow

PROGRAM: Final = Path(__file__).with_name("local_gpu_verifier.py")
FABRICATED: Final = SHARED / "data/gpu/fabricated"
CASES: Final = json.loads((FABRICATED / "cases.json").read_text()) if FABRICATED.is_dir() else []
SEED: Final = b"seed for nvidia's gpu verifier  "
NONCE: Final = bytes(range(32))

# Faults of several devices, switches and tokens are for other verifiers.
ONE_GPU: Final = [
    name for name, fault in GPU_FAULTS.items() if fault.nras is None and fault.machine is None
]


class Case(NamedTuple):
    """A case with its services."""

    name: str
    fields: dict[str, Any]
    services: CaseServices
    roots: tuple[bytes, bytes]  # PEM, of devices and of RIMs


def ask(cases: Iterable[Case], folder: Path, **options: bool) -> dict[str, Any]:
    """Return the verifier's verdicts by the names of the cases."""
    cases = list(cases)
    python = make_environment("local-gpu-verifier", LOCAL_GPU_VERIFIER)
    with serve({case.name: case.services for case in cases}) as url:
        wanted = [_finish(case, url, folder, **options) for case in cases]
        done = subprocess.run(
            [str(python), "-W", "ignore", str(PROGRAM)],
            input=json.dumps(wanted),
            cwd=folder,  # it writes verifier.log there
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {verdict["name"]: verdict for verdict in found}


def _finish(case: Case, url: str, folder: Path, *, ocsp_nonces: bool) -> dict[str, Any]:
    """Return the case as the program reads it."""
    place = folder / case.name
    place.mkdir()
    paths = [place / "device.pem", place / "rim.pem"]
    for path, root in zip(paths, case.roots, strict=True):
        path.write_bytes(root)
    return {
        **case.fields,
        "name": case.name,
        "device_root": str(paths[0]),
        "rim_root": str(paths[1]),
        "ocsp_url": f"{url}/{case.name}/ocsp/",
        "rim_url": f"{url}/{case.name}/v1/rim/",
        "ocsp_nonces": ocsp_nonces,
    }


def simulated(name: str, **config: Any) -> Case:
    """Return a case of a simulated GPU."""
    gpus, now = SimulatedGpus(SEED, GpuConfig(**config)), time.time()
    moment = datetime.fromtimestamp(now, timezone.utc)
    device = gpus.devices[0]
    pems = [encode_pem(CERTIFICATE_LABEL, root).encode() for root in gpus.roots]
    fields = {
        "arch": device.model.architecture,
        "nonce": NONCE.hex(),
        "report": gpus.report(device, NONCE).hex(),
        "chain": gpus.chain_pem(device).hex(),
        "driver_version": device.model.driver,
        "vbios_version": device.model.vbios,
        "time": now,
    }
    services = CaseServices(lambda request: gpus.ocsp.respond(request, moment), gpus.rims)
    return Case(name, fields, services, (pems[0], pems[1]))


def fabricated(case: dict[str, Any]) -> Case:
    """Return a case of the samples."""
    folder = FABRICATED / case["name"]
    driver, vbios = case["driver_rim_id"], case["vbios_rim_id"]

    def answer(request: bytes) -> bytes:
        serial = read_ocsp_request(request).cert_id.serial
        path = folder / "ocsp" / f"{serial:040x}.der"
        return path.read_bytes() if path.exists() else write_ocsp_error("unauthorized")

    version = vbios.rpartition("_")[2]
    fields = {
        "arch": case["arch"],
        "nonce": case["nonce"],
        "report": (folder / "report.bin").read_bytes().hex(),
        "chain": (folder / "chain.pem").read_bytes().hex(),
        "driver_version": driver.rpartition("_")[2],
        "vbios_version": ".".join(version[at : at + 2] for at in range(0, len(version), 2)),
        "time": datetime.fromisoformat(case["time"].replace("Z", "+00:00")).timestamp(),
    }
    files = {
        name: (folder / f"{kind}-rim.xml").read_bytes()
        for name, kind in ((driver, "driver"), (vbios, "vbios"))
    }
    roots = tuple((folder / f"{kind}-root.pem").read_bytes() for kind in ("device", "rim"))
    return Case(case["name"], fields, CaseServices(answer, files), (roots[0], roots[1]))


@needs_shared
def test_fabricated_cases_have_the_recorded_verdicts(tmp_path: Path) -> None:
    """The verifier says of each fabricated case what cases.json records."""
    found = ask(map(fabricated, CASES), tmp_path, ocsp_nonces=False)
    said = {name: verdict["accepted"] for name, verdict in found.items()}
    assert said == {case["name"]: case["nvidia_python_verifier"] == "accepts" for case in CASES}


def test_simulated_gpus_are_accepted(tmp_path: Path) -> None:
    """Evidence of simulated Hopper and Blackwell GPUs is accepted, with OCSP nonces."""
    cases = [
        simulated("hopper"),
        simulated("blackwell", architecture="BLACKWELL"),
        simulated("protected", count=8),
    ]
    for name, verdict in ask(cases, tmp_path, ocsp_nonces=True).items():
        assert verdict["accepted"], (name, verdict["messages"])


def test_faults_are_refused_or_known_to_be_missed(tmp_path: Path) -> None:
    """The verifier refuses each fault of one GPU, but for those it is known to miss."""
    found = ask([simulated(name, fault=name) for name in ONE_GPU], tmp_path, ocsp_nonces=True)
    accepted = {name for name, verdict in found.items() if verdict["accepted"]}
    sound = {name for name in ONE_GPU if GPU_FAULTS[name].check is None}
    assert accepted == (sound - STRICT.keys()) | LAX.keys()
