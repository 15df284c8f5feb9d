"""Receipts of Attested Confidential Inference (attested-client.md, 2.5).

A receipt is a signed log of one request: hashes of the bytes that came in, went on and went out,
and whether the machine behind a gateway was verified.
"""

import hmac
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Final, NamedTuple

from attestkit._crypto.ed25519 import ed25519_verify_strict
from attestkit._formats import strict_json
from attestkit._formats.canonical_json import canonical_json
from attestkit._sanitize import shown
from attestkit.client.strict_answer import AnswerObject, read_answer_object
from attestkit.errors import FormatError, ServiceError

MAX_EVENTS: Final = 256
"""Maximum number of events in a receipt."""

_API_VERSION: Final = "aci/1"
_RECEIPT: Final = "receipt"
_RECEIVED: Final = "request.received"
_FORWARDED: Final = "request.forwarded"
_RETURNED: Final = "response.returned"
_VERIFIED: Final = "upstream.verified"
_ID: Final = re.compile("[0-9a-f]{64}")
_DIGEST: Final = re.compile("sha256:([0-9a-f]{64})")
_BITS: Final = 40  # of a Unix time


class ExpectedAnswer(NamedTuple):
    """Expected content of a receipt."""

    keys: Mapping[str, bytes]  # Ed25519 keys of the attested keyset by key id
    keyset_digest: bytes  # 32 bytes
    request_sha256: bytes  # of the body that was sent; if it was sealed, of the restored one
    response_sha256: bytes  # of the bytes on the wire
    identifier: str  # receipt id or `id` of the answer, as it was looked up
    model: str | None  # None for any
    is_behind_gateway: bool  # then the machine behind it must have been verified


class Receipt(NamedTuple):
    """A receipt whose signature is valid, for the expected answer."""

    receipt_id: str
    model: str | None
    served_at: datetime  # the service's word
    session_id: str | None  # of the machine behind the gateway
    was_rewritten: bool  # whether the gateway sent on another body than it received


def check_receipt(document: bytes, expected: ExpectedAnswer) -> Receipt:
    """Check the receipt of an answer.

    Raises:
        FormatError: If it is malformed.
        ServiceError: If the signature is not valid, or it is about another keyset, request, answer
            or model, or about a machine that was not verified (`signature`).
    """
    members = read_answer_object(document, _RECEIPT)
    _check_signature(members, expected.keys)
    members.constant("api_version", _API_VERSION)
    digest = _digest(members, "workload_keyset_digest")
    _same(digest, expected.keyset_digest, "is about another keyset")
    receipt_id = members.text("receipt_id")
    if expected.identifier not in (receipt_id, members.get("chat_id")):
        raise _refusal("is of another answer")
    model = members.optional_text("model")
    if expected.model is not None and model != expected.model:
        raise _refusal(f"is about the model {shown(str(model))}, not {shown(expected.model)}")
    events = _events(members)
    received = _check_hashes(events, expected)
    forwarded = [_digest(e, "body_hash") for e in events if e["type"] == _FORWARDED]
    return Receipt(
        receipt_id,
        model,
        _served_at(members),
        _verified_session(events, required=expected.is_behind_gateway),
        any(one != received for one in forwarded),
    )


def _check_signature(members: AnswerObject, keys: Mapping[str, bytes]) -> None:
    """Check the signature over all other members, in canonical form."""
    signature = members.hex("signature", 64)
    key_id = members.text("key_id")
    if (key := keys.get(key_id)) is None:
        raise _refusal(f"is signed by the key {shown(key_id)}, which is not in the keyset")
    signed = {name: value for name, value in members.items() if name != "signature"}
    if not ed25519_verify_strict(key, signature, canonical_json(signed, _RECEIPT)):
        raise _refusal("its signature is not valid")


def _events(members: AnswerObject) -> list[AnswerObject]:
    events = members.objects("event_log", MAX_EVENTS)
    if [event.text("type") for event in events][:1] != [_RECEIVED]:
        raise members.error("event_log", f"must begin with {_RECEIVED}", "missing")
    return events


def _check_hashes(events: list[AnswerObject], expected: ExpectedAnswer) -> bytes:
    """Compare the hashes of request and answer; return that of the request."""
    found = []
    for kind, hashed, what in (
        (_RECEIVED, expected.request_sha256, "request"),
        (_RETURNED, expected.response_sha256, "answer"),
    ):
        several = [event for event in events if event["type"] == kind]
        if len(several) != 1:
            message = f"{_RECEIPT}: event_log: {kind} occurs {len(several)} times"
            raise FormatError(message, reason="duplicate" if several else "missing")
        found.append(_digest(several[0], "body_hash"))
        _same(found[-1], hashed, f"is about another {what} than the bytes on the wire")
    return found[0]


def _verified_session(events: list[AnswerObject], *, required: bool) -> str | None:
    """Return the session of the machine that served: that of the last verification.

    Those before it may have failed, of machines that were tried first.
    """
    checks = [event for event in events if event["type"] == _VERIFIED]
    if not checks:
        if required:
            raise _refusal("does not say which machine behind the gateway served")
        return None
    if any(event.get("required") is not True for event in checks):
        raise _refusal("the gateway did not require a verified machine (aci_verified)")
    last = checks[-1]
    if last.get("result") != "verified":
        raise _refusal("the machine behind the gateway was not verified")
    session = last.text("session_id")
    if _ID.fullmatch(session) is None:
        raise last.error("session_id", "not lowercase hex", "encoding")
    return session


def _served_at(members: AnswerObject) -> datetime:
    """Return the time of the answer, in Unix seconds."""
    try:
        seconds = strict_json.number_field(members, "served_at", _BITS)
        return datetime.fromtimestamp(seconds, timezone.utc)
    except FormatError as error:
        raise FormatError(f"{_RECEIPT}: {error}", reason=error.reason) from error
    except (ValueError, OverflowError, OSError) as error:
        raise FormatError(f"{_RECEIPT}: served_at: out of range", reason="wrong_value") from error


def _digest(members: AnswerObject, name: str) -> bytes:
    found = _DIGEST.fullmatch(members.text(name))
    if found is None:
        raise members.error(name, "must be sha256: and 64 hex digits", "encoding")
    return bytes.fromhex(found[1])


def _same(found: bytes, expected: bytes, problem: str) -> None:
    if not hmac.compare_digest(found, expected):
        raise _refusal(problem)


def _refusal(problem: str) -> ServiceError:
    return ServiceError(f"{_RECEIPT}: {problem}", reason="signature")
