"""An endpoint with GPUs: their evidence is verified if required; else the proof says it was not."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

import attestkit
import attestkit.gpu
from attestkit import Require
from attestkit.__main__ import main
from attestkit.backends.simulator.gpu.gpu_host import SimulatedGpuServices
from attestkit.client import Proof, ProofBundle, verify_proof
from attestkit.client.proofs.trust import Policy, Trust
from attestkit.client.services.service import Machine
from attestkit.errors import CollateralError, FormatError, GpuEvidenceError
from attestkit.gpu import GpuEndorsements, GpuRules, GpuServices
from attestkit.ra_tls import PeerRefusedError
from attestkit.simulated_roots import SimulatedRoots
from attestkit.verifier import AppraisalPolicy
from tests.client.services.served import Answer, Request, ServedApp, served
from tests.client.services.vllm.simulated_reports import report, td, verified
from tests.client.wire.servers import proxying
from tests.collateral.http_server import Server as PccsServer
from tests.collateral.http_server import create_pccs_server
from tests.gpu.simulated_machine import machine as gpu_machine
from tests.gpu.test_fetch_over_http import Server
from tests.raising import raises
from tests.untyped import untyped
from tests.verifier.platforms import intel

pytest.importorskip("uvicorn")

GPUS = gpu_machine(2)
ROOTS = SimulatedRoots(intel.PKI.root_der, gpu=GPUS.roots)
REQUIRED = Require(gpu=True)


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


def policy(**rules: Any) -> AppraisalPolicy:
    """Return a policy that names the app, with rules for GPUs."""
    named = AppraisalPolicy.from_evidence(verified(Machine("model", td(bytes(64)), bytes(64))))
    return named.replace(gpu=GpuRules(**rules))


def connect(app: ServedApp, **options: Any) -> attestkit.Endpoint:
    """Return an endpoint of the service."""
    settings: dict[str, Any] = {"policy": policy(), "service": "vllm-proxy", "server_ca": app.ca}
    settings |= {"now": lambda: intel.NOW, "trust_anchor": ROOTS}
    if "getter" not in options:
        settings["collateral"] = intel.collateral()
    return attestkit.connect(app.url, **settings | options)


def command_options(folder: Path) -> list[str]:
    """Write policy and roots to files; return the options of the command line for them."""
    (folder / "policy.toml").write_text(policy().to_toml())
    (folder / "roots.json").write_bytes(ROOTS.to_json())
    return [f"--policy={folder / 'policy.toml'}", f"--trust-anchor={folder / 'roots.json'}"]


def endorsements() -> GpuEndorsements:
    """Return the manifests and OCSP answers of the GPUs."""
    return GpuEndorsements(dict(GPUS.rims), GPUS.ocsp_answers(intel.NOW.timestamp()))


@contextmanager
def running_services(now: Callable[[], float] = intel.NOW.timestamp) -> Iterator[Server]:
    """Run services of endorsements for the GPUs."""
    with Server(GPUS) as server:
        server.services = SimulatedGpuServices(GPUS, now)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def test_gpus_are_verified_if_required(app: ServedApp) -> None:
    """The result has the devices, and the text their number."""
    with connect(app, require=REQUIRED, gpu_endorsements=endorsements()) as endpoint:
        gpu = endpoint.proof.result.gpu
        assert gpu is not None
        assert len(gpu.devices) == 2
        assert gpu.binding == "nonce"
        assert "2 verified" in str(endpoint.proof)


def test_proof_ends_with_the_endorsements_of_gpus(app: ServedApp) -> None:
    """OCSP answers that end within `max_age` end the proof; those in their grace period do not."""
    given: dict[str, Any] = {"require": REQUIRED, "gpu_endorsements": endorsements()}
    with connect(app, **given, max_age=timedelta(days=7)) as endpoint:
        gpu = endpoint.proof.result.gpu
        assert gpu is not None
        ends = min(answer.next_update for device in gpu.devices for answer in device.ocsp)
        assert endpoint.proof.valid_until == ends > intel.NOW
    now = ends - timedelta(minutes=10)
    with connect(app, **given, now=lambda: now) as endpoint:
        assert endpoint.proof.valid_until == ends
    later = ends + timedelta(minutes=20)
    lenient = policy(ocsp_grace=timedelta(hours=2))
    with connect(app, **given, policy=lenient, now=lambda: later) as endpoint:
        assert endpoint.proof.valid_until == later + timedelta(hours=1)


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
            connect(app, require=REQUIRED, gpu_endorsements=endorsements())


def test_endorsements_are_fetched(app: ServedApp) -> None:
    """Without endorsements and collateral at hand, both come from their services."""
    with (
        running_services() as server,
        connect(
            app,
            require=REQUIRED,
            gpu_services=server.gpu_services(),
            getter=intel.pccs(),
            pccs_url="http://pccs",
        ) as endpoint,
    ):
        proof = endpoint.proof
        fetched = proof.machines[0].gpu_endorsements
        assert fetched is not None
        assert fetched.rims.keys() == GPUS.rims.keys()
        assert server.paths
    bundle = ProofBundle.from_json(proof.bundle.to_json())
    assert bundle.gpu_endorsements == (fetched,)
    assert verify(bundle).result.gpu == proof.result.gpu


def test_proxy_carries_requests_for_collateral_and_endorsements(app: ServedApp) -> None:
    """They pass through the tunnels of `proxy`, like the connections to the server."""
    pccs = create_pccs_server(PccsServer, intel.pccs())
    with proxying() as proxy, running_services() as server, closing(pccs):
        services = server.gpu_services()._replace(getter=None, poster=None)
        with connect(
            app,
            require=REQUIRED,
            gpu_services=services,
            getter=None,
            pccs_url=pccs.url,
            proxy=proxy.url,
        ) as endpoint:
            assert endpoint.proof.result.gpu is not None
        targets = {line.split()[1].decode() for line in proxy.targets}
        assert targets == {url.partition("://")[2] for url in (app.url, server.url, pccs.url)}
        assert len(proxy.targets) > len(server.paths) + len(pccs.requests)


@pytest.mark.parametrize(
    ("options", "host"),
    [
        ({"getter": None}, "api.trustedservices.intel.com:443"),
        ({"gpu_services": GpuServices(), "require": REQUIRED}, "rim.attestation.nvidia.com:443"),
    ],
    ids=["intel", "nvidia"],
)
def test_proxy_carries_requests_to_services_of_the_vendors(
    app: ServedApp, options: dict[str, Any], host: str
) -> None:
    """Without other URLs, the tunnels are to Intel and NVIDIA; here they end at the app."""
    port = int(app.url.rpartition(":")[2])
    with proxying(to=port) as proxy, raises(PeerRefusedError, "fetch_failed", part="certificate"):
        connect(app, proxy=proxy.url, **options)
    assert f"CONNECT {host} HTTP/1.1".encode() in proxy.targets


def test_endorsements_are_fetched_beside_given_collateral(app: ServedApp) -> None:
    """Collateral is the CPU's: named services are used beside it, others are not."""
    with running_services() as server:
        services = server.gpu_services()
        with connect(app, require=REQUIRED, gpu_services=services) as endpoint:
            assert endpoint.proof.result.gpu is not None
        server.paths.clear()
        with connect(
            app, require=REQUIRED, gpu_services=services, gpu_endorsements=endorsements()
        ) as endpoint:
            assert endpoint.proof.result.gpu is not None
        with raises(PeerRefusedError, "missing"):
            connect(app, require=REQUIRED)
        assert server.paths == []


