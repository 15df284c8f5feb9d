"""Fuzz targets: the document of attestkit's own servers, and files with their TLS keys."""

from attestkit.client.document import (
    Statement,
    encode_document,
    encode_statement,
    read_document,
)
from attestkit.client.document_endpoint import read_pem_keys
from attestkit.client.services.own_document import OwnDocument
from attestkit.client.services.service import Claims
from attestkit.errors import FormatError, ServiceError
from fuzz.parsers.certificates.certificates import pem_samples
from fuzz.parsers.contract import ParserTarget, check, check_same, obeys, short
from fuzz.parsers.evidence.evidence import evidence_samples
from tests.client.middleware.documents import (
    NONCE,
    PEER,
    full_statement,
    with_members,
    with_statement,
)

_SIZE: int = 16 << 10  # bytes of a document with a bare quote
_PUBLIC_KEY: bytes = b"-----BEGIN PUBLIC KEY-----\nMAYwAAMCAAA=\n-----END PUBLIC KEY-----\n"


def _read(raw: bytes) -> Claims:
    return OwnDocument().read((raw,), NONCE, PEER, None)


def _said(claims: Claims) -> object:
    """Return what two readings of a document must have in common."""
    [machine] = claims.machines
    return machine.report_data, machine.snp_certificates, claims.bindings, dict(claims.keys)


def _accepted(raw: bytes, claims: Claims) -> None:
    document = read_document(raw, NONCE)
    _, nonce, tls, hpke, signing, name = statement = document.statement
    again = encode_statement(tls, nonce, hpke=hpke, signing=signing, name=name)
    check_same("the statement", again, statement.encoded)
    _check_keys(statement, claims)
    written = encode_document(again, document.evidence, document.certificates)
    check_same("the document", read_document(written, NONCE), document)


def _check_keys(statement: Statement, claims: Claims) -> None:
    check_same("the nonce", statement.nonce, NONCE)
    check_same("the first key", claims.bindings[0].key, PEER.spki_sha256)
    check_same("all keys", {one.key for one in claims.bindings}, set(statement.tls))
    check_same("report data", claims.machines[0].report_data, statement.report_data)


def document_samples() -> list[bytes]:
    """Return documents with evidence in several encodings, and some that are refused."""
    evidence = min(evidence_samples(), key=len)
    full = encode_document(full_statement(), evidence)
    plain = encode_statement([PEER.spki_sha256], NONCE)
    return [
        *(encode_document(plain, each) for each in evidence_samples()),
        full,
        with_members(full, certificates=["MAA="]),
        with_members(full, version=2),
        with_statement(full, plain.replace(b"{", b"{ ", 1)),
        encode_document(encode_statement([PEER.spki_sha256], bytes(32)), evidence),
    ]


def _keys(_: bytes, keys: dict[bytes, float]) -> None:
    check("a key", keys)
    check("hashes", all(len(key) == 32 for key in keys))


def _key_samples() -> list[bytes]:
    return [*pem_samples(), _PUBLIC_KEY, *(_PUBLIC_KEY + each for each in pem_samples())]


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    document = obeys(_read, FormatError, ServiceError, accepted=_accepted, said=_said, grows=True)
    return [
        ParserTarget(
            "attested_document", document, short(document_samples, _SIZE), "json.dict", _SIZE
        ),
        ParserTarget(
            "tls_keys", obeys(read_pem_keys, FormatError, accepted=_keys, grows=True), _key_samples
        ),
    ]
