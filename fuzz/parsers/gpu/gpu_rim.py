"""Targets: manifests of NVIDIA's GPUs, their XML signatures, and the service's answers."""

import json
from base64 import b64encode
from functools import partial
from hashlib import sha256
from typing import Final

from attestkit.collateral.responses import Response
from attestkit.errors import CollateralError, CollateralExpiredError, FormatError, SignatureError
from attestkit.gpu.endorsement_fetcher import fetch_rim
from attestkit.gpu.rim.document import XmlElement, read_document
from attestkit.gpu.rim.manifest import Rim
from attestkit.gpu.rim.verification import verify_rim
from attestkit.gpu.rim.xml_signature import (
    XmlSignature,
    canonical_bytes,
    read_signature,
    verify_signature,
)
from fuzz.parsers.contract import ParserTarget, check, check_same, obeys, tried
from tests.gpu.rim.rims import NOW, manifest, sign, signer

_SMALL: Final = b'<a xmlns="u:1" x:c="&lt;1" xmlns:x="u:2" b="2"><b xmlns="">&amp;</b><x:d/></a>'
_IDENTIFIER: Final = "NV_GPU_DRIVER_GH100_1.2.3"


def _signature(raw: bytes) -> tuple[XmlElement, XmlSignature]:
    root = read_document(raw)
    return root, read_signature(root)


def _signed(raw: bytes, found: tuple[XmlElement, XmlSignature]) -> None:
    root, signature = found
    verify = partial(verify_signature, root, signature, signer().key.spki)
    check("small certificates", max(map(len, signature.certificates)) <= len(raw))
    if tried(verify, None, SignatureError):
        _canonical(raw, verify())


def _write(raw: bytes) -> bytes:
    return canonical_bytes(read_document(raw))


def _canonical(_raw: bytes, canonical: bytes) -> None:
    check_same("the canonical form again", canonical_bytes(read_document(canonical)), canonical)


def _rim(raw: bytes, rim: Rim) -> None:
    verify = partial(verify_rim, raw, signer().root, NOW)
    if tried(verify, len(raw), FormatError, SignatureError, CollateralExpiredError):
        check_same("the verified manifest", verify().rim, rim)


def _answer(raw: bytes) -> bytes:
    return fetch_rim(_IDENTIFIER, lambda _url: Response(200, {}, raw))


def _answers() -> list[bytes]:
    fields = {"id": _IDENTIFIER, "rim_format": "TCG", "request_id": "1"}
    rims = (b"<a/>", manifest())
    encoded = [(b64encode(rim).decode(), sha256(rim).hexdigest()) for rim in rims]
    answers = [{**fields, "rim": rim, "sha256": digest} for rim, digest in encoded]
    return [json.dumps(answer).encode() for answer in answers]


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    return [
        ParserTarget(
            "rim",
            obeys(Rim.parse, FormatError, accepted=_rim),
            lambda: [sign(manifest())],
            "xml.dict",
            8192,
        ),
        ParserTarget(
            "xml_signature",
            obeys(_signature, FormatError, accepted=_signed, said=lambda found: found[1][2:]),
            lambda: [sign(manifest())],
            "xml.dict",
            8192,
        ),
        ParserTarget(
            "canonical_xml",
            obeys(_write, FormatError, accepted=_canonical),
            lambda: [_SMALL, manifest(), sign(manifest())],
            "xml.dict",
            8192,
        ),
        ParserTarget("rim_answer", obeys(_answer, CollateralError), _answers, "json.dict"),
    ]
