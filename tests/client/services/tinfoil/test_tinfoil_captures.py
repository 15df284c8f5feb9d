"""Tinfoil's documents as captured: what they claim, what verifies, and what any change breaks."""

import json
from base64 import b64decode
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import pytest

from attestkit import AppraisalPolicy, Collateral, Verifier
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit.client.services.service import Claims
from attestkit.client.services.tinfoil.tinfoil import Tinfoil, TinfoilBundle, read_tinfoil_bundle
from attestkit.client.services.tinfoil.tinfoil_documents import read_keys
from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.errors import (
    AttestKitError,
    FormatError,
    PolicyError,
    ServiceError,
    VerificationError,
)
from attestkit.gpu.bindings.tinfoil import tinfoil_section_data
from attestkit.verifier import ReferenceValues
from attestkit.verifier.policy.app_pins import names_app
from tests.client.services.tinfoil.tinfoil_maker import leaves, other_digit, replace_leaf
from tests.runner.cases import every_case
from tests.vectors import HAVE_SHARED, SHARED, needs_shared

if TYPE_CHECKING:
    from pathlib import Path

SERVICES: Final = SHARED / "data" / "services"
JUNE: Final = ("cloud-2026-06-29", "direct-2026-06-29")
EXPECTED: Final[dict[str, Any]] = (
    json.loads((SERVICES / "expected.json").read_text()) if HAVE_SHARED else {}
)
pytestmark = needs_shared


class Capture:
    """A captured document of June, with what was captured beside it."""

    def __init__(self, name: str) -> None:
        self.folder: Path = SERVICES / "tinfoil-v3-june" / name
        self.answer = (self.folder / "attestation.json").read_bytes()
        capture = json.loads((self.folder / "capture.json").read_text())
        self.nonce = bytes.fromhex(capture["nonce"])
        self.now = datetime.fromisoformat(capture["captured_at"].replace("Z", "+00:00"))
        self.expected: dict[str, Any] = EXPECTED[f"tinfoil-v3-june/{name}"]
        [asked] = [r for r in capture["responses"] if r["file"] == "attestation.json"]
        self.host: str = asked["url"].split("/")[2]
        self.target: str = asked["url"].removeprefix(f"https://{self.host}")
        self.seen: str = asked["peer_spki_sha256"]
        members = json.loads(self.answer)
        certificate = read_certificate(members["certificate"])
        self.peer = ObservedPeer(self.host, 443, certificate.der, certificate.spki_der)

    def read(self, answer: bytes | None = None) -> Claims:
        """Return the claims for the peer that was observed."""
        chosen = self.answer if answer is None else answer
        return Tinfoil().read((chosen,), self.nonce, self.peer, None)

    def verifier(self, policy: AppraisalPolicy | None = None) -> Verifier:
        """Return a verifier with the endorsements of the capture."""
        if (collateral := self.folder / "collateral.json").exists():
            return Verifier(collateral=Collateral.load(collateral), policy=policy)
        names = ("vcek.der", "amd-cert-chain.pem")
        certificates = [(self.folder / name).read_bytes() for name in names]
        return Verifier(snp_certificates=certificates, policy=policy)

    def verify(self, claims: Claims) -> None:
        """Verify the evidence of claims at the time of the capture."""
        [machine] = claims.machines
        data, now = machine.report_data, self.now
        self.verifier().verify(machine.evidence, report_data=data, now=now)


@pytest.mark.parametrize("name", JUNE)
def test_capture_of_june_verifies(name: str) -> None:
    """Keys and report data are those computed apart, and the evidence verifies over them."""
    capture = Capture(name)
    [question] = Tinfoil().questions(capture.nonce, None)
    assert (question.target, question.headers, question.origin) == (capture.target, (), None)
    assert capture.peer.spki_sha256.hex() == capture.seen
    claims = capture.read()
    [machine] = claims.machines
    [report] = capture.expected["reports"]
    assert machine.report_data.hex() == report["evidence"]["report_data"]
    assert machine.report_data[:32].hex() == report["bindings"][0]["expected"]
    channel = capture.expected["channel"]
    keys = {binding.kind: binding.key.hex() for binding in claims.bindings}
    assert keys == {"tls-spki": channel["tls_spki_sha256"], "hpke": channel["hpke_public_key"]}
    assert claims.freshness == "nonce"
    assert claims.code == "policy"
    capture.verify(claims)


