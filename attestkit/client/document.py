"""Statement and document of attested TLS, version 1, a protocol of attestkit.

A server answers `GET /.well-known/attestkit?nonce=N` with a document: JSON with a statement, which
names the server's keys and the client's nonce, and with evidence whose report data are
`ReportData.bind("attested-tls", statement)`. Statement and evidence are base64; the statement is in
canonical form (RFC 8785), so that a value has one encoding only.
"""

import binascii
import hmac
import json
import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from attestkit._argument_checks import require_bytes, require_size, wrong_type
from attestkit._formats import strict_json
from attestkit._formats.canonical_json import canonical_json
from attestkit._sanitize import shown
from attestkit.attestation import MAX_SIZE as MAX_EVIDENCE
from attestkit.client.strict_answer import AnswerObject
from attestkit.errors import FormatError, ServiceError, UsageError
from attestkit.report_data import ReportData

PATH: Final = "/.well-known/attestkit"
"""Path of the document on a server."""

NONCE_SIZE: Final = 32
"""Bytes of a nonce."""

MAX_SIZE: Final = 16 << 20
"""Maximum size of a document in bytes."""

MAX_STATEMENT: Final = 256 << 10
"""Maximum size of a statement in bytes."""

MAX_KEYS: Final = 16
"""Maximum number of TLS keys in a statement, and of signing keys."""

MAX_SIGNING_KEY: Final = 4096
"""Maximum size of a signing key in bytes."""

MAX_NAME: Final = 256
"""Maximum number of characters of a server's name."""

MAX_CERTIFICATES: Final = 8
"""Maximum number of certificates in a document."""

MAX_CERTIFICATE: Final = 16 << 10
"""Maximum size of a certificate in bytes; a VCEK has about 1,400."""

_VERSION: Final = 1
_PURPOSE: Final = "attestkit.attested-tls.v1"
_TAG: Final = "attested-tls"
_KEY_SIZE: Final = 32  # bytes: SHA-256 of a SubjectPublicKeyInfo; an X25519 key
_SEQUENCE: Final = b"\x30"  # tag of a certificate in DER
_ALGORITHM: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class SigningKey(NamedTuple):
    """A public key that verifies the signatures of a server."""

    algorithm: str  # such as "ed25519": lower-case letters, digits, ".", "_" and "-"
    public_key: bytes  # 1 to 4,096 bytes, in an encoding that the algorithm defines


class Statement(NamedTuple):
    """Decoded statement of a server about its keys; evidence binds the bytes of `encoded`."""

    encoded: bytes
    nonce: bytes  # of the client
    tls: tuple[bytes, ...]  # SHA-256 of the SubjectPublicKeyInfo of each TLS key
    hpke: bytes | None  # X25519 public key
    signing: tuple[SigningKey, ...]
    name: str | None  # of the server, as it states itself

    @property
    def report_data(self) -> bytes:
        """The 64 bytes of report data that evidence for this statement must contain."""
        return statement_report_data(self.encoded)


class AttestedDocument(NamedTuple):
    """Decoded answer of a server to `GET /.well-known/attestkit?nonce=N`.

    Verified are its format, and that the statement has the client's nonce. Not verified are the
    evidence, its report data, the certificates, and that the server has the stated keys.
    """

    statement: Statement
    evidence: bytes  # in any encoding of `Attestation`
    certificates: tuple[bytes, ...]  # DER; SEV-SNP only: signing key (VCEK, VLEK), its issuer, root


def statement_report_data(encoded: bytes) -> bytes:
    """Return the 64 bytes of report data that evidence for a statement must contain.

    Args:
        encoded: The statement, as `encode_statement` returns it.
    """
    return ReportData.bind(_TAG, encoded)


# -- writing ---------------------------------------------------------------------------------------


