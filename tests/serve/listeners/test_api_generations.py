"""Both generations of the API on one running server: evidence of one boot, over its sockets."""

import json
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any, Final, NamedTuple

import pytest

import attestkit
from attestkit import EventLog, Quote, ra_tls
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit.attestation import AppInfo, Attestation
from attestkit.serve.rpc import messages_v1, protobuf_codec
from attestkit.serve.rpc.messages import AttestResponse, RawQuoteArgs
from attestkit.verifier.verifier import Verifier
from tests.serve.asgi import BINARY_TYPE
from tests.serve.client import Connection, call, get
from tests.serve.server import SEED, Server, running_server

pytestmark = pytest.mark.slow  # its tests start programs

PATHS: Final = ("Attest", "v0/Attest", "v1/Attest")
REPORT_DATA: Final = bytes(range(64))


class Boot(NamedTuple):
    """A running server and what it simulates."""

    server: Server
    verifier: Verifier
    scenario: str
    event_version: int


@pytest.fixture(
    scope="module",
    params=[("dstack-0.5", 1), ("dstack-0.6", 1), ("dstack-0.6", 2)],
    ids=lambda param: "{}, events {}".format(*param),
)
def boot(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Boot]:
    """A server whose app emitted an event, and a verifier that trusts its seed."""
    scenario, event_version = request.param
    compose = {"manifest_version": 2, "name": "app", "runner": "bash"}
    path = tmp_path_factory.mktemp("app") / "app-compose.json"
    path.write_text(json.dumps(compose | {"event_log_version": event_version}))
    with (
        running_server("--scenario", scenario, "--app-compose", str(path)) as server,
        attestkit.open("simulator", seed=bytes.fromhex(SEED), scenario=scenario) as tee,
    ):
        assert call(server.dstack, "EmitEvent", {"event": "model", "payload": "00"}).status == 200
        yield Boot(server, tee.verifier(), scenario, event_version)
        server.check_log()


def attest(server: Server, path: str) -> bytes:
    """Return evidence; it is the same in both encodings of the API."""
    answer = call(server.dstack, path, {"report_data": REPORT_DATA.hex()}).json()
    of_v1 = path.startswith("v1")
    assert list(answer) == ["attestation", *(["boottime_gpu_evidence"] if of_v1 else [])]
    assert answer.get("boottime_gpu_evidence", []) == []
    body = b"".join(protobuf_codec.encode(RawQuoteArgs(REPORT_DATA)))
    headers = {"Content-Type": BINARY_TYPE}
    with closing(Connection(server.dstack)) as connection:
        binary = connection.send_request("POST", f"/{path}", body, headers).body
    response: Any = messages_v1.AttestResponse if of_v1 else AttestResponse
    found: bytes = protobuf_codec.decode(response, binary).attestation
    assert found.hex() == answer["attestation"]
    return found


def test_attest_of_both_generations_differs_in_encoding_only(boot: Boot) -> None:
    """V0 and V1 of one boot verify with the same result; events of version 2 have V1 only."""
    wires = {path: attest(boot.server, path) for path in PATHS}
    evidence = {path: Attestation.from_bytes(wire) for path, wire in wires.items()}
    older = "v0" if boot.event_version == 1 else "v1"
    assert [one.encoding for one in evidence.values()] == [older, older, "v1"]
    assert wires["Attest"] == wires["v0/Attest"]
    assert (wires["Attest"] == wires["v1/Attest"]) == (older == "v1")
    assert evidence["Attest"] == evidence["v1/Attest"]  # quote, events, configuration
    assert evidence["Attest"].to_bytes("v1") == wires["v1/Attest"]

    now = int(time.time())
    results = [
        boot.verifier.verify(wire, report_data=REPORT_DATA, now=now) for wire in wires.values()
    ]
    assert results[0] == results[1] == results[2]
    result = results[0]
    assert result.claims.measurement_version == (3 if boot.scenario == "dstack-0.5" else 4)
    assert [event.name for event in result.claims.events][-2:] == ["system-ready", "model"]
    assert result.app_info is not None
    for path in ("Info", "v0/Info", "v1/Info"):
        info = call(boot.server.dstack, path).json()
        for name in ("app_id", "compose_hash", "instance_id", "os_image_hash", "mr_aggregated"):
            assert info[name] == getattr(result.app_info, name).hex() != ""


