"""Choices of an attester are not trusted: keys of tokens, kinds of devices, simulated roots."""

from functools import cache
from typing import TYPE_CHECKING, Any, Final

import pytest

from attestkit.attestation import Attestation
from attestkit.errors import AttestKitError, CollateralError, GpuEvidenceError, PolicyError
from attestkit.gpu.endorsements import GpuEndorsements
from attestkit.gpu.evidence import GpuBinding, GpuEvidence
from attestkit.gpu.rules import GpuRules
from attestkit.report_data import ReportData, gpu_nonce
from attestkit.snp_report import SnpReport
from attestkit.verifier import AppraisalPolicy, Verifier
from attestkit.verifier.evidence.formats import EvidenceBundle
from tests.gpu.nras.nras_tokens import jwks
from tests.gpu.simulated_machine import machine
from tests.runner.cases import every_case
from tests.vectors import data, needs_shared
from tests.verifier.platforms import amd, intel

if TYPE_CHECKING:
    from collections.abc import Callable

CHALLENGE: Final = bytes(range(100, 132))
NONCE: Final = gpu_nonce(CHALLENGE)


@cache
def enclosing(evidence: GpuEvidence) -> Attestation:
    """Return evidence of a CPU that commits to that of devices, and encloses it."""
    report_data = ReportData.for_nonce_and_gpu(CHALLENGE, evidence.raw)
    return intel.evidence(report_data=report_data).with_gpu_evidence(evidence)


def with_rules(endorsements: GpuEndorsements | None, **rules: Any) -> Verifier:
    """Return a verifier with these endorsements and rules about GPUs."""
    policy = AppraisalPolicy.default().replace(gpu=GpuRules(**rules))
    roots = machine(1).roots
    return intel.verifier(gpu_roots=roots, gpu_endorsements=endorsements, policy=policy)


def of_attester(
    verifier: Verifier, evidence: Attestation, given: GpuEndorsements
) -> list[AttestKitError | None]:
    """Return what is wrong with evidence, by each way to verify it with an attester's endorsements.

    Those ways are a bundle, a verifier for a bundle, and a request to `POST /verify`.
    """
    bundle = EvidenceBundle(
        evidence.to_bytes(), intel.collateral(), intel.NOW, gpu_endorsements=given
    )
    ways: tuple[Callable[[], object], ...] = (
        lambda: verifier.verify_bundle(bundle, nonce=CHALLENGE, now=intel.NOW),
        lambda: verifier.for_bundle(bundle).verify(evidence, nonce=CHALLENGE),
        lambda: verifier.with_gpu_endorsements(given).verify(evidence, nonce=CHALLENGE),
    )
    found: list[AttestKitError | None] = []
    for way in ways:
        try:
            way()
        except AttestKitError as error:
            found.append(error)
        else:
            found.append(None)
    return found


def test_keys_of_an_attester_do_not_verify_tokens() -> None:
    """Nothing signs the service's keys, so they are the verifier's, wherever tokens come from."""
    gpus = machine(1)
    evidence = enclosing(gpus.evidence(NONCE))
    given = gpus.endorsements(intel.NOW.timestamp(), NONCE)
    for error in of_attester(with_rules(None, nras="instead"), evidence, given):
        assert isinstance(error, CollateralError)
        assert error.reason == "missing"
        assert "keys" in str(error)
    own = with_rules(GpuEndorsements(jwks=given.jwks), nras="instead")
    assert of_attester(own, evidence, given) == [None] * 3
    other = GpuEndorsements(jwks=jwks())
    for error in of_attester(with_rules(other, nras="instead"), evidence, given):
        assert isinstance(error, GpuEvidenceError)
        assert error.reason in {"nras_key", "nras_signature"}


@every_case(
    "rules",
    [
        {"required": True},
        {"count": 1},
        {"min_driver": "1.0"},
        {"drivers": ["550.90.07"]},
        {"min_vbios": "01.00"},
        {"binding": "report_data"},
    ],
    ids=str,
)
def test_switch_is_no_gpu(rules: dict[str, Any]) -> None:
    """Evidence of switches alone meets no rule about GPUs."""
    gpus = machine(8)
    switch = GpuEvidence((gpus.evidence(NONCE).devices[-1],))
    endorsements = gpus.endorsements(intel.NOW.timestamp())
    with pytest.raises(GpuEvidenceError) as caught:
        with_rules(endorsements, **rules).verify(enclosing(switch), nonce=CHALLENGE)
    assert caught.value.reason == "device_count"
    alone = with_rules(endorsements, chips=["LS10"], switch_count=1)
    found = alone.verify(enclosing(switch), nonce=CHALLENGE)
    assert found.gpu is not None
    assert not found.gpu.gpus


@needs_shared
def test_refuse_simulated_is_about_gpus_too() -> None:
    """Simulated GPUs beside a genuine CPU are refused like a simulated CPU."""
    raw = bytes.fromhex(data("snp/virtee-sev/report_milan.hex").decode())
    chain = (data("snp/virtee-sev/cert_chain_milan"), data("snp/virtee-sev/vcek_milan.der"))
    gpus = machine(1)
    policy = AppraisalPolicy.default().replace(refuse_simulated=True)
    verifier = Verifier(
        snp_certificates=chain,
        policy=policy,
        gpu_roots=gpus.roots,
        gpu_endorsements=gpus.endorsements(amd.NOW.timestamp()),
    )
    report_data = SnpReport.parse(raw).report_data
    binding = GpuBinding("other", "nonce", gpus.evidence(NONCE), CHALLENGE, NONCE, report_data)
    with pytest.raises(PolicyError) as caught:
        verifier.verify(raw, gpu=binding, now=amd.NOW)
    assert caught.value.reason == "simulated"
    assert not verifier.verify(raw, report_data=report_data, now=amd.NOW).simulated
    verifier.policy = policy.replace(refuse_simulated=False)
    assert verifier.verify(raw, gpu=binding, now=amd.NOW).simulated
