"""Names and keys of certificates in DER (RFC 5280, sections 4.1 and 4.1.2.4)."""

from collections.abc import Mapping
from typing import Final

from attestkit._crypto.der import (
    OID,
    PRINTABLE_STRING,
    SEQUENCE,
    SET,
    UTF8_STRING,
    DerReader,
    context,
    dotted_oid,
    encode_element,
    encode_sequence,
)
from attestkit.errors import FormatError

_ENCODINGS: Final[Mapping[int, str]] = {0x0C: "utf-8", 0x13: "ascii", 0x16: "ascii"}
_MAX_ATTRIBUTES: Final = 16

COMMON_NAME: Final = "2.5.4.3"
"""OID of the attribute commonName (RFC 5280, appendix A.1)."""


def read_name(name: bytes) -> dict[str, str]:
    """Return the attributes of a Name in DER by dotted OID, such as 2.5.4.3 for the common name.

    Values of other types than UTF8String, PrintableString and IA5String are left out.

    Raises:
        FormatError: If the name is malformed, has more than 16 attributes, or one twice.
    """
    relative = DerReader(name).enter_only(SEQUENCE)
    found: dict[str, str] = {}
    while relative.tag() is not None:
        attributes = relative.enter(SET)
        while attributes.tag() is not None:
            _read_attribute(attributes.enter(SEQUENCE), found)
    return found


def _read_attribute(attribute: DerReader, found: dict[str, str]) -> None:
    oid = dotted_oid(attribute.content(OID))
    tag = attribute.tag() or 0
    at = attribute.at
    if tag not in _ENCODINGS:
        return
    value = attribute.content(tag)
    attribute.finish()
    if oid in found:
        raise FormatError(f"name: attribute {oid} occurs twice", reason="duplicate", offset=at)
    if len(found) == _MAX_ATTRIBUTES:
        message = f"name: more than {_MAX_ATTRIBUTES} attributes"
        raise FormatError(message, reason="too_many", offset=at)
    try:
        found[oid] = value.decode(_ENCODINGS[tag])
    except UnicodeDecodeError as error:
        message = f"name: value of {oid} is not valid text"
        raise FormatError(message, reason="encoding", offset=at) from error


def certificate_subject(certificate: bytes) -> bytes:
    """Return the subject, a Name in DER, of a certificate in DER.

    Raises:
        FormatError: If the certificate is malformed.
    """
    return subject_and_key(DerReader(certificate).enter(SEQUENCE).whole(SEQUENCE))[0]


def subject_and_key(tbs: bytes) -> tuple[bytes, bytes]:
    """Return subject (Name) and SubjectPublicKeyInfo of a TBSCertificate, all in DER.

    cryptography returns them re-encoded only, but evidence is bound to the original bytes.

    Raises:
        FormatError: If `tbs` is malformed.
    """
    fields = DerReader(tbs).enter(SEQUENCE)
    if fields.tag() == context(0):
        fields.whole()  # version
    for _ in range(4):
        fields.whole()  # serialNumber, signature, issuer, validity
    return fields.whole(SEQUENCE), fields.whole(SEQUENCE)


def public_key_bits(spki: bytes) -> bytes:
    """Return the public key in `spki`, a SubjectPublicKeyInfo in DER: the bytes of its BIT STRING.

    Raises:
        FormatError: If it is malformed.
    """
    fields = DerReader(spki).enter_only(SEQUENCE)
    fields.whole(SEQUENCE)
    unused, bits = fields.bits()
    fields.finish()
    if unused:
        raise FormatError("public key: must have no unused bits", reason="wrong_value")
    return bits


def encode_attribute(kind: int, tag: int, value: str) -> bytes:
    """Return a RelativeDistinguishedName with one attribute, in DER.

    Args:
        kind: Last arc of the attribute's OID, after 2.5.4: 3 for the common name.
        tag: DER tag of the value, `UTF8_STRING` or `PRINTABLE_STRING`.
        value: The value.
    """
    oid = encode_element(OID, bytes([0x55, 0x04, kind]))
    return encode_element(SET, encode_sequence(oid, encode_element(tag, value.encode())))


def encode_intel_name(common_name: str) -> bytes:
    """Return a Name of Intel's SGX PKI in DER: a common name and `INTEL_ATTRIBUTES`."""
    return encode_sequence(encode_attribute(3, UTF8_STRING, common_name), _OF_INTEL)


INTEL_ATTRIBUTES: Final = (
    (10, UTF8_STRING, "Intel Corporation"),
    (7, UTF8_STRING, "Santa Clara"),
    (8, UTF8_STRING, "CA"),
    (6, PRINTABLE_STRING, "US"),
)
"""Attributes of Intel's names, in their order: last arc of the OID, DER tag of the value, value."""

_OF_INTEL: Final = b"".join(encode_attribute(*one) for one in INTEL_ATTRIBUTES)
