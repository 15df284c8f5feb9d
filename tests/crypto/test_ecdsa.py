"""ECDSA is deterministic, in the agent's encodings, and raises only AttestKitErrors."""

import copy
import hashlib
import pickle
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto import ecdsa
from attestkit._crypto.ecdsa import K256Key, P256Key
from attestkit._crypto.ed25519 import Ed25519Key
from attestkit._crypto.pem import encode_pem
from attestkit.errors import FormatError, SignatureError, UsageError
from tests.raising import raises
from tests.runner.cases import every_case

K256_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
SECRET = bytes(range(1, 33))
DIGEST = hashlib.sha256(b"message").digest()
# RFC 6979, A.2.5: P-256 with SHA-256.
RFC_KEY = bytes.fromhex("c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721")
RFC_POINT = bytes.fromhex(
    "60fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6"
    "7903fe1008b8bc99a41ae9e95628bc64f2f1b20c2d7e9f5177a3c294d4462299"
)
RFC_SIGNATURE = bytes.fromhex(  # over "sample"
    "efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716"
    "f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8"
)


def scalar(number: int) -> bytes:
    """Return a number as 32 big-endian bytes."""
    return number.to_bytes(32, "big")


def test_k256_sign_uses_rfc6979_nonce() -> None:
    """The signature of key 1 over "Satoshi Nakamoto" matches the common test vector."""
    digest = hashlib.sha256(b"Satoshi Nakamoto").digest()
    assert K256Key(scalar(1)).sign(digest).hex() == (
        "934b1ea10a4b3c1757e2b0c017d0b6143ce3c9a7e6a4a49860d7a6ab210ee3d8"
        "2442ce9d2b916064108014783e923ec36b49743e2ffa1c4496f01a512aafd9e5"
    )


@given(st.binary(min_size=32, max_size=32))
def test_k256_sign_verifies_and_recovers(digest: bytes) -> None:
    """Every signature has a low s, is valid for its key, and recovers it."""
    key = K256Key(SECRET)
    recoverable = key.sign_recoverable(digest)
    assert len(recoverable) == 65
    assert recoverable[64] in {0, 1}
    assert key.sign(digest) == recoverable[:64]
    assert int.from_bytes(recoverable[32:64], "big") <= K256_ORDER // 2
    assert ecdsa.k256_recover(recoverable, digest) == key.public_key
    assert ecdsa.k256_verify(key.public_key, recoverable[:64], digest)


def test_k256_agrees_with_openssl() -> None:
    """Public keys and signatures match those of OpenSSL."""
    private = ec.derive_private_key(int.from_bytes(SECRET, "big"), ec.SECP256K1())
    public = private.public_key()
    for compressed, form in (
        (True, PublicFormat.CompressedPoint),
        (False, PublicFormat.UncompressedPoint),
    ):
        expected = public.public_bytes(Encoding.X962, form)
        assert ecdsa.k256_public_key(SECRET, compressed=compressed) == expected
    signature = K256Key(SECRET).sign(hashlib.sha256(b"data").digest())
    r, s = (int.from_bytes(signature[at : at + 32], "big") for at in (0, 32))
    public.verify(encode_dss_signature(r, s), b"data", ec.ECDSA(SHA256()))


def test_k256_verify_distinguishes_invalid_and_malformed() -> None:
    """Other digests, other keys and high s are invalid; malformed input is an error."""
    public, signature = ecdsa.k256_public_key(SECRET), K256Key(SECRET).sign(DIGEST)
    assert ecdsa.k256_verify(ecdsa.k256_public_key(SECRET, compressed=False), signature, DIGEST)
    assert not ecdsa.k256_verify(public, signature, bytes(32))
    assert not ecdsa.k256_verify(ecdsa.k256_public_key(scalar(9)), signature, DIGEST)
    s = int.from_bytes(signature[32:], "big")
    assert not ecdsa.k256_verify(public, signature[:32] + scalar(K256_ORDER - s), DIGEST)
    for invalid in (
        signature[:63],
        signature + b"\0",
        signature[:32] + bytes(32),
        scalar(K256_ORDER) + signature[32:],
        signature[:32] + scalar(K256_ORDER),
    ):
        with raises(UsageError, "wrong_size", "out_of_range"):
            ecdsa.k256_verify(public, invalid, DIGEST)
    hybrid = b"\x06" + ecdsa.k256_public_key(SECRET, compressed=False)[1:]
    no_point = b"\x02" + b"\xff" * 32
    for invalid in (
        b"",
        public + b"\0",
        b"\x04" + public[1:],
        hybrid,
        no_point,
    ):
        with raises(UsageError, "invalid_key"):
            ecdsa.k256_verify(invalid, signature, DIGEST)
    with raises(UsageError, "wrong_size"):
        ecdsa.k256_verify(public, signature, DIGEST[:31])


