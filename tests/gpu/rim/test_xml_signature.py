"""XML signatures of RIMs: only their one form is accepted, and libxmlsec1 agrees."""

from base64 import b64encode, encodebytes
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import pytest

from attestkit._crypto.pem import encode_pem
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit.errors import FormatError, SignatureError
from attestkit.gpu.rim.document import read_document
from attestkit.gpu.rim.manifest import Rim
from attestkit.gpu.rim.verification import verify_rim
from attestkit.gpu.rim.xml_signature import (
    CANONICALIZATION,
    DIGEST_METHOD,
    ENVELOPED,
    SIGNATURE_METHOD,
    XMLDSIG,
    read_signature,
    verify_signature,
)
from tests.gpu.rim import samples
from tests.gpu.rim.canonical_forms import canonical_document, canonical_signed_info
from tests.gpu.rim.rims import (
    AUTHORITIES,
    HASHES,
    NOW,
    SIGNER,
    chain,
    manifest,
    resource,
    sign,
    signer,
)
from tests.raising import raises
from tests.runner.cases import every_case
from tests.thorough import limited

GOOD = sign(manifest())
START, END = GOOD.index(b"<ds:Signature "), GOOD.index(b"</SoftwareIdentity>")
SIGNATURE = GOOD[START:END]


def verify(xml: bytes, spki: bytes | None = None) -> bytes:
    """Verify the signature of a document by the key of the tests' signer, or another one."""
    root = read_document(xml)
    return verify_signature(root, read_signature(root), spki or signer().key.spki)


def xmlsec_accepts(xml: bytes, certificate: bytes) -> bool:
    """Return the result of libxmlsec1."""
    xmlsec = pytest.importorskip("xmlsec", reason="xmlsec is the reference, and is not here")
    etree = pytest.importorskip("lxml.etree", reason="xmlsec needs lxml, which is not here")
    root = etree.fromstring(xml)
    context = xmlsec.SignatureContext()
    pem = encode_pem("CERTIFICATE", certificate).encode()
    context.key = xmlsec.Key.from_memory(pem, xmlsec.KeyFormat.CERT_PEM)
    try:
        context.verify(root.find(f"{{{XMLDSIG}}}Signature"))
    except xmlsec.VerificationError:
        return False
    return True


@pytest.mark.slow
@samples.needs_shared
@every_case("name", samples.SIGNED)
def test_result_for_samples_is_that_of_libxmlsec(name: str) -> None:
    """Signature and digest of each file hold, or not, as libxmlsec1 and the expected values say."""
    xml = samples.read(name)
    if "ds-object" in name and "driver" in name:
        # The document is signed, but what is in the ds:Object is not.
        with raises(FormatError, "wrong_value"):
            read_signature(read_document(xml))
        return
    leaf = read_signature(read_document(xml)).certificates[0]
    accepted = xmlsec_accepts(xml, leaf)
    with nullcontext() if accepted else raises(SignatureError, "bad_signature"):
        verify(xml, read_path_certificate(leaf).spki)
    if name in samples.EXPECTED["rims"]:
        expected = samples.EXPECTED["rims"][name]
        holds = expected["reference_digest_valid"] and expected["signed_info_signature_valid"]
        assert accepted == holds


def test_signed_bytes_are_returned() -> None:
    """The result is the document without its signature, and libxmlsec1 accepts the signature."""
    assert verify(GOOD) == canonical_document(manifest())
    assert xmlsec_accepts(GOOD, signer().certificates[0])


@pytest.mark.slow
def test_every_changed_byte_of_the_document_is_refused() -> None:
    """Each byte of what is signed, and of SignedInfo and the value, is malformed or not valid."""
    by = chain(SIGNER, AUTHORITIES[-1])
    xml = sign(manifest([resource(0, HASHES[0])]), by)
    for at in limited(range(xml.index(b"<ds:KeyInfo>"))):
        changed = xml[:at] + bytes([xml[at] ^ 1]) + xml[at + 1 :]
        with pytest.raises((FormatError, SignatureError)):
            verify(changed, by.key.spki)


@pytest.mark.parametrize("value", [bytes(96), b"\xff" * 96, bytes(48) + b"\1" * 48])
def test_invalid_signature_values_are_refused(value: bytes) -> None:
    """Numbers of zero, or above the order, are not valid."""
    start = GOOD.index(b"<ds:SignatureValue>") + 19
    end = GOOD.index(b"</ds:SignatureValue>")
    with raises(SignatureError, "bad_signature"):
        verify(GOOD[:start] + b64encode(value) + GOOD[end:])


