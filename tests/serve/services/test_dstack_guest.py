"""The DstackGuest service: responses and errors of every method."""

import asyncio
import json
import threading
from typing import Any
from unittest.mock import Mock

import pytest

from attestkit import ra_tls
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit.attestation import Attestation
from attestkit.attestation.wire import v1_msgpack
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.snp import SnpSimulator
from attestkit.errors import BackendError
from attestkit.event_log import EventLog
from attestkit.quote import Quote
from attestkit.serve import listener_apps
from attestkit.serve.services.context import Guest, Release
from tests.serve.asgi import BINARY_TYPE, Client
from tests.serve.guests import Broken, Counting, GuestClient, MakeGuest, without_keys
from tests.serve.services.test_request_fields import VALID
from tests.vectors import load, needs_shared

GETKEY = load("getkey.json")
SIGN_VERIFY = load("sign_verify.json")
REPORT_DATA = load("report_data.json")


@needs_shared
@pytest.mark.parametrize("case", GETKEY.get("cases", []), ids=lambda case: str(case["request"]))
def test_get_key_matches_vectors(
    vector_dstack: Client, vector_tappd: Client, case: dict[str, Any]
) -> None:
    """Key and chain equal the vectors, also under the legacy names."""
    expected = json.dumps(case["response"], separators=(",", ":"))
    response = vector_dstack.post("/GetKey", case["request"])
    assert (response.status, response.body) == (200, expected.encode())
    legacy = expected.replace('"key"', '"k256_key"').replace("signature_", "k256_signature_")
    assert vector_tappd.post("/prpc/DeriveK256Key", case["request"]).body == legacy.encode()


@needs_shared
@pytest.mark.parametrize("case", GETKEY.get("errors", []), ids=lambda case: str(case["request"]))
def test_get_key_unsupported_algorithm(vector_dstack: Client, case: dict[str, Any]) -> None:
    """The error body equals the vectors."""
    response = vector_dstack.post("/GetKey", case["request"])
    assert (response.status, response.body) == (case["status"], case["body"].encode())


@needs_shared
@pytest.mark.parametrize("case", SIGN_VERIFY.get("sign", []), ids=lambda case: str(case["request"]))
def test_sign_matches_vectors(vector_dstack: Client, case: dict[str, Any]) -> None:
    """Signature, chain and key equal the vectors."""
    response = vector_dstack.post("/Sign", case["request"])
    expected = json.dumps(case["response"], separators=(",", ":"))
    assert (response.status, response.body) == (200, expected.encode())


ETHEREUM = "\x19Ethereum Signed Message:\n70"


def test_get_key_of_purpose_with_control_character_is_400(dstack: Client, tappd: Client) -> None:
    """The root key signs no purpose that begins like another protocol's message."""
    message = {"purpose": ETHEREUM}
    for response in (dstack.post("/GetKey", message), tappd.post("/prpc/DeriveK256Key", message)):
        assert (response.status, "control character" in response.error()) == (400, True)


def test_key_methods_accept_any_path(dstack: Client, tappd: Client) -> None:
    """A path is not signed, so it may have control characters, as with an agent of dstack."""
    message = {"path": ETHEREUM}
    key = dstack.post("/GetKey", message).json()["key"]
    assert tappd.post("/prpc/DeriveK256Key", message).json()["k256_key"] == key
    for random_seed in (False, True):
        response = tappd.post("/prpc/DeriveKey", {**message, "random_seed": random_seed})
        assert response.status == 200


@needs_shared
@pytest.mark.parametrize("case", SIGN_VERIFY.get("verify", []), ids=str)
def test_verify_matches_vectors(dstack: Client, case: dict[str, Any]) -> None:
    """The result equals the vectors."""
    response = dstack.post("/Verify", case["request"])
    assert (response.status, response.json()) == (200, case["response"])


@needs_shared
@pytest.mark.parametrize("case", SIGN_VERIFY.get("errors", []), ids=str)
def test_sign_and_verify_malformed_input_is_400(
    vector_dstack: Client, case: dict[str, Any]
) -> None:
    """Malformed input is a 400, with the vectors' text where given."""
    response = vector_dstack.post(f"/{case['method']}", case["request"])
    assert response.status == 400
    text = response.error()
    assert text.startswith(case.get("error") or "")


@needs_shared
@pytest.mark.parametrize("case", REPORT_DATA.get("pad64", []), ids=lambda case: str(case["input"]))
@pytest.mark.parametrize("name", ["GetQuote", "Attest"])
def test_report_data_is_zero_padded(dstack: Client, name: str, case: dict[str, Any]) -> None:
    """The padded report data is in the response, the quote and the evidence."""
    response = dstack.post(f"/{name}", {"report_data": case["input"]}).json()
    want = bytes.fromhex(case["report_data"])
    if name == "GetQuote":
        assert response["report_data"] == case["report_data"]
        quote = Quote.parse(bytes.fromhex(response["quote"]))
    else:
        evidence = Attestation.from_bytes(bytes.fromhex(response["attestation"]))
        assert evidence.report_data == want
        assert evidence.quote is not None
        quote = evidence.quote
    assert quote.report_data == want