def test_k256_recover_of_wrong_size_fails() -> None:
    """A recoverable signature has 65 bytes."""
    signature = K256Key(SECRET).sign_recoverable(DIGEST)
    for size in range(65):
        with raises(SignatureError, "bad_signature"):
            ecdsa.k256_recover(signature[:size], DIGEST)
            pytest.fail(f"{size} bytes are accepted")


def test_k256_recover_of_high_s_fails() -> None:
    """The second signature that anyone can compute from the first recovers no key."""
    signature = K256Key(SECRET).sign_recoverable(DIGEST)
    s = K256_ORDER - int.from_bytes(signature[32:64], "big")
    other = signature[:32] + scalar(s) + bytes([signature[64] ^ 1])
    with raises(SignatureError, "bad_signature"):
        ecdsa.k256_recover(other, DIGEST)


@every_case("recovery_id", [*range(4, 8), 27, 28, 31, 128, 255])
def test_k256_recover_of_other_recovery_id_fails(recovery_id: int) -> None:
    """A recovery id is 0 to 3, without the offset of other encodings."""
    signature = K256Key(SECRET).sign_recoverable(DIGEST)
    with raises(SignatureError, "bad_signature"):
        ecdsa.k256_recover(signature[:64] + bytes([recovery_id]), DIGEST)


@pytest.mark.parametrize(
    ("make", "order"),
    [
        (P256Key.from_scalar, P256_ORDER),
        (K256Key, K256_ORDER),
        (ecdsa.k256_public_key, K256_ORDER),
    ],
)
def test_private_key_of_invalid_scalar_fails(make: Callable[[bytes], object], order: int) -> None:
    """A scalar has 32 bytes and is in 1 to n-1."""
    make(scalar(1))
    make(scalar(order - 1))
    for number in (0, order, order + 1, 2**256 - 1):
        with raises(UsageError, "invalid_key"):
            make(scalar(number))
    for size in (0, 31, 33):
        with raises(UsageError, "wrong_size"):
            make(b"\1" * size)


def test_p256_sign_matches_rfc6979() -> None:
    """The published signature is reproduced, with unmodified s."""
    key = P256Key.from_scalar(RFC_KEY)
    assert key.public_point == RFC_POINT
    assert key.scalar == RFC_KEY
    assert key.sign(b"sample") == RFC_SIGNATURE
    ecdsa.p256_verify(RFC_POINT, RFC_SIGNATURE, b"sample")
    ecdsa.p256_verify_der(RFC_POINT, key.sign_der(b"sample"), b"sample")


def test_p256_from_sec1_pem_equals_pkcs8() -> None:
    """OpenSSL's older PEM contains the same key."""
    key = P256Key.from_scalar(RFC_KEY)
    pem = key.private.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    assert P256Key.from_pem(pem.decode()) == key


def test_p256_from_other_pem_fails_naming_its_type() -> None:
    """Another curve, an encrypted key, a public key and other text are rejected by name."""
    key = P256Key.from_scalar(RFC_KEY)
    other = ec.derive_private_key(5, ec.SECP384R1())
    pkcs8 = (Encoding.PEM, PrivateFormat.PKCS8)
    with raises(FormatError, "unsupported_algorithm"):
        P256Key.from_pem(other.private_bytes(*pkcs8, NoEncryption()).decode())
    encrypted = key.private.private_bytes(*pkcs8, BestAvailableEncryption(b"x"))
    with raises(FormatError, "syntax"):
        P256Key.from_pem(encrypted.decode())
    for text in ("", "nothing", key.pkcs8_pem[:80], "-----BEGIN PRIVATE KEY-----\n\ud800"):
        with raises(FormatError, "syntax"):
            P256Key.from_pem(text)


