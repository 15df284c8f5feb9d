"""The service DstackGuest of v1: responses and errors of every method."""

import hashlib
import json
import os
import threading
from typing import Any, Final
from unittest.mock import Mock

import pytest

from attestkit import ra_tls
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit.attestation import AppInfo
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.snp import SnpSimulator
from attestkit.errors import BackendError
from attestkit.serve import listener_apps
from attestkit.serve.rpc import json_codec, protobuf_codec
from attestkit.serve.services import guest_v1
from attestkit.serve.services.context import Guest, Release
from tests.runner.cases import every_case
from tests.serve.asgi import BINARY_TYPE, Client
from tests.serve.guests import (
    NOW,
    Blocking,
    Broken,
    Counting,
    GuestClient,
    MakeGuest,
    make_verifier,
    without_keys,
)
from tests.serve.services.test_request_fields import VALID
from tests.vectors import load, needs_shared

VECTORS: Final = load("guest_v1.json")
# Rows where attestkit's default differs: EmitEvent works.
NOT_DEFAULT: Final = {"EmitEvent, upstream form"}


@needs_shared
@pytest.mark.parametrize(
    "row",
    [row for row in VECTORS.get("errors", []) if row["name"] not in NOT_DEFAULT],
    ids=lambda row: str(row["name"]),
)
def test_error_matches_vectors(
    make_guest: MakeGuest, guest_client: GuestClient, row: dict[str, Any]
) -> None:
    """Status, JSON body and protobuf body of every error equal the vectors."""
    off_tdx = row["name"] == "GetQuote off TDX"
    guest = make_guest(SnpSimulator if off_tdx else Simulator)
    client = guest_client("external" if row["path"].startswith("/prpc") else "dstack", guest)
    response = client.post(row["path"], json.loads(row["json_request"]))
    assert response.status == row["upstream_status"]
    assert response.body == row["json_body"].encode()
    assert response.error() == row["error"]
    body = as_protobuf(row["path"], row["json_request"].encode())
    binary = client.request("POST", row["path"], body, {"content-type": BINARY_TYPE})
    assert binary.status == row["upstream_status"]
    assert binary.body.hex() == row["protobuf_body"]


def as_protobuf(path: str, body: bytes) -> bytes:
    """Return a request of v1 in protobuf; a request without fields is empty."""
    method = guest_v1.SERVICE.methods.get(path.removeprefix("/v1/"))
    if method is None or method.request is None:
        assert body == b"{}"
        return b""
    return b"".join(protobuf_codec.encode(json_codec.decode(method.request, body)))


@pytest.mark.parametrize(
    "name",
    [
        *("Sign", "Verify", "GetQuote", "EmitEvent", "GetTlsKey", "GpuInfo", "AttestAppKey"),
        *("DeriveKey", "Health", "GetAttestationForAppKey", "TdxQuote"),
    ],
)
def test_method_that_v1_refuses_is_404(dstack: Client, external: Client, name: str) -> None:
    """Methods that v1 lacks on purpose are 404 at its mounts, also with a valid request of v0."""
    message = VALID.get(name, {"algorithm": "ed25519"})
    assert dstack.post(f"/v1/{name}", message).error() == f"Service not found: {name}"
    if name != "Health":
        assert external.post(f"/prpc/v1/{name}", message).error() == f"Service not found: {name}"


def test_device_methods_run_in_the_device_thread(
    make_guest: MakeGuest, guest_client: GuestClient
) -> None:
    """Methods that wait for the platform run in its thread, so they do not block the event loop."""
    guest = make_guest(Blocking)
    Blocking.threads.clear()
    client = guest_client("dstack", guest)
    for name, message in (("Attest", {}), ("Info", {}), ("IssueCert", {"usage_ra_tls": True})):
        assert client.post(f"/v1/{name}", message).status == 200
    assert len(Blocking.threads) == 1
    assert threading.get_ident() not in Blocking.threads


