"""Canonical forms of a manifest that its signer signs: of the document and of SignedInfo."""

from attestkit.gpu.rim.document import XmlElement, read_document
from attestkit.gpu.rim.xml_signature import XMLDSIG, canonical_bytes


def canonical_document(xml: bytes) -> bytes:
    """Return the bytes whose digest is signed: the document without its signature, if it has one.

    Any values may be in the signature: only its position matters.
    """
    root = read_document(xml)
    return canonical_bytes(root, without=_find(root, "Signature"))


def canonical_signed_info(xml: bytes) -> bytes:
    """Return the bytes that the signature value of a document signs."""
    found = _find(read_document(xml), "SignedInfo")
    assert found is not None
    return canonical_bytes(found)


def _find(root: XmlElement, local: str) -> XmlElement | None:
    names = ((one, (one.namespace, one.local)) for one in root.descendants())
    return next((one for one, name in names if name == (XMLDSIG, local)), None)
