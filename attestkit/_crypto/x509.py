"""The X.509 of Intel's SGX provisioning hierarchy: certificates, CRLs, the SGX extension.

Everything signed here is deterministic (RFC 6979), so equal arguments give equal bytes. The profile
is that of "Intel SGX PCK Certificate and Certificate Revocation List Profile Specification".
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.pem import split_pem
from attestkit.errors import FormatError

__all__ = [
    "Authority",
    "SgxPlatform",
    "Window",
    "chain_window",
    "crl_window",
    "issue_certificate",
    "issue_crl",
    "sgx_extension",
]

_SGX_OID: Final = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
_SGX_OID_DER: Final = bytes.fromhex("2a864886f84d010d01")
_BOOLEAN, _INTEGER, _OCTETS, _OID, _ENUMERATED, _SEQUENCE = 0x01, 0x02, 0x04, 0x06, 0x0A, 0x30
_COMMON_TO_ALL: Final = (
    (NameOID.ORGANIZATION_NAME, "Intel Corporation"),
    (NameOID.LOCALITY_NAME, "Santa Clara"),
    (NameOID.STATE_OR_PROVINCE_NAME, "CA"),
    (NameOID.COUNTRY_NAME, "US"),
)


class Window(NamedTuple):
    """A span of validity, both ends aware."""

    start: datetime
    end: datetime


class Authority(NamedTuple):
    """Whoever signs: the common name and the key."""

    name: str
    key: P256Key


class SgxPlatform(NamedTuple):
    """What a PCK certificate says of its platform."""

    ppid: bytes  # 16 bytes
    components: bytes  # the 16 TCB component SVNs, a byte each
    pcesvn: int  # 0..32767
    cpusvn: bytes  # 16 bytes
    pceid: bytes  # 2 bytes
    fmspc: bytes  # 6 bytes
    sgx_type: int  # 0 standard, 1 scalable, 2 scalable with integrity
    instance_id: bytes  # 16 bytes
    dynamic_platform: bool
    cached_keys: bool
    smt_enabled: bool


def sgx_extension(platform: SgxPlatform) -> bytes:
    """Return the DER of the SGX extension's value, OID 1.2.840.113741.1.13.1, seven entries."""
    tcb = [_entry(bytes([2, n]), _integer(svn)) for n, svn in enumerate(platform.components, 1)]
    tcb.append(_entry(b"\x02\x11", _integer(platform.pcesvn)))
    tcb.append(_entry(b"\x02\x12", _tlv(_OCTETS, platform.cpusvn)))
    flags = (platform.dynamic_platform, platform.cached_keys, platform.smt_enabled)
    configuration = [_entry(bytes([7, n]), _boolean(flag)) for n, flag in enumerate(flags, 1)]
    return _sequence(
        _entry(b"\x01", _tlv(_OCTETS, platform.ppid)),
        _entry(b"\x02", _sequence(*tcb)),
        _entry(b"\x03", _tlv(_OCTETS, platform.pceid)),
        _entry(b"\x04", _tlv(_OCTETS, platform.fmspc)),
        _entry(b"\x05", _tlv(_ENUMERATED, bytes([platform.sgx_type]))),
        _entry(b"\x06", _tlv(_OCTETS, platform.instance_id)),
        _entry(b"\x07", _sequence(*configuration)),
    )


