"""Keyset of an ACI service, which its evidence hashes, and the receipts that its keys sign.

ACI is Attested Confidential Inference. A receipt is a signed log of one request: hashes of the
request as received and as forwarded, and of the answer, and whether the machine behind a gateway
was verified.
"""

import hmac
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Final, NamedTuple

from attestkit._crypto.ed25519 import ed25519_has_prime_order, ed25519_verify_strict
from attestkit._crypto.hashes import sha256
from attestkit._crypto.k256_agreement import k256_compressed
from attestkit._formats import strict_json
from attestkit._formats.canonical_json import canonical_json
from attestkit._sanitize import shown
from attestkit.client.sealing.aci_e2ee import SECP256K1_SUITE, X25519_SUITE
from attestkit.client.strict_answer import AnswerObject, read_answer_object
from attestkit.errors import FormatError, ServiceError, SignatureError, UsageError
from attestkit.keys import verify_key_chain

MAX_KEYS: Final = 64
"""Maximum number of keys of one kind in a keyset."""

_WHAT: Final = "workload_keyset"
_CUSTODY: Final = "key_custody"
_MEMBERS: Final = (
    "subject",
    "not_after",
    "receipt_signing_keys",
    "e2ee_public_keys",
    "tls_public_keys",
)
_STATEMENT: Final = "aci.report_data.v1"
_RECEIPT_PURPOSE: Final = "aci.receipt.ed25519.v1"
_LATEST: Final = 253_402_300_799  # the end of the year 9999
_RECOVERY_BASE: Final = 27  # which Ethereum's libraries add to the recovery id


class TlsKey(NamedTuple):
    """A TLS key in the keyset of an ACI service."""

    spki_sha256: bytes  # 32 bytes
    domain: str | None  # the only host name for which it counts, in lower case


class Keyset(NamedTuple):
    """Public keys of an ACI service, without entries of unknown algorithms."""

    digest: bytes  # SHA-256 of the canonical form, 32 bytes
    not_after: datetime
    receipt_keys: Mapping[str, bytes]  # Ed25519, 32 bytes, by key id
    e2ee_keys: Mapping[str, bytes]  # by suite: X25519, 32 bytes; secp256k1, 65 bytes
    tls_keys: tuple[TlsKey, ...]

    def report_data(self, nonce: bytes) -> bytes:
        """Return the 64 bytes of report data that evidence for the keyset and a nonce must have.

        Args:
            nonce: Nonce of the client, 32 bytes.
        """
        statement = canonical_json(
            {"keyset_digest": self.digest_text, "nonce": nonce.hex(), "purpose": _STATEMENT}
        )
        return sha256(statement).ljust(64, b"\0")

    @property
    def digest_text(self) -> str:
        """The digest as the protocol writes it: "sha256:" and 64 lowercase hex digits."""
        return f"sha256:{self.digest.hex()}"


def read_keyset(members: AnswerObject) -> Keyset:
    """Decode the keyset of an answer.

    Args:
        members: Member `workload_keyset` of the answer.

    Raises:
        FormatError: If it is malformed, has unknown members, a key id twice, or over 64 keys of a
            kind.
    """
    digest = sha256(canonical_json(members, _WHAT))
    members.check(_MEMBERS)
    members.optional_text("subject")
    end = strict_json.number_field(members, "not_after", 53)
    if end > _LATEST:
        raise FormatError(f"{_WHAT}: not_after: must be a year up to 9999", reason="wrong_value")
    return Keyset(
        digest,
        datetime.fromtimestamp(end, timezone.utc),
        _receipt_keys(members),
        _e2ee_keys(members),
        _tls_keys(members),
    )


def _receipt_keys(members: AnswerObject) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for entry in members.objects("receipt_signing_keys", MAX_KEYS):
        if entry.text("algo") != "ed25519":
            continue
        key_id = entry.text("key_id")
        key = entry.hex("public_key", 32)
        if key_id in found:
            raise entry.error("key_id", f"{shown(key_id)} must occur once", "duplicate")
        if not ed25519_has_prime_order(key):
            raise entry.error("public_key", "must be a point of Ed25519", "wrong_value")
        found[key_id] = key
    return found


def _e2ee_keys(members: AnswerObject) -> dict[str, bytes]:
    """Return the first encryption key of each algorithm in a keyset, by the algorithm's name."""
    found: dict[str, bytes] = {}
    for entry in members.objects("e2ee_public_keys", MAX_KEYS):
        suite = entry.text("algo")
        if suite not in (X25519_SUITE, SECP256K1_SUITE):
            continue
        if suite == X25519_SUITE:
            key = entry.prefixed_hex("public_key", 32)
        else:
            key = _k256_point(entry.prefixed_hex("public_key", 64, 65), entry)
        found.setdefault(suite, key)
    return found


def _k256_point(key: bytes, entry: AnswerObject) -> bytes:
    """Return an uncompressed SEC1 key, 65 bytes; `key` may lack the first byte (0x04)."""
    point = b"\4" + key if len(key) == 64 else key
    if point[:1] != b"\4":
        raise entry.error("public_key", "must be an uncompressed SEC1 point", "wrong_size")
    _compressed(point, entry, "public_key")
    return point