CHANGES: Mapping[str, tuple[str, str, str]] = {
    "canonicalization 1.0": (
        CANONICALIZATION,
        "http://www.w3.org/TR/2001/REC-xml-c14n-20010315",
        "unsupported_algorithm",
    ),
    "exclusive canonicalization": (
        CANONICALIZATION,
        "http://www.w3.org/2001/10/xml-exc-c14n#",
        "unsupported_algorithm",
    ),
    "canonicalization with comments": (
        CANONICALIZATION,
        f"{CANONICALIZATION}#WithComments",
        "unsupported_algorithm",
    ),
    "SHA-256": (
        SIGNATURE_METHOD,
        "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha256",
        "unsupported_algorithm",
    ),
    "HMAC": (
        SIGNATURE_METHOD,
        "http://www.w3.org/2001/04/xmldsig-more#hmac-sha384",
        "unsupported_algorithm",
    ),
    "digest SHA-1": (
        DIGEST_METHOD,
        "http://www.w3.org/2000/09/xmldsig#sha1",
        "unsupported_algorithm",
    ),
    "transform XSLT": (
        ENVELOPED,
        "http://www.w3.org/TR/1999/REC-xslt-19991116",
        "unsupported_algorithm",
    ),
    "transform XPath": (
        ENVELOPED,
        "http://www.w3.org/TR/1999/REC-xpath-19991116",
        "unsupported_algorithm",
    ),
    "reference to an id": ('URI=""', 'URI="#a"', "wrong_value"),
    "reference elsewhere": ('URI=""', 'URI="http://x/"', "wrong_value"),
    "no URI": (' URI=""', "", "wrong_value"),
    "type of reference": ('URI=""', 'URI="" Type="u:1"', "wrong_value"),
    "id": ("<ds:SignedInfo>", '<ds:SignedInfo Id="a">', "unknown_field"),
    "id of the signature": ("<ds:Signature ", '<ds:Signature Id="a" ', "unknown_field"),
    "text": ("<ds:KeyInfo>", "x<ds:KeyInfo>", "unknown_field"),
    "text in the reference": ("<ds:Transforms>", "x<ds:Transforms>", "unknown_field"),
    "parameter of a method": (
        f'<ds:DigestMethod Algorithm="{DIGEST_METHOD}"/>',
        f'<ds:DigestMethod Algorithm="{DIGEST_METHOD}"> </ds:DigestMethod>',
        "unknown_field",
    ),
    "third transform": (
        "</ds:Transforms>",
        f'<ds:Transform Algorithm="{CANONICALIZATION}"/></ds:Transforms>',
        "wrong_value",
    ),
    "order of transforms": (
        f'Algorithm="{ENVELOPED}"/><ds:Transform Algorithm="{CANONICALIZATION}"',
        f'Algorithm="{CANONICALIZATION}"/><ds:Transform Algorithm="{ENVELOPED}"',
        "unsupported_algorithm",
    ),
    "no transform": (f'<ds:Transform Algorithm="{ENVELOPED}"/>', "", "wrong_value"),
    "object": ("</ds:Signature>", "<ds:Object/></ds:Signature>", "wrong_value"),
    "object before": ("<ds:KeyInfo>", "<ds:Object/><ds:KeyInfo>", "wrong_value"),
    "key by value": ("<ds:X509Data>", "<ds:KeyValue/><ds:X509Data>", "wrong_value"),
    "key by name": ("<ds:KeyInfo>", "<ds:KeyInfo><ds:KeyName>a</ds:KeyName>", "wrong_value"),
    "two X509Data": ("</ds:KeyInfo>", "<ds:X509Data/></ds:KeyInfo>", "wrong_value"),
    "issuer": ("<ds:X509Data>", "<ds:X509Data><ds:X509IssuerSerial/>", "wrong_value"),
    "CRL": ("</ds:X509Data>", "<ds:X509CRL>AA==</ds:X509CRL></ds:X509Data>", "wrong_value"),
    "attribute of a value": ("<ds:SignatureValue>", '<ds:SignatureValue a="">', "unknown_field"),
    "element in a value": ("</ds:DigestValue>", "<ds:a/></ds:DigestValue>", "unknown_field"),
    "digest not base64": ("<ds:DigestValue>", "<ds:DigestValue>*", "encoding"),
    "digest not ASCII": ("<ds:DigestValue>", "<ds:DigestValue>é", "encoding"),
    "digest too long": ("<ds:DigestValue>", "<ds:DigestValue>AAAA", "wrong_size"),
    "signature value too long": ("<ds:SignatureValue>", "<ds:SignatureValue>AAAA", "wrong_size"),
    "other namespace": (XMLDSIG, "http://www.w3.org/2009/xmldsig11#", "missing"),
}


