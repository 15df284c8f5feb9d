"""Every call of DstackGuest: what it answers, what it refuses; bad input is never a 500."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from attestkit import ra_tls
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit.attestation import Attestation
from attestkit.attestation.wire import v1_msgpack
from attestkit.event_log import EventLog
from attestkit.quote import Quote
from attestkit.serve import listener_apps
from attestkit.serve.machine_info import Machine
from attestkit.serve.rpc.messages import fields_of
from attestkit.serve.services import dstack_guest
from attestkit.serve.services.context import Guest, Release
from tests.serve.asgi import Client
from tests.serve.guests import Blocking, Broken, Counting, MakeGuest
from tests.vectors import load, needs_shared

GETKEY = load("getkey.json")
SIGN_VERIFY = load("sign_verify.json")
REPORT_DATA = load("report_data.json")
MANIFEST = [
    (name, field)
    for name, method in dstack_guest.SERVICE.methods.items()
    if method.request is not None
    for field in fields_of(method.request)
]
IDS = [f"{name}.{field.name}" for name, field in MANIFEST]
VALID: dict[str, dict[str, Any]] = {
    "GetTlsKey": {
        "subject": "a",
        "alt_names": ["b", "::1"],
        "usage_ra_tls": True,
        "usage_server_auth": True,
        "usage_client_auth": True,
        "not_before": 1_700_000_000,
        "not_after": 1_900_000_000,
        "with_app_info": True,
    },
    "GetKey": {"path": "a", "purpose": "b", "algorithm": "ed25519"},
    "GetQuote": {"report_data": "00"},
    "Attest": {"report_data": "00"},
    "EmitEvent": {"event": "a", "payload": "00"},
    "Sign": {"algorithm": "ed25519", "data": "00"},
    "Verify": {
        "algorithm": "ed25519",
        "data": "00",
        "signature": "00" * 64,
        "public_key": "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
    },
}
# Fields whose default is no value: there is no such algorithm, key, signature or event.
REQUIRED = {
    "Sign.algorithm": "Unsupported algorithm",
    "Verify.algorithm": "Unsupported algorithm",
    "Verify.signature": "",
    "Verify.public_key": "invalid public key",
    "EmitEvent.event": "event name cannot be empty",
}


@pytest.mark.parametrize("name", VALID)
def test_whole_request_is_accepted(dstack: Client, name: str) -> None:
    """With every field given each method answers."""
    assert dstack.post(f"/{name}", VALID[name]).status == 200


@pytest.mark.parametrize(("name", "field"), MANIFEST, ids=IDS)
def test_missing_field(dstack: Client, name: str, field: Any) -> None:
    """A missing field has its default; where that is no value, the error says what is wrong."""
    message = {key: value for key, value in VALID[name].items() if key != field.name}
    response = dstack.post(f"/{name}", message)
    wanted = REQUIRED.get(f"{name}.{field.name}")
    assert response.status == (200 if wanted is None else 400)
    if wanted is not None:
        assert response.error().startswith(wanted)


@pytest.mark.parametrize(("name", "field"), MANIFEST, ids=IDS)
def test_wrong_field(dstack: Client, name: str, field: Any) -> None:
    """A field of a wrong type is a 400 that names it."""
    response = dstack.post(f"/{name}", VALID[name] | {field.name: {"a": 1}})
    assert response.status == 400
    assert response.error().startswith(f"{field.name} must be ")


TOO_LONG = {
    "GetTlsKey.subject": 400,
    "GetTlsKey.not_before": 400,
    "GetTlsKey.not_after": 400,
    "GetKey.algorithm": 400,
    "GetQuote.report_data": 400,
    "Attest.report_data": 400,
    "Sign.algorithm": 400,
    "Verify.algorithm": 400,
    "Verify.signature": 400,
    "Verify.public_key": 400,
}


@pytest.mark.parametrize(("name", "field"), MANIFEST, ids=IDS)
def test_too_long_field(dstack: Client, name: str, field: Any) -> None:
    """What has a limit is refused beyond it, and what has none is taken."""
    long: Any = {str: "x" * 300_000, bytes: "00" * 300_000, int: 2**64 - 1, bool: True}[field.kind]
    if field.repeated:
        long = ["x" * 100] * 1000
    response = dstack.post(f"/{name}", VALID[name] | {field.name: long})
    assert response.status == TOO_LONG.get(f"{name}.{field.name}", 200)
    if response.status == 400:
        response.error()


@needs_shared
@pytest.mark.parametrize("case", GETKEY.get("cases", []), ids=lambda case: str(case["request"]))
def test_get_key(vector_dstack: Client, vector_tappd: Client, case: dict[str, Any]) -> None:
    """Key and chain are those of the vectors, byte for byte, also under the legacy names."""
    wanted = json.dumps(case["response"], separators=(",", ":"))
    response = vector_dstack.post("/GetKey", case["request"])
    assert (response.status, response.body) == (200, wanted.encode())
    legacy = wanted.replace('"key"', '"k256_key"').replace("signature_", "k256_signature_")
    assert vector_tappd.post("/prpc/DeriveK256Key", case["request"]).body == legacy.encode()


@needs_shared
@pytest.mark.parametrize("case", GETKEY.get("errors", []), ids=lambda case: str(case["request"]))
def test_get_key_error(vector_dstack: Client, case: dict[str, Any]) -> None:
    """Other algorithms are refused with the vectors' body."""
    response = vector_dstack.post("/GetKey", case["request"])
    assert (response.status, response.body) == (case["status"], case["body"].encode())


