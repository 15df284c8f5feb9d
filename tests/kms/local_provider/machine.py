"""A machine with a simulated TD, a local key provider beside it, and a verifier of its quotes."""

from typing import Any, Final

from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.quoting_enclave import SGX_COLLATERAL, SimulatedEnclave
from attestkit.collateral import Collateral
from attestkit.kms.local_provider import SimulatedLocalProvider, provider_policy
from attestkit.verifier import AppraisalPolicy, Verifier

NOW: Final = 1790000000
SEED: Final = bytes(range(32))
PKI: Final = SimulatedPki(SEED)
SGX: Final[Collateral] = PKI.collateral(NOW, SGX_COLLATERAL)
ENCLAVE: Final = SimulatedEnclave()
TD: Final = Simulator(seed=SEED, now=lambda: NOW)


def make_provider(pki: SimulatedPki = PKI, **options: Any) -> SimulatedLocalProvider:
    """Return a provider on the machine of `TD`, whose clock stands."""
    return SimulatedLocalProvider(pki, now=lambda: NOW, **options)


def make_verifier(policy: AppraisalPolicy | None = None, **options: Any) -> Verifier:
    """Return a verifier of the provider's quotes."""
    chosen = provider_policy() if policy is None else policy
    own: dict[str, Any] = {"trust_anchor": PKI.root_der, "collateral": SGX, "policy": chosen}
    return Verifier(**own | options)