def encode_statement(
    tls: Sequence[bytes],
    nonce: bytes,
    *,
    hpke: bytes | None = None,
    signing: Sequence[SigningKey] = (),
    name: str | None = None,
) -> bytes:
    """Return a server's statement about its keys, JSON in canonical form (RFC 8785).

    Args:
        tls: SHA-256 of the SubjectPublicKeyInfo of each TLS key: 1 to 16 different ones.
        nonce: Nonce of the client, 32 bytes.
        hpke: X25519 public key of the server, 32 bytes; None leaves it out.
        signing: At most 16 keys that verify the server's signatures.
        name: Name of the server: 1 to 256 characters, none of them a control character; None leaves
            it out.

    Raises:
        UsageError: If an argument is not valid.
    """
    keys: dict[str, object] = {"tls": [_key_text("tls", key) for key in tls]}
    if hpke is not None:
        keys["hpke"] = _key_text("hpke", hpke)
    if signing:
        keys["signing"] = [_signing_fields(*key) for key in signing]
    fields = {"keys": keys, "nonce": _key_text("nonce", nonce), "purpose": _PURPOSE}
    if name is not None:
        _require_text("name", name)
        fields["name"] = name
    try:
        encoded = canonical_json(fields, "statement")
        _read_statement(encoded)  # the limits are those of the reader
    except FormatError as error:
        raise UsageError(str(error), reason="wrong_value") from error
    return encoded


def encode_document(statement: bytes, evidence: bytes, certificates: Sequence[bytes] = ()) -> bytes:
    """Return the JSON body of the answer to `GET /.well-known/attestkit?nonce=N`.

    Args:
        statement: The JSON that `encode_statement` returns.
        evidence: Evidence over `statement_report_data(statement)`, as by `Attestation.to_bytes`.
        certificates: SEV-SNP only: certificates in DER of the key that signed the report (VCEK or
            VLEK), of its issuer, and the root.
    """
    fields: dict[str, object] = {
        "version": _VERSION,
        "statement": _base64(statement),
        "evidence": _base64(evidence),
    }
    if certificates:
        fields["certificates"] = [_base64(der) for der in certificates]
    return json.dumps(fields, separators=(",", ":")).encode()


def _key_text(what: str, key: bytes) -> str:
    require_bytes(what, key)
    require_size(what, key, _KEY_SIZE)
    return key.hex()


def _signing_fields(algorithm: str, public_key: bytes) -> dict[str, str]:
    _require_text("signing: algorithm", algorithm)
    require_bytes("signing: public key", public_key)
    return {"algorithm": algorithm, "public_key": public_key.hex()}


def _require_text(what: str, value: object) -> None:
    if not isinstance(value, str):
        raise wrong_type(what, "text", value)


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


# -- reading ---------------------------------------------------------------------------------------


def read_document(body: bytes, nonce: bytes) -> AttestedDocument:
    """Decode the answer to `GET /.well-known/attestkit?nonce=N`; check its format and nonce.

    The caller has to verify the evidence, with the report data of the statement, and that the TLS
    key of the connection is one of the statement's.

    Args:
        body: Body of the answer, at most 16 MiB.
        nonce: Nonce that was sent, 32 bytes.

    Raises:
        FormatError: If the document is malformed, or has members that version 1 does not define.
        ServiceError: If the statement has a nonce other than `nonce` (reason `nonce_echo`).
        UsageError: If `nonce` is not `bytes`.
    """
    require_bytes("nonce", nonce)
    if len(body) > MAX_SIZE:
        raise FormatError(f"document: {len(body)} bytes, at most {MAX_SIZE}", reason="too_large")
    fields = AnswerObject(strict_json.read_object(body, "document"), "document")
    _check_version(fields)
    fields.check(("evidence", "statement", "version"), ("certificates",))
    evidence = _bytes_of(fields["evidence"], "evidence", MAX_EVIDENCE)
    certificates = _certificates(fields) if "certificates" in fields else ()
    statement = _read_statement(_bytes_of(fields["statement"], "statement", MAX_STATEMENT))
    if not hmac.compare_digest(statement.nonce, nonce):
        message = f"document: nonce must be {nonce.hex()}, as sent, not {statement.nonce.hex()}"
        raise ServiceError(message, reason="nonce_echo")
    return AttestedDocument(statement, evidence, certificates)


