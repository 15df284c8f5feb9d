"""Faults of simulated GPUs: the verification names the check that fails first."""

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

import pytest

from attestkit.backends.simulator.gpu.gpu_config import GpuConfig
from attestkit.backends.simulator.gpu.gpu_faults import GPU_FAULTS
from attestkit.backends.simulator.gpu.simulated_gpus import SimulatedGpus
from attestkit.collateral.responses import Response
from attestkit.errors import CollateralError, FormatError, GpuEvidenceError, UsageError
from attestkit.gpu import GpuResult, GpuRules, verify
from attestkit.gpu.endorsement_fetcher import fetch_ocsp
from attestkit.gpu.nras import read_nvattest_output
from attestkit.testing import SimulatedTee
from tests.raising import raises
from tests.runner.cases import every_case

SEED = b"a seed of faulty graphics cards."
NONCE = bytes(range(32))
NOW = 1_780_000_000
MOMENT = datetime.fromtimestamp(NOW, timezone.utc)
# Seen by verifiers that send a nonce to the OCSP responder, or use tokens of NRAS.
ONLINE = [name for name, fault in GPU_FAULTS.items() if fault.ocsp and fault.ocsp.nonce != "echoed"]
ELSEWHERE = [name for name, fault in GPU_FAULTS.items() if name in ONLINE or fault.nras]
REFUSED = [name for name, fault in GPU_FAULTS.items() if fault.check and name not in ELSEWHERE]
ACCEPTED = [name for name in GPU_FAULTS if name not in REFUSED]


def machine(**config: Any) -> SimulatedGpus:
    """Return the devices of a configuration."""
    return SimulatedGpus(SEED, GpuConfig(**config))


def verified(gpus: SimulatedGpus) -> GpuResult:
    """Return the result of the verification by default rules."""
    evidence, endorsements = gpus.evidence(NONCE), gpus.endorsements(NOW)
    return verify(evidence, nonce=NONCE, now=MOMENT, endorsements=endorsements, roots=gpus.roots)


@pytest.mark.slow
@every_case("name", REFUSED)
def test_fault_is_refused_by_the_named_check(name: str) -> None:
    """The verification refuses the evidence with the reason of the fault."""
    with pytest.raises((GpuEvidenceError, FormatError)) as caught:
        verified(machine(fault=name))
    assert caught.value.reason == GPU_FAULTS[name].check


@pytest.mark.slow
def test_faults_apply_to_other_machines() -> None:
    """A fault has its effect on a Blackwell GPU and in a protected machine, too."""
    for name in REFUSED:
        for config in ({"architecture": "BLACKWELL"}, {"count": 8}):
            with suppress(UsageError):  # not for this machine
                gpus = machine(fault=name, **config)
                with pytest.raises((GpuEvidenceError, FormatError)) as caught:
                    verified(gpus)
                assert caught.value.reason == GPU_FAULTS[name].check, (name, config)


@every_case("name", ACCEPTED)
def test_fault_of_others_is_accepted(name: str) -> None:
    """What the specification allows, and what this verifier does not use, is accepted."""
    assert verified(machine(fault=name)).simulated


@pytest.mark.parametrize(
    ("config", "devices"),
    [({"count": 1}, 1), ({"count": 8}, 12), ({"count": 2, "architecture": "BLACKWELL"}, 2)],
)
def test_machine_without_fault_is_accepted(config: dict[str, Any], devices: int) -> None:
    """The verification accepts each kind of machine, as simulated."""
    result = verified(machine(**config))
    assert (len(result.devices), result.simulated) == (devices, True)


def test_evidence_needs_the_simulated_roots() -> None:
    """By default no simulated device is trusted."""
    gpus = machine()
    with pytest.raises(GpuEvidenceError) as caught:
        verify(gpus.evidence(NONCE), nonce=NONCE, now=MOMENT, endorsements=gpus.endorsements(NOW))
    assert caught.value.reason == "device_chain"


@pytest.mark.parametrize("name", ONLINE)
def test_fault_of_ocsp_nonce_is_refused_online(name: str) -> None:
    """A verifier that sends a nonce notices the answer without it."""
    gpus = machine(fault=name)
    _, brom, ica, *_ = gpus.chain(gpus.devices[0])

    def post(_url: str, request: bytes, _headers: Mapping[str, str]) -> Response:
        return Response(200, {}, gpus.ocsp.respond(request, MOMENT))

    fetch_ocsp(brom, ica, post)
    with raises(CollateralError, "malformed", part="nonce"):
        fetch_ocsp(brom, ica, post, nonce=NONCE)


@pytest.mark.parametrize("platform", ["tdx", "snp"])
def test_gpus_are_verified_with_the_cpu(platform: str) -> None:
    """Evidence of CPU and GPUs is accepted together, bound by the report data."""
    with SimulatedTee(platform=platform, gpus=2) as tee:
        result = tee.verify(tee.attest(nonce=NONCE, gpu=True), nonce=NONCE)
    assert result.gpu is not None
    assert (len(result.gpu.devices), result.gpu.binding) == (2, "report_data")


@pytest.mark.parametrize("name", ["nonce-other", "measurement-25", "ocsp-brom-revoked"])
def test_scenario_is_refused_with_the_cpu(name: str) -> None:
    """A scenario of a faulty GPU is refused, although the CPU is in good state."""
    with SimulatedTee(scenario=f"gpu-{name}") as tee:
        evidence = tee.attest(nonce=NONCE, gpu=True)
        with pytest.raises(GpuEvidenceError) as caught:
            tee.verify(evidence, nonce=NONCE)
    assert caught.value.reason == GPU_FAULTS[name].check


def test_tokens_among_the_endorsements_are_accepted() -> None:
    """Endorsements for a nonce have tokens about GPUs and switches, which verify."""
    gpus = machine(count=8)
    endorsements = gpus.endorsements(NOW, NONCE)
    assert endorsements.jwks is not None
    assert len(endorsements.nras) == 2
    rules = GpuRules(nras="beside")
    result = verify(
        gpus.evidence(NONCE),
        nonce=NONCE,
        now=MOMENT,
        endorsements=endorsements,
        roots=gpus.roots,
        rules=rules,
    )
    assert result.nras is not None
    assert len(result.nras) == 12


@pytest.mark.parametrize("count", [2, 8])
def test_boot_output_is_that_of_nvattest(count: int) -> None:
    """The output of the boot attestation has accepted claims about each device."""
    gpus = machine(count=count)
    read_nvattest_output(gpus.boot_output).check(len(gpus.devices))