@every_case(("old", "new", "reason"), CHANGES.values(), ids=CHANGES)
def test_other_form_is_rejected_although_signed(old: str, new: str, reason: str) -> None:
    """A signature of another form or with other algorithms is rejected before it is verified."""
    with raises(FormatError, reason):
        Rim.parse(_changed(old, new))


def _changed(old: str, new: str) -> bytes:
    if old != XMLDSIG and "Value>" not in old:
        return sign(manifest(), changes={old: new})
    assert old.encode() in GOOD
    return GOOD.replace(old.encode(), new.encode())


def test_second_reference_is_rejected() -> None:
    """A SignedInfo has one reference."""
    start, end = GOOD.index(b"<ds:Reference"), GOOD.index(b"</ds:SignedInfo>")
    twice = f"</ds:Reference>{GOOD[start:end].decode()}"
    with raises(FormatError, "wrong_value"):
        Rim.parse(sign(manifest(), changes={"</ds:Reference>": twice}))


@pytest.mark.parametrize("count", [0, 1, 7])
def test_number_of_certificates_is_limited(count: int) -> None:
    """A KeyInfo has 2 to 6 certificates."""
    reason = {0: "missing", 1: "missing", 7: "too_many"}[count]
    with raises(FormatError, reason):
        Rim.parse(sign(manifest(), certificates=[signer().root] * count))


def test_large_certificate_is_rejected() -> None:
    """A certificate has at most 4,096 bytes."""
    with raises(FormatError, "too_large"):
        Rim.parse(sign(manifest(), certificates=[bytes(4097), signer().root]))


# -- signature wrapping ----------------------------------------------------------------------------

EVIL = manifest([resource(0, HASHES[7])])
INNER = GOOD[: GOOD.index(b"\n")]
MOVED: Mapping[str, Callable[[], bytes]] = {
    "no signature": manifest,
    "two signatures": lambda: GOOD[:END] + SIGNATURE + GOOD[END:],
    "signature of the old document in the new one's": lambda: (
        EVIL[: -len("</SoftwareIdentity>")]
        + SIGNATURE.replace(
            b"</ds:Signature>", b"<ds:Object>" + GOOD + b"</ds:Object></ds:Signature>"
        )
        + b"</SoftwareIdentity>"
    ),
    "signed document as a child": lambda: (
        EVIL[: -len("</SoftwareIdentity>")] + GOOD + b"</SoftwareIdentity>"
    ),
    "signed document in a wrapper": lambda: b"<w>" + GOOD + b"</w>",
    "signature is the root": lambda: SIGNATURE,
    "signature around the document": lambda: SIGNATURE.replace(
        b"</ds:Signature>", b"<ds:Object>" + manifest() + b"</ds:Object></ds:Signature>"
    ),
    "signature in the payload": lambda: manifest().replace(
        b"</s:Payload>", SIGNATURE + b"</s:Payload>"
    ),
    "signature first": lambda: manifest().replace(
        b"\n  <s:Entity", SIGNATURE + b"\n  <s:Entity", 1
    ),
    "element behind the signature": lambda: GOOD[:END] + b"<s:Meta/>" + GOOD[END:],
    "resource behind the signature": lambda: (
        GOOD[:END] + resource(1, HASHES[7]).encode() + GOOD[END:]
    ),
    "payload behind the signature": lambda: (
        GOOD[:END]
        + EVIL[EVIL.index(b"<s:Payload") : EVIL.index(b"</SoftwareIdentity>")]
        + GOOD[END:]
    ),
    "resource in the signature": lambda: GOOD.replace(
        b"<ds:KeyInfo>", resource(1, HASHES[7]).encode() + b"<ds:KeyInfo>"
    ),
    "resource in the certificates": lambda: GOOD.replace(
        b"<ds:X509Data>", b"<ds:X509Data>" + resource(1, HASHES[7]).encode()
    ),
    "resource in a value": lambda: GOOD.replace(
        b"<ds:SignatureValue>", b"<ds:SignatureValue>" + resource(1, HASHES[7]).encode()
    ),
}


@every_case("make", MOVED.values(), ids=MOVED)
def test_wrapped_signature_is_rejected(make: Callable[[], bytes]) -> None:
    """A signature elsewhere, of another document, or with more in it, is rejected as malformed."""
    with pytest.raises(FormatError):
        verify_rim(make(), signer().root, NOW)


