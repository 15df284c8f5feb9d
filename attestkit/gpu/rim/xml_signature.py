"""XML signature of a RIM: the canonical form that it covers, its reader, and its verification.

The canonical form is Canonical XML 1.1 without comments, for documents that
`document.read_document` accepts. These have no attributes with the prefix `xml`, which 1.0 and 1.1
treat differently. The standard library has only Canonical XML 2.0, which is another format.

The signature is enveloped and covers the whole document. Everything else that XML Signature allows
is rejected: other algorithms and references, objects, several signatures, and keys other than
certificates.
"""

import binascii
import hmac
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from attestkit._crypto.hashes import sha384
from attestkit._crypto.p384 import P384_SIGNATURE_SIZE, p384_verify
from attestkit._outcomes.reasons import FormatReason
from attestkit._sanitize import shown
from attestkit.errors import FormatError, SignatureError
from attestkit.gpu.rim.document import WHITE_SPACE, XmlElement

_TEXT_ESCAPES: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#xD;"})
_VALUE_ESCAPES: Final = str.maketrans(
    {"&": "&amp;", "<": "&lt;", '"': "&quot;", "\t": "&#x9;", "\n": "&#xA;", "\r": "&#xD;"}
)
XMLDSIG: Final = "http://www.w3.org/2000/09/xmldsig#"
"""Namespace of XML Signature."""
CANONICALIZATION: Final = "http://www.w3.org/2006/12/xml-c14n11"
SIGNATURE_METHOD: Final = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"
DIGEST_METHOD: Final = "http://www.w3.org/2001/04/xmldsig-more#sha384"
ENVELOPED: Final = "http://www.w3.org/2000/09/xmldsig#enveloped-signature"
MAX_CERTIFICATES: Final = 6
"""Maximum number of certificates of a signature; NVIDIA's have four."""
_MAX_CERTIFICATE: Final = 4096  # bytes; NVIDIA's have under 750
_DIGEST_SIZE: Final = 48
_REMOVED: Final = str.maketrans("", "", WHITE_SPACE)


def canonical_bytes(element: XmlElement, *, without: XmlElement | None = None) -> bytes:
    """Return an element with its content in canonical form: Canonical XML 1.1, UTF-8.

    Args:
        element: The root of a document, or the element that is signed. The latter is written with
            all namespaces in scope, declared by it or not (Canonical XML 1.1, section 2.4).
        without: Element that is left out; the text around it is kept. None leaves nothing out.
    """
    return "".join(_write_element(element, {}, without)).encode()


def _write_element(
    element: XmlElement, outer: Mapping[str, str], without: XmlElement | None
) -> Iterator[str]:
    """Yield parts of an element's canonical form; `outer` are the namespaces of its parent.

    They are by prefix. `without` is an element that is left out, or None.
    """
    yield f"<{element.name}"
    if element.scope is not outer:  # it declares a namespace, or is not below another element
        for prefix, uri in sorted(element.scope.items()):
            if uri != outer.get(prefix, ""):
                yield f' xmlns{":" if prefix else ""}{prefix}="{uri.translate(_VALUE_ESCAPES)}"'
    for attribute in sorted(element.attributes, key=lambda one: (one.namespace, one.local)):
        yield f' {attribute.name}="{attribute.value.translate(_VALUE_ESCAPES)}"'
    yield ">"
    for child in element.children:
        if isinstance(child, str):
            yield child.translate(_TEXT_ESCAPES)
        elif child is not without:
            yield from _write_element(child, element.scope, without)
    yield f"</{element.name}>"


class XmlSignature(NamedTuple):
    """The parsed signature of a document, not verified."""

    element: XmlElement
    signed_info: XmlElement
    digest: bytes  # SHA-384 of the document without the signature, canonicalized
    value: bytes  # r and s, 48 bytes each, big-endian
    certificates: tuple[bytes, ...]  # DER, in the order of the document


def read_signature(root: XmlElement) -> XmlSignature:
    """Parse the one signature of a document, the last child of its root element.

    Raises:
        FormatError: If there is no signature, or more than one, or it is elsewhere, or its form or
            algorithms are not those of a RIM.
    """
    element = _find_signature(root)
    signed_info, value, key_info = _parts(element, "SignedInfo", "SignatureValue", "KeyInfo")
    return XmlSignature(
        element,
        signed_info,
        _read_digest(signed_info),
        _read_base64(value, P384_SIGNATURE_SIZE),
        _read_certificates(key_info),
    )


def verify_signature(root: XmlElement, signature: XmlSignature, spki: bytes) -> bytes:
    """Verify a signature of `root`, and return the bytes that it signs.

    Args:
        root: Root element of the document.
        signature: Its signature.
        spki: Public key (P-384) in DER; that of the signer's certificate, once its path is
            verified.

    Returns:
        The document without the signature, in canonical form.

    Raises:
        SignatureError: If the digest or the signature is not valid (`bad_signature`), or the key
            is not of P-384.
    """
    try:
        p384_verify(spki, signature.value, canonical_bytes(signature.signed_info))
    except SignatureError as error:
        raise SignatureError(f"XML signature: {error}", reason=error.reason) from error
    signed = canonical_bytes(root, without=signature.element)
    if not hmac.compare_digest(sha384(signed), signature.digest):
        message = "XML signature: the document's digest is not the signed one"
        raise SignatureError(message, reason="bad_signature")
    return signed


