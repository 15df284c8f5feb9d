"""Receipts of ACI: signed by an attested key, over the bytes on the wire."""

import json
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, Final

import pytest

from attestkit._crypto.ed25519 import Ed25519Key
from attestkit._crypto.hashes import sha256
from attestkit.client.services.aci.aci import AciService
from attestkit.client.services.aci.aci_keyset import (
    ExpectedAnswer,
    Receipt,
    check_receipt,
    read_keyset,
)
from attestkit.client.services.service import AnswerRecord, Claims
from attestkit.client.strict_answer import AnswerObject
from attestkit.errors import FormatError, ServiceError
from tests.client.services.aci.aci_answers import (
    NONCE,
    PEER,
    RECEIPT_KEY,
    digest_of,
    encoded,
    keyset,
    receipt,
    report,
)
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import SHARED, needs_shared

VECTORS: Final = SHARED / "data" / "services" / "aci" / "vectors.json"
REQUEST: Final = b'{"model":"m"}'
RESPONSE: Final = b'{"id":"chatcmpl-1"}'
EXPECTED: Final = ExpectedAnswer(
    keys={"r1": RECEIPT_KEY.public_key},
    keyset_digest=bytes.fromhex(digest_of(keyset())[7:]),
    request_sha256=sha256(REQUEST),
    response_sha256=sha256(RESPONSE),
    identifier="rcpt-1",
    model="m",
    is_behind_gateway=True,
)


def check(changes: dict[str, Any] | None = None, **expected: Any) -> Receipt:
    """Check a receipt that is signed after its changes."""
    document = encoded(receipt(REQUEST, RESPONSE, **(changes or {})))
    return check_receipt(document, EXPECTED._replace(**expected))


def log(change: Callable[[list[dict[str, Any]]], object]) -> dict[str, Any]:
    """Return a changed event log."""
    events = receipt(REQUEST, RESPONSE)["event_log"]
    change(events)
    return {"event_log": events}


def test_receipt_of_the_answer() -> None:
    """A receipt names the machine behind the gateway, and says whether the body was rewritten."""
    found = check()
    at = datetime.fromtimestamp(1_750_000_000, timezone.utc)
    assert found == Receipt("rcpt-1", "m", at, "ab" * 32, was_rewritten=False)
    assert check(identifier="chatcmpl-1") == found
    rewritten = log(lambda events: events[1].update(body_hash="sha256:" + "00" * 32))
    assert check(rewritten).was_rewritten
    refused = log(lambda events: events.pop(1))
    assert not check(refused).was_rewritten


def test_unknown_events_and_members_are_signed_and_ignored() -> None:
    """Services may add both."""
    more = log(lambda events: events.insert(1, {"type": "route.chosen", "to": "a"}))
    assert check({**more, "extra": {"a": [1]}}) == check()


def test_direct_service_has_no_machine_behind() -> None:
    """Without a gateway, no verification is recorded."""
    direct = log(lambda events: events.pop(2))
    assert check(direct, is_behind_gateway=False).session_id is None
    with raises(ServiceError, "signature"):
        check(direct)


def test_machines_that_were_tried_first_may_have_failed() -> None:
    """The last verification is that of the machine that served."""
    failed = {"type": "upstream.verified", "result": "failed", "required": True, "reason": "x"}
    assert check(log(lambda events: events.insert(2, failed))).session_id == "ab" * 32
    with raises(ServiceError, "signature"):
        check(log(lambda events: events.insert(3, failed)))


@every_case(
    "changes",
    [
        {"request_sha256": bytes(32)},
        {"response_sha256": bytes(32)},
        {"keyset_digest": bytes(32)},
        {"identifier": "another"},
        {"model": "another"},
        {"keys": {}},
        {"keys": {"r1": Ed25519Key(b"\x0b" * 32).public_key}},
        {"keys": {"r2": RECEIPT_KEY.public_key}},
    ],
)
def test_receipt_of_something_else(changes: dict[str, Any]) -> None:
    """Another request, answer, keyset, model or key is refused."""
    with raises(ServiceError, "signature"):
        check(**changes)
    check(model=None)


@every_case(
    "changes",
    [
        log(lambda events: events[2].update(required=False)),
        log(lambda events: events[2].update(required="true")),
        log(lambda events: events[2].update(result="failed")),
        log(lambda events: events[2].pop("result")),
        log(lambda events: events[2].pop("required")),
        {"workload_keyset_digest": "sha256:" + "00" * 32},
    ],
)
def test_receipt_of_an_unverified_machine(changes: dict[str, Any]) -> None:
    """A gateway that did not verify, or did not have to, is refused."""
    with raises(ServiceError, "signature"):
        check(changes)


