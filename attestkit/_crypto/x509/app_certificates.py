"""X.509 certificates of applications and of their CA, as issued by the dstack guest agent.

Equal arguments give equal certificates: by default serial numbers are derived from the key, and
signatures are deterministic (RFC 6979). The content of private extensions is opaque here.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from ipaddress import ip_address
from types import MappingProxyType
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from attestkit._crypto.der import OCTET_STRING, DerReader, encode_element
from attestkit._crypto.ecdsa import P256Key, P256PublicKey
from attestkit._crypto.pem import encode_pem, split_pem
from attestkit._crypto.x509.names import subject_and_key
from attestkit._sanitize import shown
from attestkit.errors import FormatError, UsageError

_LARGEST: Final = 16 << 20  # bytes or characters; evidence in a certificate has up to 10 MiB
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_WRONG_ORDER: Final = "not_before must be earlier than not_after"
NO_OTHER_USAGE: Final = dict.fromkeys(
    (
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "encipher_only",
        "decipher_only",
    ),
    False,
)
_SERVER_AUTH, _CLIENT_AUTH = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
_LEAF_USAGE: Final = x509.KeyUsage(
    digital_signature=True, key_cert_sign=False, crl_sign=False, **NO_OTHER_USAGE
)
_CA_USAGE: Final = x509.KeyUsage(
    digital_signature=True, key_cert_sign=True, crl_sign=True, **NO_OTHER_USAGE
)


class Certificate:
    """An X.509 certificate, parsed by `read_certificate`, not verified."""

    __slots__ = (
        *("_certificate", "der", "extensions", "spki_der", "subject_der"),
        *("valid_from", "valid_until"),
    )

    def __init__(self, certificate: x509.Certificate) -> None:
        self._certificate = certificate
        self.der: bytes = certificate.public_bytes(Encoding.DER)
        self.subject_der: bytes
        self.spki_der: bytes
        self.subject_der, self.spki_der = subject_and_key(certificate.tbs_certificate_bytes)
        # notBefore and notAfter, in UTC and inclusive. Decoded here, because X.509 has a year 0.
        self.valid_from: datetime = certificate.not_valid_before_utc
        self.valid_until: datetime = certificate.not_valid_after_utc
        # Contents of the extensions' OCTET STRINGs, by dotted OID.
        self.extensions: Mapping[str, bytes] = MappingProxyType(_extension_values(certificate))

    @property
    def pem(self) -> str:
        """The certificate in PEM."""
        return certificate_pem(self.der)

    @property
    def subject(self) -> str:
        """The subject as text (RFC 4514), possibly empty; FormatError if malformed."""
        with reading_x509():
            return self._certificate.subject.rfc4514_string()

    @property
    def issuer(self) -> str:
        """The issuer as text (RFC 4514); FormatError if malformed."""
        with reading_x509():
            return self._certificate.issuer.rfc4514_string()

    @property
    def serial_number(self) -> int:
        """The serial number."""
        return self._certificate.serial_number

    @property
    def alt_names(self) -> tuple[str, ...]:
        """DNS names and IP addresses among the subject alternative names, in order."""
        try:
            found = self._certificate.extensions.get_extension_for_class(
                x509.SubjectAlternativeName
            )
        except x509.ExtensionNotFound:
            return ()
        return tuple(
            str(name.value)
            for name in found.value
            if isinstance(name, (x509.DNSName, x509.IPAddress))
        )

    def content(self, oid: str) -> bytes | None:
        """Return the content of the OCTET STRING inside extension `oid` (dotted); None without it.

        Raises:
            FormatError: If the extension does not contain exactly one OCTET STRING.
        """
        return read_extension_content(self.extensions, oid)

    def __eq__(self, other: object) -> bool:
        return self.der == other.der if isinstance(other, Certificate) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.der)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the DER."""
        return read_certificate, (self.der,)

    def __repr__(self) -> str:
        return f"Certificate(serial_number={self.serial_number:#x})"