# -- IssueCert ---------------------------------------------------------------------------------


def test_issue_cert(guest_client: GuestClient) -> None:
    """Each call has a new key; the leaf has the requested names, and evidence if requested."""
    dstack = guest_client("dstack", random=os.urandom)
    message = {"subject": "a.example", "alt_names": ["a.example"], "usage_ra_tls": True}
    first, second = (dstack.post("/v1/IssueCert", message).json() for _ in range(2))
    assert list(first) == ["key", "certificate_chain"]
    assert first["key"] != second["key"]
    assert first["key"].startswith("-----BEGIN PRIVATE KEY-----\n")
    leaf, issuer = map(read_certificate, first["certificate_chain"])
    assert leaf.subject == "CN=a.example"
    assert leaf.issuer == issuer.subject


@pytest.mark.parametrize(
    ("path", "encoding"), [("/v1/IssueCert", "v1"), ("/GetTlsKey", "v0"), ("/v0/GetTlsKey", "v0")]
)
def test_certificate_has_evidence_of_its_generation(
    guest: Guest, dstack: Client, path: str, encoding: str
) -> None:
    """The leaf has shortened evidence in the encoding of Attest, and the identity as a map."""
    message = {"usage_ra_tls": True, "with_app_info": True, "usage_server_auth": True}
    leaf = dstack.post(path, message).json()["certificate_chain"][0]
    simulator = guest.attester.backend
    assert isinstance(simulator, Simulator)
    verifier = make_verifier(simulator)
    ra_tls.verify(leaf, verifier, now=NOW, max_lifetime=None)
    assert ra_tls.read(leaf).encoding == encoding
    content = read_certificate(leaf).content(ra_tls.OID_APP_INFO)
    assert content is not None
    assert content[0] == 0x89
    assert AppInfo.from_msgpack(content).compose_hash == guest.app_compose.compose_hash
    plain = dstack.post(path).json()["certificate_chain"][0]
    assert read_certificate(plain).content(ra_tls.OID_ATTESTATION) is None


@every_case("path", ["/v1/IssueCert", "/GetTlsKey", "/v0/GetTlsKey"])
@every_case(
    ("first", "last", "status"),
    [
        *((0, 0, 200), (0, 1, 400), (1, 0, 200), (None, None, 200), (None, 253_402_300_799, 200)),
        *((1, 2, 200), (2, 2, 400), (2, 1, 400), (0, 253_402_300_800, 400)),
        *((253_402_300_800, 0, 400), (None, 2**64 - 1, 400)),
    ],
)
def test_validity_is_checked(
    dstack: Client, path: str, first: int | None, last: int | None, status: int
) -> None:
    """Order and range are checked; 0 is unset, each by itself."""
    response = dstack.post(path, {"not_before": first, "not_after": last})
    assert response.status == status
    if first and last and first >= last:
        assert response.error() == "not_before must be earlier than not_after"


# -- Info and Version --------------------------------------------------------------------------


def test_info_has_the_values_of_v0(guest: Guest, dstack: Client, external: Client) -> None:
    """The identity equals that of v0; app_compose is the verbatim file."""
    found = dstack.get("/v1/Info").json()
    assert list(found) == [
        *("app_id", "app_name", "compose_hash", "app_compose", "instance_id", "device_id"),
        *("os_image_hash", "mr_aggregated", "vm_config", "key_provider_info", "cloud_vendor"),
        "cloud_product",
    ]
    old = dstack.get("/Info").json()
    assert {name: old[name] for name in found if name != "app_compose"} == {
        name: value for name, value in found.items() if name != "app_compose"
    }
    assert found["app_compose"].encode() == guest.app_compose.raw
    assert hashlib.sha256(found["app_compose"].encode()).hexdigest() == found["compose_hash"]
    assert external.get("/prpc/v1/Info").json() == found