def test_quote_belongs_to_evidence_of_both_generations(boot: Boot) -> None:
    """GetQuote, which v1 lacks, has the registers and events of Attest."""
    evidence = Attestation.from_bytes(attest(boot.server, "v1/Attest"))
    answer = call(boot.server.dstack, "v0/GetQuote", {"report_data": REPORT_DATA.hex()}).json()
    assert list(answer) == ["quote", "event_log", "report_data", "vm_config"]
    quote, log = (
        Quote.parse(bytes.fromhex(answer["quote"])),
        EventLog.from_json(answer["event_log"]),
    )
    log.check(quote)
    assert evidence.quote is not None
    assert (quote.rtmrs, quote.mrtd) == (evidence.quote.rtmrs, evidence.quote.mrtd)
    assert log.runtime == evidence.event_log.runtime
    assert answer["vm_config"] == evidence.config
    assert call(boot.server.dstack, "v1/GetQuote").status == 404


def test_info_of_both_generations_differs_as_specified(boot: Boot) -> None:
    """Info of v1 has the compose file in place of certificate and TCB info; the rest is equal."""
    older, newer = (call(boot.server.dstack, f"{version}/Info").json() for version in ("v0", "v1"))
    assert older.keys() - newer.keys() == {"app_cert", "tcb_info"}
    assert newer.keys() - older.keys() == {"app_compose"}
    shared = older.keys() & newer.keys()
    assert {name: older[name] for name in shared} == {name: newer[name] for name in shared}
    assert newer["app_compose"] == json.loads(older["tcb_info"])["app_compose"]
    outside = get(boot.server.url, "/prpc/v1/Info").json()
    assert outside == newer
    assert get(boot.server.url, "/prpc/v0/Info").json() == get(boot.server.url, "/prpc/Info").json()


def test_certificates_of_both_generations_differ_as_specified(boot: Boot) -> None:
    """Evidence is V0 or V1, and app info an array before dstack 0.6; the app is the same."""
    message = {"usage_ra_tls": True, "with_app_info": True, "usage_server_auth": True}
    found = {}
    for path in ("GetTlsKey", "v0/GetTlsKey", "v1/IssueCert"):
        answer = call(boot.server.dstack, path, message).json()
        assert list(answer) == ["key", "certificate_chain"]
        leaf = read_certificate(answer["certificate_chain"][0])
        result = ra_tls.verify(leaf.der, boot.verifier, max_lifetime=None)
        content = leaf.content(ra_tls.OID_APP_INFO) or b""
        found[path] = ra_tls.read(leaf.der).encoding, content[:1], AppInfo.from_msgpack(content)
        assert result.app_info == boot_info(boot)
    older = "v0" if boot.event_version == 1 else "v1"
    form = b"\x98" if boot.scenario == "dstack-0.5" else b"\x89"
    assert [one[:2] for one in found.values()] == [(older, form)] * 2 + [("v1", b"\x89")]
    infos = [one[2]._replace(init_script_hashes=None) for one in found.values()]
    assert infos == [infos[0]] * 3


def boot_info(boot: Boot) -> AppInfo | None:
    """Return the app info of evidence of v1."""
    wire = attest(boot.server, "v1/Attest")
    return boot.verifier.verify(wire, report_data=REPORT_DATA).app_info


def test_both_generations_of_snp_guest_verify_with_same_claims() -> None:
    """On SEV-SNP, where GetQuote is refused, Attest of both generations is the same evidence."""
    with (
        running_server("--platform", "snp") as server,
        attestkit.open("simulator", seed=bytes.fromhex(SEED), platform="snp") as tee,
    ):
        wires = [attest(server, path) for path in PATHS]
        evidence = [Attestation.from_bytes(wire) for wire in wires]
        assert [one.encoding for one in evidence] == ["v0", "v0", "v1"]
        assert evidence[0] == evidence[2]
        assert evidence[0].to_bytes("v1") == wires[2]
        now = int(time.time())
        results = [tee.verifier().verify(one, report_data=REPORT_DATA, now=now) for one in wires]
        assert results[0] == results[1] == results[2]
        for path in ("GetQuote", "v0/GetQuote"):
            assert call(server.dstack, path).status == 400
        server.check_log()