def read_extension_content(extensions: Mapping[str, bytes], oid: str) -> bytes | None:
    """Return the content of the OCTET STRING inside extension `oid`; None without the extension.

    `extensions` are the contents of the extensions' own OCTET STRINGs, by dotted OID.

    Raises:
        FormatError: If the extension does not contain exactly one OCTET STRING.
    """
    value = extensions.get(oid)
    if value is None:
        return None
    try:
        return DerReader(value).only(OCTET_STRING)
    except FormatError as error:
        message = f"extension {oid}: must contain exactly one OCTET STRING"
        raise FormatError(message, reason="syntax") from error


def read_certificate(data: bytes | str) -> Certificate:
    """Parse `data`, a certificate in DER or PEM; of several certificates in PEM, the first one.

    Raises:
        FormatError: If the certificate is malformed or exceeds 16 MiB, a date has the year 0, or an
            extension is malformed or occurs twice.
    """
    if len(data) > _LARGEST:
        raise FormatError(f"certificate: {len(data)} bytes, at most {_LARGEST}", reason="too_large")
    if isinstance(data, str) or data.lstrip().startswith(b"-----BEGIN"):
        try:
            text = data if isinstance(data, str) else data.decode("ascii")
        except UnicodeDecodeError as error:
            raise FormatError("PEM: not ASCII", offset=error.start, reason="encoding") from error
        data = split_pem(text)[0]
    with reading_x509():
        return Certificate(x509.load_der_x509_certificate(data))


@contextmanager
def reading_x509(what: str = "certificate") -> Iterator[None]:
    """Context manager: raise cryptography's errors about a malformed `what` as FormatError."""
    try:
        yield
    except FormatError:
        raise
    except (
        ValueError,
        TypeError,
        KeyError,  # a string type unknown to older versions of cryptography
        x509.DuplicateExtension,
        x509.InvalidVersion,
        x509.UnsupportedGeneralNameType,
        UnsupportedAlgorithm,
        Warning,  # if warnings are errors: for example, about a serial number that is not positive
    ) as error:
        raise FormatError(f"not a valid X.509 {what}", reason="syntax") from error


def certificate_pem(der: bytes) -> str:
    """Return a certificate given in DER as PEM, with LF line ends."""
    return encode_pem("CERTIFICATE", der)


def check_leaf_fields(
    *, subject: str, alt_names: Sequence[str], not_before: int, not_after: int
) -> None:
    """Check the fields of a certificate that its requester chooses, before work is done for it.

    Arguments are those of `issue_leaf`.

    Raises:
        UsageError: If `issue_leaf` cannot encode a value, or `not_before` is not earlier than
            `not_after`.
    """
    with _writing():
        if _moment("not_before", not_before) >= _moment("not_after", not_after):
            raise UsageError(_WRONG_ORDER, reason="conflict")
        _name(subject)
        for name in alt_names:
            _alt_name(name)