def test_info_of_app_that_hides_measurements(
    make_guest: MakeGuest, guest_client: GuestClient
) -> None:
    """Three fields are empty on the external listener only."""
    guest = make_guest(compose={"public_tcbinfo": False})
    inside = guest_client("dstack", guest).get("/v1/Info").json()
    client = guest_client("external", guest)
    outside = client.get("/prpc/v1/Info").json()
    hidden = {"app_compose", "vm_config", "key_provider_info"}
    assert all(inside[name] for name in hidden)
    assert outside == inside | dict.fromkeys(hidden, "")
    old = client.get("/prpc/Info").json()
    assert (old["tcb_info"], old["vm_config"]) == ("", "")
    assert old["key_provider_info"] == inside["key_provider_info"]


def test_info_makes_no_quote_per_call(make_guest: MakeGuest, guest_client: GuestClient) -> None:
    """The identity is decoded once for each state of the registers."""
    guest = make_guest(Counting)
    backend = guest.attester.backend
    assert isinstance(backend, Counting)
    inside, outside = guest_client("dstack", guest), guest_client("external", guest)
    first = inside.get("/v1/Info").json()
    for _ in range(3):
        assert inside.get("/v1/Info").json() == outside.get("/prpc/v1/Info").json() == first
    assert backend.quotes == 1
    inside.post("/EmitEvent", {"event": "a"})
    assert inside.get("/v1/Info").json()["mr_aggregated"] != first["mr_aggregated"]
    assert backend.quotes == 2


def test_demo_certificate_is_requested_again_after_30_seconds(
    make_guest: MakeGuest, guest_client: GuestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failure, Info of v0 is repeated without certificate for 30 seconds."""
    now = [float(NOW)]
    guest = make_guest(now=lambda: now[0])
    client = guest_client("dstack", guest)
    failing = Mock(side_effect=BackendError("not now", reason="io_error"))
    with monkeypatch.context() as patch:
        patch.setattr(guest.issuer, "issue", failing)
        for later in (0, 0, 29, 0):
            now[0] += later
            assert client.get("/Info").json()["app_cert"] == ""
        assert failing.call_count == 1
        now[0] += 1
        assert client.get("/Info").json()["app_cert"] == ""
        assert failing.call_count == 2
    now[0] += 29
    assert client.get("/Info").json()["app_cert"] == ""
    now[0] += 1
    assert "CERTIFICATE" in client.get("/Info").json()["app_cert"]


def test_version(guest_client: GuestClient) -> None:
    """Version has the release of v1 and touches nothing."""
    client = guest_client("dstack", backend=Broken)
    assert client.get("/v1/Version").body == b'{"version":"0.6.0","rev":"unknown"}'
    release = Release(version_v1="0.6.6", rev="git:c87303818753e7abb323")
    for listener, path in (("dstack", "/v1/Version"), ("external", "/prpc/v1/Version")):
        response = guest_client(listener, release=release).get(path)
        assert response.body == b'{"version":"0.6.6","rev":"git:c87303818753e7abb323"}'


def test_health_without_checks(external: Client) -> None:
    """An app that does not require health checks is healthy."""
    body = b'{"healthy":true,"unhealthy":[],"error":""}'
    assert external.get("/prpc/v1/Health").body == body
    binary = external.request("POST", "/prpc/v1/Health", b"", {"content-type": BINARY_TYPE})
    assert (binary.status, binary.body) == (200, b"\x08\x01")


def test_methods_without_app_keys(guest: Guest, loop: Any) -> None:
    """Key methods state that keys are missing; the others work."""
    client = Client(listener_apps.dstack_app(without_keys(guest)), loop)
    for name, message in (("GetKey", {"algorithm": "ed25519"}), ("IssueCert", {})):
        response = client.post(f"/v1/{name}", message)
        assert (response.status, "no app keys" in response.error()) == (500, True)
    for name in ("Attest", "Info", "Version"):
        assert client.post(f"/v1/{name}").status == 200