@needs_shared
@pytest.mark.parametrize("case", SIGN_VERIFY.get("sign", []), ids=lambda case: str(case["request"]))
def test_sign(vector_dstack: Client, case: dict[str, Any]) -> None:
    """Signature, chain and key are those of the vectors, byte for byte."""
    response = vector_dstack.post("/Sign", case["request"])
    wanted = json.dumps(case["response"], separators=(",", ":"))
    assert (response.status, response.body) == (200, wanted.encode())


@needs_shared
@pytest.mark.parametrize("case", SIGN_VERIFY.get("verify", []), ids=str)
def test_verify(dstack: Client, case: dict[str, Any]) -> None:
    """Each verdict is that of the vectors."""
    response = dstack.post("/Verify", case["request"])
    assert (response.status, response.json()) == (200, case["response"])


@needs_shared
@pytest.mark.parametrize("case", SIGN_VERIFY.get("errors", []), ids=str)
def test_sign_and_verify_errors(vector_dstack: Client, case: dict[str, Any]) -> None:
    """Malformed input is a 400, with the vectors' text where one is pinned."""
    response = vector_dstack.post(f"/{case['method']}", case["request"])
    assert response.status == 400
    text = response.error()
    assert text.startswith(case.get("error") or "")


@needs_shared
@pytest.mark.parametrize("case", REPORT_DATA.get("pad64", []), ids=lambda case: str(case["input"]))
@pytest.mark.parametrize("name", ["GetQuote", "Attest"])
def test_report_data_is_padded(dstack: Client, name: str, case: dict[str, Any]) -> None:
    """What was asked for is in the response, in the quote and in the evidence."""
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


@pytest.mark.parametrize("name", ["GetQuote", "Attest"])
def test_report_data_is_at_most_64_bytes(dstack: Client, name: str) -> None:
    """64 bytes are taken, 65 are refused; also where the bytes look like hex text."""
    assert dstack.post(f"/{name}", {"report_data": b"00".hex() * 32}).status == 200
    response = dstack.post(f"/{name}", {"report_data": "00" * 65})
    assert (response.status, response.error()) == (400, "Report data is too long")


def test_get_quote(guest: Guest, dstack: Client) -> None:
    """The log replays to the quote, in the documented form, and nothing else is in the answer."""
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


def test_attest(guest: Guest, dstack: Client) -> None:
    """The evidence is whole: it decodes, replays, and names the app."""
    response = dstack.get("/Attest?report_data=1234").json()
    assert response["attestation"].startswith("00")  # version 0, which older verifiers read
    evidence = Attestation.from_bytes(bytes.fromhex(response["attestation"]))
    assert evidence.quote is not None
    evidence.event_log.check(evidence.quote)
    assert evidence.app_info().compose_hash == guest.app_compose.compose_hash
    assert any(event.payload for event in evidence.event_log.events if event.register == 0)


