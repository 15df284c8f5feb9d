"""GPUs of a simulated machine over HTTP: evidence, boot attestation, and NVIDIA's services."""

import ast
import json
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from datetime import datetime, timezone
from functools import partial
from typing import Any, Final

import pytest

from attestkit._crypto.hashes import sha256
from attestkit._crypto.x509.ocsp.answer import read_ocsp_answer
from attestkit._crypto.x509.ocsp.request import write_ocsp_request
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.gpu.gpu_config import GpuConfig
from attestkit.backends.simulator.snp import SnpSimulator
from attestkit.errors import CollateralError
from attestkit.gpu import (
    GpuEndorsements,
    GpuEvidence,
    GpuRules,
    GpuServices,
    Report,
    verify,
)
from attestkit.serve.config.limits import Limits
from attestkit.serve.services.context import Guest
from attestkit.testing import SimulatedTee
from tests.emulator.nvml.stub_programs import requires_binding, requires_compiler, running
from tests.pki.ocsp_pki import check_ocsp
from tests.serve.asgi import Client
from tests.serve.guests import GuestClient, MakeGuest

NONCE = bytes(range(32))


@pytest.fixture
def guest(make_guest: MakeGuest) -> Guest:
    """Return a TD with two GPUs."""
    return make_guest(partial(Simulator, gpus=2))


@pytest.fixture
def simulator(guest: Guest) -> Simulator:
    """Return the simulator of the guest."""
    backend: Any = guest.attester.backend
    assert isinstance(backend, Simulator)
    return backend


@pytest.fixture
def pccs(guest: Guest, guest_client: GuestClient) -> Client:
    """Return a client of the services beside the collateral."""
    return guest_client("collateral", guest)


def bundle(response: Any, member: str) -> dict[str, Any]:
    """Return the only bundle of a response."""
    assert response.status == 200, response.body
    [found] = response.json()[member]
    assert found["vendor"] == "nvidia"
    return {**found, "evidence": bytes.fromhex(found["evidence"])}


def test_attest_gpu_returns_evidence_over_the_nonce(dstack: Client) -> None:
    """AttestGpu has the JSON of nvattest's collect-evidence over the caller's nonce."""
    found = bundle(dstack.post("/v1/AttestGpu", {"nonce": NONCE.hex()}), "bundles")
    assert found["format"] == "nvidia-nvattest-collect-evidence-json-v1"
    evidence = GpuEvidence.from_json(found["evidence"])
    assert len(evidence.devices) == 2
    assert {Report.parse(device.report).nonce for device in evidence.devices} == {NONCE}


@pytest.mark.parametrize("size", [0, 31, 33])
def test_attest_gpu_nonce_of_other_size_is_refused(dstack: Client, size: int) -> None:
    """The nonce has 32 bytes."""
    response = dstack.post("/v1/AttestGpu", {"nonce": bytes(size).hex()})
    assert response.status == 400
    assert f"nonce must be exactly 32 bytes, got {size}" in response.error()


def test_boot_evidence_is_in_the_event_log(dstack: Client, simulator: Simulator) -> None:
    """The event before system-ready has the hash of the output that Attest returns."""
    request = {"report_data": "00" * 64, "include_boottime_gpu_evidence": True}
    found = bundle(dstack.post("/v1/Attest", request), "boottime_gpu_evidence")
    assert found["format"] == "nvidia-nvattest-boottime-json-v1"
    assert found["evidence"] == simulator.gpu_boot_evidence()
    events = [(event.name, event.payload) for event in simulator.open_journal().events()]
    names = [name for name, _ in events]
    assert names.index("gpu-policy-hash") + 1 == names.index("gpu-attestation")
    payload = json.loads(dict(events)["gpu-attestation"])
    assert payload == {
        "version": 2,
        "provider": "nvidia",
        "devices": 2,
        "cc_mode": "on",
        "devtools": False,
        "evidence_sha256": sha256(found["evidence"]).hex(),
    }
    output = json.loads(found["evidence"])
    assert (output["result_code"], len(output["claims"])) == (0, 2)


