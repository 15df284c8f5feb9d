"""The server on a simulated SEV-SNP guest."""

import pytest

from attestkit.backends.simulator.snp_simulator import SnpSimulator
from attestkit.errors import UsageError
from attestkit.serve import listener_apps
from attestkit.serve.services.context import Guest
from attestkit.verifier import Verifier
from tests.raising import raises
from tests.serve.asgi import Client
from tests.serve.guests import NOW, GuestClient, MakeGuest


@pytest.fixture
def guest(make_guest: MakeGuest) -> Guest:
    """Return an app in an SEV-SNP guest."""
    return make_guest(SnpSimulator, {"public_tcbinfo": True})


@pytest.mark.parametrize("method", ["/GetQuote", "/Attest"])
def test_evidence_verifies_under_simulator_root(guest: Guest, dstack: Client, method: str) -> None:
    """The evidence verifies with report data, app and certificates; the quote is empty."""
    answer = dstack.post(method, {"report_data": "12" * 64}).json()
    assert answer.get("quote", "") == ""
    simulator = guest.attester.backend
    assert isinstance(simulator, SnpSimulator)
    result = Verifier(trust_anchor=simulator.trust_anchor).verify(
        bytes.fromhex(answer["attestation"]), report_data=b"\x12" * 64, now=NOW
    )
    assert result.simulated
    assert result.app_info is not None
    assert result.app_info.compose_hash == guest.attester.app_compose.compose_hash


def test_pccs_is_refused(guest_client: GuestClient, guest: Guest) -> None:
    """A PCCS serves TDX collateral only; the pages work."""
    with raises(UsageError, "not_applicable"):
        listener_apps.collateral_app(guest)
    assert guest_client("external", guest).get("/").status == 200
