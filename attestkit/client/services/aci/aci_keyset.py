"""Workload keyset of Attested Confidential Inference: a service's keys, which its evidence hashes.

Source: attested-client.md, 2.5.
"""

import hmac
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Final, NamedTuple

from attestkit._crypto.ed25519 import ed25519_has_prime_order
from attestkit._crypto.hashes import sha256
from attestkit._crypto.k256_agreement import k256_compressed
from attestkit._formats import strict_json
from attestkit._formats.canonical_json import canonical_json
from attestkit._sanitize import shown
from attestkit.client.sealing.aci_e2ee import SECP256K1_SUITE, X25519_SUITE
from attestkit.client.strict_answer import AnswerObject
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
    """A TLS key of the workload."""

    spki_sha256: bytes  # 32 bytes
    domain: str | None  # the only host name for which it counts, in lower case


class Keyset(NamedTuple):
    """Keys of the workload; entries of unknown algorithms are left out."""

    digest: bytes  # SHA-256 of the canonical form, 32 bytes
    not_after: datetime
    receipt_keys: Mapping[str, bytes]  # Ed25519, 32 bytes, by key id
    e2ee_keys: Mapping[str, bytes]  # by suite: X25519, 32 bytes; secp256k1, 65 bytes
    tls_keys: tuple[TlsKey, ...]

    def report_data(self, nonce: bytes) -> bytes:
        """Return the 64 bytes of report data that bind the keyset and a nonce."""
        statement = canonical_json(
            {"keyset_digest": self.digest_text, "nonce": nonce.hex(), "purpose": _STATEMENT}
        )
        return sha256(statement).ljust(64, b"\0")

    @property
    def digest_text(self) -> str:
        """The digest as the protocol writes it."""
        return f"sha256:{self.digest.hex()}"


def read_keyset(members: AnswerObject) -> Keyset:
    """Read the keyset of an answer.

    Raises:
        FormatError: If it is malformed, has unknown members, a key or key id twice, or over 64 keys
            of a kind.
    """
    digest = sha256(canonical_json(members, _WHAT))
    members.check(_MEMBERS)
    members.optional_text("subject")
    end = strict_json.number_field(members, "not_after", 53)
    if end > _LATEST:
        raise FormatError(f"{_WHAT}: not_after: after the year 9999", reason="wrong_value")
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
            raise entry.error("key_id", "occurs twice", "duplicate")
        if not ed25519_has_prime_order(key):
            raise entry.error("public_key", "not a point of Ed25519", "wrong_value")
        found[key_id] = key
    return found


def _e2ee_keys(members: AnswerObject) -> dict[str, bytes]:
    """Return the first key of each suite."""
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
    """Return an uncompressed key, 65 bytes; its first byte may be missing."""
    point = b"\4" + key if len(key) == 64 else key
    if point[:1] != b"\4":
        raise entry.error("public_key", "must be uncompressed", "wrong_size")
    _compressed(point, entry, "public_key")
    return point


def _compressed(key: bytes, entry: AnswerObject, name: str) -> bytes:
    try:
        return k256_compressed(key)
    except UsageError as error:
        raise entry.error(name, "not a point of secp256k1", "wrong_value") from error


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
        app_id: App id in the event log, 20 bytes.
        kms_roots: Root keys that the user trusts, 33 bytes each.

    Raises:
        FormatError: If the custody is missing or malformed.
        ServiceError: If it is of another key, or the chain does not lead to a trusted root
            (`signature`).
    """
    custody = evidence.object(_CUSTODY)
    if app_id is None or len(app_id) != 20:
        message = f"{_CUSTODY}: the evidence has no event log with an app id of 20 bytes"
        raise FormatError(message, reason="missing")
    for entry in custody.array("keys", MAX_KEYS):
        if isinstance(entry, dict) and entry.get("role") == "receipt":
            return _check_chain(AnswerObject(entry, _CUSTODY), keyset, app_id, kms_roots)
    raise FormatError(f"{_CUSTODY}: keys: none with the role receipt", reason="missing")


def _check_chain(
    entry: AnswerObject, keyset: Keyset, app_id: bytes, kms_roots: Iterable[bytes]
) -> None:
    key = entry.hex("public_key", 32)
    if not any(hmac.compare_digest(key, known) for known in keyset.receipt_keys.values()):
        message = f"{_CUSTODY}: public_key: is not a signing key of the keyset"
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
    """Return a recoverable signature, whose recovery id may be Ethereum's."""
    text = link.removeprefix("0x") if isinstance(link, str) else link
    found = strict_json.from_hex(text, f"{_CUSTODY}: signature_chain", 65)
    if found[64] >= _RECOVERY_BASE:
        return found[:64] + bytes([found[64] - _RECOVERY_BASE])
    return found