def test_gpu_info_lists_gpus(guest: Guest, guest_client: GuestClient) -> None:
    """GuestApi.GpuInfo has UUID, address and values of each GPU of a simulated machine."""
    found = guest_client("guest_api", guest).get("/api/GpuInfo").json()
    assert [gpu["index"] for gpu in found["gpus"]] == [0, 1]
    assert all(gpu["uuid"].startswith("GPU-") for gpu in found["gpus"])
    assert len({gpu["pci_bus_id"] for gpu in found["gpus"]}) == 2
    assert (found["cc_ready"], found["cc_enabled"]) == (True, True)
    first = found["gpus"][0]
    assert (first["memory_total_bytes"], first["memory_used_bytes"]) == (80 << 30, 0)
    assert (first["temperature_c"], first["utilization_gpu"], first["errors"]) == (30, 0, [])
    assert found["sample_age_ms"] is not None


_ON_STUB: Final = """
import asyncio
from attestkit.serve.machine_info import GpuSampler
from attestkit.serve.metrics.agent import gpu_families
from attestkit.serve.services.guest_api import _gpu_info
class Guest:
    gpus = GpuSampler(object(), simulated=False, on_bus=lambda: False)
print([tuple(gpu) for gpu in asyncio.run(_gpu_info(Guest, None)).gpus])
print(list(gpu_families(asyncio.run(Guest.gpus.sample()))))
"""


@requires_binding
@requires_compiler
def test_gpu_info_and_metrics_of_driver() -> None:
    """On hardware GpuInfo and the metrics have the values of NVIDIA's driver."""
    with running() as driver:
        command = [sys.executable, "-c", _ON_STUB]
        output = subprocess.check_output(command, env=driver.environ, text=True, timeout=60)
    gpus, families = map(ast.literal_eval, output.splitlines())
    uuid, address = "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f", "00000000:0A:00.0"
    memory = 80 << 30, 30 << 30, 50 << 30
    assert gpus[0] == (0, uuid, address, 91, 17, *memory, 61, 350_125, ())
    assert [gpu[0] for gpu in gpus] == [0, 1]
    line = f'dstack_gpu_temperature_celsius{{index="0", uuid="{uuid}", pci_bus_id="{address}"}} 61'
    assert line in "".join(families).splitlines()


def test_rim_service_returns_rims(pccs: Client, simulator: Simulator) -> None:
    """A RIM is returned in base64 with its hash; other identifiers are not found."""
    ids = pccs.get("/v1/rim/ids").json()["ids"]
    assert ids == sorted(simulator.gpus.rims)
    for identifier in ids:
        found = pccs.get(f"/v1/rim/{identifier}").json()
        rim = b64decode(found["rim"])
        assert rim == simulator.gpus.rims[identifier]
        assert (found["id"], found["sha256"]) == (identifier, sha256(rim).hex())
        assert found["rim_format"] == "TCG"
    assert pccs.get("/v1/rim/NV_GPU_DRIVER_GH100_1").status == 404


def test_ocsp_responder_answers_posts(pccs: Client, simulator: Simulator) -> None:
    """The answer is about the certificate, now, with the nonce."""
    _, brom, ica, *_ = simulator.gpus.chain(simulator.gpus.devices[0])
    request = write_ocsp_request(brom, ica, nonce=NONCE)
    for path in ("/ocsp", "/ocsp/"):
        headers = {"content-type": "application/ocsp-request"}
        response = pccs.request("POST", path, request, headers)
        assert response.headers["Content-Type"] == "application/ocsp-response"
        now = datetime.now(timezone.utc)
        assert check_ocsp([response.body], brom, ica, now).status == "good"
        assert read_ocsp_answer(response.body).nonce == NONCE


