"""Reports of ACI: the keyset is that of the evidence, for this nonce, with the observed key."""

import json
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, Final

import pytest

from attestkit._crypto.ecdsa import k256_public_key
from attestkit._crypto.ed25519 import x25519_public_key
from attestkit.attestation import Attestation
from attestkit.client.proofs.appraisal import Require
from attestkit.client.services.aci.aci import KEYSET_DIGEST, AciService
from attestkit.client.services.aci.aci_keyset import read_keyset
from attestkit.client.services.service import Claims
from attestkit.client.strict_answer import AnswerObject
from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.errors import FormatError, PolicyError, ServiceError, VerificationError
from tests.client.services.aci import aci_answers
from tests.client.services.aci.aci_answers import (
    E2EE_SECRET,
    HOST,
    K256_SECRET,
    KMS_ROOT,
    NONCE,
    PEER,
    RECEIPT_KEY,
    encoded,
    keyset,
    report,
    verifier,
)
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import HAVE_SHARED, SHARED, needs_shared

FOLDER: Final = SHARED / "data" / "services" / "aci"
EXPECTED: Final[dict[str, Any]] = (
    json.loads((FOLDER.parent / "expected.json").read_text())["aci"] if HAVE_SHARED else {}
)
Change = Callable[[dict[str, Any]], object]


def read(
    answer: dict[str, Any], seen: ObservedPeer | None = PEER, service: AciService | None = None
) -> Claims:
    """Read an answer to the nonce of the tests."""
    return (service or AciService()).read((encoded(answer),), NONCE, seen, None)


def test_question_has_the_nonce() -> None:
    """The report is of the service, whatever the model."""
    [question] = AciService().questions(NONCE, "a model")
    assert question.target == f"/v1/aci/attestation?nonce={NONCE.hex()}"
    assert question.headers == ()
    assert not AciService().recognizes(HOST)


def test_report_is_verified_with_the_computed_report_data() -> None:
    """The evidence has the report data that are computed from nonce and keyset, and the app."""
    claims = read(report())
    [machine] = claims.machines
    assert isinstance(machine.evidence, Attestation)
    found = verifier().verify(machine.evidence, report_data=machine.report_data)
    assert found.app_info is not None
    assert found.app_info.app_id == aci_answers.gateway().app_info.app_id
    assert (machine.role, claims.freshness, claims.code) == ("gateway", "nonce", "policy")
    assert claims.valid_until == datetime.fromtimestamp(2_000_000_000, timezone.utc)
    assert claims.keys["receipt:r1"] == RECEIPT_KEY.public_key
    assert claims.keys[KEYSET_DIGEST].hex() == aci_answers.digest_of(keyset())[7:]


def test_observed_key_is_the_first_binding() -> None:
    """TLS is enforced; the key of field encryption can be asked for."""
    tls, fields = read(report()).bindings
    assert (tls.kind, tls.key) == ("tls-spki", PEER.spki_sha256)
    assert (fields.kind, fields.key) == ("fields", x25519_public_key(E2EE_SECRET))
    assert tls.is_of == fields.is_of == "gateway"


def test_direct_service_protects_up_to_the_server() -> None:
    """The word `direct` counts only over a connection with an attested key."""
    assert read(report(serving="direct")).bindings[0].is_of == "server"
    assert read(report(serving="direct"), None).bindings[0].is_of == "gateway"
    assert read(report(serving="something new")).bindings[0].is_of == "gateway"


def test_relay_cannot_say_that_a_gateway_is_direct() -> None:
    """Without an attested TLS key anybody can change the word, which is not in the report data."""
    relayed = read(report(keyset(tls_public_keys=[]), serving="direct"))
    assert [(one.kind, one.is_of) for one in relayed.bindings] == [("fields", "gateway")]
    assert relayed.machines[0].role == "gateway"
    with raises(ServiceError, "ends_at_gateway"):
        Require().check(relayed, relayed.bindings, "aci")


def test_apart_all_listed_keys_are_bound() -> None:
    """Without a connection, each TLS key is compared later, on each one."""
    keys = [{"spki_sha256": f"{number:064x}"} for number in range(3)]
    found = read(report(keyset(tls_public_keys=keys)), None).bindings
    assert [one.key.hex() for one in found if one.kind == "tls-spki"] == [
        key["spki_sha256"] for key in keys
    ]


