"""DER of the parts that simulated certificates and CRLs have in common (RFC 5280)."""

import hashlib
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from typing import Final, NamedTuple, TypeAlias

from attestkit._crypto import der
from attestkit._crypto.ecdsa import ECDSA_SHA256, P256Key
from attestkit._crypto.key_pairs import RsaKey
from attestkit._crypto.p384 import ECDSA_SHA384, P384Key
from attestkit._crypto.x509.names import public_key_bits
from attestkit.errors import UsageError

_VERSION_3: Final = b"\xa0\x03\x02\x01\x02"  # of a certificate
# AlgorithmIdentifier of RSASSA-PSS with SHA-384, with its default trailer field, as AMD encodes it.
RSA_PSS_SHA384: Final = bytes.fromhex(
    "304606092a864886f70d01010a3039a00f300d06096086480165030402020500"
    "a11c301a06092a864886f70d010108300d06096086480165030402020500a203020130a303020101"
)
# Extensions, by the last byte of 2.5.29.
SUBJECT_KEY_ID: Final = 14
KEY_USAGE: Final = 15
BASIC_CONSTRAINTS: Final = 19
CRL_NUMBER: Final = 20
CRL_REASON: Final = 21
DISTRIBUTION_POINTS: Final = 31
AUTHORITY_KEY_ID: Final = 35
# Content of the key usage: number of unused bits, bits.
CERTIFICATE_SIGN: Final = b"\x02\x04"
CERT_AND_CRL_SIGN: Final = b"\x01\x06"

_TRUE: Final = der.encode_element(der.BOOLEAN, b"\xff")
_EARLIEST: Final = datetime(1950, 1, 1, tzinfo=timezone.utc)  # RFC 5280, 4.1.2.5.1


SigningKey: TypeAlias = P256Key | P384Key | RsaKey
"""Private key of a simulated CA: ECDSA with SHA-256 or SHA-384, or RSASSA-PSS with SHA-384."""


class Window(NamedTuple):
    """A validity period with aware datetimes, both inclusive."""

    start: datetime
    end: datetime


class Issuer(NamedTuple):
    """A CA: its name in DER and its key."""

    name: bytes
    key: SigningKey

    @property
    def spki(self) -> bytes:
        """The public key as SubjectPublicKeyInfo in DER."""
        return self.key.spki_der if isinstance(self.key, P256Key) else self.key.spki

    @property
    def algorithm(self) -> bytes:
        """AlgorithmIdentifier of its signatures."""
        if isinstance(self.key, P256Key):
            return ECDSA_SHA256
        return ECDSA_SHA384 if isinstance(self.key, P384Key) else RSA_PSS_SHA384

    def sign(self, data: bytes) -> bytes:
        """Return the signature over `data` as X.509 has it: ECDSA's r and s in DER, RSA's raw."""
        if isinstance(self.key, RsaKey):
            return self.key.sign(data)
        if isinstance(self.key, P256Key):
            return self.key.sign_der(data)
        return der.encode_sequence(*map(der.encode_integer, self.key.sign(data)))

    def issue(
        self,
        subject: tuple[bytes, bytes],
        extensions: Iterable[bytes],
        *,
        serial: int,
        window: tuple[datetime, datetime],
    ) -> bytes:
        """Return the DER of a version 3 certificate by this CA.

        Args:
            subject: Name and SubjectPublicKeyInfo, both in DER.
            extensions: Extensions in DER, in this order.
            serial: Serial number, at most 20 octets.
            window: Validity period from 1950 on, with a resolution of seconds.

        Raises:
            UsageError: If `window` starts or ends before 1950.
        """
        return encode_certificate(
            self.name,
            subject,
            extensions,
            serial=serial,
            window=window,
            algorithm=self.algorithm,
            sign=self.sign,
        )

    def issue_crl(
        self,
        *,
        window: tuple[datetime, datetime],
        revoked: Iterable[int],
        extensions: tuple[bytes, ...],
    ) -> bytes:
        """Return the DER of a version 2 CRL by this CA.

        Args:
            window: thisUpdate, which is the revocation date of each entry too, and nextUpdate.
            revoked: Serial numbers of the revoked certificates, in the order of the entries.
            extensions: Extensions in DER.

        Raises:
            UsageError: If `window` starts or ends before 1950.
        """
        fields = encode_crl_fields(self.name, self.algorithm, window, revoked, extensions)
        return encode_signed(fields, self.algorithm, self.sign)


def encode_signed(
    fields: tuple[bytes, ...], algorithm: bytes, sign: Callable[[bytes], bytes]
) -> bytes:
    """Return a certificate or CRL in DER: `fields` in a SEQUENCE, `algorithm`, and the signature.

    Args:
        fields: The signed fields in DER.
        algorithm: AlgorithmIdentifier in DER.
        sign: Returns the signature over the given bytes.
    """
    signed = der.encode_sequence(*fields)
    return der.encode_sequence(
        signed, algorithm, der.encode_element(der.BIT_STRING, b"\0" + sign(signed))
    )


