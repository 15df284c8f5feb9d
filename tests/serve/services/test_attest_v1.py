"""Attest of v1: evidence of both kinds of platform, templates, and GPU evidence of the boot."""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from attestkit.attestation import Attestation
from attestkit.attestation.wire import v1_msgpack
from attestkit.attestation.wire.evidence_parts import Tdx
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.snp import SnpSimulator
from attestkit.event_log import EventLog, Rtmrs
from attestkit.quote import Quote
from attestkit.serve.app_factory import ServerOptions
from attestkit.serve.counters import Stats
from attestkit.serve.machine_info import Machine
from attestkit.serve.rpc import json_codec, protobuf_codec
from attestkit.serve.rpc.messages_v1 import AttestRequest, AttestResponse
from attestkit.serve.services.context import Guest
from attestkit.serve.services.quote_responses import QuoteResponses
from tests.serve.asgi import BINARY_TYPE, Client
from tests.serve.guests import (
    NOW,
    Broken,
    GuestClient,
    MakeGuest,
    make_verifier,
)
from tests.untyped import untyped
from tests.vectors import data, load, needs_shared

VECTORS: Final = load("guest_v1.json")


@pytest.mark.parametrize("size", [0, 1, 63, 64])
@pytest.mark.parametrize("backend", [Simulator, SnpSimulator])
def test_attest_is_v1_msgpack_and_verifies(
    make_guest: MakeGuest, guest_client: GuestClient, backend: type[Simulator], size: int
) -> None:
    """The evidence is msgpack of version 1 over the padded report data, and is valid."""
    guest = make_guest(backend)
    client = guest_client("dstack", guest)
    report_data = bytes(range(100, 100 + size))
    for _ in range(2):  # the second from the template
        response = client.post("/v1/Attest", {"report_data": report_data.hex()})
        assert list(response.json()) == ["attestation", "boottime_gpu_evidence"]
        assert response.json()["boottime_gpu_evidence"] == []
        evidence = bytes.fromhex(response.json()["attestation"])
        assert evidence[0] in v1_msgpack.FIRST_BYTES
        padded = report_data.ljust(64, b"\0")
        assert Attestation.from_bytes(evidence).report_data == padded
        simulator = guest.attester.backend
        assert isinstance(simulator, Simulator)
        verifier = make_verifier(simulator)
        result = verifier.verify(evidence, report_data=padded, now=NOW)
        assert result.app_info is not None
        assert result.app_info.compose_hash == guest.app_compose.compose_hash


def test_attest_equals_evidence_of_v0(guest: Guest, dstack: Client) -> None:
    """Both generations return the same evidence, in different encodings; also after events.

    An event with what the template looks like does not change where quote and report data are.
    """
    for payload in (b"", b"\xdc\x00\x40" + bytes(64), b"\xdc\x00\x40" + b"\1" * 64, bytes(5000)):
        dstack.post("/EmitEvent", {"event": "a", "payload": payload.hex()})
        for report_data in (b"", b"short", b"\xff" * 64, b"\1" * 64):
            message = {"report_data": report_data.hex()}
            new, old = (
                Attestation.from_bytes(
                    bytes.fromhex(dstack.post(path, message).json()["attestation"])
                )
                for path in ("/v1/Attest", "/v0/Attest")
            )
            assert (new.encoding, old.encoding) == ("v1", "v0")
            assert new.report_data == old.report_data == report_data.ljust(64, b"\0")
            assert new.event_log == old.event_log
            assert new.config == old.config == guest.vm_config
            assert new.quote is not None
            assert old.quote is not None
            assert new.quote.report_data == new.report_data
            new.event_log.check(new.quote)
            assert new.quote.rtmrs == old.quote.rtmrs
            assert new.to_bytes("v1") == Attestation(new.evidence).to_bytes("v1")


def test_attest_in_protobuf_equals_json(dstack: Client) -> None:
    """The template's response is the same in protobuf."""
    body = bytes.fromhex("0a 05") + b"nonce"
    binary = dstack.request("POST", "/v1/Attest", body, {"content-type": BINARY_TYPE}).body
    found = dstack.post("/v1/Attest", {"report_data": b"nonce".hex()}).json()["attestation"]
    evidence = bytes.fromhex(found)
    assert protobuf_codec.decode(AttestResponse, binary) == AttestResponse(evidence)


