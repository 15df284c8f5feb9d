"""Fuzz targets: answers of services as strict JSON, and Tinfoil's documents."""

import json
from typing import Final

from attestkit._crypto.aead import aes_gcm_encrypt
from attestkit._crypto.ed25519 import x25519_public_key
from attestkit._crypto.hpke import HpkeSender
from attestkit._formats.bounded_gzip import gunzip
from attestkit._formats.strict_json import member_spans
from attestkit.client.sealing.ehbp import EhbpOpener, derive_answer_keys
from attestkit.client.services.tinfoil.tinfoil import BundleContent, read_tinfoil_bundle
from attestkit.client.services.tinfoil.tinfoil_documents import (
    TinfoilDocument,
    read_tinfoil_document,
)
from attestkit.client.strict_answer import read_answer_object
from attestkit.errors import FormatError, ServiceError
from attestkit.testing import SimulatedTee
from fuzz.parsers.contract import ParserTarget, check, check_same, obeys
from tests.client.services.tinfoil.tinfoil_maker import NONCE, Enclave

_MOST = 4096  # bytes of a decompressed stream


def _read(raw: bytes) -> dict[str, object]:
    return read_answer_object(raw, "answer")


def _spans(raw: bytes) -> dict[str, tuple[int, int]]:
    return member_spans(raw.decode(errors="replace"))


def _check_spans(raw: bytes, spans: dict[str, tuple[int, int]]) -> None:
    text = raw.decode(errors="replace")
    found = {name: json.loads(text[start:end]) for name, (start, end) in spans.items()}
    check_same("the members", json.dumps(found), json.dumps(json.loads(text)))


def _gunzip(raw: bytes) -> bytes:
    return gunzip(raw, _MOST, "stream")


def _document(raw: bytes) -> TinfoilDocument:
    return read_tinfoil_document(raw, NONCE)


def _check_document(_: bytes, document: TinfoilDocument) -> None:
    check_same("report data", len(document.report_data), 64)
    check("a TLS key's hash", document.tls is None or len(document.tls) == 32)
    check("a key of HPKE", document.hpke is None or len(document.hpke) == 32)


def _check_bundle(_: bytes, bundle: BundleContent) -> None:
    _check_document(_, bundle.document)
    check_same("the digest", len(bundle.digest), 32)


_SENDER: Final = HpkeSender(x25519_public_key(bytes(range(32))), b"", ephemeral=bytes(range(32)))


def _open(raw: bytes) -> bytes:
    """Open an answer, of which the first bytes select the status and are the nonce."""
    status, nonce, body = raw[:1], raw[1:33], raw[33:]
    opener = EhbpOpener(_SENDER)
    headers = [("Content-Type", "application/problem+json")]
    if nonce:
        headers.append(("Ehbp-Response-Nonce", nonce.hex()))
    opener.start(422 if status == b"\1" else 200, headers)
    half = len(body) // 2
    return opener.feed(body[:half]) + opener.feed(body[half:]) + opener.finish()


def _answer_samples() -> list[bytes]:
    nonce = bytes(32)
    secret = _SENDER.export(b"ehbp response", 32)
    key, base = derive_answer_keys(secret, _SENDER.encapsulated, nonce)
    chunk = aes_gcm_encrypt(key, base, b"{}")
    body = nonce + len(chunk).to_bytes(4, "big") + chunk
    problem = b'{"type":"urn:ietf:params:ehbp:error:key-config"}'
    return [b"\0" + body, b"\0" + nonce, b"\1" + body, b"\1", b"\1" + nonce + problem]


def _json_samples() -> list[bytes]:
    return [b"{}", b'{"a":[1,{"b":"c"}],"d":null}', b'{"a":' + b"[" * 63 + b"]" * 63 + b"}"]


def _gzip_samples() -> list[bytes]:
    import gzip

    return [gzip.compress(data, mtime=0) for data in (b"", b"a", bytes(_MOST))]


def document_samples() -> list[bytes]:
    """Return a document of each generation, about a simulated SEV-SNP guest."""
    with SimulatedTee(platform="snp") as tee:
        enclave = Enclave(tee, "sev-snp")
        return [enclave.v2(), enclave.june(), enclave.august()]


def bundle_samples() -> list[bytes]:
    """Return a bundle about a simulated SEV-SNP guest."""
    with SimulatedTee(platform="snp") as tee:
        return [Enclave(tee, "sev-snp").bundle()]


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    answer = obeys(_read, FormatError, accepted=lambda raw, _: check("an object", b"{" in raw))
    # Sections are decoded from base64, so that offsets may be behind the end.
    document = obeys(_document, FormatError, ServiceError, accepted=_check_document, grows=True)
    bundle = obeys(read_tinfoil_bundle, FormatError, accepted=_check_bundle, grows=True)
    return [
        ParserTarget("service_json", answer, _json_samples, "json.dict"),
        ParserTarget(
            "json_spans",
            obeys(_spans, FormatError, accepted=_check_spans, grows=True),
            _json_samples,
            "json.dict",
        ),
        ParserTarget("gzip_stream", obeys(_gunzip, FormatError), _gzip_samples),
        ParserTarget("ehbp_answer", obeys(_open, ServiceError), _answer_samples),
        ParserTarget("tinfoil_document", document, document_samples, "json.dict", 8192),
        ParserTarget("tinfoil_bundle", bundle, bundle_samples, "json.dict", 8192),
    ]