@pytest.mark.parametrize("name", ["GetQuote", "Attest", "Info", "GetTlsKey"])
def test_platform_without_quotes(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop, name: str
) -> None:
    """When the platform fails it is a 500 that says with what."""
    response = Client(listener_apps.dstack_app(make_guest(Broken)), loop).post(f"/{name}")
    what = {"GetQuote": "quote", "GetTlsKey": "certificate attestation"}.get(name, "attestation")
    assert response.status == 500
    assert response.error() == f"Failed to get {what}: no quoting service for 64 bytes"


def test_emitted_event_is_in_all_later_evidence(dstack: Client) -> None:
    """EmitEvent answers null; the event is last in the log, and the log replays."""
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
def test_names_that_cannot_be_emitted(dstack: Client, name: str) -> None:
    """Identity cannot be claimed, and no border between name and payload can be shifted."""
    before = dstack.get("/GetQuote").json()["event_log"]
    response = dstack.post("/EmitEvent", {"event": name, "payload": "00"})
    assert response.status == 400
    assert name in response.error()
    assert dstack.get("/GetQuote").json()["event_log"] == before


def test_events_of_version_2_have_their_preimage(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop
) -> None:
    """A name may have a colon then, GetQuote gives the preimage, and Attest is of version 1."""
    client = Client(listener_apps.dstack_app(make_guest(compose={"event_log_version": 2})), loop)
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


def test_info(guest: Guest, dstack: Client) -> None:
    """Info says who the app is, with registers, whole log and compose file inside tcb_info."""
    info = dstack.get("/Info").json()
    assert list(info) == INFO_KEYS
    app = guest.attester.info()
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


def test_info_has_a_certificate_that_carries_evidence(guest: Guest, dstack: Client) -> None:
    """app_cert is a chain made once, for a client, with the evidence of this TD."""
    chain = dstack.get("/Info").json()["app_cert"]
    leaf = read_certificate(chain)
    assert leaf.subject == "CN=demo-cert"
    assert ra_tls.read(chain).quote is not None
    assert leaf.extensions.keys() == {
        *("2.5.29.15", "2.5.29.37", ra_tls.OID_CERT_USAGE, ra_tls.OID_ATTESTATION),
    }
    assert leaf.extensions["2.5.29.37"].hex() == "300a06082b06010505070302"  # for clients alone
    assert guest.app_keys is not None
    assert chain == f"{leaf.pem}\n{guest.app_keys.ca_cert}"
    dstack.post("/EmitEvent", {"event": "a"})
    assert dstack.get("/Info").json()["app_cert"] == chain


def test_info_asks_the_device_only_when_a_register_changed(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop
) -> None:
    """Many calls cost one quote (and one for the certificate); an event costs one more."""
    guest = make_guest(Counting)
    backend = guest.attester.backend
    assert isinstance(backend, Counting)
    client = Client(listener_apps.dstack_app(guest), loop)
    bodies = {client.get("/Info").body for _ in range(5)}
    assert (len(bodies), backend.quotes) == (1, 2)
    client.post("/EmitEvent", {"event": "a"})
    bodies |= {client.get("/Info").body for _ in range(5)}
    assert (len(bodies), backend.quotes) == (2, 3)


