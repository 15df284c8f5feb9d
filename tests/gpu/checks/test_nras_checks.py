"""Tokens of NVIDIA's attestation service instead of, or beside, the verifier's own appraisal."""

from dataclasses import replace
from typing import Any, Final

import pytest

from attestkit.backends.simulator.gpu.gpu_faults import GPU_FAULTS
from attestkit.errors import CollateralError, GpuEvidenceError
from attestkit.gpu.endorsements import GpuEndorsements
from attestkit.gpu.result import GpuResult
from attestkit.gpu.rules import GpuRules
from tests.gpu.simulated_machine import NONCE, NOW, machine, verify_machine

FAULTS: Final = sorted(name for name in GPU_FAULTS if name.startswith("nras-"))
uses = pytest.mark.parametrize("use", ["beside", "instead"])


def verify_tokens(use: Any, fault: str | None = None, **options: Any) -> GpuResult:
    """Verify a machine with tokens about its evidence."""
    gpus = machine(2, fault)
    given = {"endorsements": gpus.endorsements(NOW.timestamp(), NONCE), **options}
    return verify_machine(gpus, rules=GpuRules(nras=use), **given)


def test_tokens_are_required_beside_own_appraisal() -> None:
    """Claims of the tokens are in the result, and everything else is checked, too."""
    found = verify_tokens("beside")
    assert found.nras is not None
    assert [claims["measres"] for claims in found.nras] == ["success", "success"]
    assert not found.not_proven
    assert found.devices[0].matched == 33


def test_tokens_replace_manifests_and_ocsp_answers() -> None:
    """Chain, signature and nonce of the reports are still checked; the rest is not proven here."""
    only_tokens = replace(machine(2).endorsements(NOW.timestamp(), NONCE), rims={}, ocsp=())
    found = verify_tokens("instead", endorsements=only_tokens)
    assert found.not_proven == ("gpu_revocation", "gpu_rim", "gpu_measurements")
    assert found.devices[0].matched == 0
    assert "gpu_nras" in {step.check for step in found.steps}
    with pytest.raises(GpuEvidenceError):
        verify_tokens("instead", endorsements=only_tokens, roots=None)


@uses
@pytest.mark.parametrize("missing", ["nras", "jwks"])
def test_missing_tokens_or_keys_are_a_collateral_error(use: Any, missing: str) -> None:
    """Without tokens or keys nothing can be checked."""
    complete = machine(2).endorsements(NOW.timestamp(), NONCE)
    partial = replace(complete, nras=()) if missing == "nras" else replace(complete, jwks=None)
    with pytest.raises(CollateralError) as caught:
        verify_tokens(use, endorsements=partial)
    assert caught.value.reason == "missing"


def test_tokens_are_not_used_by_default() -> None:
    """Without the rule, tokens are not read, even malformed ones."""
    complete = machine(2).endorsements(NOW.timestamp(), NONCE)
    found = verify_machine(machine(2), endorsements=replace(complete, nras=(b"{}",)))
    assert found.nras is None


@uses
@pytest.mark.parametrize("name", FAULTS)
def test_fault_of_tokens_is_refused_by_its_check(use: Any, name: str) -> None:
    """Each fault of the simulated service is refused by the check that it names."""
    with pytest.raises(GpuEvidenceError) as caught:
        verify_tokens(use, name)
    assert caught.value.reason == GPU_FAULTS[name].check


@uses
def test_malformed_token_is_refused(use: Any) -> None:
    """A malformed answer is a refusal, not an internal error."""
    complete = machine(2).endorsements(NOW.timestamp(), NONCE)
    with pytest.raises(GpuEvidenceError) as caught:
        verify_tokens(use, endorsements=replace(complete, nras=(b"[]",)))
    assert caught.value.reason == "nras_result"


@uses
def test_each_device_needs_a_token_of_its_own(use: Any) -> None:
    """Tokens about another machine, or about some of the devices, do not suffice."""
    one = machine(1).endorsements(NOW.timestamp(), NONCE)
    two = machine(2).endorsements(NOW.timestamp(), NONCE)
    given = GpuEndorsements(two.rims, two.ocsp, one.jwks, one.nras)
    with pytest.raises(GpuEvidenceError) as caught:
        verify_tokens(use, endorsements=given)
    assert caught.value.reason == "nras_result"
    assert caught.value.device == 1


@uses
def test_tokens_of_another_nonce_are_refused(use: Any) -> None:
    """The tokens must be about the verifier's nonce."""
    other = machine(2).endorsements(NOW.timestamp(), bytes(32))
    with pytest.raises(GpuEvidenceError) as caught:
        verify_tokens(use, endorsements=other)
    assert caught.value.reason == "nras_nonce"
