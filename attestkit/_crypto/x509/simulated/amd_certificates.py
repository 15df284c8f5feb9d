"""Certificates and CRLs for simulated AMD chips: ARK, ASK or ASVK, VCEK or VLEK.

Names, extensions, algorithms and their order are those of AMD's own certificates and of "Versioned
Chip Endorsement Key (VCEK) Certificate and KDS Interface Specification" (57230). Equal arguments
give equal bytes.
"""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from attestkit._crypto import der
from attestkit._crypto.key_pairs import RsaKey
from attestkit._crypto.x509.names import encode_attribute
from attestkit._crypto.x509.simulated.certificate_encoder import (
    CERT_AND_CRL_SIGN,
    CERTIFICATE_SIGN,
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

_OWN_OID: Final = bytes.fromhex("2b060104019c7801")  # 1.3.6.1.4.1.3704.1
_COMMON_TO_ALL: Final = b"".join(
    encode_attribute(kind, tag, value)
    for kind, tag, value in (
        (11, der.UTF8_STRING, "Engineering"),
        (6, der.PRINTABLE_STRING, "US"),
        (7, der.UTF8_STRING, "Santa Clara"),
        (8, der.UTF8_STRING, "CA"),
        (10, der.UTF8_STRING, "Advanced Micro Devices"),
    )
)


class AmdAuthority(NamedTuple):
    """A CA: its common name and its key."""

    name: str
    key: RsaKey

    @property
    def issuer(self) -> Issuer:
        """The CA with its whole name: common name, and the attributes that AMD's CAs share."""
        return Issuer(_name(self.name), self.key)


class EndorsementKey(NamedTuple):
    """The key of a chip or a provider, and the values in its certificate."""

    spki: bytes  # SubjectPublicKeyInfo in DER
    structure_version: int
    product: str  # such as Genoa-B1; at most 127 ASCII characters
    spls: Mapping[str, int]  # security patch levels, 0 to 255, by suffix of AMD's OID (3.1, ...)
    hardware_id: bytes  # of a VCEK: 64 bytes, or 8 bytes on Turin; empty for a VLEK
    provider: str = ""  # of a VLEK: at most 127 ASCII characters


def issue_amd_authority(
    subject: AmdAuthority, issuer: AmdAuthority, *, serial: int, validity: Window, crl_url: str
) -> bytes:
    """Return the DER of a CA certificate.

    Args:
        subject: Name and key of the subject.
        issuer: Name and key of the issuer; the subject for a root certificate.
        serial: Serial number, positive, at most 20 octets.
        validity: Validity period from 1950 on, with a resolution of seconds.
        crl_url: The CRL distribution point.

    Raises:
        UsageError: If `validity` starts or ends before 1950.
    """
    root = subject == issuer
    key_usage = encode_key_usage(CERT_AND_CRL_SIGN if root else CERTIFICATE_SIGN)
    own_key_id = encode_subject_key_id(subject.key.spki)
    constraints = encode_basic_constraints(authority=True, path_length=None if root else 0)
    issuer_key_id = encode_authority_key_id(key_id(issuer.key.spki))
    extensions = (
        (key_usage, own_key_id, constraints)
        if root
        else (own_key_id, issuer_key_id, constraints, key_usage)
    )
    return issuer.issuer.issue(
        (subject.issuer.name, subject.key.spki),
        (*extensions, encode_distribution_point(crl_url)),
        serial=serial,
        window=validity,
    )


def issue_endorsement_key(key: EndorsementKey, issuer: AmdAuthority, validity: Window) -> bytes:
    """Return the DER of a VCEK or VLEK certificate; its serial number is zero, as AMD's.

    Raises:
        UsageError: If `validity` starts or ends before 1950.
    """
    values = {
        "1": der.encode_integer(key.structure_version),
        "2": der.encode_element(der.IA5_STRING, key.product.encode("ascii")),
        **{suffix: der.encode_integer(level) for suffix, level in key.spls.items()},
    }
    if key.provider:
        values["5"] = der.encode_element(der.IA5_STRING, key.provider.encode("ascii"))
    else:
        values["4"] = key.hardware_id
    extensions = [_own_extension(*pair) for pair in values.items()]
    name = _name("SEV-VLEK" if key.provider else "SEV-VCEK")
    return issuer.issuer.issue((name, key.spki), extensions, serial=0, window=validity)


def issue_amd_crl(
    issuer: AmdAuthority, *, window: Window, number: int, revoked: Iterable[int] = ()
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
    issuer_key_id = encode_authority_key_id(key_id(issuer.key.spki))
    extensions = issuer_key_id, encode_extension(CRL_NUMBER, der.encode_integer(number))
    return issuer.issuer.issue_crl(window=window, revoked=revoked, extensions=extensions)


def _name(common_name: str) -> bytes:
    return der.encode_sequence(_COMMON_TO_ALL, encode_attribute(3, der.UTF8_STRING, common_name))


def _own_extension(suffix: str, value: bytes) -> bytes:
    """Return one of AMD's extensions in DER, not critical.

    `suffix` is the end of its OID, such as 3.1; `value` is the DER inside its OCTET STRING.
    """
    oid = der.encode_element(der.OID, _OWN_OID + bytes(map(int, suffix.split("."))))
    return der.encode_sequence(oid, der.encode_element(der.OCTET_STRING, value))