def test_other_posts_are_refused(pccs: Client, guest_client: GuestClient) -> None:
    """Other paths and large bodies are refused, and without GPUs every POST."""
    response = pccs.request("POST", "/sgx/certification/v4/pckcrl", b"{}")
    assert (response.status, response.headers["Allow"]) == (405, "GET")
    for path in ("/sgx/certification/v4/pckcrl", "/ocsp"):
        response = pccs.request("PUT", path, b"{}")
        assert (response.status, response.headers["Allow"]) == (405, "GET, POST")
    assert pccs.request("POST", "/ocsp", bytes(1 << 20) + b"x").status == 413
    assert pccs.request("POST", "/v3/attest/gpu", b"{").status == 400
    assert pccs.get("/sgx/certification/v4/rootcacrl").status == 200
    assert guest_client("collateral").request("POST", "/ocsp", b"").status == 405
    assert guest_client("collateral").get("/v1/rim/ids").status == 404


def test_large_posts_are_limited_together(guest: Guest, guest_client: GuestClient) -> None:
    """A body over what all bodies together may have is refused, and not counted any more."""
    guest.limits = Limits(bodies=100_000)
    client = guest_client("collateral", guest)
    for _ in range(2):
        response = client.request("POST", "/v3/attest/gpu", [bytes(200_000), b"x"])
        assert (response.status, response.headers["connection"]) == (503, "close")
        assert client.request("POST", "/v3/attest/gpu", [bytes(160_000), b"x"]).status == 400
    assert client.disconnect("/v3/attest/gpu") == []


def test_services_of_snp_guest(make_guest: MakeGuest, guest_client: GuestClient) -> None:
    """An SEV-SNP guest with GPUs has the services, without Intel's collateral."""
    client = guest_client("collateral", make_guest(partial(SnpSimulator, gpus=1)))
    assert client.get("/v1/rim/ids").status == 200
    assert client.get("/sgx/certification/v4/rootcacrl").status == 404


@pytest.fixture(scope="module")
def tee() -> Iterator[SimulatedTee]:
    """Return a TEE with a Blackwell GPU."""
    with SimulatedTee(gpus=GpuConfig(1, architecture="BLACKWELL")) as tee:
        yield tee


def test_endorsements_are_fetched_from_the_services(tee: SimulatedTee) -> None:
    """A verifier fetches RIMs, OCSP answers and tokens over HTTP, and accepts the evidence."""
    url, now = tee.gpu_services_url, datetime.now(timezone.utc)
    services = GpuServices(rim_url=url, ocsp_url=f"{url}/ocsp", nras_url=url)
    evidence = tee.gpu_evidence(NONCE)
    found = GpuEndorsements.fetch(evidence, services, now=now, roots=tee.roots)
    found = found.fetch_tokens(evidence, NONCE, services)
    rules = GpuRules(nras="beside")
    result = verify(evidence, nonce=NONCE, endorsements=found, roots=tee.roots, rules=rules)
    assert result.simulated
    assert result.nras is not None


@pytest.mark.parametrize("name", ["ocsp-nonce-missing", "ocsp-nonce-other"])
def test_nonce_of_ocsp_is_checked_when_fetching(name: str) -> None:
    """An answer without the nonce of the request is refused."""
    with SimulatedTee(scenario=f"gpu-{name}") as tee:
        url, now = tee.gpu_services_url, datetime.now(timezone.utc)
        services = GpuServices(rim_url=url, ocsp_url=f"{url}/ocsp")
        with pytest.raises(CollateralError) as caught:
            GpuEndorsements.fetch(tee.gpu_evidence(NONCE), services, now=now, roots=tee.roots)
    assert caught.value.reason == "malformed"


def test_simulated_tee_serves_its_gpus(tee: SimulatedTee) -> None:
    """The test support has evidence, roots and the address of the services."""
    [device] = tee.gpu_evidence(NONCE).devices
    assert device.architecture == "BLACKWELL"
    assert tee.roots.gpu is not None
    assert device.certificates[-1] == tee.roots.gpu[0]
    assert tee.gpu_services_url == tee.pccs_url
