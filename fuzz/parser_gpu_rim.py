"""Targets: XML documents with a signature, as manifests of NVIDIA's GPUs are."""

from functools import partial

from attestkit.errors import FormatError, SignatureError
from attestkit.gpu.rim.canonical_xml import canonical_bytes
from attestkit.gpu.rim.document import XmlElement, read_document
from attestkit.gpu.rim.xml_signature import (
    XmlSignature,
    canonical_document,
    canonical_signed_info,
    read_signature,
    verify_signature,
)
from fuzz.parser_contract import ParserTarget, check, check_same, obeys, tried
from tests.gpu.rim.rims import manifest, sign, signer

_SMALL = b'<a xmlns="u:1" x:c="&lt;1" xmlns:x="u:2" b="2"><b xmlns="">&amp;</b><x:d/></a>'


def _signature(raw: bytes) -> tuple[XmlElement, XmlSignature]:
    root = read_document(raw)
    return root, read_signature(root)


def _signed(raw: bytes, found: tuple[XmlElement, XmlSignature]) -> None:
    root, signature = found
    verify = partial(verify_signature, root, signature, signer().key.spki)
    check("small certificates", max(map(len, signature.certificates)) <= len(raw))
    check_same("SignedInfo", canonical_signed_info(raw), canonical_bytes(signature.signed_info))
    if tried(verify, None, SignatureError):
        check_same("what is signed", verify(), canonical_document(raw))


def _canonical(_raw: bytes, canonical: bytes) -> None:
    check_same("the canonical form again", canonical_bytes(read_document(canonical)), canonical)


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    return [
        ParserTarget(
            "xml_signature",
            obeys(_signature, FormatError, accepted=_signed, said=lambda found: found[1][2:]),
            lambda: [sign(manifest())],
            "xml.dict",
            8192,
        ),
        ParserTarget(
            "canonical_xml",
            obeys(canonical_document, FormatError, accepted=_canonical),
            lambda: [_SMALL, manifest(), sign(manifest())],
            "xml.dict",
            8192,
        ),
    ]