def _read_statement(encoded: bytes) -> Statement:
    if len(encoded) > MAX_STATEMENT:
        raise FormatError(f"statement: over {MAX_STATEMENT} bytes", reason="too_large")
    fields = AnswerObject(strict_json.read_object(encoded, "statement"), "statement")
    fields.check(("keys", "nonce", "purpose"), ("name",))
    if fields["purpose"] != _PURPOSE:
        raise fields.error("purpose", f"must be {_PURPOSE}", "wrong_value")
    nonce, keys = fields.hex("nonce", NONCE_SIZE), fields.object("keys")
    keys.check(("tls",), ("hpke", "signing"))
    tls = tuple([_tls_key(key) for key in keys.array("tls", MAX_KEYS, 1)])
    if len(set(tls)) != len(tls):
        raise keys.error("tls", "must be different keys, but one occurs twice", "duplicate")
    hpke = keys.hex("hpke", _KEY_SIZE) if "hpke" in keys else None
    signing = keys.objects("signing", MAX_KEYS, 1) if "signing" in keys else ()
    name = _name(fields) if "name" in fields else None
    found = Statement(encoded, nonce, tls, hpke, tuple(map(_signing_key, signing)), name)
    if canonical_json(fields, "statement") != encoded:
        message = "statement: must be JSON in canonical form (RFC 8785)"
        raise FormatError(message, reason="not_canonical")
    return found


def _check_version(fields: Mapping[str, object]) -> None:
    """Check that the member `version` of a document is 1; a missing one is accepted here.

    Args:
        fields: Members of the document.

    Raises:
        FormatError: If `version` is not an integer, or not 1.
    """
    version = fields.get("version", _VERSION)  # if missing, `AnswerObject.check` refuses it
    if type(version) is not int:
        raise strict_json.wrong_json_type("document: version", "an integer", version)
    if version != _VERSION:
        message = f"document: version: must be {_VERSION}, not {shown(version)}"
        raise FormatError(message, reason="unsupported_version")


def _tls_key(value: object) -> bytes:
    return AnswerObject({"tls": value}, "statement: keys").hex("tls", _KEY_SIZE)


def _signing_key(fields: AnswerObject) -> SigningKey:
    fields.check(("algorithm", "public_key"))
    algorithm, public_key = fields.text("algorithm"), fields.hex("public_key")
    if not _ALGORITHM.fullmatch(algorithm):
        problem = "must be 1 to 64 lower-case letters, digits, '.', '_' or '-'"
        raise fields.error("algorithm", problem, "wrong_value")
    if len(public_key) > MAX_SIGNING_KEY:
        raise fields.error(
            "public_key", f"{len(public_key)} bytes, at most {MAX_SIGNING_KEY}", "too_large"
        )
    return SigningKey(algorithm, public_key)


def _name(fields: AnswerObject) -> str:
    value = fields.text("name")
    if not 1 <= len(value) <= MAX_NAME or _CONTROL.search(value):
        problem = f"must be 1 to {MAX_NAME} characters without control characters"
        raise fields.error("name", problem, "wrong_value")
    return value


def _bytes_of(value: object, what: str, most: int) -> bytes:
    """Decode canonical base64 of 1 to `most` bytes.

    Args:
        value: The base64 text, or what a member has in its place.
        what: Name of the member, with which errors begin.
        most: Maximum number of decoded bytes.

    Raises:
        FormatError: If `value` is not such a text.
    """
    if isinstance(value, str) and len(value) > (most + 2) // 3 * 4:
        raise FormatError(f"{what}: over {most} bytes", reason="too_large")
    found = strict_json.from_base64(value, what)
    if not found:
        raise FormatError(f"{what}: must not be empty", reason="missing")
    if len(found) > most:
        raise FormatError(f"{what}: {len(found)} bytes, at most {most}", reason="too_large")
    return found


def _certificates(fields: AnswerObject) -> tuple[bytes, ...]:
    found = []
    for item in fields.array("certificates", MAX_CERTIFICATES, 1):
        der = _bytes_of(item, "certificates", MAX_CERTIFICATE)
        if not der.startswith(_SEQUENCE):
            raise FormatError("certificates: must be X.509 in DER, base64", reason="syntax")
        found.append(der)
    return tuple(found)
