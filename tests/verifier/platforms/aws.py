"""A simulated AWS PKI: a root, two CAs, an enclave's certificate, and its documents."""

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from functools import cache
from typing import Any, Final

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding

from tests.pki.certificates import key_usage, name_of

NOW: Final = datetime(2026, 8, 1, 12, 0, 0, tzinfo=timezone.utc)
DAY: Final = timedelta(days=1)
MODULE: Final = "i-0123456789abcdef0-enc0123456789abcdef"
PROTECTED: Final = cbor2.dumps({1: -35})


@cache
def key(name: str, curve: type[ec.EllipticCurve], /) -> ec.EllipticCurvePrivateKey:
    """Return the key of that name."""
    del name  # distinguishes keys in the cache
    return ec.generate_private_key(curve())


def certificate(
    name: str,
    issuer: str,
    *,
    path_length: int | None = None,
    authority: bool = True,
    usage: str | None = None,
    valid_until: datetime = NOW + DAY,
    extension: x509.ExtensionType | None = None,
    curve: type[ec.EllipticCurve] = ec.SECP384R1,
    algorithm: type[SHA256 | SHA384] = SHA384,
    signed_by: str = "",
) -> bytes:
    """Return a certificate; `usage` is its only key usage, by default the usual one."""
    own = key_usage(usage or ("key_cert_sign" if authority else "digital_signature"))
    length = path_length if authority else None
    public = key(name, curve).public_key()
    builder = (
        x509.CertificateBuilder(name_of(issuer), name_of(name), public, 5, NOW - DAY, valid_until)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=length), critical=True)
        .add_extension(own, critical=True)
    )
    if extension is not None:
        builder = builder.add_extension(extension, critical=True)
    signed = builder.sign(key(signed_by or issuer, ec.SECP384R1), algorithm())
    return signed.public_bytes(Encoding.DER)


@cache
def root() -> bytes:
    """Return the root."""
    return certificate("root", "root")


@cache
def chain() -> tuple[bytes, ...]:
    """Return root, region, zone."""
    region = certificate("region", "root", path_length=1)
    return root(), region, certificate("zone", "region", path_length=0)


@cache
def leaf() -> bytes:
    """Return the enclave's certificate."""
    return certificate("enclave", "zone", authority=False)


def payload(**changes: object) -> dict[str, Any]:
    """Return the fields of a document; the value `...` removes a field."""
    fields: dict[str, Any] = {
        "module_id": MODULE,
        "digest": "SHA384",
        "timestamp": int(NOW.timestamp() * 1000),
        "pcrs": {index: bytes([index + 1]) * 48 for index in range(16)},
        "certificate": leaf(),
        "cabundle": list(chain()),
        "public_key": None,
        "user_data": bytes(range(64)),
        "nonce": None,
    }
    return {name: value for name, value in {**fields, **changes}.items() if value is not ...}


def document(
    fields: Mapping[str, object] | None = None,
    *,
    protected: bytes = PROTECTED,
    unprotected: Mapping[object, object] | None = None,
    signer: ec.EllipticCurvePrivateKey | None = None,
    algorithm: type[SHA256 | SHA384] = SHA384,
    signature: bytes = b"",
) -> bytes:
    """Return a document, signed with the enclave's key by default."""
    content = cbor2.dumps(payload() if fields is None else fields)
    to_be_signed = cbor2.dumps(["Signature1", protected, b"", content])
    r, s = decode_dss_signature(
        (signer or key("enclave", ec.SECP384R1)).sign(to_be_signed, ec.ECDSA(algorithm()))
    )
    signature = signature or r.to_bytes(48, "big") + s.to_bytes(48, "big")
    return cbor2.dumps([protected, dict(unprotected or {}), content, signature])