def test_verifier_of_one_role_leaves_fetching_to_the_others(app: ServedApp) -> None:
    """Only a role with a Verifier of the caller has the endorsements that it needs."""
    with connect(app, require=REQUIRED, gpu_endorsements=endorsements()) as endpoint:
        [machine] = endpoint.proof.claims.machines
    with running_services() as server:
        options: dict[str, Any] = {"gpu_roots": GPUS.roots, "gpu_endorsements": endorsements()}
        policies: Policy = {"gateway": intel.verifier(policy=policy(), **options), "*": policy()}
        trust = Trust(policies, {}, lambda: intel.NOW, server.gpu_services())
        given: dict[str, Any] = {"gpu": True, "collateral": intel.collateral()}
        trust.verify(replace(machine, role="gateway"), intel.NOW, **given)
        assert server.paths == []
        # Fetching begins with the device chains, and comes before the CPU's evidence.
        with raises(GpuEvidenceError, "device_chain"):
            trust.verify(machine, intel.NOW, **given)


def test_command_line_fetches_endorsements_beside_given_collateral(
    app: ServedApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`connect --gpu --collateral FILE` uses services of GPUs, unless --offline excludes it."""
    words = [app.url, "--service=vllm-proxy", "--gpu", *command_options(tmp_path)]
    (tmp_path / "ca.pem").write_text(app.ca)
    intel.PKI.collateral(time.time()).save(tmp_path / "collateral.json")
    words += [f"--server-ca={tmp_path / 'ca.pem'}", f"--collateral={tmp_path / 'collateral.json'}"]
    with running_services(time.time) as server:
        monkeypatch.setattr(attestkit.gpu, "GpuServices", server.gpu_services)
        assert main(["connect", *words]) == 0
        assert server.paths
        server.paths.clear()
        assert main(["connect", *words, "--offline"]) == 3
        assert server.paths == []


# -- saved proofs ---------------------------------------------------------------------------------


def saved(app: ServedApp) -> ProofBundle:
    """Return a bundle with verified GPUs, as it is read from a file."""
    with connect(app, require=REQUIRED, gpu_endorsements=endorsements()) as endpoint:
        return ProofBundle.from_json(endpoint.proof.bundle.to_json())


def verify(bundle: ProofBundle, **options: Any) -> Proof:
    """Verify a bundle again, and its GPUs."""
    given = {"policy": policy(), "now": intel.NOW, "trust_anchor": ROOTS, **options}
    return verify_proof(bundle, require=REQUIRED, **untyped(given))


def test_saved_proof_has_endorsements_of_gpus(app: ServedApp) -> None:
    """Those that were used are in the file, so that the GPUs are verified again without network."""
    bundle = saved(app)
    assert bundle.gpu_endorsements == (endorsements(),)
    again = verify(bundle)
    assert again.result.gpu is not None
    assert len(again.result.gpu.devices) == 2
    assert again.bundle.gpu_endorsements == bundle.gpu_endorsements


def test_saved_proof_without_gpus_has_no_endorsements(app: ServedApp) -> None:
    """Files without the member are read as before; their GPUs cannot be verified."""
    with connect(app) as endpoint:
        text = endpoint.proof.bundle.to_json()
    assert "gpu_endorsements" not in json.loads(text)
    bundle = ProofBundle.from_json(text)
    assert bundle.gpu_endorsements == ()
    with raises(CollateralError, "missing"):
        verify(bundle)
    assert verify(bundle, gpu_endorsements=endorsements()).result.gpu is not None


def test_own_endorsements_replace_those_of_a_saved_proof(app: ServedApp) -> None:
    """Endorsements of the caller are used alone."""
    bundle = saved(app)
    with raises(CollateralError, "missing"):
        verify(bundle, gpu_endorsements=GpuEndorsements(dict(GPUS.rims)))
    empty = replace(bundle, gpu_endorsements=(GpuEndorsements(),))
    with raises(CollateralError, "missing"):
        verify(empty)
    assert verify(empty, gpu_endorsements=endorsements()).result.gpu is not None


def test_saved_proof_has_endorsements_for_each_machine(app: ServedApp) -> None:
    """Their number is that of the machines."""
    bundle = saved(app)
    with raises(FormatError, "inconsistent", part="gpu_endorsements"):
        verify(replace(bundle, gpu_endorsements=bundle.gpu_endorsements * 2))


def test_keys_of_nras_in_a_saved_proof_are_not_used(app: ServedApp) -> None:
    """Nothing signs the keys of NVIDIA's service, so they are the caller's; tokens are signed."""
    bundle = saved(app)
    complete = GPUS.endorsements(intel.NOW.timestamp(), bundle.nonce)
    given = ProofBundle.from_json(replace(bundle, gpu_endorsements=(complete,)).to_json())
    assert given.gpu_endorsements == (complete,)
    tokens = policy(nras="instead")
    with raises(CollateralError, "missing"):
        verify(given, policy=tokens)
    keys = GpuEndorsements(jwks=complete.jwks)
    assert verify(given, policy=tokens, gpu_endorsements=keys).result.gpu is not None


def test_command_line_verifies_gpus_of_a_saved_proof(
    app: ServedApp, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`connect --bundle FILE --gpu` needs no further endorsements."""
    saved(app).save(tmp_path / "proof.json")
    words = [f"--bundle={tmp_path / 'proof.json'}", "--at=bundle", "--gpu"]
    assert main(["connect", *words, *command_options(tmp_path)]) == 0
    assert "2 verified" in capsys.readouterr().out