def issue_certificate(  # noqa: PLR0913 - a certificate has that many parts
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
        subject: whose certificate it is; of its key only the public half gets in.
        issuer: who signs; the subject itself for a root.
        serial: positive, at most 20 octets.
        validity: to the second, before 2050 (so that times are UTCTime).
        crl_url: the one CRL distribution point.
        path_length: for an authority; None makes an end entity that signs.
        sgx: the SGX extension's value, for a PCK certificate.
    """
    public = subject.key.private.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject.name))
        .issuer_name(_name(issuer.name))
        .public_key(public)
        .serial_number(serial)
        .not_valid_before(validity.start)
        .not_valid_after(validity.end)
        # Intel's order of extensions; verifiers count them, nobody may add one.
        .add_extension(_authority_key_id(issuer.key), critical=False)
        .add_extension(_distribution_point(crl_url), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(_key_usage(authority=path_length is not None), critical=True)
        .add_extension(x509.BasicConstraints(path_length is not None, path_length), critical=True)
    )
    if sgx is not None:
        builder = builder.add_extension(x509.UnrecognizedExtension(_SGX_OID, sgx), critical=False)
    return _signed(builder, issuer.key)


def issue_crl(
    issuer: Authority, *, window: Window, number: int, revoked: Iterable[int] = ()
) -> bytes:
    """Return the DER of a version 2 CRL whose entries are all revoked at the window's start.

    Args:
        issuer: who signs.
        window: thisUpdate and nextUpdate, to the second.
        number: the CRL number.
        revoked: serial numbers, in the order of the entries.
    """
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(_name(issuer.name))
        .last_update(window.start)
        .next_update(window.end)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(_authority_key_id(issuer.key), critical=False)
    )
    for serial in revoked:
        entry = (
            x509.RevokedCertificateBuilder()
            .serial_number(serial)
            .revocation_date(window.start)
            .add_extension(x509.CRLReason(x509.ReasonFlags.unspecified), critical=False)
        )
        builder = builder.add_revoked_certificate(entry.build())
    return _signed(builder, issuer.key)


def chain_window(pem: str) -> Window:
    """Return when all the certificates of a PEM chain are valid at once; the end is inclusive.

    Raises:
        FormatError: there is no certificate, or one of them is malformed.
    """
    try:
        chain = [x509.load_der_x509_certificate(der) for der in split_pem(pem)]
        starts = [certificate.not_valid_before_utc for certificate in chain]
        ends = [certificate.not_valid_after_utc for certificate in chain]
    except (ValueError, x509.InvalidVersion) as error:
        raise FormatError(f"malformed certificate chain: {error}") from error
    return Window(max(starts), min(ends))


def crl_window(der: bytes) -> Window:
    """Return thisUpdate and nextUpdate of a CRL in DER.

    Raises:
        FormatError: it is no CRL, or it never ends.
    """
    try:
        crl = x509.load_der_x509_crl(der)
        start, end = crl.last_update_utc, crl.next_update_utc
    except (ValueError, x509.InvalidVersion) as error:
        raise FormatError(f"malformed CRL: {error}") from error
    if end is None:
        raise FormatError("malformed CRL: nextUpdate is missing")
    return Window(start, end)


def _signed(
    builder: x509.CertificateBuilder | x509.CertificateRevocationListBuilder, key: P256Key
) -> bytes:
    signed = builder.sign(key.private, SHA256(), ecdsa_deterministic=True)
    return signed.public_bytes(Encoding.DER)


def _name(common_name: str) -> x509.Name:
    parts = ((NameOID.COMMON_NAME, common_name), *_COMMON_TO_ALL)
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts])


def _authority_key_id(key: P256Key) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.private.public_key())


def _distribution_point(url: str) -> x509.CRLDistributionPoints:
    names = [x509.UniformResourceIdentifier(url)]
    return x509.CRLDistributionPoints([x509.DistributionPoint(names, None, None, None)])


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=not authority,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content


def _sequence(*items: bytes) -> bytes:
    return _tlv(_SEQUENCE, b"".join(items))


def _entry(suffix: bytes, value: bytes) -> bytes:
    """Return one pair of the SGX extension; `suffix` continues Intel's OID."""
    return _sequence(_tlv(_OID, _SGX_OID_DER + suffix), value)


def _integer(value: int) -> bytes:
    return _tlv(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _boolean(value: bool) -> bytes:  # noqa: FBT001 - it is the value that is encoded
    return _tlv(_BOOLEAN, b"\xff" if value else b"\x00")