def issue_leaf(
    *,
    public_key: P256Key | P256PublicKey,
    subject: str,
    organisation: str = "",
    alt_names: Sequence[str] = (),
    server_auth: bool = False,
    client_auth: bool = False,
    not_before: int,
    not_after: int,
    serial: int | None = None,
    extensions: Iterable[tuple[str, bytes]] = (),
    authority_key_id: bool = False,
    ca_cert: str | Certificate,
    ca_key: P256Key,
) -> bytes:
    """Issue a certificate for an application, as the dstack guest agent does; return its DER.

    The certificate is signed by `ca_key`.

    Args:
        public_key: Key of the certificate.
        subject: Common name, at most 64 characters; empty for none.
        organisation: Organisation, which precedes the common name; otherwise as `subject`.
        alt_names: Each becomes an IP address if it is a valid one, else a DNS name.
        server_auth: Whether it has the extended key usage of TLS servers.
        client_auth: Whether it has the extended key usage of TLS clients.
        not_before: Seconds since 1970, in the years 1950 to 9999.
        not_after: As `not_before`; inclusive.
        serial: Serial number, positive and at most 20 bytes; None derives it from the key.
        extensions: Dotted OID and content of private extensions, not critical, in this order. The
            content is wrapped in an OCTET STRING inside the OCTET STRING of the extension.
        authority_key_id: Whether to add the extension that strict clients require, such as Python's
            from version 3.13, of an issuer made by `issue_ca`.
        ca_cert: Certificate of the issuer in PEM, or parsed.
        ca_key: Key of the issuer.

    Raises:
        UsageError: If a value (or the name in `ca_cert`) cannot be encoded, `not_before` is later
            than `not_after`, or `ca_key` does not belong to `ca_cert`.
        FormatError: If `ca_cert` is malformed.
    """
    with _writing():
        builder = _builder(public_key, not_before, not_after, serial)
        builder = builder.subject_name(_name(subject, organisation))
        builder = builder.issuer_name(_issuer(ca_cert, ca_key.spki_der))
        if alt_names:
            names = x509.SubjectAlternativeName([_alt_name(name) for name in alt_names])
            builder = builder.add_extension(names, critical=False)
        builder = builder.add_extension(_LEAF_USAGE, critical=True)
        if usages := [_SERVER_AUTH] * server_auth + [_CLIENT_AUTH] * client_auth:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if authority_key_id:
            authority = x509.AuthorityKeyIdentifier(_key_id(ca_key), None, None)
            builder = builder.add_extension(authority, critical=False)
        return _sign(_add_private(builder, extensions), ca_key)


def issue_ca(
    *,
    key: P256Key,
    subject: str,
    organisation: str = "",
    path_length: int,
    not_before: int,
    not_after: int,
    serial: int | None = None,
    extensions: Iterable[tuple[str, bytes]] = (),
    issuer: tuple[str, P256Key] | None = None,
) -> bytes:
    """Issue a CA certificate, self-signed or signed by `issuer`; return its DER.

    The certificate has a subject key identifier.

    Args:
        key: Key pair of the CA.
        subject: Common name, at most 64 characters; empty for none.
        organisation: Organisation, which precedes the common name; otherwise as `subject`.
        path_length: Path length constraint: the maximum number of CAs below this one in a path.
        not_before: Seconds since 1970, in the years 1950 to 9999.
        not_after: As `not_before`; inclusive.
        serial: Serial number, positive and at most 20 bytes; None derives it from the key.
        extensions: Dotted OID and content of private extensions, wrapped as by `issue_leaf`.
        issuer: Certificate of the issuing CA in PEM, and its key; None issues a self-signed
            certificate.

    Raises:
        UsageError: If a value (or the issuer's name) cannot be encoded, `not_before` is later than
            `not_after`, or the issuer's key does not belong to its certificate.
        FormatError: If the issuer's certificate is malformed.
    """
    ca_cert, ca_key = issuer or ("", key)
    with _writing():
        name = _name(subject, organisation)
        builder = _builder(key, not_before, not_after, serial).subject_name(name)
        builder = builder.issuer_name(_issuer(ca_cert, ca_key.spki_der) if issuer else name)
        builder = builder.add_extension(_CA_USAGE, critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier(_key_id(key)), critical=False)
        basic = x509.BasicConstraints(ca=True, path_length=path_length)
        builder = builder.add_extension(basic, critical=True)
        return _sign(_add_private(builder, extensions), ca_key)


@contextmanager
def _writing() -> Iterator[None]:
    """Context manager: raise cryptography's errors about values to encode as UsageError."""
    try:
        yield
    except (UsageError, FormatError):
        raise
    except (ValueError, TypeError) as error:
        message = "certificate: a name, OID, serial number or path length is not valid in X.509"
        raise UsageError(message, reason="wrong_value") from error


