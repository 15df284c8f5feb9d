"""Distinguished names in DER (RFC 5280, section 4.1.2.4): their attributes as text."""

from collections.abc import Mapping
from typing import Final

from attestkit._crypto.der import OID, SEQUENCE, DerReader, dotted_oid
from attestkit.errors import FormatError

_SET: Final = 0x31
_ENCODINGS: Final[Mapping[int, str]] = {0x0C: "utf-8", 0x13: "ascii", 0x16: "ascii"}
_MAX_ATTRIBUTES: Final = 16

COMMON_NAME: Final = "2.5.4.3"
"""OID of the attribute commonName (RFC 5280, appendix A.1)."""

"""OID of the attribute serialNumber."""


def read_name(name: bytes) -> dict[str, str]:
    """Return the attributes of a Name by dotted OID.

    Values of other types than UTF8String, PrintableString and IA5String are left out.

    Raises:
        FormatError: If the name is malformed, has more than 16 attributes, or one twice.
    """
    outer = DerReader(name)
    relative = outer.enter(SEQUENCE)
    outer.finish()
    found: dict[str, str] = {}
    while relative.tag() is not None:
        attributes = relative.enter(_SET)
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