def _compressed(key: bytes, entry: AnswerObject, name: str) -> bytes:
    try:
        return k256_compressed(key)
    except UsageError as error:
        raise entry.error(name, "must be a point of secp256k1", "wrong_value") from error


def _tls_keys(members: AnswerObject) -> tuple[TlsKey, ...]:
    found = []
    for entry in members.objects("tls_public_keys", MAX_KEYS):
        domain = entry.optional_text("domain")
        spki_sha256 = entry.hex("spki_sha256", 32)
        found.append(TlsKey(spki_sha256, None if domain is None else domain.lower()))
    return tuple(found)


def check_custody(
    evidence: AnswerObject, keyset: Keyset, app_id: bytes | None, kms_roots: Iterable[bytes]
) -> None:
    """Check that a trusted KMS derived the key from which a signing key of the keyset is made.

    The chain is for a secp256k1 key. That the Ed25519 key is made from it rests on the measured
    program.

    Args:
        evidence: Member `evidence` of the answer, with `key_custody`.
        keyset: The keyset of the answer.
        app_id: App id in the event log, 20 bytes; None, if the log has none, is an error.
        kms_roots: Root keys that the user trusts, 33 bytes each.

    Raises:
        FormatError: If `key_custody` or the app id is missing or malformed.
        ServiceError: If it is for a key that is not in the keyset, or the chain does not lead to a
            trusted root (reason `signature`).
        UsageError: If `kms_roots` is empty, or a key in it is malformed.
    """
    custody = evidence.object(_CUSTODY)
    if app_id is None or len(app_id) != 20:
        message = f"{_CUSTODY}: needs an event log in the evidence, with an app id of 20 bytes"
        raise FormatError(message, reason="missing")
    for entry in custody.array("keys", MAX_KEYS):
        if isinstance(entry, dict) and entry.get("role") == "receipt":
            return _check_chain(AnswerObject(entry, _CUSTODY), keyset, app_id, kms_roots)
    raise FormatError(f"{_CUSTODY}: keys: must have one with the role receipt", reason="missing")


def _check_chain(
    entry: AnswerObject, keyset: Keyset, app_id: bytes, kms_roots: Iterable[bytes]
) -> None:
    key = entry.hex("public_key", 32)
    if not any(hmac.compare_digest(key, known) for known in keyset.receipt_keys.values()):
        message = f"{_CUSTODY}: public_key: must be a receipt signing key of the keyset"
        raise ServiceError(message, reason="signature")
    if (purpose := entry.text("purpose")) != _RECEIPT_PURPOSE:
        message = f"{_CUSTODY}: purpose: must be {_RECEIPT_PURPOSE}, not {shown(purpose)}"
        raise ServiceError(message, reason="signature")
    name = "kms_public_key"
    derived = _compressed(entry.prefixed_hex(name, 33, 65), entry, name)
    chain = entry.array("signature_chain", 2)
    try:
        verify_key_chain(
            derived,
            [_link(link) for link in chain],
            app_id=app_id,
            kms_roots=kms_roots,
            purpose=_RECEIPT_PURPOSE,
        )
    except SignatureError as error:
        raise ServiceError(f"{_CUSTODY}: {error}", reason="signature") from error


def _link(link: object) -> bytes:
    """Return one signature of a chain, 65 bytes: r, s and the recovery id (0 to 3).

    Args:
        link: The signature in hex, with or without 0x; its recovery id may begin at 27, as in
            Ethereum.

    Raises:
        FormatError: If `link` is not such a text.
    """
    text = link.removeprefix("0x") if isinstance(link, str) else link
    found = strict_json.from_hex(text, f"{_CUSTODY}: signature_chain", 65)
    if found[64] >= _RECOVERY_BASE:
        return found[:64] + bytes([found[64] - _RECOVERY_BASE])
    return found


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
    request_sha256: bytes  # of the body that was sent; if it was sealed, as the service opens it
    response_sha256: bytes  # of the bytes on the wire
    identifier: str  # receipt id or `id` of the answer, as it was looked up
    model: str | None  # None for any
    is_behind_gateway: bool  # then the machine behind it must have been verified


class Receipt(NamedTuple):
    """A receipt whose signature is valid, for the expected answer."""

    receipt_id: str
    model: str | None
    served_at: datetime  # as the service states
    session_id: str | None  # of the machine behind the gateway
    was_rewritten: bool  # whether the gateway sent on another body than it received