def _find_signature(root: XmlElement) -> XmlElement:
    names = ((one, one.namespace, one.local) for one in root.descendants())
    found = [one for one, *name in names if name == [XMLDSIG, "Signature"]]
    if len(found) != 1:
        reason: FormatReason = "too_many" if found else "missing"
        raise _error(root, f"must have one signature, not {len(found)}", reason)
    if root.elements()[-1:] != found:
        raise _error(found[0], "must be the last child of the root element", "wrong_value")
    return found[0]


def _parts(element: XmlElement, *names: str) -> Sequence[XmlElement]:
    """Return the children of an element: exactly `names`, in this order.

    FormatError if they are not, or the element has attributes or text.
    """
    if element.attributes:
        raise _error(element, "must have no attributes", "unknown_field")
    return _children(element, *names)


def _children(element: XmlElement, *names: str) -> Sequence[XmlElement]:
    """Return the children of an element: exactly `names`, in this order; FormatError for text."""
    found = element.elements()
    if [(one.namespace, one.local) for one in found] != [(XMLDSIG, name) for name in names]:
        raise _error(element, f"must have exactly {', '.join(names)}", "wrong_value")
    if element.text().strip(WHITE_SPACE):
        raise _error(element, "must have no text", "unknown_field")
    return found


def _read_digest(signed_info: XmlElement) -> bytes:
    """Check algorithms and reference of a SignedInfo, and return the digest of the document."""
    names = ("CanonicalizationMethod", "SignatureMethod", "Reference")
    canonicalization, method, reference = _parts(signed_info, *names)
    _check_leaf(canonicalization, "Algorithm", CANONICALIZATION)
    _check_leaf(method, "Algorithm", SIGNATURE_METHOD)
    _check_attribute(reference, "URI", "")
    names = ("Transforms", "DigestMethod", "DigestValue")
    transforms, digest_method, value = _children(reference, *names)
    enveloped, canonical = _parts(transforms, "Transform", "Transform")
    _check_leaf(enveloped, "Algorithm", ENVELOPED)
    _check_leaf(canonical, "Algorithm", CANONICALIZATION)
    _check_leaf(digest_method, "Algorithm", DIGEST_METHOD)
    return _read_base64(value, _DIGEST_SIZE)


def _check_leaf(element: XmlElement, name: str, value: str) -> None:
    """Check that an element has only the attribute `name`, with this value, and no content."""
    _check_attribute(element, name, value)
    if element.children:
        raise _error(element, "must be empty", "unknown_field")


def _check_attribute(element: XmlElement, name: str, value: str) -> None:
    found = [(one.namespace, one.local) for one in element.attributes]
    if found != [("", name)]:
        raise _error(element, f"must have only the attribute {name}", "wrong_value")
    if element.attributes[0].value != value:
        text = f"{name} must be {shown(value)}, not {shown(element.attributes[0].value)}"
        reason: FormatReason = "unsupported_algorithm" if value else "wrong_value"
        raise _error(element, text, reason)


def _read_certificates(key_info: XmlElement) -> tuple[bytes, ...]:
    (data,) = _parts(key_info, "X509Data")
    count = len(data.elements())
    if not 2 <= count <= MAX_CERTIFICATES:
        text = f"must have 2 to {MAX_CERTIFICATES} certificates, not {count}"
        raise _error(data, text, "missing" if count < 2 else "too_many")
    return tuple(_read_base64(one) for one in _parts(data, *["X509Certificate"] * count))


def _read_base64(element: XmlElement, size: int | None = None) -> bytes:
    """Return the bytes of an element's base64 text, `size` many unless it is None.

    The text may have line breaks.
    """
    if element.attributes or element.elements():
        raise _error(element, "must have only base64 text", "unknown_field")
    text = element.text().translate(_REMOVED)
    try:
        found = binascii.a2b_base64(text)
    except ValueError as error:  # binascii.Error, or text that is not ASCII
        raise _error(element, "must be base64", "encoding") from error
    if not found or binascii.b2a_base64(found, newline=False).decode() != text:
        raise _error(element, "must be base64 in canonical form", "encoding")
    if size is not None and len(found) != size:
        raise _error(element, f"must be {size} bytes, not {len(found)}", "wrong_size")
    if len(found) > _MAX_CERTIFICATE:
        raise _error(element, f"{len(found)} bytes, at most {_MAX_CERTIFICATE}", "too_large")
    return found


def _error(element: XmlElement, problem: str, reason: FormatReason) -> FormatError:
    message = f"XML signature: {shown(element.local)} {problem}"
    return FormatError(message, reason=reason, offset=element.offset)
