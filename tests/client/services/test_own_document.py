"""attestkit's own servers: the evidence is for our nonce and names the observed key."""

import json
from base64 import b64decode, b64encode

import pytest

from attestkit._crypto.x509.app_certificates import certificate_pem
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import SevSnp
from attestkit.client.document import encode_document, encode_statement, read_document
from attestkit.client.document_endpoint import snp_certificates
from attestkit.client.services.own_document import OwnDocument
from attestkit.client.services.service import Claims
from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.errors import AttestKitError, FormatError, PolicyError, ServiceError, UsageError
from tests.attestation.test_snp import ASK, VCEK, make_table
from tests.client.middleware.documents import (
    HPKE,
    NONCE,
    OTHER_KEY,
    PEER,
    SIGNING,
    full_statement,
    genuine,
    statement_fields,
    tee,
    with_members,
    with_statement,
)
from tests.raising import raises
from tests.runner.cases import every_case

STRANGER = ObservedPeer(PEER.host, PEER.port, b"another leaf", b"another key")


def read(body: bytes, seen: ObservedPeer | None = PEER) -> Claims:
    """Read an answer to the nonce of the tests."""
    return OwnDocument().read((body,), NONCE, seen, None)


def verify(claims: Claims, platform: str = "tdx") -> None:
    """Verify the evidence of claims, as an endpoint does."""
    [machine] = claims.machines
    verifier = tee(platform).verifier()
    verifier.verify(machine.evidence, report_data=machine.report_data)


def test_question_has_the_nonce() -> None:
    """The document is asked for on the connection, with the nonce in lower-case hex."""
    service = OwnDocument()
    [question] = service.questions(NONCE, None)
    assert question.target == f"/.well-known/attestkit?nonce={NONCE.hex()}"
    assert question.origin is None
    assert (service.name, service.where) == ("attestkit", "wire")
    assert not service.recognizes(PEER.host)


def test_model_is_refused() -> None:
    """Servers of attestkit have no models."""
    with raises(UsageError, "not_applicable"):
        OwnDocument().questions(NONCE, "a model")


@pytest.mark.parametrize("platform", ["tdx", "snp"])
def test_genuine_document_is_verified(platform: str) -> None:
    """The evidence of a server verifies with the report data of the claims."""
    claims = read(genuine(platform))
    verify(claims, platform)
    assert claims.freshness == "nonce"
    assert [(one.kind, one.key, one.is_of) for one in claims.bindings] == [
        ("tls-spki", PEER.spki_sha256, "server")
    ]
    assert claims.machines[0].role == "server"


def test_certificates_of_snp_begin_with_the_signing_key() -> None:
    """The certificates of the host are beside the evidence, that of the chip's key first."""
    document = read_document(genuine("snp"), NONCE)
    attestation = Attestation.from_bytes(document.evidence)
    ask, vcek = attestation.evidence.platform.cert_chain  # type: ignore[union-attr]
    assert document.certificates == (vcek, ask)
    assert read(genuine("snp")).machines[0].snp_certificates == document.certificates
    assert "certificates" not in json.loads(genuine("tdx"))


def test_certificates_of_another_platform_are_refused() -> None:
    """Only SEV-SNP has them."""
    body = with_members(genuine(), certificates=["MAA="])
    with raises(FormatError, "inconsistent"):
        read(body)


def test_observed_key_is_the_first_binding() -> None:
    """The other keys of the server are proven too, and those of other purposes are returned."""
    claims = read(genuine(statement=full_statement()))
    verify(claims)
    assert [one.key for one in claims.bindings] == [PEER.spki_sha256, OTHER_KEY]
    assert claims.keys == {"hpke": HPKE, "signing-ed25519": SIGNING.public_key}


def test_first_signing_key_of_an_algorithm_counts() -> None:
    """A second one is for the time after the first."""
    keys = [SIGNING, SIGNING._replace(public_key=b"next")]
    statement = encode_statement([PEER.spki_sha256], NONCE, signing=keys)
    assert read(genuine(statement=statement)).keys == {"signing-ed25519": SIGNING.public_key}


def test_apart_all_keys_are_bound() -> None:
    """Without a connection the keys are compared later, on each one."""
    claims = read(genuine(statement=full_statement()), None)
    assert [one.key for one in claims.bindings] == [OTHER_KEY, PEER.spki_sha256]


def test_other_key_is_refused() -> None:
    """A relay with genuine evidence has a key of its own."""
    with raises(ServiceError, "other_key"):
        read(genuine(), STRANGER)


def test_relay_that_names_its_own_key_is_refused() -> None:
    """The evidence is not about a statement that was changed."""
    fields = statement_fields(genuine())
    fields["keys"]["tls"] = [STRANGER.spki_sha256.hex()]
    claims = read(with_statement(genuine(), fields), STRANGER)
    with raises(PolicyError, "report_data"):
        verify(claims)


def test_other_nonce_is_refused() -> None:
    """An old document is refused, also if its nonce is changed afterwards."""
    old = genuine(statement=encode_statement([PEER.spki_sha256], bytes(32)))
    with raises(ServiceError, "nonce_echo"):
        read(old)
    claims = read(with_statement(old, {**statement_fields(old), "nonce": NONCE.hex()}))
    with raises(PolicyError, "report_data"):
        verify(claims)


def test_added_members_of_a_statement_are_refused() -> None:
    """Changes that the evidence does not cover are refused: another name, another key."""
    for change in (
        {"name": "bank"},
        {"keys": {"tls": [PEER.spki_sha256.hex()], "hpke": "00" * 32}},
    ):
        body = with_statement(genuine(), {**statement_fields(genuine()), **change})
        with raises(PolicyError, "report_data"):
            verify(read(body))


@pytest.mark.parametrize("platform", ["tdx", "snp"])
def test_changed_evidence_is_refused(platform: str) -> None:
    """Evidence of another statement, cut or changed evidence are refused."""
    body = genuine(platform)
    evidence = b64decode(json.loads(body)["evidence"])
    other = genuine(platform, encode_statement([OTHER_KEY], NONCE))
    step = len(evidence) // 50
    changed = [
        evidence[:at] + bytes([evidence[at] ^ 1]) + evidence[at + 1 :]
        for at in range(8, 1000, step)
    ]
    cut = [evidence[:at] for at in range(0, len(evidence), step)]
    for each in [b64decode(json.loads(other)["evidence"]), *changed, *cut]:
        with pytest.raises(AttestKitError):
            verify(read(with_members(body, evidence=b64encode(each).decode())), platform)


def test_evidence_that_is_none_is_refused() -> None:
    """Evidence is decoded before it is verified."""
    body = encode_document(encode_statement([PEER.spki_sha256], NONCE), b"no evidence")
    with pytest.raises(FormatError):
        read(body)


@every_case("form", ["der", "pem", "table", "none"])
def test_certificates_in_any_form_of_the_host(form: str) -> None:
    """A host hands over certificates in DER, PEM or a table, in any order, or none."""
    attestation = Attestation.from_bytes(read_document(genuine("snp"), NONCE).evidence)
    platform = attestation.evidence.platform
    assert isinstance(platform, SevSnp)
    ask, vcek = platform.cert_chain
    chains: dict[str, tuple[bytes, ...]] = {
        "der": (vcek, ask),
        "pem": ((certificate_pem(ask) + certificate_pem(vcek)).encode(),),
        "table": (make_table((ASK, ask), (VCEK, vcek)),),
        "none": (),
    }
    changed = attestation.evidence._replace(platform=platform._replace(cert_chain=chains[form]))
    assert snp_certificates(Attestation(changed)) == (() if form == "none" else (vcek, ask))
