"""The server on the simulator as an SEV-SNP guest answers as on hardware, and can be believed."""

import asyncio
import json

import pytest

from attestkit.backends.simulator.snp_simulator import SnpSimulator
from attestkit.errors import UsageError
from attestkit.serve import listener_apps
from attestkit.serve.services.context import Guest
from attestkit.verifier import Verifier
from tests.serve.asgi import Client
from tests.serve.guests import NOW, MakeGuest


@pytest.fixture
def guest(make_guest: MakeGuest) -> Guest:
    """An app in an SEV-SNP guest."""
    return make_guest(SnpSimulator, {"public_tcbinfo": True})


@pytest.mark.parametrize("method", ["/GetQuote", "/Attest"])
def test_its_evidence_is_believed_under_its_root(guest: Guest, dstack: Client, method: str) -> None:
    """Report data, app and certificates are all there; no quote of TDX is."""
    answer = dstack.post(method, {"report_data": "12" * 64}).json()
    assert answer.get("quote", "") == ""
    simulator = guest.attester.backend
    assert isinstance(simulator, SnpSimulator)
    result = Verifier(simulator.trust_anchor).verify(
        bytes.fromhex(answer["attestation"]), report_data=b"\x12" * 64, now=NOW
    )
    assert result.simulated
    assert result.app_info is not None
    assert result.app_info.compose_hash == guest.attester.app_compose.compose_hash


def test_what_it_says_of_itself(dstack: Client, tappd: Client) -> None:
    """The app is that of the launch; events are refused, and so are quotes of TDX."""
    info = dstack.get("/Info").json()
    assert info["app_id"] == info["compose_hash"][:40]
    assert json.loads(info["tcb_info"])["event_log"] == []
    assert dstack.post("/GetKey", {"path": "a"}).status == 200
    assert dstack.post("/GetTlsKey", {"usage_ra_tls": True}).status == 200
    assert "registers" in dstack.post("/EmitEvent", {"event": "a", "payload": ""}).error()
    response = tappd.post("/prpc/Tappd.TdxQuote", {"report_data": "00" * 64})
    assert response.status == 500
    assert "no TDX quote" in response.error()


def test_there_is_no_intel_to_ask(guest: Guest, loop: asyncio.AbstractEventLoop) -> None:
    """A PCCS serves collateral for TDX; the pages of the TCP listener are there."""
    with pytest.raises(UsageError, match="for the simulated TD only"):
        listener_apps.collateral_app(guest)
    assert Client(listener_apps.external_app(guest), loop).get("/").status == 200
