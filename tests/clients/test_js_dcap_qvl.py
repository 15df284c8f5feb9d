"""The JavaScript verifier agrees: the simulator's quotes hold under its root and no other."""

from typing import Final

import pytest

from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.quoting_enclave import QuotingEnclave, TdBody
from attestkit.collateral import Collateral
from tests.backends.simulator.simulated_cases import CASES, VECTORS
from tests.clients.js_dcap_qvl import case, judge, node_program
from tests.vectors import needs_shared

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


def test_the_simulators_root_is_accepted_when_it_is_given(node: str) -> None:
    """Quotes of all layouts are up to date under the root that made them."""
    pki = SimulatedPki(SEED)
    cases = [case(quote, pki.collateral(NOW), NOW, pki.root_der) for quote in quotes(pki)]
    assert judge(node, cases) == [{"status": "UpToDate", "advisories": []}] * len(LAYOUTS)


def test_intels_root_and_strangers_refuse(node: str) -> None:
    """The same quotes are refused with the library's default root, and with another seed's."""
    pki, stranger = SimulatedPki(SEED), SimulatedPki(bytes(32)).root_der
    cases = [
        case(quote, pki.collateral(NOW), NOW, root)
        for quote in quotes(pki)
        for root in (None, stranger)
    ]
    for verdict in judge(node, cases):
        assert "Failed to verify certificate chain" in verdict["error"]


def test_one_flipped_bit_is_refused(node: str) -> None:
    """A bit of header, body, signatures, key or QE report: none may change."""
    pki = SimulatedPki(SEED)
    quote = quotes(pki)[0]
    cases = []
    for offset in (40, 100, 200, 400, 600, 640, 720, 780, 900, 1100, 1160, 1225):
        changed = bytearray(quote)
        changed[offset] ^= 1
        cases.append(case(bytes(changed), pki.collateral(NOW), NOW, pki.root_der))
    verdicts = judge(node, cases)
    assert all("error" in verdict for verdict in verdicts), verdicts


@needs_shared
def test_all_cases_come_out_as_observed(node: str) -> None:
    """Each of the 42 cases gives the outcome, and where refused the text, that was observed."""
    cases = [
        case(
            (VECTORS / each["quote"]).read_bytes(),
            Collateral.load(VECTORS / each["collateral"]),
            each["now"],
            (VECTORS / each["root"]).read_bytes(),
        )
        for each in CASES
    ]
    for each, verdict in zip(CASES, judge(node, cases), strict=True):
        observed = each["observed"]["@phala/dcap-qvl 0.3.9"]
        if "status" in verdict:
            assert observed == f"accept:{verdict['status']}", each["id"]
        else:
            text = " ".join(verdict["error"].split())
            # The vectors put the error's cause behind a slash.
            assert observed.split(" / ")[0] == f"reject: {text[:160]}", each["id"]