def test_limits_of_the_proof_are_stated() -> None:
    """Properties that the report does not show are listed as not proven."""
    text = "; ".join(read(report()).not_proven)
    for part in ("the machine behind the gateway", "KMS", "the source", "GPUs"):
        assert part in text
    assert "the app" in "; ".join(read(report(event_log=None)).not_proven)
    assert "KMS" not in "; ".join(
        read(report(), service=AciService(kms_roots=[KMS_ROOT.public_key])).not_proven
    )


def test_report_without_log_cannot_show_the_app() -> None:
    """A policy that names the app refuses the bare quote."""
    [machine] = read(report(event_log=None)).machines
    with pytest.raises(PolicyError):
        verifier().verify(machine.evidence, report_data=machine.report_data)


# -- what is refused -------------------------------------------------------------------------------


def test_other_key_of_the_connection() -> None:
    """A relay has another key, or the right key under another name."""
    for seen in (PEER._replace(spki=b"relay"), PEER._replace(host="other.example")):
        with raises(ServiceError, "other_key"):
            read(report(), seen)


def test_domain_is_compared_without_case() -> None:
    """Names of hosts have no case; an entry without a domain is for all hosts."""
    assert read(report(), PEER._replace(host=HOST.upper())).bindings
    entry = {"spki_sha256": PEER.spki_sha256.hex()}
    assert read(report(keyset(tls_public_keys=[entry])), PEER._replace(host="b.example")).bindings


@pytest.mark.parametrize("nonce", [None, bytes(32)])
def test_report_for_another_nonce(nonce: bytes | None) -> None:
    """A report for another nonce, or for none, is refused; if it lies, the verifier refuses it."""
    old = report(nonce=nonce)
    with raises(ServiceError, "nonce_echo"):
        read(old)
    old["attestation"]["report_data"] = report()["attestation"]["report_data"]
    [machine] = read(old).machines
    with raises(PolicyError, "report_data"):
        verifier().verify(machine.evidence, report_data=machine.report_data)


def test_keys_of_another_keyset_are_refused_by_the_verifier() -> None:
    """Other keys beside a genuine quote, with everything restated, give other report data."""
    genuine = report()
    forged = report(keyset(e2ee_public_keys=[]))
    forged["attestation"]["evidence"] = genuine["attestation"]["evidence"]
    [machine] = read(forged).machines
    with raises(PolicyError, "report_data"):
        verifier().verify(machine.evidence, report_data=machine.report_data)


def test_keyset_without_a_key_for_the_channel() -> None:
    """Without TLS keys only fields are protected; with neither, a channel is missing."""
    plain = keyset(tls_public_keys=[])
    assert [one.kind for one in read(report(plain)).bindings] == ["fields"]
    with raises(ServiceError, "no_channel"):
        read(report(plain, versions=()))


def _set(*path: str, value: object) -> Change:
    def change(answer: dict[str, Any]) -> None:
        for name in path[:-1]:
            answer = answer[name]
        answer[path[-1]] = value

    return change


def _drop(*path: str) -> Change:
    def change(answer: dict[str, Any]) -> None:
        for name in path[:-1]:
            answer = answer[name]
        del answer[path[-1]]

    return change


KEYS: Final = ("attestation", "workload_keyset")
EVIDENCE: Final = ("attestation", "evidence")
ALTERED: Final[list[tuple[Change, str]]] = [
    (_set("api_version", value="aci/2"), "unsupported"),
    (_drop("api_version"), "missing"),
    (_set("workload_keyset_digest", value="sha256:" + "00" * 32), "inconsistent"),
    (_set("workload_keyset_digest", value=1), "wrong_type"),
    (_set("attestation", value=[]), "wrong_type"),
    (_set("attestation", "tee_type", value="sev_snp"), "unsupported"),
    (_set("attestation", "report_data", value="00" * 64), "wrong_size"),
    (_set("attestation", "report_data", value="AB" * 32), "encoding"),
    (_set(*KEYS, "not_after", value=1.5), "wrong_type"),
    (_set(*KEYS, "not_after", value=None), "missing"),
    (_set(*KEYS, "not_after", value=1 << 52), "wrong_value"),
    (_set(*KEYS, "not_after", value=2_000_000_001), "inconsistent"),
    (_set(*KEYS, "subject", value="another"), "inconsistent"),
    (_set(*KEYS, "subject", value=1), "wrong_type"),
    (_set(*KEYS, "more", value=1), "unknown_field"),
    (_drop(*KEYS, "subject"), "missing"),
    (_set(*KEYS, "tls_public_keys", value={}), "wrong_type"),
    (_set(*KEYS, "tls_public_keys", value=[1]), "wrong_type"),
    (_set(*KEYS, "tls_public_keys", value=[{}] * 65), "too_many"),
    (_set(*KEYS, "tls_public_keys", value=[{"spki_sha256": "00"}]), "wrong_size"),
    (_set(*KEYS, "tls_public_keys", value=[{"spki_sha256": "00" * 32}]), "inconsistent"),
    (_set(*KEYS, "tls_public_keys", value=[{"spki_sha256": "", "domain": 1}]), "wrong_type"),
    (_set(*KEYS, "receipt_signing_keys", value=[{"algo": "ed25519"}]), "missing"),
    (_set(*EVIDENCE, "quote", value="00"), "short_header"),
    (_set(*EVIDENCE, "event_log", value="[{}]"), "missing"),
    (_set(*EVIDENCE, "event_log", value={}), "wrong_type"),
    (_set(*EVIDENCE, "vm_config", value=1), "wrong_type"),
    (_set(*EVIDENCE, "app_compose", value="{}"), "inconsistent"),
    (_set(*EVIDENCE, "app_compose", value={}), "wrong_type"),
    (_set("service_capabilities", "supported_e2ee_versions", value="2"), "wrong_type"),
    (_drop("service_capabilities", "serving"), "missing"),
]


