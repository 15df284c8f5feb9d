"""Attestation of CPU and GPUs in one call."""

import asyncio
from typing import Any

import pytest

import attestkit
from attestkit.errors import GpuEvidenceError, PolicyError, UnsupportedError, UsageError
from attestkit.gpu.evidence import GpuBinding
from attestkit.gpu.rules import GpuRules
from attestkit.report_data import ReportData, gpu_nonce
from attestkit.verifier import AppraisalPolicy

NONCE = b"challenge of a verifier"


@pytest.mark.slow
@pytest.mark.parametrize(
    "platform", ["tdx", "snp", "azure-tdx", "azure-snp", "gcp-tdx", "gcp-snp", "aws-nitro-tpm"]
)
def test_evidence_commits_to_enclosed_gpus_on_every_platform(platform: Any) -> None:
    """The verifier of the TEE accepts evidence with GPUs, bound by report data."""
    with attestkit.open("simulator", platform=platform, gpus=2, seed=bytes(32)) as tee:
        evidence = tee.attest(nonce=NONCE, gpu=True)
        assert evidence.gpu_evidence is not None
        nonces = {device.report[4:36] for device in evidence.gpu_evidence.devices}
        assert nonces == {gpu_nonce(NONCE)}
        rules = GpuRules(count=2, binding="report_data")
        policy = AppraisalPolicy.development().replace(gpu=rules)
        if platform == "aws-nitro-tpm":
            policy = policy.replace(platforms=("dstack-aws-nitro-tpm",))
        result = tee.verifier(policy=policy).verify(evidence.to_bytes(), nonce=NONCE)
        assert result.gpu is not None
        assert result.gpu.binding == "report_data"
        with pytest.raises(PolicyError):
            tee.verifier(policy=policy).verify(evidence.to_bytes(), nonce=NONCE[::-1])


def test_report_data_of_a_td_are_those_of_nonce_and_gpus() -> None:
    """The report data are documented, so that other verifiers can compute them."""
    with attestkit.open("simulator", gpus=1) as tee:
        evidence = tee.attest(nonce=NONCE, gpu=True)
        assert evidence.gpu_evidence is not None
        expected = ReportData.for_nonce_and_gpu(NONCE, evidence.gpu_evidence.raw)
        assert evidence.report_data == expected
        assert tee.attest(nonce=NONCE).gpu_evidence is None


def test_attest_with_gpus_needs_gpus_and_a_nonce() -> None:
    """Report data that the caller chose cannot commit to evidence that is collected later."""
    with attestkit.open("simulator") as tee, pytest.raises(UnsupportedError):
        tee.attest(nonce=NONCE, gpu=True)
    with attestkit.open("simulator", gpus=1) as tee:
        with pytest.raises(UsageError):
            tee.attest(gpu=True, report_data=bytes(64))
        with pytest.raises(UsageError):
            tee.attest(gpu=True)


def test_fault_of_a_gpu_is_refused() -> None:
    """Faults of simulated GPUs reach the verifier of the TEE."""
    with attestkit.open("simulator", scenario="gpu-signature-bit") as tee:
        evidence = tee.attest(nonce=NONCE, gpu=True)
        with pytest.raises(GpuEvidenceError):
            tee.verifier().verify(evidence, nonce=NONCE)


def test_attester_for_asyncio_encloses_gpus() -> None:
    """The asynchronous attester has the same argument."""

    async def attest() -> bool:
        async with await attestkit.aopen("simulator", gpus=1) as tee:
            return (await tee.attest(nonce=NONCE, gpu=True)).gpu_evidence is not None

    assert asyncio.run(attest())


@pytest.mark.parametrize("platform", ["gcp-tdx", "gcp-snp", "tdx", "aws-nitro-tpm"])
def test_nonce_of_a_challenger_does_not_commit_to_gpus(platform: Any) -> None:
    """A guest that answers any nonce cannot be made to commit to the GPUs of another machine.

    The nonce is the report data of GPU evidence, which beside a TPM are hashed with its key.
    """
    seed = bytes(32)
    with (
        attestkit.open("simulator", platform=platform, gpus=1, seed=seed) as guest,
        attestkit.open("simulator", gpus=1, seed=seed) as other,
    ):
        gpus = other.backend.gpu_evidence(gpu_nonce(NONCE))
        chosen = ReportData.for_nonce_and_gpu(NONCE, gpus.raw)
        policy = AppraisalPolicy.development().replace(gpu=GpuRules(binding="report_data"))
        if platform == "aws-nitro-tpm":
            policy = policy.replace(platforms=("dstack-aws-nitro-tpm",))
        verifier = guest.verifier(policy=policy)
        with pytest.raises(PolicyError) as caught:
            verifier.verify(guest.attest(nonce=chosen), nonce=NONCE, gpu=gpus)
        assert caught.value.reason == "report_data"
        # Nor does evidence over a nonce have the report data of another system's binding.
        binding = GpuBinding("other", "report_data", gpus, NONCE, gpu_nonce(NONCE), chosen)
        with pytest.raises(PolicyError) as caught:
            verifier.verify(guest.attest(nonce=NONCE), gpu=binding)
        assert caught.value.reason == "report_data"


@pytest.mark.parametrize("platform", ["azure-snp", "gcp-tdx", "gcp-snp", "tdx", "aws-nitro-tpm"])
def test_evidence_over_a_nonce_alone_is_not_bound_to_gpus(platform: Any) -> None:
    """Evidence that commits to no GPUs binds none by its report data, also beside a TPM's key."""
    seed = bytes(32)
    with (
        attestkit.open("simulator", platform=platform, gpus=1, seed=seed) as guest,
        attestkit.open("simulator", gpus=1, seed=seed) as other,
    ):
        gpus = other.backend.gpu_evidence(gpu_nonce(NONCE))
        policy = AppraisalPolicy.development().replace(gpu=GpuRules(binding="report_data"))
        if platform == "aws-nitro-tpm":
            policy = policy.replace(platforms=("dstack-aws-nitro-tpm",))
        with pytest.raises(GpuEvidenceError) as caught:
            guest.verifier(policy=policy).verify(guest.attest(nonce=NONCE), nonce=NONCE, gpu=gpus)
        assert (caught.value.reason, caught.value.by_policy) == ("binding", True)
