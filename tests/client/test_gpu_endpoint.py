"""An endpoint with GPUs: their evidence is verified if required; else the proof says it was not."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

import attestkit
from attestkit import Require
from attestkit.backends.simulator.gpu.gpu_host import SimulatedGpuServices
from attestkit.client.services.service import Machine
from attestkit.gpu import GpuEndorsements
from attestkit.ra_tls import PeerRefusedError
from attestkit.simulated_roots import SimulatedRoots
from attestkit.verifier import AppraisalPolicy
from tests.client.services.served import Answer, Request, ServedApp, served
from tests.client.services.vllm.simulated_reports import report, td, verified
from tests.gpu.simulated_machine import machine as gpu_machine
from tests.gpu.test_fetch_over_http import Server
from tests.raising import raises
from tests.verifier.platforms import intel

pytest.importorskip("uvicorn")

GPUS = gpu_machine(2)
ROOTS = SimulatedRoots(intel.PKI.root_der, gpu=GPUS.roots)


@pytest.fixture
def app(tmp_path: Path) -> Iterator[ServedApp]:
    """A service whose reports have the client's nonce, its TLS key and two GPUs."""
    with served(tmp_path) as [found]:

        def answer(request: Request) -> Answer:
            nonce = bytes.fromhex(parse_qs(request.query)["nonce"][0])
            document = report(nonce, fingerprint=found.spki_sha256)
            return Answer(json.dumps(document).encode(), {"Content-Type": "application/json"})

        found.answer = answer
        yield found


def connect(app: ServedApp, **options: Any) -> attestkit.Endpoint:
    """Return an endpoint of the service."""
    policy = AppraisalPolicy.from_evidence(verified(Machine("model", td(bytes(64)), bytes(64))))
    settings: dict[str, Any] = {"policy": policy, "service": "vllm-proxy", "server_ca": app.ca}
    settings |= {"now": lambda: intel.NOW, "trust_anchor": ROOTS}
    if "getter" not in options:
        settings["collateral"] = intel.collateral()
    return attestkit.connect(app.url, **settings, **options)


def endorsements() -> GpuEndorsements:
    """Return the manifests and OCSP answers of the GPUs."""
    return GpuEndorsements(dict(GPUS.rims), GPUS.ocsp_answers(intel.NOW.timestamp()))


def test_gpus_are_verified_if_required(app: ServedApp) -> None:
    """The result has the devices, and the text their number."""
    required = Require(gpu=True)
    with connect(app, require=required, gpu_endorsements=endorsements()) as endpoint:
        gpu = endpoint.proof.result.gpu
        assert gpu is not None
        assert len(gpu.devices) == 2
        assert gpu.binding == "nonce"
        assert "2 verified" in str(endpoint.proof)


def test_gpus_that_are_not_verified_are_told(app: ServedApp) -> None:
    """By default the proof says that nothing was verified about them."""
    with connect(app) as endpoint:
        assert endpoint.proof.result.gpu is None
        assert any("GPUs" in text for text in endpoint.proof.not_proven)


def test_missing_and_relayed_gpus_are_refused(app: ServedApp) -> None:
    """No evidence of GPUs, and evidence over another nonce, are refused."""
    genuine = app.answer

    def without(request: Request) -> Answer:
        document = json.loads(genuine(request).body)
        del document["nvidia_payload"]
        return Answer(json.dumps(document).encode())

    def relayed(request: Request) -> Answer:
        document = json.loads(genuine(request).body)
        document["nvidia_payload"] = report(bytes(32))["nvidia_payload"]
        return Answer(json.dumps(document).encode())

    for answer, reason in ((without, "no_gpu"), (relayed, "nonce")):
        app.answer = answer
        with raises(PeerRefusedError, reason):
            connect(app, require=Require(gpu=True), gpu_endorsements=endorsements())


def test_endorsements_are_fetched(app: ServedApp) -> None:
    """Without endorsements and collateral at hand, both come from their services."""
    with Server(GPUS) as server:
        server.services = SimulatedGpuServices(GPUS, intel.NOW.timestamp)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with connect(
                app,
                require=Require(gpu=True),
                gpu_services=server.gpu_services(),
                getter=intel.pccs(),
                pccs_url="http://pccs",
            ) as endpoint:
                fetched = endpoint.proof.machines[0].gpu_endorsements
                assert fetched is not None
                assert fetched.rims.keys() == GPUS.rims.keys()
                assert server.paths
        finally:
            server.shutdown()
            thread.join()