@every_case(("change", "reason"), ALTERED)
def test_altered_report_is_refused(change: Change, reason: str) -> None:
    """A report whose parts contradict each other, or are malformed, is refused."""
    answer = report()
    change(answer)
    with pytest.raises(FormatError) as caught:
        read(answer)
    assert caught.value.reason == reason, caught.value


def test_every_cut_is_refused() -> None:
    """A report that ends early is malformed, wherever it ends."""
    answer = encoded(report())
    for size in [*range(0, len(answer), 97), *range(len(answer) - 60, len(answer))]:
        with pytest.raises(FormatError):
            AciService().read((answer[:size],), NONCE, PEER, None)


def test_altered_event_log_is_refused_by_the_verifier() -> None:
    """The log is evidence: a changed app id does not replay."""
    answer = report(app_compose=None)
    log = json.loads(answer["attestation"]["evidence"]["event_log"])
    for event in log:
        if event["event"] == "app-id":
            event["event_payload"] = "11" * 20
            event["digest"] = ""
    answer["attestation"]["evidence"]["event_log"] = log  # a list is accepted as well
    [machine] = read(answer).machines
    with pytest.raises(VerificationError):
        verifier().verify(machine.evidence, report_data=machine.report_data)


def test_boot_event_that_occurs_twice() -> None:
    """Of two compose hashes neither counts."""
    answer = report()
    log = json.loads(answer["attestation"]["evidence"]["event_log"])
    [at] = [n for n, event in enumerate(log) if event["event"] == "compose-hash"]
    answer["attestation"]["evidence"]["event_log"] = [*log[: at + 1], *log[at:]]
    with raises(FormatError, "duplicate"):
        read(answer)


# -- keys and custody ------------------------------------------------------------------------------


def test_unknown_algorithms_are_skipped() -> None:
    """An entry of an unknown algorithm is left out, whatever else it has."""
    keys = keyset()
    keys["receipt_signing_keys"].append({"algo": "ml-dsa-65"})
    keys["e2ee_public_keys"].insert(0, {"algo": "unknown"})
    found = read_keyset(AnswerObject(keys, "keyset"))
    assert set(found.receipt_keys) == {"r1"}
    assert len(found.e2ee_keys) == 1


@pytest.mark.parametrize(("head", "cut"), [("", 0), ("0x", 0), ("", 1)])
def test_forms_of_secp256k1_keys(head: str, cut: int) -> None:
    """A key may lack its first byte, and begin with 0x."""
    point = k256_public_key(K256_SECRET, compressed=False)
    suite = "secp256k1-aes-256-gcm-hkdf-sha256"
    entry = {"algo": suite, "key_id": "e", "public_key": head + point[cut:].hex()}
    found = read_keyset(AnswerObject(keyset(e2ee_public_keys=[entry]), "keyset"))
    assert found.e2ee_keys == {suite: point}


@pytest.mark.parametrize(
    ("key", "reason"),
    [("00" * 33, "wrong_size"), ("04" + "01" * 64, "wrong_value"), ("zz", "encoding")],
)
def test_invalid_secp256k1_key(key: str, reason: str) -> None:
    """A key has to be an uncompressed point of the curve."""
    entry = {"algo": "secp256k1-aes-256-gcm-hkdf-sha256", "key_id": "e", "public_key": key}
    with raises(FormatError, reason):
        read_keyset(AnswerObject(keyset(e2ee_public_keys=[entry]), "keyset"))


