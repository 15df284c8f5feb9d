"""go-tdx-guest accepts simulated quotes with collateral, and refuses what attestkit refuses."""

from base64 import b64encode
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.pki.pccs import ServedPlatform, SimulatedPccs
from attestkit.backends.simulator.pki.quoting_enclave import TdBody
from attestkit.backends.simulator.scenarios.config import QuoteConfig
from attestkit.backends.simulator.scenarios.registry import SCENARIOS
from tests.rigs.go_programs import missing_for_go
from tests.rigs.go_verifiers.verdicts import (
    GO_TDX_GUEST,
    NOW,
    REPORT_DATA,
    SEED,
    build,
    check_verdicts,
    verify_with_go,
)

_MISSING: Final = missing_for_go(
    ("github.com/google/go-tdx-guest/verify", "golang-github-google-go-tdx-guest-dev")
)
pytestmark = [
    pytest.mark.rig,
    pytest.mark.slow,
    pytest.mark.skipif(bool(_MISSING), reason=_MISSING or "available"),
]

TDX: Final = [name for name, one in SCENARIOS.items() if one.subject == "tdx"]
TARGETS: Final = (
    "/tdx/certification/v4/tcb?fmspc=507757000000",
    "/tdx/certification/v4/qe/identity",
    "/sgx/certification/v4/pckcrl?ca=platform&encoding=der",
    "/IntelSGXRootCA.der",
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the verifier."""
    return build(tmp_path_factory.mktemp("go"), "tdx")


def make_case(name: str) -> dict[str, Any]:
    """Return quote, root and the PCCS's responses in a scenario."""
    td = Simulator(seed=SEED, scenario=name, now=lambda: NOW)
    pccs = SimulatedPccs(td.collateral, [ServedPlatform(*td.served_platform)])
    responses = {}
    for target in TARGETS:
        found = pccs.respond(*target.partition("?")[::2])
        assert found.status == 200
        responses[target] = {
            "Headers": dict(found.headers),
            "Body": b64encode(found.body).decode(),
        }
    return {
        "Quote": b64encode(td.get_quote(REPORT_DATA)).decode(),
        "Root": b64encode(td.trust_anchor).decode(),
        "Now": NOW,
        "Responses": responses,
        "VendorID": b64encode(QuoteConfig().vendor_id).decode(),
        "Attributes": b64encode(TdBody().td_attributes).decode(),
    }


def test_go_tdx_guest_agrees(program: Path) -> None:
    """With collateral, revocation, vendor id and TD attributes; the differences are known."""
    errors = verify_with_go(program, [make_case(name) for name in TDX])
    check_verdicts(dict(zip(TDX, errors, strict=True)), GO_TDX_GUEST)