def test_get_quote_log_replays(guest: Guest, dstack: Client) -> None:
    """The event log replays to the quote and has the documented format."""
    response = dstack.post("/GetQuote", {"report_data": "1234"}).json()
    assert list(response) == ["quote", "event_log", "report_data", "vm_config"]
    assert response["vm_config"] == guest.attester.vm_config
    quote = Quote.parse(bytes.fromhex(response["quote"]))
    EventLog.parse(response["event_log"]).check(quote)
    events = json.loads(response["event_log"])
    assert response["event_log"] == json.dumps(events, separators=(",", ":"))
    assert {event["imr"] for event in events} == {0, 1, 2, 3}
    for event in events:
        assert list(event) == ["imr", "event_type", "digest", "event", "event_payload"]
        assert len(event["digest"]) == 96
        acpi = bytes.fromhex(event["event_payload"]) == b"ACPI DATA"
        assert event["imr"] == 3 or acpi or event["event_payload"] == ""


@pytest.mark.parametrize("name", ["GetQuote", "Attest"])
def test_reserved_fields_of_quote_request_are_ignored(dstack: Client, name: str) -> None:
    """Fields 2 to 4 of RawQuoteArgs, which are reserved, do not matter."""
    body = bytes.fromhex("0a021234 120161 1a0162 2001")
    response = dstack.request("POST", f"/v0/{name}", body, {"content-type": BINARY_TYPE})
    assert response.status == 200
    assert bytes.fromhex("1234") + bytes(62) in response.body
    message = {"report_data": "1234", "include_boottime_gpu_evidence": True, "prefix": 1}
    assert dstack.post(f"/v0/{name}", message).status == 200


def test_attest_evidence_is_complete(guest: Guest, dstack: Client) -> None:
    """The evidence decodes, replays, and contains the app's identity."""
    response = dstack.get("/Attest?report_data=1234").json()
    assert response["attestation"].startswith("00")  # version 0, for older verifiers
    evidence = Attestation.from_bytes(bytes.fromhex(response["attestation"]))
    assert evidence.quote is not None
    evidence.event_log.check(evidence.quote)
    assert evidence.app_info.compose_hash == guest.app_compose.compose_hash
    assert any(event.payload for event in evidence.event_log.events if event.register == 0)


@pytest.mark.parametrize("name", ["GetQuote", "Attest", "Info", "GetTlsKey"])
def test_quote_failure_is_500(guest_client: GuestClient, name: str) -> None:
    """The error states the failed operation and the cause."""
    response = guest_client("dstack", backend=Broken).post(f"/{name}")
    operation = {"GetQuote": "quote", "GetTlsKey": "certificate attestation"}.get(
        name, "attestation"
    )
    assert response.status == 500
    assert response.error() == f"Failed to get {operation}: no quoting service for 64 bytes"


def test_emit_event_appears_in_later_evidence(dstack: Client) -> None:
    """EmitEvent returns null; the event is the last one in later logs."""
    before = json.loads(dstack.get("/Info").json()["tcb_info"])
    dstack.get("/GetQuote")
    response = dstack.post("/EmitEvent", {"event": "цель", "payload": "0xDEADbeef"})
    assert (response.status, response.body) == (200, b"null")
    quoted = dstack.get("/GetQuote").json()
    quote = Quote.parse(bytes.fromhex(quoted["quote"]))
    EventLog.parse(quoted["event_log"]).check(quote)
    last = json.loads(quoted["event_log"])[-1]
    assert (last["event"], last["event_payload"]) == ("цель", "deadbeef")
    after = json.loads(dstack.get("/Info").json()["tcb_info"])
    assert after["rtmr3"] == quote.rtmrs[3].hex() != before["rtmr3"]
    assert after["event_log"][:-1] == before["event_log"]
    assert after["event_log"][-1] == last


RESERVED = (
    *("system-preparing", "app-id", "compose-hash", "init-script-hash", "gpu-policy-hash"),
    *("gpu-attestation", "instance-id", "boot-mr-done", "os-image-hash", "key-provider"),
    *("storage-fs", "system-ready"),
)


