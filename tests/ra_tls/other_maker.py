"""Certificates with evidence in the forms of other makers, and with their deviations."""

import hashlib
from datetime import datetime, timezone
from typing import Any, Final

import cbor2
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from attestkit._crypto.der import BOOLEAN, OCTET_STRING, OID, encode_element, encode_sequence
from attestkit._crypto.x509.names import encode_attribute
from attestkit._crypto.x509.simulated.certificate_encoder import (
    encode_certificate,
)

INTEROPERABLE: Final = bytes.fromhex("678105050409")  # 2.23.133.5.4.9
GRAMINE: Final = bytes.fromhex("06092a864886f84d8a3906")
SGX_SDK: Final = bytes.fromhex("2a864886f84d010d01")  # 1.2.840.113741.1.13.1
OPEN_ENCLAVE: Final = bytes.fromhex("2a864886f714 0a0101".replace(" ", ""))
QUOTE_TAG: Final = 60000
SNP_TAG: Final = 0x1A7504
WINDOW: Final = (
    datetime(1970, 1, 1, tzinfo=timezone.utc),
    datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc),
)

KEY: Final = ec.derive_private_key(9, ec.SECP256R1())
SPKI: Final = KEY.public_key().public_bytes(
    serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
)
# ecdsa-with-SHA256 with NULL parameters, as mbedTLS writes it.
_ALGORITHM: Final = encode_sequence(encode_element(OID, bytes.fromhex("2a8648ce3d040302")), b"\5\0")
_NAME: Final = encode_sequence(encode_attribute(3, 0x0C, "RA-TLS"))


def key_claim(algorithm: int = 1, name: str = "sha256", spki: bytes = SPKI) -> bytes:
    """Return the claim pubkey-hash."""
    return cbor2.dumps([algorithm, hashlib.new(name, spki).digest()])


def claims(**more: Any) -> bytes:
    """Return a claims buffer with the claim about the key, and further claims."""
    return cbor2.dumps({"pubkey-hash": key_claim(), **more})


def tagged(evidence: bytes, buffer: bytes, tag: int = QUOTE_TAG) -> bytes:
    """Return the content of the interoperable extension."""
    return cbor2.dumps(cbor2.CBORTag(tag, [evidence, buffer]))


def report_data(buffer: bytes) -> bytes:
    """Return the report data of evidence with these claims."""
    return hashlib.sha256(buffer).digest()


def certificate(*extensions: tuple[bytes, bytes], end: datetime = WINDOW[1]) -> bytes:
    """Return a self-signed certificate with extensions of these identifiers and contents."""
    return encode_certificate(
        _NAME,
        (_NAME, SPKI),
        [
            encode_sequence(
                encode_element(OID, oid),
                encode_element(BOOLEAN, b"\1"),  # not canonical
                encode_element(OCTET_STRING, content),
            )
            for oid, content in extensions
        ],
        serial=1,
        window=(WINDOW[0], end),
        algorithm=_ALGORITHM,
        sign=lambda data: KEY.sign(data, ec.ECDSA(hashes.SHA256())),
    )
