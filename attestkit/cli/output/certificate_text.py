"""The unverified content of a certificate, as text; AMD's serial number 0 is accepted."""

from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256
from typing import Any, Final, NamedTuple

from attestkit._crypto.der import INTEGER, OID, SEQUENCE, DerReader, context, dotted_oid
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._crypto.x509.sgx_extension import SGX_EXTENSION, read_sgx_extension
from attestkit.errors import FormatError

_SET: Final = 0x31
_NAMES: Final = {
    "2.5.4.3": "CN",
    "2.5.4.5": "serialNumber",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
}
# Text encodings by DER tag; all others are ASCII or a superset.
_ENCODINGS: Final = {0x0C: "utf-8", 0x1E: "utf-16-be"}


class CertificateText(NamedTuple):
    """The fields of a certificate.

    Attributes:
        subject: Attributes of the subject and their values, in order.
        issuer: Attributes of the issuer and their values, in order.
        serial_number: Serial number in hex.
        valid_from: Start of the validity, aware.
        valid_until: End of the validity, aware, inclusive.
        key_id: SHA-256 of the SubjectPublicKeyInfo in hex.
        extensions: Values (DER) by dotted OID.
    """

    subject: tuple[tuple[str, str], ...]  # attribute and value, in order
    issuer: tuple[tuple[str, str], ...]
    serial_number: str  # hex
    valid_from: datetime  # aware
    valid_until: datetime  # aware, inclusive
    key_id: str  # SHA-256 of the SubjectPublicKeyInfo, hex
    extensions: Mapping[str, bytes]  # by dotted OID

    @property
    def common_name(self) -> str:
        """The subject's common name, else its whole name."""
        return dict(self.subject).get("CN") or name_text(self.subject)

    def to_dict(self) -> dict[str, Any]:
        """Return the members except `extensions` by name, ready for JSON."""
        return {
            "subject": name_text(self.subject),
            "issuer": name_text(self.issuer),
            "serial_number": self.serial_number,
            "valid_from": self.valid_from.isoformat(),
            "valid_until": self.valid_until.isoformat(),
            "key_id": self.key_id,
        }


def describe_certificate(der: bytes) -> dict[str, Any]:
    """Return the fields of a certificate in DER, as in `CertificateText.to_dict`.

    For a PCK certificate, `sgx_extension` has the values of Intel's extension. For a malformed
    certificate, the only member is `error`.
    """
    try:
        certificate = read_certificate_text(der)
        pck = read_sgx_extension(der) if SGX_EXTENSION in certificate.extensions else None
    except FormatError as error:
        return {"error": str(error)}
    fields = certificate.to_dict()
    if pck is None:
        return fields
    values = {name: v.hex() if isinstance(v, bytes) else v for name, v in pck._asdict().items()}
    return {**fields, "sgx_extension": values}


def name_text(name: tuple[tuple[str, str], ...]) -> str:
    """Return a Name, given as pairs of attribute and value, as text: `CN=..., O=...`."""
    return ", ".join(f"{attribute}={value}" for attribute, value in name) or "(no name)"


def read_certificate_text(der: bytes) -> CertificateText:
    """Parse an X.509 v3 certificate in DER, of at most 16,384 bytes.

    Raises:
        FormatError: If the certificate is malformed.
    """
    found = read_path_certificate(der)
    return CertificateText(
        subject=_name(found.subject),
        issuer=_name(found.issuer),
        serial_number=_serial_number(found.signed),
        valid_from=found.valid_from,
        valid_until=found.valid_until,
        key_id=sha256(found.spki).hexdigest(),
        extensions=found.extensions,
    )


def _serial_number(signed: bytes) -> str:
    fields = DerReader(signed).enter(SEQUENCE)
    fields.enter(context(0))  # version
    return fields.content(INTEGER).hex()


def _name(der: bytes) -> tuple[tuple[str, str], ...]:
    """Return type and value of the attributes of a Name in DER (RFC 5280, 4.1.2.4), in order.

    A type is a short name such as `CN`, or the dotted OID.
    """
    found = []
    outer = DerReader(der).enter(SEQUENCE)
    while outer.tag() is not None:
        group = outer.enter(_SET)
        while group.tag() is not None:
            pair = group.enter(SEQUENCE)
            oid = dotted_oid(pair.content(OID))
            tag = pair.tag()
            if tag is None:
                raise FormatError(
                    "certificate name: an attribute has no value", offset=pair.at, reason="syntax"
                )
            value = pair.content(tag).decode(_ENCODINGS.get(tag, "latin-1"), errors="replace")
            found.append((_NAMES.get(oid, oid), value))
    return tuple(found)
