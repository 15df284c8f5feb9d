"""Simulated remote attestation service (NRAS): its tokens, their faults, and refused requests."""

from datetime import datetime, timezone
from typing import Any

import pytest

from attestkit.backends.simulator.gpu.gpu_config import GpuConfig
from attestkit.backends.simulator.gpu.gpu_faults import GPU_FAULTS
from attestkit.backends.simulator.gpu.simulated_gpus import SimulatedGpus
from attestkit.errors import GpuEvidenceError
from attestkit.gpu.nras import verify_tokens
from attestkit.gpu.nras.client import encode_request
from tests.runner.cases import every_case

SEED = b"a seed of simulated tokens......"
NONCE = bytes(range(32))
MOMENT = datetime.fromtimestamp(1_780_000_000, timezone.utc)
TOKENS = [name for name, fault in GPU_FAULTS.items() if fault.nras]


def machine(**config: Any) -> SimulatedGpus:
    """Return the devices of a configuration."""
    return SimulatedGpus(SEED, GpuConfig(**config))


def ask_nras(gpus: SimulatedGpus, version: Any = "3.0", path: str = "/v3/attest/gpu") -> bytes:
    """Return the service's answer about the GPUs."""
    devices = [one for one in gpus.evidence(NONCE).devices if one.architecture == "HOPPER"]
    answer = gpus.nras.attest(path, encode_request(devices, "HOPPER", NONCE, version), MOMENT)
    assert answer.status == 200, answer.body
    return answer.body


@pytest.mark.parametrize("version", ["2.0", "3.0", None])
@pytest.mark.parametrize("path", ["/v2/attest/gpu", "/v3/attest/gpu", "/v4/attest/gpu"])
def test_tokens_of_simulated_nras_are_accepted(version: str | None, path: str) -> None:
    """Tokens of each interface and claims version verify with the service's keys."""
    gpus = machine(count=2)
    result = verify_tokens(ask_nras(gpus, version, path), gpus.nras.jwks(MOMENT), NONCE, MOMENT)
    assert [claims.name for claims in result.devices] == ["GPU-0", "GPU-1"]


def test_tokens_about_switches_are_accepted() -> None:
    """Switches have requests and claims of their own."""
    gpus = machine(count=8)
    switches = gpus.evidence(NONCE).devices[8:]
    body = encode_request(switches, "LS10", NONCE, "3.0")
    answer = gpus.nras.attest("/v3/attest/switch", body, MOMENT)
    result = verify_tokens(answer.body, gpus.nras.jwks(MOMENT), NONCE, MOMENT)
    assert [claims.kind for claims in result.devices] == ["switch"] * 4
    assert gpus.nras.attest("/v3/attest/gpu", body, MOMENT).status == 400


@pytest.mark.parametrize("name", TOKENS)
def test_fault_of_tokens_is_refused(name: str) -> None:
    """A verifier of tokens refuses each of their faults with its reason."""
    gpus = machine(fault=name, count=2)
    with pytest.raises(GpuEvidenceError) as caught:
        verify_tokens(ask_nras(gpus), gpus.nras.jwks(MOMENT), NONCE, MOMENT)
    assert caught.value.reason == GPU_FAULTS[name].check


@pytest.mark.parametrize(
    ("name", "code"),
    [("nonce-other", "4010"), ("signature-bit", "4013"), ("rim-altered", "5013")],
)
def test_service_refuses_faulty_evidence(name: str, code: str) -> None:
    """The answer about evidence that is not valid has the code of the service's error."""
    gpus = machine(fault=name)
    with pytest.raises(GpuEvidenceError, match=code) as caught:
        verify_tokens(ask_nras(gpus), gpus.nras.jwks(MOMENT), NONCE, MOMENT)
    assert caught.value.reason == "nras_result"


@every_case(
    ("path", "body", "status"),
    [
        ("/v1/attest/gpu", b"{}", 404),
        ("/v3/attest/nic", b"{}", 404),
        ("/v3/attest/gpu", b"", 400),
        ("/v3/attest/gpu", b"[]", 400),
        ("/v3/attest/gpu", b'{"evidence_list": []}', 400),
    ],
)
def test_malformed_request_is_refused(path: str, body: bytes, status: int) -> None:
    """Requests that are not valid get an error, not a token."""
    assert machine().nras.attest(path, body, MOMENT).status == status