@pytest.mark.parametrize("name", JUNE)
def test_end_of_the_protection(name: str) -> None:
    """The router ends the protection; an enclave of its own has no router in front of it."""
    claims = Capture(name).read()
    role = "router" if name.startswith("cloud") else "server"
    assert [binding.is_of for binding in claims.bindings] == [role, role]
    assert [machine.role for machine in claims.machines] == [role]
    assert any("router" in gap for gap in claims.not_proven) == (role == "router")
    assert any("Sigstore" in gap for gap in claims.not_proven)


def test_gpu_of_capture_is_bound_to_nonce_and_report_data() -> None:
    """Evidence of a GPU comes with the nonce of the client, and report data that cover it."""
    assert Capture(JUNE[0]).read().machines[0].gpu is None
    capture = Capture(JUNE[1])
    [machine] = capture.read().machines
    assert machine.gpu is not None
    assert machine.gpu.report_data == machine.report_data
    assert machine.gpu.gpu_nonce == capture.nonce
    assert len(machine.gpu.evidence.devices) == 1


@pytest.mark.parametrize("name", JUNE)
def test_any_changed_text_of_a_capture_is_refused(name: str) -> None:
    """Each text of the document matters: a changed one is refused before anything is verified."""
    capture = Capture(name)
    for path in leaves(json.loads(capture.answer)):
        document = json.loads(capture.answer)
        replace_leaf(document, path, other_digit)
        changed = json.dumps(document, separators=(",", ":")).encode()
        with pytest.raises((FormatError, ServiceError)):
            capture.read(changed)


@every_case(
    ("path", "kind", "reason"),
    [
        (("report_data", "tls_key_fp"), FormatError, "inconsistent"),
        (("report_data", "hpke_key"), ServiceError, "signature"),
        (("report_data", "nonce"), ServiceError, "nonce_echo"),
        (("report_data", "gpu_evidence_hash"), FormatError, "inconsistent"),
        (("gpu", "evidences", 0, "evidence"), FormatError, "inconsistent"),
        (("gpu", "evidences", 0, "certificate"), FormatError, "inconsistent"),
        (("gpu", "evidences", 0, "nonce"), FormatError, "inconsistent"),
        (("cpu", "platform"), FormatError, "unsupported"),
        (("format",), FormatError, "unsupported"),
    ],
)
def test_changed_text_has_its_reason(
    path: tuple[Any, ...], kind: type[AttestKitError], reason: str
) -> None:
    """Each field is refused for what is wrong with it."""
    capture = Capture(JUNE[1])
    document = json.loads(capture.answer)
    replace_leaf(document, path, other_digit)
    with pytest.raises(kind) as caught:
        capture.read(json.dumps(document, separators=(",", ":")).encode())
    assert caught.value.reason == reason


@pytest.mark.parametrize("name", JUNE)
def test_capture_for_another_nonce_or_peer_is_refused(name: str) -> None:
    """The nonce is the client's, and the key is that of the connection."""
    capture = Capture(name)
    with pytest.raises(ServiceError) as caught:
        Tinfoil().read((capture.answer,), bytes(32), capture.peer, None)
    assert caught.value.reason == "nonce_echo"
    relay = capture.peer._replace(spki=b"relay")
    with pytest.raises(ServiceError) as caught:
        Tinfoil().read((capture.answer,), capture.nonce, relay, None)
    assert caught.value.reason == "other_key"


def test_evidence_of_another_capture_does_not_verify() -> None:
    """The report data bind the keys: evidence with others is refused by the verifier."""
    first, second = Capture(JUNE[0]), Capture(JUNE[1])
    [machine] = second.read().machines
    with pytest.raises(VerificationError) as caught:
        second.verifier().verify(
            machine.evidence, report_data=first.read().machines[0].report_data, now=second.now
        )
    assert caught.value.reason == "report_data"


# -- the bundle ------------------------------------------------------------------------------------

BUNDLE: Final = (SERVICES / "tinfoil-v2" / "bundle.json").read_bytes() if HAVE_SHARED else b""


def test_captured_bundle_verifies() -> None:
    """Document and certificate agree, and the report verifies with the bundle's VCEK."""
    expected = EXPECTED["tinfoil-v2"]
    claims = TinfoilBundle().read((BUNDLE,), bytes(32), None, None)
    keys = {binding.kind: binding.key.hex() for binding in claims.bindings}
    assert keys == {
        "tls-spki": expected["channel"]["tls_spki_sha256"],
        "hpke": expected["channel"]["hpke_public_key"],
    }
    [machine] = claims.machines
    [report] = expected["reports"]
    assert machine.report_data.hex() == report["evidence"]["report_data"]
    assert claims.freshness == "key possession"
    assert read_tinfoil_bundle(BUNDLE).digest.hex() == json.loads(BUNDLE)["digest"]
    chain = Capture(JUNE[0]).folder / "amd-cert-chain.pem"  # of the same chip
    verifier = Verifier(snp_certificates=[*machine.snp_certificates, chain.read_bytes()])
    now = datetime.fromisoformat("2026-02-01T00:00:00+00:00")
    verifier.verify(machine.evidence, report_data=machine.report_data, now=now)


