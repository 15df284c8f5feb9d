"""Certificates, CRLs and SGX extensions for a simulated Intel SGX PKI.

Signatures are deterministic (RFC 6979), so equal arguments give equal bytes. The profile is that of
"Intel SGX PCK Certificate and Certificate Revocation List Profile Specification". The DER is built
here (RFC 5280), because that takes a third of the time of `cryptography`'s builders, whose import
would take a fifth of a simulator's start.
"""

import hashlib
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Final, NamedTuple

from attestkit._crypto.der import encode_element as _tlv
from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.pem import split_pem
from attestkit.errors import FormatError, UsageError

_SGX_OID: Final = bytes.fromhex("2a864886f84d010d01")  # 1.2.840.113741.1.13.1
_BOOLEAN, _INTEGER, _BITS, _OCTETS, _OID, _ENUMERATED = 0x01, 0x02, 0x03, 0x04, 0x06, 0x0A
_UTF8, _PRINTABLE, _SEQUENCE, _SET = 0x0C, 0x13, 0x30, 0x31
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_TRUE: Final = b"\x01\x01\xff"
_ECDSA_SHA256: Final = bytes.fromhex("300a06082a8648ce3d040302")  # an AlgorithmIdentifier
# Extensions, by the last byte of 2.5.29.
_SUBJECT_KEY_ID, _KEY_USAGE, _BASIC_CONSTRAINTS, _CRL_NUMBER, _CRL_REASON = 14, 15, 19, 20, 21
_DISTRIBUTION_POINTS, _AUTHORITY_KEY_ID = 31, 35
_EARLIEST: Final = datetime(1950, 1, 1, tzinfo=timezone.utc)  # RFC 5280, 4.1.2.5.1
_CERT_AND_CRL_SIGN: Final = b"\x01\x06"  # number of unused bits, bits
_SIGNATURE_AND_NON_REPUDIATION: Final = b"\x06\xc0"


class Window(NamedTuple):
    """A validity period with aware datetimes, both inclusive."""

    start: datetime
    end: datetime


class Authority(NamedTuple):
    """A subject or issuer: its common name and its key."""

    name: str
    key: P256Key


class SgxPlatform(NamedTuple):
    """The platform in a PCK certificate."""

    ppid: bytes  # 16 bytes
    components: bytes  # 16 TCB component SVNs, a byte each
    pcesvn: int  # 0 to 32767
    cpusvn: bytes  # 16 bytes
    pceid: bytes  # 2 bytes
    fmspc: bytes  # 6 bytes
    sgx_type: int  # 0 standard, 1 scalable, 2 scalable with integrity
    instance_id: bytes  # 16 bytes
    dynamic_platform: bool
    cached_keys: bool
    smt_enabled: bool


def sgx_extension(platform: SgxPlatform) -> bytes:
    """Return the value of the SGX extension (OID 1.2.840.113741.1.13.1) in DER, seven entries."""
    tcb = [_entry(bytes([2, n]), _integer(svn)) for n, svn in enumerate(platform.components, 1)]
    tcb.append(_entry(b"\x02\x11", _integer(platform.pcesvn)))
    tcb.append(_entry(b"\x02\x12", _tlv(_OCTETS, platform.cpusvn)))
    flags = (platform.dynamic_platform, platform.cached_keys, platform.smt_enabled)
    configuration = [_entry(bytes([7, n]), _BOOLEANS[flag]) for n, flag in enumerate(flags, 1)]
    return _sequence(
        _entry(b"\x01", _tlv(_OCTETS, platform.ppid)),
        _entry(b"\x02", _sequence(*tcb)),
        _entry(b"\x03", _tlv(_OCTETS, platform.pceid)),
        _entry(b"\x04", _tlv(_OCTETS, platform.fmspc)),
        _entry(b"\x05", _tlv(_ENUMERATED, bytes([platform.sgx_type]))),
        _entry(b"\x06", _tlv(_OCTETS, platform.instance_id)),
        _entry(b"\x07", _sequence(*configuration)),
    )


def issue_certificate(
    subject: Authority,
    issuer: Authority,
    *,
    serial: int,
    validity: Window,
    crl_url: str,
    path_length: int | None,
    sgx: bytes | None = None,
) -> bytes:
    """Return the DER of a version 3 certificate.

    Args:
        subject: Name and key of the subject.
        issuer: Name and key of the issuer; the subject for a root certificate.
        serial: Serial number, positive, at most 20 octets.
        validity: Validity period from 1950 on, with a resolution of seconds.
        crl_url: The CRL distribution point.
        path_length: Path length constraint of a CA certificate; None for an end-entity certificate.
        sgx: Value of the SGX extension, for a PCK certificate.

    Raises:
        UsageError: If `validity` starts or ends before 1950.
    """
    authority = path_length is not None
    constraints = (_TRUE, _integer(path_length)) if path_length is not None else ()
    usage = _CERT_AND_CRL_SIGN if authority else _SIGNATURE_AND_NON_REPUDIATION
    point = _tlv(0xA0, _tlv(0xA0, _tlv(0x86, crl_url.encode("ascii"))))
    extensions = [  # in Intel's order; verifiers check their number
        _authority_key_id(issuer.key),
        _extension(_DISTRIBUTION_POINTS, _sequence(_sequence(point))),
        _extension(_SUBJECT_KEY_ID, _tlv(_OCTETS, _key_id(subject.key))),
        _extension(_KEY_USAGE, _tlv(_BITS, usage), critical=True),
        _extension(_BASIC_CONSTRAINTS, _sequence(*constraints), critical=True),
    ]
    if sgx is not None:
        extensions.append(_sequence(_tlv(_OID, _SGX_OID), _tlv(_OCTETS, sgx)))
    return _signed(
        issuer.key,
        b"\xa0\x03\x02\x01\x02",  # version 3
        _integer(serial),
        _ECDSA_SHA256,
        _name(issuer.name),
        _sequence(_time(validity.start), _time(validity.end)),
        _name(subject.name),
        subject.key.spki_der,
        _tlv(0xA3, _sequence(*extensions)),
    )


