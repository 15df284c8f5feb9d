"""All trust anchors of a simulated machine in one argument of a verifier."""

import pickle

import pytest

from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator, simulated_roots
from attestkit.errors import SignatureError, UsageError
from attestkit.gpu.roots import GpuRoots
from attestkit.verifier import Verifier
from tests.raising import raises

SEED = bytes(range(32))
NONCE = b"a nonce of a relying party"


@pytest.mark.parametrize("platform", ["tdx", "snp"])
def test_roots_of_a_machine_accept_its_evidence_as_simulated(platform: str) -> None:
    """Evidence of the machine is accepted, and its result is simulated; also after pickling."""
    with Attester(Simulator(seed=SEED, platform=platform)) as attester:
        evidence = attester.attest(nonce=NONCE)
        collateral = attester.verifier()._collateral
    roots = simulated_roots(SEED, platform)
    assert roots.gpu is not None
    verifier = Verifier(trust_anchor=roots, collateral=collateral)
    for one in (verifier, pickle.loads(pickle.dumps(verifier))):
        result = one.verify(evidence, nonce=NONCE)
        assert result.simulated
        assert one._gpu_trust.roots == GpuRoots(*roots.gpu)
    other = simulated_roots(bytes(32), platform)
    with pytest.raises(SignatureError):
        Verifier(trust_anchor=other, collateral=collateral).verify(evidence, nonce=NONCE)


def test_roots_without_gpus_leave_those_of_nvidia() -> None:
    """The field is optional, as in a file that another program wrote."""
    roots = simulated_roots(SEED)._replace(gpu=None)
    assert Verifier(trust_anchor=roots)._gpu_trust.roots is None


def test_roots_of_another_document_are_those_of_nitro_only() -> None:
    """The root of NitroTPM documents is that of the machine if the roots have no other."""
    roots = simulated_roots(SEED, "aws-snp")
    assert roots.nitro is not None
    found = Verifier(trust_anchor=roots)._authenticators
    assert found._aws._anchor.der == roots.nitro
    assert found.trust_anchor == roots.platform
    alone = Verifier(trust_anchor=roots._replace(nitro=None))._authenticators
    assert alone._aws._anchor.der == roots.platform


def test_roots_beside_those_of_a_machine_are_refused() -> None:
    """Two sources of one trust anchor would leave open which counts."""
    roots = simulated_roots(SEED)
    assert roots.gpu is not None
    with raises(UsageError, "conflict"):
        Verifier(trust_anchor=roots, ak_roots=[roots.platform])
    with raises(UsageError, "conflict"):
        Verifier(trust_anchor=roots, gpu_roots=GpuRoots(*roots.gpu))
