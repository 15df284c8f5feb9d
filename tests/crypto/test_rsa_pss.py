"""An RSA-PSS signature holds with SHA-384 and a salt of 48 bytes, and in no other way."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS, AsymmetricPadding, PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit._crypto.rsa_pss import rsa_pss_verify
from attestkit.errors import SignatureError

KEY = rsa.generate_private_key(65537, 2048)
SHORT_BITS = 1024  # which AMD does not sign with, and is to be refused
DATA = b"what was signed"
PADDING = PSS(MGF1(SHA384()), 48)
SIGNATURE = KEY.sign(DATA, PADDING, SHA384())


def spki(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    """Return a public key in DER."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_every_byte_counts() -> None:
    """A changed byte of signature or data ends what holds."""
    rsa_pss_verify(spki(KEY), SIGNATURE, DATA)
    for which in range(2):
        parts = [SIGNATURE, DATA]
        for at in range(len(parts[which])):
            changed = bytearray(parts[which])
            changed[at] ^= 1
            tampered = [*parts[:which], bytes(changed), *parts[which + 1 :]]
            with pytest.raises(SignatureError, match="does not hold"):
                rsa_pss_verify(spki(KEY), *tampered)


@pytest.mark.parametrize(
    ("padding", "algorithm"),
    [
        (PSS(MGF1(SHA384()), 32), SHA384()),
        (PSS(MGF1(SHA256()), 48), SHA384()),
        (PSS(MGF1(SHA384()), 48), SHA256()),
        (PKCS1v15(), SHA384()),
    ],
)
def test_other_ways_are_refused(padding: AsymmetricPadding, algorithm: SHA256 | SHA384) -> None:
    """Salt, mask, hash and padding are AMD's."""
    with pytest.raises(SignatureError, match="does not hold"):
        rsa_pss_verify(spki(KEY), KEY.sign(DATA, padding, algorithm), DATA)


def test_keys_that_are_refused() -> None:
    """Other kinds, short ones and malformed ones are named."""
    short = rsa.generate_private_key(65537, SHORT_BITS)
    with pytest.raises(SignatureError, match="1024 bits"):
        rsa_pss_verify(spki(short), short.sign(DATA, PADDING, SHA384()), DATA)
    with pytest.raises(SignatureError, match="not RSA"):
        rsa_pss_verify(spki(ec.generate_private_key(ec.SECP384R1())), SIGNATURE, DATA)
    with pytest.raises(SignatureError, match="malformed"):
        rsa_pss_verify(b"\x30\x00", SIGNATURE, DATA)


@settings(deadline=None)  # machines are busy
@given(st.binary(max_size=80), st.binary(max_size=300))
def test_any_bytes(key: bytes, signature: bytes) -> None:
    """Whatever comes, only our error comes out."""
    for one in (key, spki(KEY)):
        with pytest.raises(SignatureError):
            rsa_pss_verify(one, signature, DATA)