def test_payload_of_another_document_is_refused() -> None:
    """A signature moved into another document does not hold."""
    at = EVIL.index(b"</SoftwareIdentity>")
    with raises(SignatureError, "bad_signature"):
        verify_rim(EVIL[:at] + SIGNATURE + EVIL[at:], signer().root, NOW)


SAME: Mapping[str, Callable[[bytes], bytes]] = {
    "XML declaration": lambda xml: b'<?xml version="1.0"?>\n' + xml,
    "white space behind": lambda xml: xml + b"\n",
    "CRLF": lambda xml: xml.replace(b"\n", b"\r\n"),
    "CR": lambda xml: xml.replace(b"\n", b"\r"),
    "character references": lambda xml: xml.replace(b'name="GH100"', b'name="&#x47;H1&#48;0"'),
    "CDATA": lambda xml: xml.replace(b"\n  <s:Meta", b"<![CDATA[\n ]]> <s:Meta"),
    "empty elements": lambda xml: xml.replace(b' size="48"/>', b' size="48"></s:Resource>'),
    "quotes": lambda xml: xml.replace(b'edition="GPU"', b"edition='GPU'"),
    "order of attributes": lambda xml: xml.replace(
        b'edition="GPU" product="GH100"', b'product="GH100"   edition="GPU"'
    ),
    "superfluous declaration": lambda xml: xml.replace(
        b"<s:Payload", b'<s:Payload xmlns:s="http://standards.iso.org/iso/19770/-2/2015/schema.xsd"'
    ),
}


@every_case("change", SAME.values(), ids=SAME)
def test_same_document_in_other_bytes_is_accepted(change: Callable[[bytes], bytes]) -> None:
    """What is not part of the canonical form is not signed, and does not change the result."""
    changed = change(GOOD)
    assert changed != GOOD
    assert verify_rim(changed, signer().root, NOW).rim == verify_rim(GOOD, signer().root, NOW).rim


OTHER: Mapping[str, Callable[[bytes], bytes]] = {
    "character reference of CR": lambda xml: xml.replace(b"\n  <s:Meta", b"&#13;\n  <s:Meta"),
    "space": lambda xml: xml.replace(b"\n  <s:Meta", b"\n   <s:Meta"),
    "new prefix": lambda xml: xml.replace(b"<s:Payload>", b'<s:Payload xmlns:n="u:1">'),
    "other prefix": lambda xml: xml.replace(b"<s:Meta", b"<Meta"),
    "prefix of another namespace": lambda xml: xml.replace(
        b"<s:Payload>", b'<s:Payload xmlns:h="u:1">'
    ),
    "hash in another namespace": lambda xml: xml.replace(b"xmlenc#sha384", b"xmlenc#sha512"),
}


@every_case("change", OTHER.values(), ids=OTHER)
def test_other_document_is_refused(change: Callable[[bytes], bytes]) -> None:
    """White space, prefixes and declarations are part of what is signed."""
    changed = change(GOOD)
    assert changed != GOOD
    with pytest.raises((SignatureError, FormatError)):
        verify_rim(changed, signer().root, NOW)
    assert not xmlsec_accepts(changed, signer().certificates[0])


def test_signed_info_has_the_namespaces_in_scope() -> None:
    """SignedInfo is signed with the declarations of the document around it."""
    found = canonical_signed_info(GOOD)
    assert found.startswith(b'<ds:SignedInfo xmlns="http://standards.iso.org/')
    assert b' xmlns:h="' in found.partition(b">")[0]


def test_base64_may_have_line_breaks() -> None:
    """Values may be split into lines, as certificates are."""
    value = GOOD[GOOD.index(b"<ds:DigestValue>") + 16 : GOOD.index(b"</ds:DigestValue>")]
    lines = {value.decode(): f"\n{value[:40].decode()}\r\n {value[40:].decode()}\t"}
    xml = sign(manifest(), changes=lines)
    assert verify(xml) == verify(GOOD)
    assert encodebytes(signer().root) in xml


def test_last_children_are_the_signature_and_text() -> None:
    """Text around the signature is signed; the signature alone is left out."""
    xml = sign(manifest()).replace(b"</ds:Signature>", b"</ds:Signature>\n")
    with raises(SignatureError, "bad_signature"):
        verify(xml)


def test_samples_are_in_order() -> None:
    """The parts of the tests' document are where the tests expect them."""
    names = [b"<ds:Signature ", b"<ds:SignedInfo>", b"<ds:SignatureValue>", b"<ds:KeyInfo>"]
    places: list[Any] = [GOOD.index(name) for name in names]
    assert all(before < behind for before, behind in pairwise(places))
