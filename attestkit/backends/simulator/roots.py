"""Trust anchors of a simulated machine, all derived from its seed."""

from collections.abc import Callable

from attestkit.backends.base import check_bytes
from attestkit.backends.simulator.pki.amd_chip import find_amd_root, issue_chip
from attestkit.backends.simulator.pki.cloud_pki import (
    CloudRoot,
    Derive,
    make_nitro_root,
    make_own_root,
    public_kms_keys,
)
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki, derive
from attestkit.backends.simulator.scenarios.config import Scenario
from attestkit.backends.simulator.scenarios.registry import chosen_scenario
from attestkit.backends.simulator.td_reports import find_intel_root
from attestkit.simulated_roots import SimulatedRoots


def simulated_roots(
    seed: bytes, platform: str | None = None, scenario: str | Scenario | None = None
) -> SimulatedRoots:
    """Return every trust anchor that a simulator with this seed has as `backend.roots`.

    GPUs and the `SimulatedKms` of the same seed are included, whether the machine has them or not.

    Args:
        seed: 32 bytes.
        platform: Name of the simulator's platform; None: that of the scenario, else "tdx".
        scenario: A name, or a `Scenario`; some replace the platform's trust anchor. None: no
            deviation from an up-to-date platform.

    Raises:
        UsageError: If an argument is invalid.
    """
    check_bytes("seed", seed, 32)
    return roots_of(seed, chosen_scenario(scenario, platform))


def roots_of(seed: bytes, scenario: Scenario) -> SimulatedRoots:
    """Return every trust anchor of a seed (32 bytes) in a scenario, as `simulated_roots` does."""
    from attestkit.backends.simulator.gpu.gpu_pki import make_gpu_pki  # lazy: rarely needed

    nitro = _make_root(seed, make_nitro_root).der if scenario.platform == "aws-snp" else None
    return SimulatedRoots(
        platform_anchor(seed, scenario), nitro, make_gpu_pki(seed).roots, public_kms_keys(seed)
    )


def platform_root(seed: bytes, scenario: Scenario) -> CloudRoot:
    """Return the root CA of a platform's processor, or of the cloud or TPM if none is simulated.

    Its key is derived from `seed`, 32 bytes; the `trust_anchor` of `scenario` has no effect.
    """
    name = scenario.platform
    if name.endswith("tdx"):
        pki = SimulatedPki(seed, config=scenario.pki)
        return CloudRoot.of(pki.root_der, pki.root_key)
    if name.endswith("snp"):
        chip = issue_chip(seed, scenario)
        return CloudRoot.of(chip.ark_der, chip.root_key)
    return _make_root(seed, make_nitro_root if name == "aws-nitro-tpm" else make_own_root)


def platform_anchor(seed: bytes, scenario: Scenario) -> bytes:
    """Return the root certificate (DER) that verifiers of a platform's evidence trust.

    `seed` are the 32 bytes from which the platform's keys are derived.
    """
    if scenario.platform.endswith("tdx"):
        return find_intel_root(seed, scenario)
    if scenario.platform.endswith("snp"):
        return find_amd_root(seed, scenario)
    return platform_root(seed, scenario).der


def _make_root(seed: bytes, make: Callable[[Derive], CloudRoot]) -> CloudRoot:
    return make(lambda label, size: derive(seed, label, size))
