"""An RSA-PSS signature is valid with SHA-384 and a salt of 48 bytes only."""

import pickle
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS, AsymmetricPadding, PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from attestkit._crypto.key_pairs import RsaKey
from attestkit._crypto.public_key import rsa_pss_verify
from attestkit.errors import SignatureError, UsageError
from tests.raising import raises
from tests.runner.cases import every_case

KEY = rsa.generate_private_key(65537, 2048)
SHORT_BITS = 1024  # not used by AMD, so rejected
DATA = b"signed data"
PADDING = PSS(MGF1(SHA384()), 48)
SIGNATURE = KEY.sign(DATA, PADDING, SHA384())


def spki(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    """Return a public key in DER."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@every_case(
    ("padding", "algorithm"),
    [
        (PSS(MGF1(SHA384()), 32), SHA384()),
        (PSS(MGF1(SHA256()), 48), SHA384()),
        (PSS(MGF1(SHA384()), 48), SHA256()),
        (PKCS1v15(), SHA384()),
    ],
)
def test_rsa_pss_verify_of_other_parameters_fails(
    padding: AsymmetricPadding, algorithm: SHA256 | SHA384
) -> None:
    """Salt length, mask, hash and padding must be AMD's."""
    rsa_pss_verify(spki(KEY), SIGNATURE, DATA)
    with raises(SignatureError, "bad_signature"):
        rsa_pss_verify(spki(KEY), KEY.sign(DATA, padding, algorithm), DATA)


def test_rsa_pss_verify_with_other_key_fails() -> None:
    """Keys of other types, short and malformed ones are rejected by name."""
    short = rsa.generate_private_key(65537, SHORT_BITS)
    with raises(SignatureError, "invalid_key"):
        rsa_pss_verify(spki(short), short.sign(DATA, PADDING, SHA384()), DATA)
    with raises(SignatureError, "invalid_key"):
        rsa_pss_verify(spki(ec.generate_private_key(ec.SECP384R1())), SIGNATURE, DATA)
    with raises(SignatureError, "invalid_key"):
        rsa_pss_verify(b"\x30\x00", SIGNATURE, DATA)


def test_rsa_key_is_a_function_of_its_seed() -> None:
    """Each seed gives an RSA-4096 key, and its signatures are the same on each machine."""
    keys = [RsaKey(bytes([number]) * 32) for number in (1, 1, 2)]
    signatures = [key.sign(DATA) for key in keys]
    for key, signature in zip(keys, signatures, strict=True):
        public = load_der_public_key(key.spki)
        assert isinstance(public, rsa.RSAPublicKey)
        assert (public.key_size, public.public_numbers().e) == (4096, 65537)
        public.verify(signature, DATA, PADDING, SHA384())
        rsa_pss_verify(key.spki, signature, DATA)
        with raises(SignatureError, "bad_signature"):
            rsa_pss_verify(key.spki, signature, DATA + b"x")
    assert (keys[0].spki, signatures[0]) == (keys[1].spki, signatures[1])
    assert keys[0].spki != keys[2].spki
    assert keys[0].sign(b"other")[-49:] != signatures[0][-49:]
    assert sha256(keys[0].spki + signatures[0]).hexdigest() == (
        "642c6019797176c500d03a2b41615f6a96c24d2b8dc4fe8fb8001cedb3881b0e"
    )


def test_rsa_key_cannot_be_pickled() -> None:
    """A private key is not written to a file by accident, and not shown."""
    key = RsaKey(bytes(32))
    with raises(UsageError, "not_picklable"):
        pickle.dumps(key)
    assert repr(key) == f"RsaKey(spki={key.spki.hex()})"
