"""Derived keys: signatures, decryption and exchange agree with OpenSSL, with each hash of a TPM."""

import hashlib
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from attestkit._crypto.key_pairs import EcKeyPair, RsaKeyPair
from attestkit._crypto.public_key import rsa_oaep_encrypt
from attestkit.errors import SignatureError, UsageError
from tests.raising import raises
from tests.runner.cases import every_case

PAIR = RsaKeyPair(b"\1" * 32, 2048)
OTHER = RsaKeyPair(b"\2" * 32, 2048)
ALGORITHMS: dict[str, type[hashes.HashAlgorithm]] = {
    "sha1": hashes.SHA1,
    "sha256": hashes.SHA256,
    "sha384": hashes.SHA384,
    "sha512": hashes.SHA512,
}
DATA = b"signed data"
LABEL = b"SECRET\0"
PINNED = "5a4f159f85316df9cfb73b9be5e023c04516771d5ad6e93cc5473168d92dfc68"

CURVES: dict[str, ec.EllipticCurve] = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1()}
every_curve = pytest.mark.parametrize("curve", CURVES)
every_hash = pytest.mark.parametrize("name", ALGORITHMS)


def public(pair: RsaKeyPair) -> rsa.RSAPublicKey:
    """Return the public key as OpenSSL reads it."""
    key = load_der_public_key(pair.spki)
    assert isinstance(key, rsa.RSAPublicKey)
    return key


def test_rsa_key_is_a_function_of_its_seed() -> None:
    """A seed gives the same key on each machine; its modulus has exactly 2048 bits."""
    assert RsaKeyPair(b"\1" * 32, 2048).spki == PAIR.spki != OTHER.spki
    assert sha256(PAIR.spki).hexdigest() == PINNED
    numbers = public(PAIR).public_numbers()
    assert (numbers.e, numbers.n.bit_length()) == (65537, 2048)
    assert numbers.n.to_bytes(256, "big") == PAIR.modulus
    assert repr(PAIR) == f"RsaKeyPair(spki={PAIR.spki.hex()})"


@every_case("bits", [0, 1024, 2047, 3072])
def test_other_sizes_are_refused(bits: int) -> None:
    """Keys have 2048 or 4096 bits."""
    with raises(UsageError, "out_of_range"):
        RsaKeyPair(bytes(32), bits)


@every_hash
def test_signatures_are_valid(name: str) -> None:
    """PKCS #1 v1.5 and PSS signatures are valid, and reproducible."""
    digest = hashlib.new(name, DATA).digest()
    algorithm = ALGORITHMS[name]()
    key = public(PAIR)
    key.verify(PAIR.sign_pkcs1(digest, name), DATA, padding.PKCS1v15(), algorithm)
    pss = padding.PSS(padding.MGF1(algorithm), len(digest))
    key.verify(PAIR.sign_pss(digest, name), DATA, pss, algorithm)
    assert PAIR.sign_pss(digest, name) == PAIR.sign_pss(digest, name)


@every_hash
@pytest.mark.parametrize("size", [0, 1, 32])
def test_ciphertext_is_decrypted(name: str, size: int) -> None:
    """A message that OpenSSL encrypts is decrypted."""
    algorithm = ALGORITHMS[name]()
    oaep = padding.OAEP(padding.MGF1(algorithm), algorithm, LABEL)
    ciphertext = public(PAIR).encrypt(b"\0" * size, oaep)
    assert PAIR.decrypt_oaep(ciphertext, name, LABEL) == b"\0" * size


def test_other_ciphertext_is_refused() -> None:
    """Another key, label, hash, size or byte is refused."""
    ciphertext = rsa_oaep_encrypt(PAIR.spki, b"salt", "sha256", LABEL)
    assert PAIR.decrypt_oaep(ciphertext, "sha256", LABEL) == b"salt"
    with raises(SignatureError, "bad_signature"):
        OTHER.decrypt_oaep(ciphertext, "sha256", LABEL)
    for text, name, label in (
        (ciphertext, "sha256", b"SECRET"),
        (ciphertext, "sha384", LABEL),
        (ciphertext[:-1], "sha256", LABEL),
        (b"\0" + ciphertext, "sha256", LABEL),
        (b"", "sha256", LABEL),
        (bytes(256), "sha256", LABEL),
        (b"\xff" * 256, "sha256", LABEL),
        *[
            (ciphertext[:at] + bytes([ciphertext[at] ^ 1]) + ciphertext[at + 1 :], "sha256", LABEL)
            for at in range(0, 256, 16)
        ],
    ):
        with raises(SignatureError, "bad_signature"):
            PAIR.decrypt_oaep(text, name, label)


@every_curve
def test_ec_key_is_a_function_of_its_seed(curve: str) -> None:
    """A seed gives the same key; coordinates are as long as the curve's."""
    pair = EcKeyPair(b"\1" * 32, curve)
    assert (EcKeyPair(b"\1" * 32, curve).x, EcKeyPair(b"\2" * 32, curve).x != pair.x) == (
        pair.x,
        True,
    )
    assert len(pair.x) == len(pair.y) == CURVES[curve].key_size // 8
    assert repr(pair) == f"EcKeyPair(curve='{curve}', x={pair.x.hex()})"


@every_curve
@pytest.mark.parametrize("name", ALGORITHMS)
def test_ec_signature_is_valid(curve: str, name: str) -> None:
    """Signatures are valid with each hash, also one longer than the order, and reproducible."""
    pair = EcKeyPair(b"\1" * 32, curve)
    r, s = pair.sign(hashlib.new(name, DATA).digest(), name)
    assert len(r) == len(s) == pair.size
    key = ec.EllipticCurvePublicKey.from_encoded_point(CURVES[curve], b"\4" + pair.x + pair.y)
    der = encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
    key.verify(der, DATA, ec.ECDSA(ALGORITHMS[name]()))
    assert pair.sign(hashlib.new(name, DATA).digest(), name) == (r, s)


@every_curve
def test_exchange_is_symmetric(curve: str) -> None:
    """Both sides get the same point; coordinates may lack leading zeros."""
    one, other = EcKeyPair(b"\1" * 32, curve), EcKeyPair(b"\2" * 32, curve)
    shared = one.exchange(other.x, other.y)
    assert shared == other.exchange(one.x.lstrip(b"\0"), one.y) != one.x
    with raises(SignatureError, "invalid_key"):
        one.exchange(other.x, other.x)