def test_vm_config_is_that_of_the_attester(
    make_guest: MakeGuest, guest_client: GuestClient
) -> None:
    """GetQuote, Info and Attest return the same configuration, and no option replaces it."""
    config = '{"cpu_count": 3}'
    client = guest_client("dstack", make_guest(partial(Simulator, vm_config=config)))
    for path in ("/GetQuote", "/Info", "/v1/Info"):
        assert client.post(path, {"report_data": "ab"}).json()["vm_config"] == config
    for path in ("/Attest", "/v1/Attest"):
        evidence = client.post(path, {"report_data": "ab"}).json()["attestation"]
        assert Attestation.from_bytes(bytes.fromhex(evidence)).config == config
    assert "vm_config" not in ServerOptions._fields


class _PaddedQuote(NamedTuple):
    """A quote with its padding, which attestkit's own quotes do not have."""

    raw: bytes
    rtmrs: Rtmrs


class _FixtureTd:
    """A TD that answers with the quote and log of upstream's fixture, patched."""

    has_quotes = True

    def __init__(self) -> None:
        name = VECTORS["attest"]["fixture"].removeprefix("data/")
        self.fixture = Attestation.from_bytes(data(name))
        self.vm_config = self.fixture.config
        self.evidence_source = self

    def quote_and_log(self, report_data: bytes) -> tuple[_PaddedQuote, EventLog]:
        """Return the fixture's quote with other report data, and its log."""
        platform = self.fixture.evidence.platform
        assert isinstance(platform, Tdx)
        quote = bytearray(platform.quote)
        quote[568:632] = report_data
        return _PaddedQuote(bytes(quote), Quote.parse(bytes(quote)).rtmrs), self.fixture.event_log


@needs_shared
@pytest.mark.parametrize(
    "case",
    [case for case in VECTORS.get("attest", {}).get("cases", []) if "request" in case],
    ids=lambda case: str(case["report_data"])[:8],
)
def test_attest_matches_vectors(case: dict[str, Any]) -> None:
    """The evidence of upstream's fixture has the vectors' bytes, from a template and without."""
    responses = QuoteResponses(untyped(_FixtureTd()), Stats())
    report_data = bytes.fromhex(case["report_data"])
    request = json_codec.decode(AttestRequest, case["request"].encode())
    assert request.report_data.ljust(64, b"\0") == report_data
    for _ in range(2):
        evidence = responses.attest(report_data).message.attestation
        assert len(evidence) == case["length"]
        assert hashlib.sha256(evidence).hexdigest() == case["sha256"]
        assert evidence.hex().startswith(case["first_bytes"])
        assert Attestation.from_bytes(evidence).encoding == case["wire"].lower()
        responses.attest(bytes(64))


def test_attest_failure_is_500(guest_client: GuestClient) -> None:
    """A failure of the platform has its text."""
    response = guest_client("dstack", backend=Broken).post("/v1/Attest")
    assert response.status == 500
    assert response.error() == "Failed to get attestation: no quoting service for 64 bytes"


def test_attest_boottime_gpu_evidence(
    make_guest: MakeGuest, guest_client: GuestClient, tmp_path: Path
) -> None:
    """The file's exact bytes are returned if requested; v0 ignores the request."""
    path = tmp_path / "attestation.out"
    client = guest_client("dstack", make_guest(machine=Machine(gpu_attestation=path)))
    asked = {"report_data": "00", "include_boottime_gpu_evidence": True}
    assert client.post("/v1/Attest", asked).json()["boottime_gpu_evidence"] == []
    path.write_bytes(b' {"\xff":1}\r\n')
    bundle = {
        "vendor": "nvidia",
        "format": "nvidia-nvattest-boottime-json-v1",
        "evidence": b' {"\xff":1}\r\n'.hex(),
    }
    found = client.post("/v1/Attest", asked).json()
    assert found["boottime_gpu_evidence"] == [bundle]
    assert Attestation.from_bytes(bytes.fromhex(found["attestation"])).report_data == bytes(64)
    for other in ({}, {"include_boottime_gpu_evidence": False}):
        assert client.post("/v1/Attest", other).json()["boottime_gpu_evidence"] == []
    assert list(client.post("/v0/Attest", asked).json()) == ["attestation"]
    path.unlink()
    path.mkdir()  # unreadable
    assert client.post("/v1/Attest", asked).json()["boottime_gpu_evidence"] == []
