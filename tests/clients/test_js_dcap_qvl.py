"""The JavaScript verifier accepts the simulator's quotes under its root only."""

from typing import Final

import pytest

from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.quoting_enclave import (
    SGX_COLLATERAL,
    QuotingEnclave,
    SgxQuotingEnclave,
    SimulatedEnclave,
    TdBody,
)
from attestkit.collateral import Collateral
from tests.backends.simulator.simulated_cases import CASES, VECTORS
from tests.clients.js_dcap_qvl import encode_case, node_program, verify_with_javascript
from tests.vectors import needs_shared

pytestmark = pytest.mark.slow

NOW: Final = 1790000000
SEED: Final = bytes.fromhex("6b" * 32)
LAYOUTS: Final = ((4, False), (5, False), (5, True))  # version, TD 1.5


@pytest.fixture(scope="module")
def node() -> str:
    """Return the path of node, where it and the verifier are installed."""
    return node_program()


def quotes(pki: SimulatedPki) -> list[bytes]:
    """Return a quote of each layout."""
    enclave, body = QuotingEnclave(pki), TdBody(report_data=bytes(range(64)))
    return [
        enclave.quote(body.td15() if is_td15 else body.td10(), version=version)
        for version, is_td15 in LAYOUTS
    ]


def test_simulator_root_is_accepted(node: str) -> None:
    """Quotes of all layouts are UpToDate under the simulator's root."""
    pki = SimulatedPki(SEED)
    cases = [encode_case(quote, pki.collateral(NOW), NOW, pki.root_der) for quote in quotes(pki)]
    assert verify_with_javascript(node, cases) == [{"status": "UpToDate", "advisories": []}] * len(
        LAYOUTS
    )


def test_other_roots_are_refused(node: str) -> None:
    """The quotes are refused under Intel's root and another simulator's."""
    pki, other_root = SimulatedPki(SEED), SimulatedPki(bytes(32)).root_der
    cases = [
        encode_case(quote, pki.collateral(NOW), NOW, root)
        for quote in quotes(pki)
        for root in (None, other_root)
    ]
    for verdict in verify_with_javascript(node, cases):
        assert "Failed to verify certificate chain" in verdict["error"]


def test_sgx_quote_is_accepted_under_its_own_root_only(node: str) -> None:
    """A simulated SGX quote is UpToDate; a flipped bit and other roots are refused."""
    pki = SimulatedPki(SEED)
    quote, collateral = SgxQuotingEnclave(pki).quote(SimulatedEnclave()), SGX_COLLATERAL
    changed = quote[:112] + bytes([quote[112] ^ 1]) + quote[113:]  # MRENCLAVE
    given = pki.collateral(NOW, collateral)
    cases = [encode_case(quote, given, NOW, pki.root_der), encode_case(quote, given, NOW, None)]
    cases.append(encode_case(changed, given, NOW, pki.root_der))
    accepted, *refused = verify_with_javascript(node, cases)
    assert accepted == {"status": "UpToDate", "advisories": []}
    assert all("error" in verdict for verdict in refused), refused


def test_flipped_bit_is_refused(node: str) -> None:
    """A flipped bit in header, body, signatures, key or QE report is refused."""
    pki = SimulatedPki(SEED)
    quote = quotes(pki)[0]
    cases = []
    for offset in (40, 100, 200, 400, 600, 640, 720, 780, 900, 1100, 1160, 1225):
        changed = bytearray(quote)
        changed[offset] ^= 1
        cases.append(encode_case(bytes(changed), pki.collateral(NOW), NOW, pki.root_der))
    verdicts = verify_with_javascript(node, cases)
    assert all("error" in verdict for verdict in verdicts), verdicts


@pytest.mark.slow
@needs_shared
def test_cases_match_vectors(node: str) -> None:
    """Each of the 42 cases has the vectors' outcome and error text."""
    cases = [
        encode_case(
            (VECTORS / each["quote"]).read_bytes(),
            Collateral.load(VECTORS / each["collateral"]),
            each["now"],
            (VECTORS / each["root"]).read_bytes(),
        )
        for each in CASES
    ]
    for each, verdict in zip(CASES, verify_with_javascript(node, cases), strict=True):
        observed = each["observed"]["@phala/dcap-qvl 0.3.9"]
        if "status" in verdict:
            assert observed == f"accept:{verdict['status']}", each["id"]
        else:
            text = " ".join(verdict["error"].split())
            # The vectors have the cause after a slash.
            assert observed.split(" / ")[0] == f"reject: {text[:160]}", each["id"]
