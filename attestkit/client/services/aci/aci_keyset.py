"""Workload keyset of Attested Confidential Inference: a service's keys, which its evidence hashes.

Source: attested-client.md, 2.5.
"""

import hmac
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any, Final, NamedTuple

from attestkit._crypto.ed25519 import ed25519_has_prime_order
from attestkit._crypto.hashes import sha256
from attestkit._crypto.k256_agreement import k256_compressed
from attestkit._formats import strict_json
from attestkit._formats.canonical_json import canonical_json
from attestkit._sanitize import shown
from attestkit.client.sealing.aci_e2ee import SECP256K1_SUITE, X25519_SUITE
from attestkit.client.services.strict_answer import (
    check_members,
    list_member,
    lower_hex,
    object_member,
    text_of,
)
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


def read_keyset(members: Mapping[str, Any]) -> Keyset:
    """Read the keyset of an answer.

    Raises:
        FormatError: If it is malformed, has unknown members, a key or key id twice, or over 64 keys
            of a kind.
    """
    digest = sha256(canonical_json(members, _WHAT))
    check_members(members, _WHAT, _MEMBERS)
    if not isinstance(members["subject"], (str, type(None))):
        raise FormatError(f"{_WHAT}: subject: must be text or null", reason="wrong_type")
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


def _entries(members: Mapping[str, Any], name: str) -> list[tuple[Mapping[str, Any], str]]:
    """Return the objects of a list, each with its name for errors."""
    found: list[tuple[Mapping[str, Any], str]] = []
    for number, entry in enumerate(list_member(members, name, _WHAT, MAX_KEYS)):
        what = f"{_WHAT}: {name}: {number}"
        if not isinstance(entry, dict):
            raise FormatError(f"{what}: must be an object", reason="wrong_type")
        found.append((entry, what))
    return found


def _receipt_keys(members: Mapping[str, Any]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for entry, what in _entries(members, "receipt_signing_keys"):
        if text_of(entry, "algo", what) != "ed25519":
            continue
        key_id = text_of(entry, "key_id", what)
        key = lower_hex(entry, "public_key", what, 32)
        if key_id in found:
            raise FormatError(f"{what}: key_id: occurs twice", reason="duplicate")
        if not ed25519_has_prime_order(key):
            raise FormatError(f"{what}: public_key: not a point of Ed25519", reason="wrong_value")
        found[key_id] = key
    return found


def _e2ee_keys(members: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the first key of each suite."""
    found: dict[str, bytes] = {}
    for entry, what in _entries(members, "e2ee_public_keys"):
        suite = text_of(entry, "algo", what)
        if suite not in (X25519_SUITE, SECP256K1_SUITE):
            continue
        key = strict_json.from_hex(
            text_of(entry, "public_key", what).removeprefix("0x"), f"{what}: public_key"
        )
        if suite == SECP256K1_SUITE:
            key = _k256_point(key, f"{what}: public_key")
        elif len(key) != 32:
            raise FormatError(f"{what}: public_key: must be 32 bytes", reason="wrong_size")
        found.setdefault(suite, key)
    return found


def _k256_point(key: bytes, what: str) -> bytes:
    """Return an uncompressed key, 65 bytes; its first byte may be missing."""
    point = b"\4" + key if len(key) == 64 else key
    if len(point) != 65 or point[:1] != b"\4":
        raise FormatError(f"{what}: must be 65 bytes, uncompressed", reason="wrong_size")
    _compressed(point, what)
    return point


def _compressed(key: bytes, what: str) -> bytes:
    try:
        return k256_compressed(key)
    except UsageError as error:
        raise FormatError(f"{what}: not a point of secp256k1", reason="wrong_value") from error


def _tls_keys(members: Mapping[str, Any]) -> tuple[TlsKey, ...]:
    found = []
    for entry, what in _entries(members, "tls_public_keys"):
        domain = entry.get("domain")
        if not isinstance(domain, (str, type(None))):
            raise FormatError(f"{what}: domain: must be text", reason="wrong_type")
        spki_sha256 = lower_hex(entry, "spki_sha256", what, 32)
        found.append(TlsKey(spki_sha256, None if domain is None else domain.lower()))
    return tuple(found)


def check_custody(
    evidence: Mapping[str, Any], keyset: Keyset, app_id: bytes | None, kms_roots: Iterable[bytes]
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
    custody = object_member(evidence, _CUSTODY, "evidence")
    if app_id is None or len(app_id) != 20:
        message = f"{_CUSTODY}: the evidence has no event log with an app id of 20 bytes"
        raise FormatError(message, reason="missing")
    for entry in list_member(custody, "keys", _CUSTODY, MAX_KEYS):
        if isinstance(entry, dict) and entry.get("role") == "receipt":
            return _check_chain(entry, keyset, app_id, kms_roots)
    raise FormatError(f"{_CUSTODY}: keys: none with the role receipt", reason="missing")


def _check_chain(
    entry: Mapping[str, Any], keyset: Keyset, app_id: bytes, kms_roots: Iterable[bytes]
) -> None:
    key = lower_hex(entry, "public_key", _CUSTODY, 32)
    if not any(hmac.compare_digest(key, known) for known in keyset.receipt_keys.values()):
        message = f"{_CUSTODY}: public_key: is not a signing key of the keyset"
        raise ServiceError(message, reason="signature")
    if (purpose := text_of(entry, "purpose", _CUSTODY)) != _RECEIPT_PURPOSE:
        message = f"{_CUSTODY}: purpose: must be {_RECEIPT_PURPOSE}, not {shown(purpose)}"
        raise ServiceError(message, reason="signature")
    text = text_of(entry, "kms_public_key", _CUSTODY).removeprefix("0x")
    name = f"{_CUSTODY}: kms_public_key"
    derived = _compressed(strict_json.from_hex(text, name), name)
    chain = list_member(entry, "signature_chain", _CUSTODY, 2)
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
