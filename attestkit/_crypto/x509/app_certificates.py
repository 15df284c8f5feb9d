"""X.509 certificates of the guest agent: leaves for applications and the authority above.

A certificate has the same bytes for the same input: serial numbers come from the key, and the
nonces of the signatures from RFC 6979. What private extensions hold is opaque here.

Arguments that both ways of issuing take:

* `subject`, `organisation`: at most 64 characters each; left out where empty, even both. The
  organisation stands before the common name.
* `not_before`, `not_after`: seconds since 1970, in the years 1950 to 9999.
* `extensions`: dotted OID and content of each private extension, non-critical and in this order.
  The content is wrapped in an OCTET STRING of its own, inside the extension's.
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

from attestkit._crypto.ecdsa import P256_SPKI_HEAD, P256Key, p256_verify_der
from attestkit._crypto.pem import armour, split_pem
from attestkit.errors import FormatError, UsageError

__all__ = ["Certificate", "certificate_pem", "issue_ca", "issue_leaf", "read_certificate"]

_LARGEST: Final = 16 << 20  # bytes or characters; one may carry evidence, which has up to 10 MiB
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_SEQUENCE, _OCTET_STRING, _VERSION = 0x30, 0x04, 0xA0
_NO_USAGE: Final = dict.fromkeys(
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
    digital_signature=True, key_cert_sign=False, crl_sign=False, **_NO_USAGE
)
_CA_USAGE: Final = x509.KeyUsage(
    digital_signature=True, key_cert_sign=True, crl_sign=True, **_NO_USAGE
)


class Certificate:
    """One X.509 certificate, read with `read_certificate`. Nothing in it has been verified."""

    __slots__ = ("_certificate", "der", "extensions", "spki_der", "subject_der")

    def __init__(self, certificate: x509.Certificate) -> None:
        self._certificate = certificate
        self.der: bytes = certificate.public_bytes(Encoding.DER)
        self.subject_der: bytes
        self.spki_der: bytes
        self.subject_der, self.spki_der = _subject_and_key(certificate.tbs_certificate_bytes)
        # By dotted OID, the bytes inside the extension's own OCTET STRING.
        self.extensions: Mapping[str, bytes] = MappingProxyType(_extension_values(certificate))

    @property
    def pem(self) -> str:
        """The certificate in PEM."""
        return certificate_pem(self.der)

    @property
    def subject(self) -> str:
        """The subject as text (RFC 4514), empty if it has no name; FormatError if malformed."""
        with _reading():
            return self._certificate.subject.rfc4514_string()

    @property
    def issuer(self) -> str:
        """The issuer as text (RFC 4514); FormatError if malformed."""
        with _reading():
            return self._certificate.issuer.rfc4514_string()

    @property
    def serial_number(self) -> int:
        """The serial number."""
        return self._certificate.serial_number

    @property
    def valid_from(self) -> datetime:
        """The first moment of validity, in UTC."""
        return self._certificate.not_valid_before_utc

    @property
    def valid_until(self) -> datetime:
        """The last moment of validity, in UTC."""
        return self._certificate.not_valid_after_utc

    @property
    def alt_names(self) -> tuple[str, ...]:
        """DNS names and IP addresses of the subject, in order; other kinds are left out."""
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
        """Return what the OCTET STRING in extension `oid` holds, or None without this extension.

        Raises:
            FormatError: the extension holds something else than one OCTET STRING.
        """
        value = self.extensions.get(oid)
        if value is None:
            return None
        tag, start, end = _element(value, 0)
        if tag != _OCTET_STRING or end != len(value):
            raise FormatError(f"extension {oid} does not hold an OCTET STRING")
        return value[start:end]

    def check_signed_by(self, spki_der: bytes) -> None:
        """Check that the P-256 key `spki_der` signed it, over SHA-256, and nothing else of it.

        Raises:
            SignatureError: it did not, or is another kind of key.
        """
        point = spki_der.removeprefix(P256_SPKI_HEAD)
        signed = self._certificate.tbs_certificate_bytes
        p256_verify_der(point, self._certificate.signature, signed)

    def __eq__(self, other: object) -> bool:
        return self.der == other.der if isinstance(other, Certificate) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.der)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle as DER."""
        return read_certificate, (self.der,)

    def __repr__(self) -> str:
        return f"Certificate(serial_number={self.serial_number:#x})"