def test_invalid_signing_keys() -> None:
    """Key ids occur once, and keys of low order, whose signatures fit many texts, are refused."""
    [entry] = keyset()["receipt_signing_keys"]
    with raises(FormatError, "duplicate"):
        read_keyset(AnswerObject(keyset(receipt_signing_keys=[entry, entry]), "keyset"))
    with raises(FormatError, "wrong_value"):
        read_keyset(
            AnswerObject(
                keyset(receipt_signing_keys=[{**entry, "public_key": "01" + "00" * 31}]), "keyset"
            )
        )


def test_custody_by_a_trusted_kms() -> None:
    """With `kms_roots`, a trusted KMS must have derived the signing key for this app."""
    trusting = AciService(kms_roots=[KMS_ROOT.public_key])
    assert read(report(), service=trusting).keys
    chain = aci_answers.custody()
    entry = chain["keys"][0]
    with_27 = [link[:-2] + f"{int(link[-2:], 16) + 27:02x}" for link in entry["signature_chain"]]
    chain["keys"] = [{**entry, "signature_chain": with_27}]
    assert read(report(key_custody=chain), service=trusting).keys


@every_case(
    ("changes", "kind", "reason"),
    [
        ({"public_key": "ab" * 32}, ServiceError, "signature"),
        ({"purpose": "another"}, ServiceError, "signature"),
        ({"kms_public_key": KMS_ROOT.public_key.hex()}, ServiceError, "signature"),
        ({"kms_public_key": "00" * 33}, FormatError, "wrong_value"),
        ({"signature_chain": []}, ServiceError, "signature"),
        ({"signature_chain": ["00" * 65] * 3}, FormatError, "too_many"),
        ({"signature_chain": ["00" * 64] * 2}, FormatError, "wrong_size"),
        ({"role": "e2ee"}, FormatError, "missing"),
    ],
)
def test_custody_that_is_not_shown(
    changes: dict[str, Any], kind: type[FormatError | ServiceError], reason: str
) -> None:
    """A chain for another key or purpose, or to another root, is refused."""
    entry = aci_answers.custody()["keys"][0] | changes
    trusting = AciService(kms_roots=[KMS_ROOT.public_key])
    with raises(kind, reason):
        read(report(key_custody={"keys": [entry]}), service=trusting)


def test_custody_by_an_unknown_kms_or_without_log() -> None:
    """Another root, no log and no chain are refused if custody is required."""
    other = AciService(kms_roots=[k256_public_key(b"\x09" * 32)])
    with raises(ServiceError, "signature"):
        read(report(), service=other)
    trusting = AciService(kms_roots=[KMS_ROOT.public_key])
    for answer in (report(event_log=None), report(key_custody=None)):
        with pytest.raises(FormatError):
            read(answer, service=trusting)


# -- published vectors -----------------------------------------------------------------------------


@needs_shared
def test_published_vectors() -> None:
    """Digest and report data are those of the protocol's vectors."""
    vectors = json.loads((FOLDER / "vectors.json").read_text())
    found = read_keyset(AnswerObject(json.loads(vectors["keyset_jcs"]), "keyset"))
    assert found.digest_text == vectors["keyset_digest"]
    nonce = bytes.fromhex(vectors["nonce"])
    assert found.report_data(nonce).hex() == vectors["report_data"] + "00" * 32
    shown = {one["name"]: one["expected"] for one in EXPECTED["vectors"]["bindings"]}
    assert shown["keyset"] == found.digest.hex()
    assert shown["statement"] == found.report_data(nonce)[:32].hex()


@needs_shared
def test_stub_of_a_quote_is_refused() -> None:
    """A development gateway's report has the digest of its keyset, and no evidence."""
    answer = json.loads((FOLDER / "report-stub.json").read_text())
    found = read_keyset(AnswerObject(answer["attestation"]["workload_keyset"], "keyset"))
    assert found.digest_text == EXPECTED["keyset_digest"] == answer["workload_keyset_digest"]
    with raises(ServiceError, "nonce_echo"):
        AciService().read((encoded(answer),), NONCE, PEER, None)
    answer["attestation"]["report_data"] = found.report_data(NONCE)[:32].hex()
    with raises(ServiceError, "no_channel"):
        AciService().read((encoded(answer),), NONCE, PEER, None)