@every_case("size", [0, 1, 31, 33])
def test_p256_from_pem_of_invalid_ed25519_key_fails(size: int) -> None:
    """An invalid Ed25519 key is rejected; cryptography reports it as an internal error."""
    der = bytes([0x30, 14 + size]) + bytes.fromhex("020100300506032b6570")
    der += bytes([4, size + 2, 4, size]) + bytes(size)
    with raises(FormatError, "syntax"):
        P256Key.from_pem(encode_pem("PRIVATE KEY", der))


def test_p256_from_pem_error_contains_no_secret() -> None:
    """Neither the error nor its causes contain a part of the secret."""
    pem = P256Key.from_scalar(RFC_KEY).pkcs8_pem
    secret = pem.splitlines()[2][:40]
    for text in (pem[:-40], pem.replace("KEY", "\ud800", 1), f"{pem[:-40]}\ud800", pem[:150]):
        with pytest.raises(FormatError) as caught:
            P256Key.from_pem(text)
        link: BaseException | None = caught.value
        while link is not None:
            assert secret not in f"{link!r} {link} {vars(link)}"
            link = link.__cause__ or link.__context__


def test_p256_signature_converts_between_raw_and_der() -> None:
    """Numbers that are short or zero-padded in DER have 32 bytes each."""
    key = P256Key.from_scalar(bytes(31) + b"\5")
    sizes = set()
    for number in range(2000):
        data = b"%d" % number
        der = key.sign_der(data)
        r, s = decode_dss_signature(der)
        assert key.sign(data) == r.to_bytes(32, "big") + s.to_bytes(32, "big")
        sizes.add(len(der))
    assert {70, 71, 72} < sizes  # includes short numbers: r or s below 2**248


def test_p256_verify_of_other_input_fails() -> None:
    """Another message or key invalidates the signature, and so does a size."""
    key = P256Key.from_scalar(RFC_KEY)
    signature = key.sign(b"sample")
    with raises(SignatureError, "bad_signature"):
        ecdsa.p256_verify(RFC_POINT, signature, b"sampl")
    with raises(SignatureError, "invalid_key"):
        ecdsa.p256_verify(bytes(64), signature, b"sample")
    with raises(SignatureError, "invalid_key"):
        ecdsa.p256_verify(RFC_POINT[:63], signature, b"sample")
    for size in range(64):
        with raises(SignatureError, "bad_signature"):
            ecdsa.p256_verify(RFC_POINT, signature[:size], b"sample")


@pytest.mark.parametrize("kind", [K256Key, P256Key, Ed25519Key])
def test_key_not_constructed_is_released_silently(
    kind: type[K256Key | P256Key | Ed25519Key],
) -> None:
    """An object whose constructor failed is released without an error."""
    kind.__new__(kind).__del__()


@pytest.mark.parametrize("key", [K256Key(SECRET), P256Key.from_scalar(SECRET), Ed25519Key(SECRET)])
def test_key_does_not_expose_secret(key: K256Key | P256Key | Ed25519Key) -> None:
    """Neither repr nor pickle nor copy gives access to the secret."""
    for text in (repr(key), str(key), f"{key}"):
        assert SECRET.hex() not in text
        assert str(SECRET) not in text
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with raises(UsageError, "not_picklable"):
            leak(key)


def test_p256_key_equality_compares_scalars() -> None:
    """Equal scalars make equal keys with equal hashes; other keys and types differ."""
    key, same, other = (P256Key.from_scalar(one) for one in (SECRET, SECRET, RFC_KEY))
    assert key == same
    assert hash(key) == hash(same)
    assert key != other
    assert key != SECRET