def read_certificate(data: bytes | str) -> Certificate:
    """Read a certificate: DER as bytes, PEM as bytes or text. Of several in PEM the first is read.

    Raises:
        FormatError: this is no X.509 certificate, it is over 16 MiB, or an extension is malformed
            or there twice.
    """
    if len(data) > _LARGEST:
        raise FormatError(f"a certificate has at most {_LARGEST} bytes, not {len(data)}")
    if isinstance(data, str) or data.lstrip().startswith(b"-----BEGIN"):
        try:
            text = data if isinstance(data, str) else data.decode("ascii")
        except UnicodeDecodeError as error:
            raise FormatError("PEM is ASCII text", offset=error.start) from error
        data = split_pem(text)[0]
    with _reading():
        return Certificate(x509.load_der_x509_certificate(data))


@contextmanager
def _reading() -> Iterator[None]:
    """Turn what cryptography raises over a malformed certificate into a FormatError."""
    try:
        yield
    except FormatError:
        raise
    except (
        ValueError,
        TypeError,
        KeyError,  # a string type that older versions of cryptography do not know
        x509.DuplicateExtension,
        x509.InvalidVersion,
        x509.UnsupportedGeneralNameType,
        UnsupportedAlgorithm,
        Warning,  # where warnings are errors; such as over a serial number that is not positive
    ) as error:
        raise FormatError("not an X.509 certificate") from error


def certificate_pem(der: bytes) -> str:
    """Return a certificate's DER in PEM, with LF line ends."""
    return armour("CERTIFICATE", der)


def issue_leaf(
    *,
    public_key: P256Key,
    subject: str,
    alt_names: Sequence[str] = (),
    server_auth: bool = False,
    client_auth: bool = False,
    not_before: int,
    not_after: int,
    extensions: Iterable[tuple[str, bytes]] = (),
    ca_cert: str,
    ca_key: P256Key,
) -> bytes:
    """Issue a certificate for an application, as the dstack guest agent does; return its DER.

    The module's docstring tells of the arguments. Of `public_key` the public half is used;
    `alt_names` that are IPv4 or IPv6 addresses become such, all others DNS names; `ca_cert` is PEM.

    Raises:
        UsageError: a value cannot be written into a certificate, or the key is not the issuer's.
        FormatError: `ca_cert` is no certificate.
    """
    with _writing():
        builder = _builder(public_key, not_before, not_after).subject_name(_name(subject))
        builder = builder.issuer_name(_issuer(ca_cert, ca_key.spki_der))
        if alt_names:
            names = x509.SubjectAlternativeName([_alt_name(name) for name in alt_names])
            builder = builder.add_extension(names, critical=False)
        builder = builder.add_extension(_LEAF_USAGE, critical=True)
        if usages := [_SERVER_AUTH] * server_auth + [_CLIENT_AUTH] * client_auth:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        return _sign(_add_private(builder, extensions), ca_key)


def issue_ca(
    *,
    key: P256Key,
    subject: str,
    organisation: str = "",
    path_length: int,
    not_before: int,
    not_after: int,
    extensions: Iterable[tuple[str, bytes]] = (),
    issuer: tuple[str, P256Key] | None = None,
) -> bytes:
    """Issue the certificate of an authority, self-signed unless an `issuer` is given; return DER.

    The module's docstring tells of the arguments. `path_length` authorities may stand below it;
    `issuer` is the certificate in PEM and the key of the authority above.

    Raises:
        UsageError: a value cannot be written into a certificate, or the key is not the issuer's.
        FormatError: the issuer's certificate is none.
    """
    ca_cert, ca_key = issuer or ("", key)
    with _writing():
        name = _name(subject, organisation)
        builder = _builder(key, not_before, not_after).subject_name(name)
        builder = builder.issuer_name(_issuer(ca_cert, ca_key.spki_der) if issuer else name)
        builder = builder.add_extension(_CA_USAGE, critical=True)
        key_id = x509.SubjectKeyIdentifier(hashlib.sha256(key.spki_der).digest()[:20])
        builder = builder.add_extension(key_id, critical=False)
        basic = x509.BasicConstraints(ca=True, path_length=path_length)
        builder = builder.add_extension(basic, critical=True)
        return _sign(_add_private(builder, extensions), ca_key)


@contextmanager
def _writing() -> Iterator[None]:
    """Turn what cryptography raises over a value that X.509 cannot hold into a UsageError."""
    try:
        yield
    except (UsageError, FormatError):
        raise
    except (ValueError, TypeError) as error:
        raise UsageError("a value does not fit into an X.509 certificate") from error


