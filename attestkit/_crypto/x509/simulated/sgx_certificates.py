"""Certificates, CRLs and SGX extensions for a simulated Intel SGX PKI.

Signatures are deterministic (RFC 6979), so equal arguments give equal bytes. The profile is that of
"Intel SGX PCK Certificate and Certificate Revocation List Profile Specification". The DER is built
here (RFC 5280), because that takes a third of the time of `cryptography`'s builders, whose import
would take a fifth of a simulator's start.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from attestkit._crypto.der import BOOLEAN, ENUMERATED, OCTET_STRING, OID
from attestkit._crypto.der import encode_element as _tlv
from attestkit._crypto.der import encode_integer as _integer
from attestkit._crypto.der import encode_sequence as _sequence
from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.names import encode_intel_name
from attestkit._crypto.x509.simulated.certificate_encoder import (
    CERT_AND_CRL_SIGN,
    CRL_NUMBER,
    Issuer,
    Window,
    encode_authority_key_id,
    encode_basic_constraints,
    encode_distribution_point,
    encode_extension,
    encode_key_usage,
    encode_subject_key_id,
    key_id,
)
from attestkit.errors import FormatError

_SGX_OID: Final = bytes.fromhex("2a864886f84d010d01")  # 1.2.840.113741.1.13.1
_SIGNATURE_AND_NON_REPUDIATION: Final = b"\x06\xc0"  # number of unused bits, bits


class Authority(NamedTuple):
    """A subject or issuer: its common name and its key."""

    name: str
    key: P256Key

    @property
    def issuer(self) -> Issuer:
        """The authority with its whole name: common name and `INTEL_ATTRIBUTES`."""
        return Issuer(encode_intel_name(self.name), self.key)


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
    tcb.append(_entry(b"\x02\x12", _tlv(OCTET_STRING, platform.cpusvn)))
    flags = (platform.dynamic_platform, platform.cached_keys, platform.smt_enabled)
    configuration = [_entry(bytes([7, n]), _BOOLEANS[flag]) for n, flag in enumerate(flags, 1)]
    return _sequence(
        _entry(b"\x01", _tlv(OCTET_STRING, platform.ppid)),
        _entry(b"\x02", _sequence(*tcb)),
        _entry(b"\x03", _tlv(OCTET_STRING, platform.pceid)),
        _entry(b"\x04", _tlv(OCTET_STRING, platform.fmspc)),
        _entry(b"\x05", _tlv(ENUMERATED, bytes([platform.sgx_type]))),
        _entry(b"\x06", _tlv(OCTET_STRING, platform.instance_id)),
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
    extensions = [  # in Intel's order; verifiers check their number
        encode_authority_key_id(key_id(issuer.key.spki_der)),
        encode_distribution_point(crl_url),
        encode_subject_key_id(subject.key.spki_der),
        encode_key_usage(CERT_AND_CRL_SIGN if authority else _SIGNATURE_AND_NON_REPUDIATION),
        encode_basic_constraints(authority=authority, path_length=path_length),
    ]
    if sgx is not None:
        extensions.append(_sequence(_tlv(OID, _SGX_OID), _tlv(OCTET_STRING, sgx)))
    named = subject.issuer.name, subject.key.spki_der
    return issuer.issuer.issue(named, extensions, serial=serial, window=validity)


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
    issuer_key_id = encode_authority_key_id(key_id(issuer.key.spki_der))
    extensions = encode_extension(CRL_NUMBER, _integer(number)), issuer_key_id
    return issuer.issuer.issue_crl(window=window, revoked=revoked, extensions=extensions)


def chain_window(pem: str) -> Window:
    """Return the period in which all certificates of a PEM chain are valid.

    Without a common period, its start is after its end.

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


def _entry(suffix: bytes, value: bytes) -> bytes:
    """Return an entry of the SGX extension in DER: a SEQUENCE of OID and `value`, which is DER.

    Its OID is that of the SGX extension followed by `suffix`, arcs in DER.
    """
    return _sequence(_tlv(OID, _SGX_OID + suffix), value)


_BOOLEANS: Final = (_tlv(BOOLEAN, b"\x00"), _tlv(BOOLEAN, b"\xff"))
