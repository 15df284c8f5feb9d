"""go-sev-guest accepts simulated reports with revocation, and refuses what attestkit refuses."""

from base64 import b64encode
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec.structs import replace

from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.pki.amd_chip import SimulatedChip
from attestkit.backends.simulator.pki.intel_pki import derive
from attestkit.backends.simulator.scenarios.config import Scenario, SnpConfig, SnpSigningKey
from attestkit.backends.simulator.scenarios.registry import SCENARIOS, scenario
from attestkit.backends.simulator.snp import SnpSimulator
from tests.rigs.go_programs import missing_for_go
from tests.rigs.go_verifiers.verdicts import (
    GO_SEV_GUEST,
    NOW,
    REPORT_DATA,
    SEED,
    build,
    check_verdicts,
    verify_with_go,
)

_MISSING: Final = missing_for_go(
    ("github.com/google/go-sev-guest/verify", "golang-github-google-go-sev-guest-dev")
)
pytestmark = [
    pytest.mark.rig,
    pytest.mark.slow,
    pytest.mark.skipif(bool(_MISSING), reason=_MISSING or "available"),
]

SNP: Final = [name for name, one in SCENARIOS.items() if one.subject == "snp"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the verifier."""
    return build(tmp_path_factory.mktemp("go"), "snp")


def make_root(scenario: Scenario, key: SnpSigningKey) -> SimulatedChip:
    """Return a chip whose ARK and ASK, or ASVK, are the trusted ones."""
    label = scenario.trust_anchor
    seed = derive(SEED, f"seed/{label}", 32) if isinstance(label, str) else SEED
    config = replace(scenario.snp, signing_key=key)
    return SimulatedChip(lambda name, length: derive(seed, name, length), config)


def make_case(scenario: Scenario) -> dict[str, Any]:
    """Return report, certificates, roots and CRL in a scenario."""
    guest: object = Simulator(seed=SEED, scenario=scenario, now=lambda: NOW)
    assert isinstance(guest, SnpSimulator)
    evidence = guest.get_snp_report(REPORT_DATA)
    product = scenario.snp.product
    root = make_root(scenario, "VCEK")
    assert root.ark_der == guest.trust_anchor
    content = {
        "Report": evidence.report,
        "Certificates": evidence.certificates,
        "Ark": root.ark_der,
        "Ask": root.ask_der,
        "Asvk": make_root(scenario, "VLEK").ask_der,
    }
    return {
        **{name: b64encode(data).decode() for name, data in content.items()},
        "Product": product,
        "Now": NOW,
        "Responses": {
            f"https://kdsintf.amd.com/{kind}/v1/{product}/crl": b64encode(root.crl(NOW)).decode()
            for kind in ("vcek", "vlek")
        },
    }


def test_go_sev_guest_agrees(program: Path) -> None:
    """With revocation, policy, VMPL, TCB and chip; the differences are known."""
    cases = [make_case(scenario(name)) for name in SNP]
    errors = verify_with_go(program, cases)
    check_verdicts(dict(zip(SNP, errors, strict=True)), GO_SEV_GUEST)


def test_go_sev_guest_accepts_each_product_key_and_version(program: Path) -> None:
    """Except Turin, whose FMC extension it does not know, and version 5."""
    chosen = [
        SnpConfig(product=product, signing_key=key, report_version=version)
        for product in ("Milan", "Genoa", "Turin")
        for key in ("VCEK", "VLEK")
        for version in (2, 3, 4, 5)
    ]
    cases = [make_case(Scenario(platform="snp", snp=config)) for config in chosen]
    for config, error in zip(chosen, verify_with_go(program, cases), strict=True):
        if config.product == "Turin":
            assert "not an AMD KDS OID: 1.3.6.1.4.1.3704.1.3.9" in error
        elif config.report_version == 5:
            assert "report version is: 5. Expected between 2 and 4" in error
        else:
            assert not error, config
