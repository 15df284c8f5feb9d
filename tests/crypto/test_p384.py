"""A P-384 signature holds for its key and data, and for nothing else."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit._crypto.p384 import P384_SPKI_HEAD, p384_verify, p384_verify_der
from attestkit.errors import SignatureError

KEY = ec.generate_private_key(ec.SECP384R1())
DATA = b"what was signed"
IN_DER = KEY.sign(DATA, ec.ECDSA(SHA384()))
SIGNATURE = b"".join(part.to_bytes(48, "big") for part in decode_dss_signature(IN_DER))
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973  # noqa: E501


def spki(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    """Return a public key in DER."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_it_holds() -> None:
    """Both forms of one signature hold."""
    assert spki(KEY).startswith(P384_SPKI_HEAD)
    p384_verify(spki(KEY), SIGNATURE, DATA)
    p384_verify_der(spki(KEY), IN_DER, DATA)


def test_every_byte_counts() -> None:
    """A changed byte of signature, key or data ends it."""
    for which in range(3):
        parts = [spki(KEY), SIGNATURE, DATA]
        for at in range(len(parts[which])):
            changed = bytearray(parts[which])
            changed[at] ^= 1
            tampered = [*parts[:which], bytes(changed), *parts[which + 1 :]]
            with pytest.raises(SignatureError):
                p384_verify(*tampered)


@pytest.mark.parametrize(
    "signature",
    [
        b"",
        SIGNATURE[:95],
        SIGNATURE + b"\0",
        bytes(96),
        bytes(48) + SIGNATURE[48:],
        SIGNATURE[:48] + bytes(48),
        b"\xff" * 96,
        SIGNATURE[:48] + ORDER.to_bytes(48, "big"),
        IN_DER,
    ],
    ids=range(9),
)
def test_signatures_that_are_none(signature: bytes) -> None:
    """Other sizes, zero, and numbers beyond the order are refused."""
    with pytest.raises(SignatureError):
        p384_verify(spki(KEY), signature, DATA)


def test_keys_of_other_kinds() -> None:
    """A key on another curve, an RSA key, and one that is no point are refused, and said to be."""
    others = (
        spki(ec.generate_private_key(ec.SECP256R1())),
        spki(ec.generate_private_key(ec.SECP521R1())),
        spki(rsa.generate_private_key(65537, 2048)),
        b"",
    )
    for other in others:
        with pytest.raises(SignatureError, match="not P-384"):
            p384_verify(other, SIGNATURE, DATA)
    with pytest.raises(SignatureError, match="not on the curve"):
        p384_verify(P384_SPKI_HEAD + bytes(96), SIGNATURE, DATA)


def test_another_hash_is_refused() -> None:
    """SHA-384 it is."""
    with pytest.raises(SignatureError, match="does not hold"):
        p384_verify_der(spki(KEY), KEY.sign(DATA, ec.ECDSA(SHA256())), DATA)


@settings(deadline=None)  # machines are busy
@given(st.binary(max_size=130), st.binary(min_size=90, max_size=110))
def test_any_bytes(key: bytes, signature: bytes) -> None:
    """Whatever comes, only our error comes out."""
    for one in (key, P384_SPKI_HEAD + key[:96].ljust(96, b"\0"), spki(KEY)):
        for verify in (p384_verify, p384_verify_der):
            with pytest.raises(SignatureError):
                verify(one, signature, DATA)