@pytest.mark.parametrize("name", [*RESERVED, "a:b"])
def test_emit_event_reserved_name_is_refused(dstack: Client, name: str) -> None:
    """Names of boot events and names with a colon are refused."""
    before = dstack.get("/GetQuote").json()["event_log"]
    response = dstack.post("/EmitEvent", {"event": name, "payload": "00"})
    assert response.status == 400
    assert name in response.error()
    assert dstack.get("/GetQuote").json()["event_log"] == before


@needs_shared
@pytest.mark.parametrize("backend", [Simulator, SnpSimulator])
def test_emit_event_removed(
    make_guest: MakeGuest, guest_client: GuestClient, backend: type[Simulator]
) -> None:
    """If configured, EmitEvent is refused with the vectors' text on each path, and does nothing."""
    errors = load("guest_v1.json")["errors"]
    [row] = [row for row in errors if row["name"] == "EmitEvent, upstream form"]
    status = row["upstream_status"]
    guest = make_guest(backend, has_emit_event=False)
    before = guest.attest(b"").event_log
    message = {"event": "a", "payload": "00"}
    binary = bytes.fromhex("0a0161 120100")
    for listener, path in (
        *(("dstack", path) for path in ("/EmitEvent", "/v0/EmitEvent")),
        *(("tappd", path) for path in ("/EmitEvent", "/prpc/Tappd.EmitEvent")),
        *(("dev", path) for path in ("/EmitEvent", "/v0/EmitEvent", "/prpc/EmitEvent")),
    ):
        client = guest_client(listener, guest)
        response = client.post(path, message)
        assert (response.status, response.body) == (status, row["json_body"].encode())
        assert response.error() == row["error"]
        if listener != "dev":
            response = client.request("POST", path, binary, {"content-type": BINARY_TYPE})
            assert (response.status, response.body.hex()) == (status, row["protobuf_body"])
    dstack = guest_client("dstack", guest)
    assert dstack.post("/v1/EmitEvent", message).error() == "Service not found: EmitEvent"
    assert guest.attest(b"").event_log == before


def test_event_log_version_2(guest_client: GuestClient) -> None:
    """Version 2 permits colons and adds the preimage; Attest uses evidence version 1."""
    client = guest_client("dstack", compose={"event_log_version": 2})
    assert client.post("/EmitEvent", {"event": "a:b", "payload": "00"}).status == 200
    for name in RESERVED:
        assert client.post("/EmitEvent", {"event": name}).status == 400
    quoted = client.get("/GetQuote").json()
    EventLog.parse(quoted["event_log"]).check(Quote.parse(bytes.fromhex(quoted["quote"])))
    assert list(json.loads(quoted["event_log"])[-1])[-2:] == ["version", "preimage"]
    in_info = json.loads(client.get("/Info").json()["tcb_info"])["event_log"][-1]
    assert list(in_info)[-1] == "version"
    evidence = bytes.fromhex(client.get("/Attest").json()["attestation"])
    assert evidence[0] in v1_msgpack.FIRST_BYTES
    assert b"preimage" in evidence


INFO_KEYS = [
    *("app_id", "instance_id", "app_cert", "tcb_info", "app_name", "device_id", "mr_aggregated"),
    *("os_image_hash", "key_provider_info", "compose_hash", "vm_config"),
    *("cloud_vendor", "cloud_product"),
]
TCB_KEYS = [
    *("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"),
    *("mr_aggregated", "os_image_hash", "compose_hash", "device_id", "event_log", "app_compose"),
]


def test_info_describes_app(guest: Guest, dstack: Client) -> None:
    """Info contains identity, registers, event log and compose file."""
    info = dstack.get("/Info").json()
    assert list(info) == INFO_KEYS
    app = guest.attester.app_info
    for name in ("app_id", "instance_id", "device_id", "mr_aggregated", "compose_hash"):
        assert info[name] == getattr(app, name).hex()
    assert info["os_image_hash"] == app.os_image_hash.hex() != ""
    assert info["app_name"] == "an app"
    assert info["vm_config"] == guest.attester.vm_config
    assert json.loads(info["key_provider_info"])["name"] == "none"
    assert info["cloud_vendor"] == "attestkit simulator"
    tcb_info = json.loads(info["tcb_info"])
    assert info["tcb_info"] == json.dumps(tcb_info, indent=2, ensure_ascii=False)
    assert list(tcb_info) == TCB_KEYS
    quote = guest.attester.get_quote(b"")
    registers = [bytes.fromhex(tcb_info[f"rtmr{n}"]) for n in range(4)]
    assert (bytes.fromhex(tcb_info["mrtd"]), *registers) == (quote.mrtd, *quote.rtmrs)
    assert tcb_info["app_compose"].encode() == guest.app_compose.raw
    log = EventLog.parse(json.dumps(tcb_info["event_log"]))
    log.check(quote)
    assert any(event.payload for event in log.events if event.register == 0)