def _builder(key: P256Key, not_before: int, not_after: int) -> x509.CertificateBuilder:
    first, last = _moment("not_before", not_before), _moment("not_after", not_after)
    if first > last:
        raise UsageError("not_before must be earlier than not_after")
    serial = bytearray(hashlib.sha256(b"\x04" + key.public_point).digest()[:20])
    serial[0] &= 0x7F  # RFC 5280, 4.1.2.2: positive, and at most 20 bytes
    return (
        x509.CertificateBuilder()
        .serial_number(int.from_bytes(serial, "big"))
        .not_valid_before(first)
        .not_valid_after(last)
        .public_key(key.private.public_key())
    )


def _moment(what: str, seconds: int) -> datetime:
    try:
        moment = _EPOCH + timedelta(seconds=seconds)
    except OverflowError as error:
        raise UsageError(f"{what} is out of the range of X.509: {seconds}") from error
    if moment.year < 1950:
        raise UsageError(f"{what} is out of the range of X.509: {seconds}")
    return moment


def _name(common_name: str, organisation: str = "") -> x509.Name:
    attributes = []
    for what, oid, value in (
        ("organisation", NameOID.ORGANIZATION_NAME, organisation),
        ("subject", NameOID.COMMON_NAME, common_name),
    ):
        if len(value) > 64:  # RFC 5280, appendix A.1: ub-common-name, ub-organization-name
            raise UsageError(f"{what} is {len(value)} characters, over the 64 of X.509")
        if value:
            attributes.append(x509.NameAttribute(oid, value))
    return x509.Name(attributes)


def _alt_name(text: str) -> x509.GeneralName:
    try:
        # Python's addresses may have a zone, those of X.509 may not. The rest is only speed.
        if "%" not in text and (":" in text or text[-1:].isdigit()):
            return x509.IPAddress(ip_address(text))
    except ValueError:
        pass
    try:
        return x509.DNSName(text)
    except ValueError as error:
        raise UsageError("an alternative name must be ASCII: write it in its xn-- form") from error


def _add_private(
    builder: x509.CertificateBuilder, extensions: Iterable[tuple[str, bytes]]
) -> x509.CertificateBuilder:
    for oid, content in extensions:
        value = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), _octet_string(content))
        builder = builder.add_extension(value, critical=False)
    return builder


def _sign(builder: x509.CertificateBuilder, key: P256Key) -> bytes:
    signed = builder.sign(key.private, SHA256(), ecdsa_deterministic=True)
    return signed.public_bytes(Encoding.DER)


@lru_cache(maxsize=8)  # a server has one authority, and reading it costs as much as signing
def _issuer(ca_cert: str, spki_der: bytes) -> x509.Name:
    """Return the name of the authority, whose key must be the one we are about to sign with."""
    certificate = read_certificate(ca_cert)
    if certificate.spki_der != spki_der:
        raise UsageError("the issuer's key is not the key of its certificate")
    name = x509.load_der_x509_certificate(certificate.der).subject
    if name.public_bytes() != certificate.subject_der:
        raise UsageError("the issuer's name has an encoding that cannot be repeated")
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


def _subject_and_key(tbs: bytes) -> tuple[bytes, bytes]:
    """Return subject and SubjectPublicKeyInfo as they stand in a TBSCertificate (RFC 5280, 4.1).

    cryptography gives both re-encoded only, and it is these very bytes that evidence binds.
    """
    _, at, _ = _element(tbs, 0)
    fields: list[bytes] = []
    while len(fields) < 6:  # serialNumber, signature, issuer, validity, subject, key
        tag, _, end = _element(tbs, at)
        if tag != _VERSION:
            fields.append(tbs[at:end])
        at = end
    return fields[4], fields[5]


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Return the tag of the DER element at `at`, and where its content starts and ends."""
    try:
        tag, size, start = der[at], der[at + 1], at + 2
        if size >= 0x80:
            width = size & 0x7F
            size, start = int.from_bytes(der[start : start + width], "big"), start + width
    except IndexError as error:
        raise FormatError("a DER element is cut", offset=at) from error
    if start + size > len(der):
        raise FormatError("a DER element is cut", offset=at)
    return tag, start, start + size


def _octet_string(content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([_OCTET_STRING, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([_OCTET_STRING, 0x80 | len(length)]) + length + content
