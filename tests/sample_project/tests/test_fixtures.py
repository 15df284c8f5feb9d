"""Fixtures of the plugin, and the methods of their TEEs."""

import http.client
import json
import socket
import urllib.request
from contextlib import closing
from typing import Any

import pytest

from attestkit import EventLog, Quote, verify_signature
from attestkit.testing import SimulatedTee


def request_method(path: str, target: str, message: object) -> Any:
    """Return the response of a method, on a socket or a URL."""
    if path.startswith("http"):
        data = json.dumps(message).encode()
        kind = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{path}/{target}", data, kind)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)
    with closing(http.client.HTTPConnection("localhost", timeout=30)) as connection:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(path)
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
    result = tee.verify(tee.attest(report_data=b"nonce", pad=True).to_bytes(), report_data=b"nonce")
    assert (result.tcb.status, result.simulated) == ("UpToDate", True)
    assert result.app_info is not None
    assert result.app_info.app_id == tee.app_info.app_id
    signed = tee.keys.sign(b"message", "secp256k1")
    verify_signature(signed.public_key, signed.signature, b"message", algorithm="secp256k1")


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
        request_method(tee.tappd_socket, "prpc/Tappd.Info", {})["app_id"]
        == tee.app_info.app_id.hex()
    )
    assert request_method(tee.http_url, "prpc/Worker.Version", {})["version"]


@pytest.mark.parametrize("number", range(2))
def test_session_tee_keeps_state_between_tests(tee_session: SimulatedTee, number: int) -> None:
    """Its server stays running."""
    names = [event.name for event in tee_session.event_log().events]
    assert names.count("counted") == number
    request_method(tee_session.url, "EmitEvent", {"event": "counted", "payload": ""})