def test_info_app_cert_contains_evidence(guest: Guest, dstack: Client) -> None:
    """app_cert is a client certificate with evidence, issued once."""
    chain = dstack.get("/Info").json()["app_cert"]
    leaf = read_certificate(chain)
    assert leaf.subject == "CN=demo-cert"
    assert ra_tls.read(chain).quote is not None
    assert leaf.extensions.keys() == {
        *("2.5.29.15", "2.5.29.37", ra_tls.OID_CERT_USAGE, ra_tls.OID_ATTESTATION),
    }
    assert leaf.extensions["2.5.29.37"].hex() == "300a06082b06010505070302"  # clientAuth only
    assert guest.app_keys is not None
    assert chain == f"{leaf.pem}\n{guest.app_keys.ca_cert}"
    dstack.post("/EmitEvent", {"event": "a"})
    assert dstack.get("/Info").json()["app_cert"] == chain


def test_info_quotes_only_after_register_change(
    make_guest: MakeGuest, guest_client: GuestClient
) -> None:
    """Info needs one quote, one more for the certificate, and one per event."""
    guest = make_guest(Counting)
    backend = guest.attester.backend
    assert isinstance(backend, Counting)
    client = guest_client("dstack", guest)
    bodies = {client.get("/Info").body for _ in range(5)}
    assert (len(bodies), backend.quotes) == (1, 2)
    client.post("/EmitEvent", {"event": "a"})
    bodies |= {client.get("/Info").body for _ in range(5)}
    assert (len(bodies), backend.quotes) == (2, 3)


def test_value_made_while_registers_change_is_not_cached(guest: Guest) -> None:
    """A value made during an event is not used for the registers before the event."""
    backend = guest.attester.backend
    assert isinstance(backend, Simulator)

    def make_during_event() -> str:
        guest.attester.emit_event("a", b"")
        return "with event"

    backend.reset()
    assert guest.cached("value", make_during_event) == "with event"
    backend.reset()  # the registers have the values before the event again
    assert guest.cached("value", lambda: "without event") == "without event"
    assert guest.cached("value", lambda: "made again") == "without event"


FAILURE = Mock(side_effect=BackendError("not now", reason="io_error"))


def test_info_invalid_key_provider(
    guest: Guest, dstack: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key provider that is not UTF-8 is empty; undecodable app info is a 500."""
    odd = guest.attester.app_info._replace(key_provider_info=b"\xff")
    with monkeypatch.context() as patch:
        patch.setattr("attestkit.serve.services.context.app_info", lambda _: odd)
        assert dstack.get("/Info").json()["key_provider_info"] == ""
    dstack.post("/EmitEvent", {"event": "a"})
    monkeypatch.setattr("attestkit.serve.services.context.app_info", FAILURE)
    response = dstack.get("/Info")
    assert (response.status, response.error()) == (500, "Failed to decode app info: not now")


def test_key_methods_without_app_keys_fail(guest: Guest, guest_client: GuestClient) -> None:
    """Key methods report the missing app keys; all others work."""
    client = guest_client("dstack", without_keys(guest))
    for name in ("GetKey", "Sign", "GetTlsKey"):
        response = client.post(f"/{name}", VALID[name])
        assert (response.status, "no app keys" in response.error()) == (500, True)
    for name in ("GetQuote", "Attest", "Info", "Verify", "EmitEvent", "Version"):
        assert client.post(f"/{name}", VALID.get(name)).status == 200


def test_version_is_recent_enough(guest_client: GuestClient) -> None:
    """The API version satisfies clients' checks; the revision is configurable."""
    response = guest_client("dstack").get("/Version")
    assert response.body == b'{"version":"0.5.11","rev":"unknown"}'
    assert tuple(map(int, response.json()["version"].split("."))) >= (0, 5, 8)
    release = Release(version="0.6.0", rev="git:0123456789abcdef0123")
    response = guest_client("dstack", release=release).get("/Version")
    assert response.json() == {"version": "0.6.0", "rev": "git:0123456789abcdef0123"}


def test_emit_event_writes_in_device_thread(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop
) -> None:
    """Events are written in the device thread; requests to the TEE queue behind them."""
    guest = make_guest()
    app = listener_apps.dstack_app(guest)
    json_type = b"application/json"
    assert app.direct(b"/EmitEvent", json_type) is None
    assert app.direct(b"/GetQuote", json_type) is not None

    def write() -> int:
        assert app.direct(b"/GetQuote", json_type) is None
        assert app.direct(b"/GetKey", json_type) is not None
        return threading.get_ident()

    assert loop.run_until_complete(guest.on_device(write, writes=True)) != threading.get_ident()
    assert app.direct(b"/GetQuote", json_type) is not None
    guest.close()