def issue_crl(
    issuer: Authority, *, window: Window, number: int, revoked: Iterable[int] = ()
) -> bytes:
    """Return the DER of a version 2 CRL; the revocation date of each entry is thisUpdate.

    Args:
        issuer: Name and key of the issuer.
        window: thisUpdate and nextUpdate, from 1950 on, with a resolution of seconds.
        number: CRL number.
        revoked: Serial numbers, in the order of the entries.

    Raises:
        UsageError: If `window` starts or ends before 1950.
    """
    start = _time(window.start)
    reason = _sequence(_extension(_CRL_REASON, _tlv(_ENUMERATED, b"\0")))  # unspecified
    entries = [_sequence(_integer(serial), start, reason) for serial in revoked]
    extensions = _sequence(_extension(_CRL_NUMBER, _integer(number)), _authority_key_id(issuer.key))
    return _signed(
        issuer.key,
        _integer(1),  # version 2
        _ECDSA_SHA256,
        _name(issuer.name),
        start,
        _time(window.end),
        *([_sequence(*entries)] if entries else []),
        _tlv(0xA0, extensions),
    )


def chain_window(pem: str) -> Window:
    """Return the period in which all certificates of a PEM chain are valid.

    Raises:
        FormatError: If the chain is empty or a certificate is malformed.
    """
    from cryptography import x509  # lazy: slow to import, and not needed to issue

    try:
        chain = [x509.load_der_x509_certificate(der) for der in split_pem(pem)]
        starts = [certificate.not_valid_before_utc for certificate in chain]
        ends = [certificate.not_valid_after_utc for certificate in chain]
    except (ValueError, x509.InvalidVersion, Warning) as error:  # Warning: if they are errors
        raise FormatError(f"malformed certificate chain: {error}", reason="syntax") from error
    return Window(max(starts), min(ends))


def crl_window(der: bytes) -> Window:
    """Return thisUpdate and nextUpdate of a CRL in DER.

    Raises:
        FormatError: If the CRL is malformed, or lacks nextUpdate.
    """
    from cryptography import x509  # lazy: slow to import, and not needed to issue

    try:
        crl = x509.load_der_x509_crl(der)
        start, end = crl.last_update_utc, crl.next_update_utc
    except (ValueError, x509.InvalidVersion, Warning) as error:  # as above
        raise FormatError(f"malformed CRL: {error}", reason="syntax") from error
    if end is None:
        raise FormatError("malformed CRL: nextUpdate is missing", reason="missing")
    return Window(start, end)


def _signed(key: P256Key, *fields: bytes) -> bytes:
    signed = _sequence(*fields)
    return _sequence(signed, _ECDSA_SHA256, _tlv(_BITS, b"\0" + key.sign_der(signed)))


def _name(common_name: str) -> bytes:
    """Return a name: the common name, followed by the attributes of Intel's names."""
    return _sequence(_attribute(3, _UTF8, common_name), _COMMON_TO_ALL)


def _attribute(kind: int, tag: int, value: str) -> bytes:
    """Return an attribute of a name; `kind` is the last arc of its OID, after 2.5.4."""
    oid = _tlv(_OID, bytes([0x55, 0x04, kind]))
    return _tlv(_SET, _sequence(oid, _tlv(tag, value.encode())))


def _time(moment: datetime) -> bytes:
    """Return a time with seconds: UTCTime before 2050, GeneralizedTime from then on."""
    if moment < _EARLIEST:  # UTCTime has a two-digit year: 1949 would be read as 2049
        message = f"certificate time: must be from 1950 on, not {moment.isoformat()}"
        raise UsageError(message, reason="out_of_range")
    text = moment.astimezone(timezone.utc).strftime("%Y%m%d%H%M%SZ").encode()
    return _tlv(_UTC_TIME, text[2:]) if text < b"2050" else _tlv(_GENERALIZED_TIME, text)


def _extension(number: int, value: bytes, *, critical: bool = False) -> bytes:
    flag = _TRUE if critical else b""
    return _sequence(_tlv(_OID, bytes([0x55, 0x1D, number])), flag, _tlv(_OCTETS, value))


def _key_id(key: P256Key) -> bytes:
    return hashlib.sha1(b"\x04" + key.public_point, usedforsecurity=False).digest()


def _authority_key_id(key: P256Key) -> bytes:
    return _extension(_AUTHORITY_KEY_ID, _sequence(_tlv(0x80, _key_id(key))))


def _sequence(*items: bytes) -> bytes:
    return _tlv(_SEQUENCE, b"".join(items))


def _entry(suffix: bytes, value: bytes) -> bytes:
    """Return an entry of the SGX extension; its OID is the OID of the extension and `suffix`."""
    return _sequence(_tlv(_OID, _SGX_OID + suffix), value)


def _integer(value: int) -> bytes:
    return _tlv(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


_BOOLEANS: Final = (_tlv(_BOOLEAN, b"\x00"), _tlv(_BOOLEAN, b"\xff"))


_COMMON_TO_ALL: Final = b"".join(
    _attribute(kind, tag, value)
    for kind, tag, value in (
        (10, _UTF8, "Intel Corporation"),
        (7, _UTF8, "Santa Clara"),
        (8, _UTF8, "CA"),
        (6, _PRINTABLE, "US"),
    )
)
