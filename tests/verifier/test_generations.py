"""Evidence of agents before dstack 0.6 and of 0.6, of one boot: the same claims in other bytes."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Final

import msgspec.msgpack
import pytest

from attestkit import ra_tls
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit.attestation import AppInfo, Attestation
from attestkit.attestation.wire.evidence_parts import Evidence, GcpTdx, Tdx
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.td_reports import OWN_APP
from attestkit.event_log import WireEvent
from attestkit.event_log.runtime_events import RUNTIME_EVENT_TYPE, runtime_preimage
from tests.attestation.samples import FIXTURE, TPM_QUOTE
from tests.ra_tls import tds
from tests.vectors import load, needs_shared
from tests.verifier.platforms import intel
from tests.verifier.platforms.intel import NOW

CASES: list[dict[str, Any]] = load("guest_v1.json").get("attest", {}).get("cases", [])
NONCE: Final = b"challenge"

SCENARIOS: Final = ("dstack-0.5", "dstack-0.6", "kernel-header-patched")


def boot(scenario: str, event_version: int = 1) -> Attester:
    """Return an attester of a simulated TD whose app emitted an event."""
    compose = json.loads(OWN_APP) | {"event_log_version": event_version}
    options: dict[str, Any] = {"scenario": scenario, "app_compose": json.dumps(compose).encode()}
    attester = intel.attester(**options, now=NOW.timestamp)
    attester.emit_event("model", b"weights")
    return attester


@pytest.fixture(params=[(name, version) for name in SCENARIOS for version in (1, 2)], ids=str)
def attester(request: pytest.FixtureRequest) -> Iterator[Attester]:
    """An attester for each kind of image, and each version of event digests."""
    with boot(*request.param) as found:
        yield found


def wires(evidence: Attestation) -> list[bytes]:
    """Return the evidence as Attest of each generation has it."""
    of_v0, of_v1 = evidence.to_bytes(), evidence.to_bytes("v1")
    assert of_v1[:1] == b"\x83"
    if evidence.evidence.has_v2_event():
        assert of_v0 == of_v1
    else:
        assert of_v0[:1] == b"\0"
    return [of_v0, of_v1]


# -- Attest ----------------------------------------------------------------------------------------


@needs_shared
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.get("note", case["report_data"][:8]))
def test_v1_of_capture_matches_vectors(case: dict[str, Any]) -> None:
    """The V1 encoding of a capture of V0, whole and stripped, has upstream's bytes."""
    report_data = bytes.fromhex(case["report_data"])
    evidence = Attestation.from_bytes(FIXTURE).with_report_data(report_data)
    if "stripped" in case.get("note", ""):
        evidence = evidence.stripped()
    encoded = evidence.to_bytes("v1")
    assert case["wire"] == "V1"
    assert (len(encoded), hashlib.sha256(encoded).hexdigest()) == (case["length"], case["sha256"])
    assert Attestation.from_bytes(encoded) == evidence
    if "first_bytes" in case:
        assert encoded.hex().startswith(case["first_bytes"])


def test_both_generations_of_attest_verify_with_same_claims(attester: Attester) -> None:
    """V0 and V1 of one boot are the same evidence, and give the same result."""
    evidence = attester.attest(nonce=NONCE)
    of_v0, of_v1 = map(Attestation.from_bytes, wires(evidence))
    assert of_v0 == of_v1 == evidence
    verifier = attester.verifier()
    results = [verifier.verify(wire, nonce=NONCE, now=NOW) for wire in wires(evidence)]
    assert results[0] == results[1]
    result = results[0]
    assert result.fresh
    assert result.app_info is not None
    assert result.app_info.os_image_hash == result.claims.os_image_hash != b""
    assert [event.name for event in result.claims.events][-1] == "model"


