"""Signed manifests of a small PKI, in the form of NVIDIA's; nothing here is a sample of NVIDIA."""

from base64 import b64encode, encodebytes
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import cache
from hashlib import sha384
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from attestkit._crypto.p384 import P384Key
from attestkit.gpu.rim.xml_signature import (
    CANONICALIZATION,
    DIGEST_METHOD,
    ENVELOPED,
    SIGNATURE_METHOD,
    XMLDSIG,
)
from tests.gpu.rim.canonical_forms import canonical_document, canonical_signed_info

NOW: Final = datetime(2026, 6, 1, tzinfo=timezone.utc)
START: Final = datetime(2025, 1, 1, tzinfo=timezone.utc)
END: Final = datetime(2027, 1, 1, tzinfo=timezone.utc)
HASHES: Final = tuple(sha384(bytes([number])).digest() for number in range(8))

_SWID: Final = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
_TCG: Final = (
    "https://trustedcomputinggroup.org/resource/"
    "tcg-reference-integrity-manifest-rim-information-model/"
)
_SHA384: Final = "http://www.w3.org/2001/04/xmlenc#sha384"


class Signer(NamedTuple):
    """A key and the certificates from its own to the root's, in DER."""

    key: P384Key
    certificates: tuple[bytes, ...]

    @property
    def root(self) -> bytes:
        """Return the certificate of the root."""
        return self.certificates[-1]


class CertificateShape(NamedTuple):
    """Content of a certificate, without its key and its issuer."""

    name: str
    authority: bool = True
    path_length: int | None = None
    start: datetime = START
    end: datetime = END
    key_usage: bool = True
    extension: x509.ExtensionType | None = None
    critical: bool = True  # that extension


def certificate(
    shape: CertificateShape, key: P384Key, issuer: str, issuer_key: P384Key, serial: int = 1
) -> bytes:
    """Return a certificate in DER."""
    name = _name(shape.name)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(_name(issuer))
        .public_key(key.private.public_key())
        .serial_number(serial)
        .not_valid_before(shape.start)
        .not_valid_after(shape.end)
    )
    constraints = x509.BasicConstraints(shape.authority, shape.path_length)
    builder = builder.add_extension(constraints, critical=True)
    if shape.key_usage:
        builder = builder.add_extension(_usage(authority=shape.authority), critical=True)
    if shape.extension:
        builder = builder.add_extension(shape.extension, critical=shape.critical)
    signed = builder.sign(issuer_key.private, SHA384(), ecdsa_deterministic=True)
    return signed.public_bytes(Encoding.DER)


def chain(*shapes: CertificateShape, seed: int = 0) -> Signer:
    """Return a signer with a certificate of each shape, the signer's first."""
    keys = [P384Key(seed * 100 + number + 1) for number in range(len(shapes))]
    found = []
    for at, (shape, key) in enumerate(zip(shapes, keys, strict=True)):
        above = min(at + 1, len(shapes) - 1)
        found.append(certificate(shape, key, shapes[above].name, keys[above], at + 1))
    return Signer(keys[0], tuple(found))


SIGNER: Final = CertificateShape("test RIM signer", authority=False)
AUTHORITIES: Final = (
    CertificateShape("test RIM L3", path_length=0),
    CertificateShape("test RIM CA"),
    CertificateShape("test RIM root"),
)


@cache
def signer(seed: int = 0) -> Signer:
    """Return a signer below a root, with four certificates."""
    return chain(SIGNER, *AUTHORITIES, seed=seed)


def resource(index: int, *hashes: bytes, active: bool = True) -> str:
    """Return a measurement of a manifest."""
    values = " ".join(f'h:Hash{at}="{one.hex()}"' for at, one in enumerate(hashes))
    return (
        f'<s:Resource type="Measurement" index="{index}" active="{active}" '
        f'alternatives="{len(hashes)}" {values} name="Measurement_{index}" size="48"/>'
    )


def manifest(resources: Sequence[str] | None = None, **meta: str) -> bytes:
    """Return a manifest without a signature; `meta` replaces attributes of its Meta element."""
    if resources is None:
        resources = [resource(0, HASHES[0]), resource(1, HASHES[1], HASHES[2])]
        resources.append(resource(2, HASHES[3], active=False))
    fields = {"colloquialVersion": "1.2.3", "edition": "GPU", "product": "GH100", **meta}
    written = " ".join(f'{name}="{value}"' for name, value in fields.items())
    return (
        f'<SoftwareIdentity xmlns="{_SWID}" xmlns:s="{_SWID}" xmlns:h="{_SHA384}" name="GH100" '
        f'tagId="{"5a" * 48}" version="1.0" tagVersion="0">\n'
        f'  <s:Entity name="test" role="softwareCreator tagCreator"/>\n'
        f'  <s:Meta xmlns:t="{_TCG}" {written} t:FirmwareManufacturerId="5703"/>\n'
        f"  <s:Payload>\n    {''.join(resources)}\n  </s:Payload>\n</SoftwareIdentity>"
    ).encode()


def signature(digest: bytes, value: bytes, certificates: Sequence[bytes]) -> str:
    """Return a signature element."""
    x509_data = "".join(
        f"<ds:X509Certificate>{encodebytes(one).decode()}</ds:X509Certificate>"
        for one in certificates
    )
    return (
        f'<ds:Signature xmlns:ds="{XMLDSIG}"><ds:SignedInfo>'
        f'<ds:CanonicalizationMethod Algorithm="{CANONICALIZATION}"/>'
        f'<ds:SignatureMethod Algorithm="{SIGNATURE_METHOD}"/><ds:Reference URI="">'
        f'<ds:Transforms><ds:Transform Algorithm="{ENVELOPED}"/>'
        f'<ds:Transform Algorithm="{CANONICALIZATION}"/></ds:Transforms>'
        f'<ds:DigestMethod Algorithm="{DIGEST_METHOD}"/>'
        f"<ds:DigestValue>{b64encode(digest).decode()}</ds:DigestValue></ds:Reference>"
        f"</ds:SignedInfo><ds:SignatureValue>{b64encode(value).decode()}</ds:SignatureValue>"
        f"<ds:KeyInfo><ds:X509Data>{x509_data}</ds:X509Data></ds:KeyInfo></ds:Signature>"
    )


def sign(
    xml: bytes,
    by: Signer | None = None,
    *,
    certificates: Sequence[bytes] | None = None,
    changes: Mapping[str, str] | None = None,
) -> bytes:
    """Return a document with a signature as the last child of its root element.

    Args:
        xml: The document.
        by: The signer.
        certificates: Certificates in place of the signer's.
        changes: Texts of the signature element that are replaced before it is signed.
    """
    by = by or signer()
    digest = sha384(canonical_document(xml)).digest()
    listed = by.certificates if certificates is None else certificates

    def document(value: bytes) -> bytes:
        element = signature(digest, value, listed)
        for old, new in (changes or {}).items():
            assert old in element
            element = element.replace(old, new)
        at = xml.rindex(b"</")
        return xml[:at] + element.encode() + xml[at:]

    r, s = by.key.sign(canonical_signed_info(document(bytes(96))))
    return document(r.to_bytes(48, "big") + s.to_bytes(48, "big"))


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
