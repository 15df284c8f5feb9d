"""Differential tests with dcap-qvl: a hundred random cases of each kind, and the forge itself."""

from collections.abc import Callable
from random import Random
from typing import Final

import pytest

from attestkit.backends.simulator.pki.quoting_enclave import QuotingEnclave, TdBody
from tests.runner.cases import every_case
from tests.thorough import slow
from tests.verifier.dcap.dcap_samples import COLLATERAL, PKI
from tests.verifier.dcap.differential.cases import REJECTED_BY_BOTH, Work, run
from tests.verifier.dcap.differential.comparison import Comparer
from tests.verifier.dcap.differential.forge import SGX, TDX, Forge
from tests.verifier.dcap.differential.generators import GENERATORS
from tests.verifier.dcap.differential.readers import READERS

CASES: Final = 100
INPUTS: Final = 1000
SEED: Final = 23


@pytest.mark.parametrize("version", [4, 5])
def test_forge_without_alteration_is_simulators_evidence(version: int) -> None:
    """Unaltered evidence is that of the simulator, byte for byte."""
    body = TdBody().td10() if version == 4 else TdBody().td15()
    made = Forge(TDX, version).make()
    assert made.quote == QuotingEnclave(PKI).quote(body, version=version)
    assert made.collateral == COLLATERAL
    assert made.root == PKI.root_der


@every_case("form", [(TDX, 4), (TDX, 5), (SGX, 3), (TDX, 4, "processor")])
def test_forge_without_alteration_is_accepted_by_both(form: tuple[int, int]) -> None:
    """Both verifiers accept unaltered evidence, so a rejection comes from an alteration."""
    forge = Forge(*form)
    found = Comparer().verify(forge, forge.make())
    assert found.accepted == (True, True)
    assert not found.unexplained


@pytest.mark.slow
@pytest.mark.parametrize("kind", GENERATORS)
def test_random_evidence_has_no_unexplained_disagreement(kind: str) -> None:
    """Random evidence has the same outcome in both verifiers, but for the allowed classes."""
    done = run(Work(kind, SEED, 0, CASES, None))
    assert done.failures == []
    assert done.outcomes[REJECTED_BY_BOTH]


@pytest.mark.parametrize("kind", READERS)
def test_mutated_input_raises_attestkit_errors_only(kind: str) -> None:
    """A reader accepts a mutated input or raises an AttestKitError."""
    done = run(Work(kind, SEED, 0, INPUTS, None))
    assert done.failures == []
    assert done.outcomes["rejected"]


@every_case("kind", GENERATORS)
def test_case_is_repeatable(kind: str) -> None:
    """Seed and number determine a case, so a failure can be repeated."""
    first, again = (GENERATORS[kind](Random("23/7")) for _ in range(2))
    assert first.make() == again.make()
    assert first.altered == again.altered


def test_comparison_reports_an_unknown_disagreement() -> None:
    """Evidence whose alteration is not named is a failure if one verifier alone accepts it."""
    forge = Forge(SGX, 4)
    found = Comparer().verify(forge, forge.make())
    assert found.accepted == (True, False)
    assert found.unexplained


def _nothing(*_: object, **_named: object) -> None:
    """Skip a check."""


# A mistake in the engine, and the kind of evidence that shows it.
MISTAKES: Final[dict[str, tuple[str, Callable[..., object]]]] = {
    "tcb_levels._converge": ("levels", lambda platform, *_: platform),
    "engine._check_quote_signature": ("bytes", _nothing),
    "verified_collateral.VerifiedCollateral.check_time": ("times", _nothing),
    "verified_collateral.VerifiedCollateral._check_revocation": ("certificates", _nothing),
    "engine.check_attributes": ("levels", _nothing),
    "tcb_levels.check_quoting_enclave": ("levels", _nothing),
    "engine._check_platform_time": ("times", _nothing),
    "verified_collateral.check_not_revoked": ("certificates", _nothing),
    "certificate_chains.IntelCertificate.check_issued_by": ("certificates", _nothing),
}


_QUICK: Final = 4
_PLANTED: Final = [*list(MISTAKES)[:_QUICK], *slow(*((name,) for name in list(MISTAKES)[_QUICK:]))]


@pytest.mark.parametrize("function", _PLANTED)
def test_planted_mistake_is_found(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that skips a check has an unexplained disagreement in a few hundred cases."""
    kind, mistake = MISTAKES[function]
    monkeypatch.setattr(f"attestkit.verifier.dcap.{function}", mistake)
    comparer = Comparer()
    for number in range(1000):
        forge = GENERATORS[kind](Random(f"{SEED}/{kind}/{number}"))
        if comparer.verify(forge, forge.make()).unexplained:
            return
    raise AssertionError(f"{function}: not found")


def test_warm_engine_must_agree_with_cold_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another result of the warm engine is a failure."""
    comparer = Comparer()
    monkeypatch.setattr(comparer, "_engine", lambda _: Comparer()._engine(Forge().make().root))
    forge = Forge()
    forge.alter("root", serial=77)
    found = comparer.verify(forge, forge.make())
    assert found.unexplained.startswith("warm engine")