def test_attest_has_preimage_of_each_version_2_event(attester: Attester) -> None:
    """Events of version 2 have the preimage of their digest, on the wire too; others have none."""
    evidence = attester.attest(nonce=NONCE)
    for wire in wires(evidence):
        found = [e for e in evidence_log(wire) if e.event_type == RUNTIME_EVENT_TYPE]
        assert len(found) > 9
        for event in found:
            if event.version == 1:
                assert event.preimage is None
                continue
            preimage = runtime_preimage(event.event, event.event_payload, 2)
            assert event.preimage == preimage.hex()
            assert event.digest == hashlib.sha384(preimage).digest()
    tree = msgspec.msgpack.decode(evidence.to_bytes("v1"))
    events = tree["platform"]["data"]["event_log"]
    assert all(("preimage" in event) == (event.get("version") == 2) for event in events)


def evidence_log(wire: bytes) -> tuple[WireEvent, ...]:
    """Return the events of evidence as received."""
    platform = Attestation.from_bytes(wire).evidence.platform
    assert isinstance(platform, Tdx)
    return platform.event_log


# -- certificates ----------------------------------------------------------------------------------


def issue(attester: Attester, **options: Any) -> bytes:
    """Return a certificate with evidence and app info, in DER."""
    assert isinstance(attester.backend, Simulator)
    keys = attester.backend.app_keys
    assert keys.ca_key is not None
    issued = ra_tls.issue(
        subject="app",
        attest=attester.attest,
        key=tds.KEY,
        ca_cert=keys.ca_cert,
        ca_key=keys.ca_key,
        usage_ra_tls=True,
        with_app_info=True,
        now=NOW.timestamp,
        **options,
    )
    return read_certificate(issued.certificate_chain[0]).der


def test_both_generations_of_certificates_verify_with_same_claims(attester: Attester) -> None:
    """GetTlsKey before and since dstack 0.6, and IssueCert, certify the same app."""
    generations: list[dict[str, Any]] = [{"app_info_array": 9}, {}, {"encoding": "v1"}]
    certificates = [read_certificate(issue(attester, **options)) for options in generations]
    verifier = attester.verifier()
    results = [ra_tls.verify(one.der, verifier, now=NOW) for one in certificates]
    assert results == [results[0]] * 3
    contents = [certificate.content(ra_tls.OID_ATTESTATION) or b"" for certificate in certificates]
    assert contents[0] == contents[1]
    stripped = [Attestation.from_bytes(content) for content in contents]
    assert stripped == [stripped[0]] * 3
    assert [one.encoding for one in stripped][1:] == [
        "v1" if stripped[0].evidence.has_v2_event() else "v0",
        "v1",
    ]
    infos = [certificate.content(ra_tls.OID_APP_INFO) or b"" for certificate in certificates]
    assert [info[:1] for info in infos] == [b"\x99", b"\x89", b"\x89"]
    assert [AppInfo.from_msgpack(info) for info in infos] == [attester.app_info] * 3


def test_stripped_evidence_keeps_what_verifiers_need(attester: Attester) -> None:
    """RTMR3's events and the ACPI tables stay, with preimages; the image still verifies."""
    certificate = read_certificate(issue(attester, encoding="v1"))
    evidence = Attestation.from_bytes(certificate.content(ra_tls.OID_ATTESTATION) or b"")
    log = evidence_log(evidence.to_bytes())
    assert [event.event for event in log[:3]] == ["acpi-loader", "acpi-rsdp", "acpi-tables"]
    assert {event.imr for event in log[3:]} == {3}
    assert all((event.preimage is not None) == (event.version == 2) for event in log[3:])
    result = ra_tls.verify(certificate.der, attester.verifier(), now=NOW)
    assert result.claims.os_image_hash


@needs_shared
def test_replaced_report_data_covers_quote_of_google_and_not_its_tpm_quote() -> None:
    """A simulator replaces bytes 568 to 631 of the TDX quote only."""
    platform, stack = Attestation.from_bytes(FIXTURE).evidence
    assert isinstance(platform, Tdx)
    quote, log = platform
    guest = Attestation(Evidence(GcpTdx(quote, log, TPM_QUOTE), stack))
    found = guest.with_report_data(b"\7" * 64).evidence.platform
    assert found == GcpTdx(quote[:568] + b"\7" * 64 + quote[632:], log, TPM_QUOTE)