def check_receipt(document: bytes, expected: ExpectedAnswer) -> Receipt:
    """Check the receipt of an answer, and return its content.

    Args:
        document: The receipt, JSON as received.
        expected: Keys, hashes, identifier and model that the receipt must have.

    Raises:
        FormatError: If the receipt is malformed.
        ServiceError: If the signature is not valid, the receipt is not for the expected keyset,
            request, answer and model, or the machine was not verified (reason `signature`).
    """
    members = read_answer_object(document, _RECEIPT)
    _check_signature(members, expected.keys)
    members.constant("api_version", _API_VERSION)
    digest = _digest(members, "workload_keyset_digest")
    _same(digest, expected.keyset_digest, "workload_keyset_digest is not that of the evidence")
    receipt_id = members.text("receipt_id")
    if expected.identifier not in (receipt_id, members.get("chat_id")):
        raise _refusal(f"must be of the answer {shown(expected.identifier)}")
    model = members.optional_text("model")
    if expected.model is not None and model != expected.model:
        raise _refusal(f"model must be {shown(expected.model)}, not {shown(str(model))}")
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
    """Check a receipt's Ed25519 signature over its other members, in canonical JSON.

    Args:
        members: The receipt.
        keys: Ed25519 keys of the keyset, 32 bytes each, by key id.

    Raises:
        FormatError: If a member is malformed.
        ServiceError: If the signature is not valid by one of `keys` (reason `signature`).
    """
    signature = members.hex("signature", 64)
    key_id = members.text("key_id")
    if (key := keys.get(key_id)) is None:
        raise _refusal(f"key_id {shown(key_id)} must be in the keyset")
    signed = {name: value for name, value in members.items() if name != "signature"}
    if not ed25519_verify_strict(key, signature, canonical_json(signed, _RECEIPT)):
        raise _refusal(f"signature is not valid by the key {shown(key_id)}")


def _events(members: AnswerObject) -> list[AnswerObject]:
    events = members.objects("event_log", MAX_EVENTS)
    if [event.text("type") for event in events][:1] != [_RECEIVED]:
        raise members.error("event_log", f"must begin with {_RECEIVED}", "missing")
    return events


def _check_hashes(events: list[AnswerObject], expected: ExpectedAnswer) -> bytes:
    """Compare a receipt's hashes of request and answer with the expected ones.

    Args:
        events: Events of the receipt, which have the hashes.
        expected: Hashes of the request as it was sent or restored, and of the answer.

    Returns:
        SHA-256 of the request's body as the service received it, 32 bytes.

    Raises:
        FormatError: If a hash is missing, or occurs twice.
        ServiceError: If a hash differs (reason `signature`).
    """
    found = []
    for kind, hashed, what in (
        (_RECEIVED, expected.request_sha256, "request"),
        (_RETURNED, expected.response_sha256, "answer"),
    ):
        several = [event for event in events if event["type"] == kind]
        if len(several) != 1:
            message = f"{_RECEIPT}: event_log: {kind} must occur once, not {len(several)} times"
            raise FormatError(message, reason="duplicate" if several else "missing")
        found.append(_digest(several[0], "body_hash"))
        _same(found[-1], hashed, f"body_hash of the {what} is not that of the bytes on the wire")
    return found[0]


def _verified_session(events: list[AnswerObject], *, required: bool) -> str | None:
    """Return the session id in a receipt's last verification: that of the machine that served.

    Earlier verifications may have failed: they are of machines that the gateway tried first.

    Args:
        events: Events of the receipt.
        required: Whether a receipt without a verification is an error; otherwise the result is
            None.

    Raises:
        ServiceError: If the verification is missing, or failed (reason `signature`).
    """
    checks = [event for event in events if event["type"] == _VERIFIED]
    if not checks:
        if required:
            raise _refusal(f"must have an event {_VERIFIED}: the machine behind the gateway")
        return None
    if any(event.get("required") is not True for event in checks):
        raise _refusal(f"event {_VERIFIED}: required must be true (provider.aci_verified)")
    last = checks[-1]
    if last.get("result") != "verified":
        raise _refusal(f"event {_VERIFIED}: the machine behind the gateway was not verified")
    session = last.text("session_id")
    if _ID.fullmatch(session) is None:
        raise last.error("session_id", "must be 64 lowercase hex digits", "encoding")
    return session


def _served_at(members: AnswerObject) -> datetime:
    """Return the time `served_at` of the answer, which a receipt has in seconds since 1970."""
    try:
        seconds = strict_json.number_field(members, "served_at", _BITS)
        return datetime.fromtimestamp(seconds, timezone.utc)
    except FormatError as error:
        raise FormatError(f"{_RECEIPT}: {error}", reason=error.reason) from error
    except (ValueError, OverflowError, OSError) as error:
        problem = "served_at: must be a time in the years 1 to 9999"
        raise FormatError(f"{_RECEIPT}: {problem}", reason="wrong_value") from error


def _digest(members: AnswerObject, name: str) -> bytes:
    found = _DIGEST.fullmatch(members.text(name))
    if found is None:
        raise members.error(name, "must be sha256: and 64 lowercase hex digits", "encoding")
    return bytes.fromhex(found[1])


def _same(found: bytes, expected: bytes, problem: str) -> None:
    if not hmac.compare_digest(found, expected):
        raise _refusal(problem)


def _refusal(problem: str) -> ServiceError:
    return ServiceError(f"{_RECEIPT}: {problem}", reason="signature")