@every_case(
    ("changes", "reason"),
    [
        ({"api_version": "aci/2"}, "unsupported"),
        ({"receipt_id": None}, "wrong_type"),
        ({"model": 1}, "wrong_type"),
        ({"served_at": -1}, "wrong_value"),
        ({"served_at": 1 << 39}, "wrong_value"),
        ({"served_at": "now"}, "wrong_type"),
        ({"workload_keyset_digest": "00" * 32}, "encoding"),
        ({"event_log": {}}, "wrong_type"),
        ({"event_log": []}, "missing"),
        ({"event_log": [1]}, "wrong_type"),
        ({"event_log": [{}]}, "missing"),
        ({"event_log": [{"type": "x"}] * 257}, "too_many"),
        (log(lambda events: events.pop(0)), "missing"),
        (log(lambda events: events.pop()), "missing"),
        (log(lambda events: events.append(events[0])), "duplicate"),
        (log(lambda events: events.append(events[-1])), "duplicate"),
        (log(lambda events: events[0].update(body_hash="sha256:AB")), "encoding"),
        (log(lambda events: events[2].update(session_id="AB" * 32)), "encoding"),
        (log(lambda events: events[2].pop("session_id")), "missing"),
    ],
)
def test_malformed_receipt(changes: dict[str, Any], reason: str) -> None:
    """A signed receipt still has a form."""
    with raises(FormatError, reason):
        check(changes)


def test_every_member_is_signed() -> None:
    """A receipt with any altered, missing or additional member is refused."""
    genuine = receipt(REQUEST, RESPONSE)
    altered = [{**genuine, "more": 1}]
    for name in genuine:
        altered += [{key: value for key, value in genuine.items() if key != name}]
        altered += [{**genuine, name: "sha256:" + "11" * 32}]
    for one in altered:
        with pytest.raises((ServiceError, FormatError)):
            check_receipt(encoded(one), EXPECTED)
    signature = bytearray.fromhex(genuine["signature"])
    for at in range(64):
        signature[at] ^= 1
        with raises(ServiceError, "signature"):
            check_receipt(encoded({**genuine, "signature": signature.hex()}), EXPECTED)
        signature[at] ^= 1


def test_every_cut_is_refused() -> None:
    """A receipt that ends early is malformed."""
    document = encoded(receipt(REQUEST, RESPONSE))
    for size in range(len(document)):
        with pytest.raises(FormatError):
            check_receipt(document[:size], EXPECTED)


def test_encoding_of_the_document_does_not_count() -> None:
    """The signature is over the canonical form."""
    document = json.dumps(receipt(REQUEST, RESPONSE), indent=3).encode()
    assert check_receipt(document, EXPECTED) == check()


# -- over the service ------------------------------------------------------------------------------


def claims(**changes: Any) -> Claims:
    """Return the claims of a gateway."""
    return AciService().read((encoded(report(**changes)),), NONCE, PEER, None)


def test_service_looks_a_receipt_up_and_checks_it() -> None:
    """The id of the header, or of the answer, finds the receipt; hashes are of the wire."""
    service = AciService()
    answer = AnswerRecord(sha256(REQUEST), sha256(RESPONSE), "rcpt-1", ())
    assert service.signature_question(answer, "m").target == "/v1/aci/receipts/rcpt-1"
    odd = answer._replace(identifier="../a?b=c#d")
    assert service.signature_question(odd, None).target == "/v1/aci/receipts/..%2Fa%3Fb%3Dc%23d"
    document = encoded(receipt(REQUEST, RESPONSE))
    service.check_signature(document, answer, claims(), "m")
    with raises(ServiceError, "signature"):
        service.check_signature(document, answer._replace(response_sha256=bytes(32)), claims(), "m")


def test_direct_service_needs_no_machine_behind() -> None:
    """A receipt without verification is accepted of a service that serves itself."""
    answer = AnswerRecord(sha256(REQUEST), sha256(RESPONSE), "rcpt-1", ())
    document = encoded(receipt(REQUEST, RESPONSE, **log(lambda events: events.pop(2))))
    AciService().check_signature(document, answer, claims(serving="direct"), "m")
    with raises(ServiceError, "signature"):
        AciService().check_signature(document, answer, claims(), "m")


# -- published vectors -----------------------------------------------------------------------------


@needs_shared
def test_published_vectors() -> None:
    """The published receipt is accepted for the published bodies, and no others."""
    vectors = json.loads(VECTORS.read_text())
    expected = ExpectedAnswer(
        keys=read_keyset(AnswerObject(json.loads(vectors["keyset_jcs"]), "keyset")).receipt_keys,
        keyset_digest=bytes.fromhex(vectors["keyset_digest"][7:]),
        request_sha256=sha256(vectors["request_body"].encode()),
        response_sha256=sha256(vectors["response_body"].encode()),
        identifier="rcpt-0001",
        model="demo-model",
        is_behind_gateway=True,
    )
    document = vectors["receipt"].encode()
    found = check_receipt(document, expected)
    assert found.session_id == vectors["session_id"]
    assert expected.keys["receipt-1"].hex() == vectors["receipt_public_key"]
    with raises(ServiceError, "signature"):
        check_receipt(document.replace(b"POST", b"PUT"), expected)
