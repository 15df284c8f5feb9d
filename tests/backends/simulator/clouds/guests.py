"""Simulated guests of clouds, and verifiers of their evidence."""

import secrets
from typing import Any, Final

from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.scenarios.registry import CLOUDS
from attestkit.errors import UnsupportedError
from attestkit.factory import open as open_attester
from attestkit.verifier import AppraisalPolicy, Verifier
from attestkit.verifier.result import AttestationResult

SEED: Final = bytes(32)
PLATFORMS: Final = sorted({named.subject for named in CLOUDS.values()})


def open_cloud(**options: Any) -> Attester[Simulator]:
    """Open a simulated guest."""
    return open_attester("simulator", seed=SEED, **options)


def verifier_of(tee: Attester[Simulator], **changes: Any) -> Verifier:
    """Return a verifier whose policy names the platform of the evidence."""
    simulator = tee.backend
    names = {"azure-snp": "hcl-snp", "azure-tdx": "hcl-tdx", "gcp-tdx": "dstack-gcp-tdx"}
    names |= {"aws-snp": "dstack-amd-sev-snp", "aws-nitro-tpm": "dstack-aws-nitro-tpm"}
    platform = names.get(simulator.platform, simulator.platform)
    policy = AppraisalPolicy.default().replace(platforms={platform}, **changes)
    try:
        collateral = simulator.collateral()
    except UnsupportedError:
        collateral = None
    return Verifier(trust_anchor=simulator.trust_anchor, collateral=collateral, policy=policy)


def verify_once(tee: Attester[Simulator], **changes: Any) -> AttestationResult:
    """Attest over a new nonce, send the evidence as bytes, and verify it."""
    nonce = secrets.token_bytes(32)
    evidence = tee.attest(nonce=nonce).to_bytes()
    return verifier_of(tee, **changes).verify(evidence, nonce=nonce)
