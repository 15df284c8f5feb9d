"""Documents of attested TLS, as a server in a simulated TEE makes them."""

import json
from base64 import b64decode, b64encode
from functools import cache
from typing import Any, Final

from attestkit._formats.canonical_json import canonical_json
from attestkit.client.document import (
    SigningKey,
    encode_document,
    encode_statement,
    statement_report_data,
)
from attestkit.client.document_endpoint import snp_certificates
from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.testing import SimulatedTee

NONCE: Final = bytes(range(32))
PEER: Final = ObservedPeer("app.example.com", 443, b"leaf", b"key of the connection")
OTHER_KEY: Final = b"\xaa" * 32
HPKE: Final = b"\xbb" * 32
SIGNING: Final = SigningKey("ed25519", b"\xcc" * 32)
NAME: Final = "Grüße & more"


@cache
def tee(platform: str = "tdx") -> SimulatedTee:
    """Return the TEE of the server."""
    return SimulatedTee(platform=platform)


def full_statement() -> bytes:
    """Return a statement with every member."""
    keys = [OTHER_KEY, PEER.spki_sha256]
    return encode_statement(keys, NONCE, hpke=HPKE, signing=[SIGNING], name=NAME)


@cache
def genuine(platform: str = "tdx", statement: bytes | None = None) -> bytes:
    """Return a document with evidence, by default for the key of the peer alone."""
    statement = statement or encode_statement([PEER.spki_sha256], NONCE)
    evidence = tee(platform).attest(report_data=statement_report_data(statement))
    return encode_document(statement, evidence.to_bytes(), snp_certificates(evidence))


def unverified(statement: bytes | None = None) -> bytes:
    """Return a short document with every member, whose evidence and certificate are not valid."""
    return encode_document(statement or full_statement(), b"evidence", [b"\x30\x00"])


def with_members(document: bytes, **members: Any) -> bytes:
    """Return a document with other members; None removes one."""
    fields = {**json.loads(document), **members}
    return json.dumps({key: value for key, value in fields.items() if value is not None}).encode()


def statement_fields(document: bytes) -> dict[str, Any]:
    """Return the members of a document's statement."""
    found: dict[str, Any] = json.loads(b64decode(json.loads(document)["statement"]))
    return found


def with_statement(document: bytes, fields: dict[str, Any] | bytes) -> bytes:
    """Return a document with another statement, by default in canonical form."""
    raw = fields if isinstance(fields, bytes) else canonical_json(fields)
    return with_members(document, statement=b64encode(raw).decode())
