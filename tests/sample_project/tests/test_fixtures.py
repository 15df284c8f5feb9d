"""Fixtures of the plugin, and the methods of their TEEs."""

import http.client
import json
import os
import socket
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from attestkit import Collateral, EventLog, Quote, Verifier, verify_signature
from attestkit.errors import UnsupportedError
from attestkit.testing import SimulatedTee


def request_method(path: Path | str, target: str, message: object) -> Any:
    """Return the response of a method, on a socket or a URL."""
    if isinstance(path, str):
        data = json.dumps(message).encode()
        kind = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{path}/{target}", data, kind)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)
    with closing(http.client.HTTPConnection("localhost", timeout=30)) as connection:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(path))
        connection.request("POST", f"/{target}", json.dumps(message))
        return json.loads(connection.getresponse().read())


def test_tee_evidence_verifies(tee: SimulatedTee) -> None:
    """Quote, event log and keys are of one TEE."""
    assert tee.simulated
    quote = tee.quote(b"nonce")
    assert quote.report_data == b"nonce".ljust(64, b"\0")
    assert tee.raw_quote(b"nonce") == quote.raw
    event = tee.emit("model-loaded", b"v1")
    log = tee.event_log()
    assert log.events[-1] == event
    log.check(tee.quote())
    result = tee.verify(tee.attest(b"nonce").to_bytes(), report_data=b"nonce")
    assert (result.tcb_status, result.simulated) == ("UpToDate", True)
    assert result.app_info is not None
    assert result.app_info.app_id == tee.info().app_id
    signed = tee.keys.sign(b"message", "secp256k1")
    assert verify_signature("secp256k1", b"message", signed.signature, signed.public_key)


def test_tee_root_and_collateral_work_in_own_verifier(tee: SimulatedTee) -> None:
    """A Verifier can be built from them."""
    verifier = Verifier(trust_anchor=tee.trust_anchor, collateral=tee.collateral)
    assert verifier.verify(tee.quote(b"x"), report_data=b"x").simulated


@pytest.mark.parametrize("again", [1, 2])
def test_reset_discards_events_and_faults(tee: SimulatedTee, again: int) -> None:
    """Each test starts in this state."""
    before = tee.attester.registers()
    for _ in range(again):
        tee.emit("something")
    tee.arm("eio:*")
    tee.reset()
    assert tee.attester.registers() == before
    assert tee.quote().rtmrs == before


def test_server_has_the_same_tee(tee: SimulatedTee) -> None:
    """Sockets and URLs give equal quotes, with events of clients."""
    request_method(tee.socket, "EmitEvent", {"event": "theirs", "payload": "01"})
    for place in (tee.socket, tee.url):
        answer = request_method(place, "GetQuote", {"report_data": "ab"})
        quote = Quote.parse(bytes.fromhex(answer["quote"]))
        assert quote == tee.quote(b"\xab")
        EventLog.parse(answer["event_log"].encode()).check(quote)
    assert tee.event_log().events[-1].name == "theirs"
    assert (
        request_method(tee.tappd_socket, "prpc/Tappd.Info", {})["app_id"] == tee.info().app_id.hex()
    )
    assert request_method(tee.http_url, "prpc/Worker.Version", {})["version"]


def test_pccs_serves_the_tees_collateral(tee: SimulatedTee) -> None:
    """Fetched collateral equals the TEE's."""
    fetched = Collateral.fetch(tee.quote(), tee.pccs_url)
    assert fetched.tcb_info == tee.collateral.tcb_info
    assert tee.verify(tee.quote(), report_data=b"", pccs_url=tee.pccs_url).tcb_status == "UpToDate"


def test_client_variables_are_set(tee: SimulatedTee) -> None:
    """Official clients read them."""
    assert tee.client.items() <= os.environ.items()
    assert Path(os.environ["DSTACK_SIMULATOR_ENDPOINT"]) == tee.socket
    assert Path(os.environ["TAPPD_SIMULATOR_ENDPOINT"]) == tee.tappd_socket
    assert os.environ["PCCS_URL"] == tee.pccs_url


def test_client_variables_are_restored_for_the_next_test() -> None:
    """The variables end with the test."""
    assert "DSTACK_SIMULATOR_ENDPOINT" not in os.environ


@pytest.mark.parametrize("number", range(2))
def test_session_tee_keeps_state_between_tests(tee_session: SimulatedTee, number: int) -> None:
    """Its server stays running."""
    names = [event.name for event in tee_session.event_log().events]
    assert names.count("counted") == number
    request_method(tee_session.url, "EmitEvent", {"event": "counted", "payload": ""})


@pytest.mark.parametrize("version", [4, 5])
def test_factory_creates_several_tees(
    tee_factory: Callable[..., SimulatedTee], version: int
) -> None:
    """Each has a quote version and a server of its own."""
    one, two = tee_factory(quote_version=version), tee_factory(seed=b"2" * 32)
    assert one.quote().version == version
    assert one.trust_anchor != two.trust_anchor
    assert request_method(one.url, "Info", {}) != request_method(two.url, "Info", {})


def test_snp_tee_has_reports_only(tee_factory: Callable[..., SimulatedTee]) -> None:
    """It has neither quotes nor Intel's collateral."""
    tee = tee_factory(platform="snp")
    assert tee.verify(tee.attest(b"x"), report_data=b"x").simulated
    for refused in (tee.quote, lambda: tee.collateral):
        with pytest.raises(UnsupportedError):
            refused()
    assert "PCCS_URL" not in tee.client


def test_state_dir_restores_the_tee(
    tee_factory: Callable[..., SimulatedTee], tmp_path: Path
) -> None:
    """A later TEE with the same directory has the same registers."""
    first = tee_factory(state_dir=tmp_path / "tee")
    first.emit("kept")
    registers = first.attester.registers()
    first.close()
    assert tee_factory(state_dir=tmp_path / "tee").attester.registers() == registers