@every_case(
    ("path", "kind", "reason"),
    [
        (("enclaveAttestationReport", "format"), FormatError, "unsupported"),
        (("domain",), FormatError, "inconsistent"),
        (("vcek",), None, ""),  # its signature is checked by the verifier
        (("digest",), None, ""),  # of the release, which is not evaluated
    ],
)
def test_changed_bundle(
    path: tuple[str, ...], kind: type[AttestKitError] | None, reason: str
) -> None:
    """The values that the certificate spells, and the domain, are compared; the rest is not."""
    bundle = json.loads(BUNDLE)
    replace_leaf(bundle, path, other_digit)
    answer = json.dumps(bundle).encode()
    if kind is None:
        TinfoilBundle().read((answer,), bytes(32), None, None)
        return
    with pytest.raises(kind) as caught:
        TinfoilBundle().read((answer,), bytes(32), None, None)
    assert caught.value.reason == reason


def test_report_data_of_august_are_those_of_the_vectors() -> None:
    """The vectors of August give their report data; their keys are other ones than TLS and HPKE."""
    vectors = json.loads((SERVICES / "tinfoil-v3-august/attested-keys-vectors.json").read_text())
    assert len(vectors) == 3
    for vector in vectors:
        material, devices = (b64decode(vector[n]) for n in ("crypto_material", "device_evidence"))
        data = tinfoil_section_data(bytes.fromhex(vector["nonce"]), material, devices)
        assert data.hex() == vector["report_data"]
        keys = read_keys(material)
        assert (keys.tls, keys.hpke) == (None, None)
        assert [name for name, _ in keys.others] == ["workload-key"]


# -- the program -----------------------------------------------------------------------------------


def predicate(name: str, file: str) -> dict[str, Any]:
    """Return what a release's bundle states; its signature is not looked at here."""
    answer = json.loads((SERVICES / "tinfoil-v3-june" / name / file).read_text())
    payload = answer["attestations"][0]["bundle"]["dsseEnvelope"]["payload"]
    found: dict[str, Any] = json.loads(b64decode(payload))["predicate"]
    return found


def release_values(name: str) -> dict[str, frozenset[bytes]]:
    """Return the measurements of a release, as they are written into a policy."""
    code = predicate(name, "sigstore.json")
    if name == JUNE[0]:
        measurement = frozenset({bytes.fromhex(code["snp_measurement"])})
        return {"measurement": measurement, "host_data": frozenset({bytes(32)})}
    hardware = predicate(name, "hardware-sigstore.json")
    platforms = [one for one in hardware.values() if isinstance(one, dict) and "mrtd" in one]
    texts = {f"rtmr{n}": {code["tdx_measurement"][f"rtmr{n}"]} for n in (1, 2)}
    texts |= {field: {one[field] for one in platforms} for field in ("mrtd", "rtmr0")}
    texts["rtmr3"] = {"00" * 48}
    return {field: frozenset(map(bytes.fromhex, found)) for field, found in texts.items()}


@pytest.mark.parametrize("name", JUNE)
def test_measurements_of_the_release_are_a_policy(name: str) -> None:
    """A policy with the release's measurements names the program; another value is refused."""
    capture = Capture(name)
    [machine] = capture.read().machines
    values = release_values(name)
    assert capture.expected["code"]["measurement_is_signed_one"]
    # The same launch measurement at Google would be of the firmware only, which boots any image.
    platform = "dstack-tdx" if "mrtd" in values else "dstack-amd-sev-snp"
    default = AppraisalPolicy.default().replace(platforms={platform})
    policy = default.replace(reference_values=ReferenceValues(**values))
    assert names_app(policy)
    data, now = machine.report_data, capture.now
    capture.verifier(policy=policy).verify(machine.evidence, report_data=data, now=now)
    for field in values:
        size = len(next(iter(values[field])))
        other = ReferenceValues(**{**values, field: frozenset({b"\1" * size})})
        verifier = capture.verifier(policy=default.replace(reference_values=other))
        with pytest.raises(PolicyError) as caught:
            verifier.verify(machine.evidence, report_data=data, now=now)
        assert caught.value.reason == "reference_value"