def encode_certificate(
    issuer: bytes,
    subject: tuple[bytes, bytes],
    extensions: Iterable[bytes],
    *,
    serial: int,
    window: tuple[datetime, datetime],
    algorithm: bytes,
    sign: Callable[[bytes], bytes],
) -> bytes:
    """Return the DER of a version 3 certificate.

    Args:
        issuer: Name in DER.
        subject: Name and SubjectPublicKeyInfo, both in DER.
        extensions: Extensions in DER, in this order.
        serial: Serial number, at most 20 octets.
        window: Validity period from 1950 on, with a resolution of seconds.
        algorithm: AlgorithmIdentifier of the signature.
        sign: Returns the signature over the given bytes.

    Raises:
        UsageError: If `window` starts or ends before 1950.
    """
    fields = (
        _VERSION_3,
        der.encode_integer(serial),
        algorithm,
        issuer,
        der.encode_sequence(*map(encode_time, window)),
        *subject,
        der.encode_element(der.context(3), der.encode_sequence(*extensions)),
    )
    return encode_signed(fields, algorithm, sign)


def encode_time(moment: datetime) -> bytes:
    """Return a time with seconds in DER: UTCTime before 2050, GeneralizedTime from then on.

    Raises:
        UsageError: If it is before 1950.
    """
    if moment < _EARLIEST:  # UTCTime has a two-digit year: 1949 would be read as 2049
        message = f"certificate time: must be from 1950 on, not {moment.isoformat()}"
        raise UsageError(message, reason="out_of_range")
    text = moment.astimezone(timezone.utc).strftime("%Y%m%d%H%M%SZ").encode()
    if text < b"2050":
        return der.encode_element(der.UTC_TIME, text[2:])
    return der.encode_element(der.GENERALIZED_TIME, text)


def encode_extension(number: int, value: bytes, *, critical: bool = False) -> bytes:
    """Return an extension in DER.

    Args:
        number: Last arc of its OID, after 2.5.29.
        value: DER inside the extension's OCTET STRING.
        critical: Whether it is critical.
    """
    oid = der.encode_element(der.OID, bytes([0x55, 0x1D, number]))
    return der.encode_sequence(
        oid, _TRUE if critical else b"", der.encode_element(der.OCTET_STRING, value)
    )


def encode_basic_constraints(*, authority: bool, path_length: int | None = None) -> bytes:
    """Return the basic constraints extension in DER, which is critical.

    `authority` is cA. `path_length` is pathLenConstraint of a CA; None omits it.
    """
    length = b"" if path_length is None else der.encode_integer(path_length)
    content = der.encode_sequence(_TRUE, length) if authority else der.encode_sequence()
    return encode_extension(BASIC_CONSTRAINTS, content, critical=True)


def encode_distribution_point(url: str) -> bytes:
    """Return the extension in DER with one CRL distribution point, an ASCII URL."""
    name = der.encode_element(0x86, url.encode("ascii"))  # uniformResourceIdentifier
    point = der.encode_element(der.context(0), der.encode_element(der.context(0), name))
    return encode_extension(DISTRIBUTION_POINTS, der.encode_sequence(der.encode_sequence(point)))


def encode_key_usage(bits: bytes) -> bytes:
    """Return the key usage extension in DER, which is critical.

    Args:
        bits: Content of its BIT STRING: a byte with the number of unused bits at the end, then the
            usages, from the highest bit on (RFC 5280, 4.2.1.3), such as 0780 for digitalSignature.
    """
    return encode_extension(KEY_USAGE, der.encode_element(der.BIT_STRING, bits), critical=True)


def encode_subject_key_id(spki: bytes) -> bytes:
    """Return the extension in DER with the SHA-1 of `spki`'s key; see `key_id`."""
    return encode_extension(SUBJECT_KEY_ID, der.encode_element(der.OCTET_STRING, key_id(spki)))


def encode_authority_key_id(key_id: bytes) -> bytes:
    """Return the extension in DER with the issuer's key id, such as the result of `key_id`."""
    return encode_extension(AUTHORITY_KEY_ID, der.encode_sequence(der.encode_element(0x80, key_id)))


def encode_crl_fields(
    issuer: bytes,
    algorithm: bytes,
    window: tuple[datetime, datetime],
    revoked: Iterable[int],
    extensions: tuple[bytes, ...],
) -> tuple[bytes, ...]:
    """Return the signed fields of a version 2 CRL in DER, without the SEQUENCE around them.

    Args:
        issuer: Name in DER.
        algorithm: AlgorithmIdentifier of the signature.
        window: thisUpdate, which is the revocation date of each entry too, and nextUpdate.
        revoked: Serial numbers of the revoked certificates, in the order of the entries.
        extensions: Extensions in DER.

    Raises:
        UsageError: If `window` starts or ends before 1950.
    """
    start, end = map(encode_time, window)
    reason = der.encode_sequence(
        encode_extension(CRL_REASON, der.encode_element(der.ENUMERATED, b"\0"))
    )
    entries = [der.encode_sequence(der.encode_integer(serial), start, reason) for serial in revoked]
    listed = [der.encode_sequence(*entries)] if entries else []
    described = der.encode_element(der.context(0), der.encode_sequence(*extensions))
    return der.encode_integer(1), algorithm, issuer, start, end, *listed, described


def key_id(spki: bytes) -> bytes:
    """Return the SHA-1 of a public key, 20 bytes (RFC 5280, 4.2.1.2, method 1).

    Raises:
        FormatError: If `spki` is not a SubjectPublicKeyInfo in DER.
    """
    return hashlib.sha1(public_key_bits(spki), usedforsecurity=False).digest()