def test_info_without_a_certificate_asks_again(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate that could not be made is left empty and tried at the next call."""
    guest = make_guest()
    client = Client(listener_apps.dstack_app(guest), loop)
    with monkeypatch.context() as patch:
        patch.setattr("attestkit.ra_tls.certificate.issue_leaf", _refuse)
        assert client.get("/Info").json()["app_cert"] == ""
    assert "CERTIFICATE" in client.get("/Info").json()["app_cert"]


def _refuse(*_: object, **__: object) -> bytes:
    from attestkit.errors import BackendError

    raise BackendError("not now")


def test_info_of_odd_evidence(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider that is no text is left out; what cannot be decoded at all is a 500."""
    guest = make_guest()
    client = Client(listener_apps.dstack_app(guest), loop)
    odd = guest.attester.info()._replace(key_provider_info=b"\xff")
    with monkeypatch.context() as patch:
        patch.setattr("attestkit.serve.services.context.app_info", lambda _: odd)
        assert client.get("/Info").json()["key_provider_info"] == ""
    client.post("/EmitEvent", {"event": "a"})
    monkeypatch.setattr("attestkit.serve.services.context.app_info", _refuse)
    response = client.get("/Info")
    assert (response.status, response.error()) == (500, "Failed to decode app info: not now")


def test_methods_that_need_keys_say_that_there_are_none(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop
) -> None:
    """Without app keys the key methods answer what is missing, and all others work."""
    guest = make_guest()
    bare = Guest(
        guest.attester,
        app_compose=guest.app_compose,
        app_keys=None,
        vm_config="{}",
        now=guest.now,
        random=guest.random,
    )
    client = Client(listener_apps.dstack_app(bare), loop)
    for name in ("GetKey", "Sign", "GetTlsKey"):
        response = client.post(f"/{name}", VALID[name])
        assert (response.status, "no app keys" in response.error()) == (500, True)
    for name in ("GetQuote", "Attest", "Info", "Verify", "EmitEvent", "Version", "GpuInfo"):
        assert client.post(f"/{name}", VALID.get(name)).status == 200


def test_version(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> None:
    """The version is of the API, late enough for every client's checks; the revision is free."""
    response = Client(listener_apps.dstack_app(make_guest()), loop).get("/Version")
    assert response.body == b'{"version":"0.5.11","rev":"unknown"}'
    assert tuple(map(int, response.json()["version"].split("."))) >= (0, 5, 8)
    release = Release(version="0.6.0", rev="git:0123456789abcdef0123")
    response = Client(listener_apps.dstack_app(make_guest(release=release)), loop).get("/Version")
    assert response.json() == {"version": "0.6.0", "rev": "git:0123456789abcdef0123"}


def test_gpu_info(
    make_guest: MakeGuest,
    loop: asyncio.AbstractEventLoop,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The file's content verbatim; nothing where it is missing, or cannot be read and is logged."""
    path = tmp_path / "attestation.out"
    guest = make_guest(machine=Machine(gpu_attestation=path))
    client = Client(listener_apps.dstack_app(guest), loop)
    assert client.get("/GpuInfo").json() == {"attestation": ""}
    path.write_bytes(' {"ü":1}\r\n'.encode())
    assert client.get("/GpuInfo").json() == {"attestation": ' {"ü":1}\r\n'}
    assert caplog.text == ""
    path.unlink()
    path.mkdir()
    assert client.get("/GpuInfo").json() == {"attestation": ""}
    assert f"cannot read {path}: " in caplog.text
    assert str(Machine().gpu_attestation) == "/run/nvidia-gpu-attestation/attestation.out"


def test_machine_is_read_from_firmware(tmp_path: Path) -> None:
    """Vendor and product are the firmware's, trimmed; empty where they cannot be read."""
    assert Machine.read(tmp_path) == Machine()
    (tmp_path / "sys_vendor").write_text("Google\n")
    (tmp_path / "product_name").write_text(" Google Compute Engine \n")
    machine = Machine.read(tmp_path)
    assert machine == Machine("Google", "Google Compute Engine")


def test_simulator_is_not_silent(dstack: Client) -> None:
    """The Server header and the cloud's name say that this is a simulator."""
    response = dstack.get("/Info")
    assert "simulator" in response.headers["server"]
    assert "simulator" in response.json()["cloud_vendor"]


def test_standard_headers(dstack: Client) -> None:
    """Every response has the documented headers, and those of TCP are not on the socket."""
    for response in (dstack.get("/Version"), dstack.get("/Nope")):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "SAMEORIGIN"
        assert response.headers["permissions-policy"] == "interest-cohort=()"
        assert "x-app-version" not in response.headers


def test_blocking_device_is_called_in_one_other_thread(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where quotes block, all of them come from one thread that is not the event loop's."""
    monkeypatch.setattr(Blocking, "threads", set())
    client = Client(listener_apps.dstack_app(make_guest(Blocking)), loop)
    for name in ("GetQuote", "Attest", "Info", "GetTlsKey"):
        assert client.post(f"/{name}", VALID.get(name)).status == 200
    assert len(Blocking.threads) == 1
    assert threading.get_ident() not in Blocking.threads


def test_an_event_is_written_in_another_thread(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop
) -> None:
    """A disk may be slow; what is asked of the TEE meanwhile waits in that thread too."""
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