def _builder(
    key: P256Key | P256PublicKey, not_before: int, not_after: int, number: int | None
) -> x509.CertificateBuilder:
    first, last = _moment("not_before", not_before), _moment("not_after", not_after)
    if first > last:
        raise UsageError(_WRONG_ORDER, reason="conflict")
    serial = bytearray(hashlib.sha256(b"\x04" + key.spki_der[-64:]).digest()[:20])
    serial[0] &= 0x7F  # RFC 5280, 4.1.2.2: positive, and at most 20 bytes
    return (
        x509.CertificateBuilder()
        .serial_number(int.from_bytes(serial, "big") if number is None else number)
        .not_valid_before(first)
        .not_valid_after(last)
        .public_key(key.public)
    )


def _key_id(key: P256Key) -> bytes:
    return hashlib.sha256(key.spki_der).digest()[:20]


def _moment(argument: str, seconds: int) -> datetime:
    span = "must be a time from 1950 to 9999 in seconds since 1970"
    message = f"{argument}: {span}, not {shown(seconds)}"
    try:
        moment = _EPOCH + timedelta(seconds=seconds)
    except OverflowError as error:
        raise UsageError(message, reason="out_of_range") from error
    if moment.year < 1950:
        raise UsageError(message, reason="out_of_range")
    return moment


def _name(common_name: str, organisation: str = "") -> x509.Name:
    attributes = []
    for argument, oid, value in (
        ("organisation", NameOID.ORGANIZATION_NAME, organisation),
        ("subject", NameOID.COMMON_NAME, common_name),
    ):
        if len(value) > 64:  # RFC 5280, appendix A.1: ub-common-name, ub-organization-name
            message = f"{argument}: {len(value)} characters, more than the 64 that X.509 allows"
            raise UsageError(message, reason="too_large")
        if value:
            attributes.append(x509.NameAttribute(oid, value))
    return x509.Name(attributes)


def _alt_name(text: str) -> x509.GeneralName:
    try:
        # Python accepts IPv6 zones, X.509 does not. The other conditions only save time.
        if "%" not in text and (":" in text or text[-1:].isdigit()):
            return x509.IPAddress(ip_address(text))
    except ValueError:
        pass
    try:
        return x509.DNSName(text)
    except ValueError as error:
        raise UsageError("alternative name: must be ASCII (xn--...)", reason="encoding") from error


def _add_private(
    builder: x509.CertificateBuilder, extensions: Iterable[tuple[str, bytes]]
) -> x509.CertificateBuilder:
    for oid, content in extensions:
        value = x509.UnrecognizedExtension(
            x509.ObjectIdentifier(oid), encode_element(OCTET_STRING, content)
        )
        builder = builder.add_extension(value, critical=False)
    return builder


def _sign(builder: x509.CertificateBuilder, key: P256Key) -> bytes:
    return builder.sign(key.private, SHA256(), ecdsa_deterministic=True).public_bytes(Encoding.DER)


@lru_cache(maxsize=8)  # parsing the CA certificate takes as long as signing
def _issuer(ca_cert: str | Certificate, spki_der: bytes) -> x509.Name:
    """Return the subject of the CA certificate, whose public key must be `spki_der`."""
    certificate = read_certificate(ca_cert) if isinstance(ca_cert, str) else ca_cert
    if certificate.spki_der != spki_der:
        message = "issuer: the certificate does not belong to the private key"
        raise UsageError(message, reason="conflict")
    name = x509.load_der_x509_certificate(certificate.der).subject
    if name.public_bytes() != certificate.subject_der:
        message = "issuer: the name in the certificate cannot be encoded again unchanged"
        raise UsageError(message, reason="wrong_value")
    return name


def _extension_values(certificate: x509.Certificate) -> dict[str, bytes]:
    return {
        extension.oid.dotted_string: (
            extension.value.value
            if isinstance(extension.value, x509.UnrecognizedExtension)
            else extension.value.public_bytes()
        )
        for extension in certificate.extensions
    }
