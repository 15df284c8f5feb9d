"""ECDSA on secp256k1 and P-256. Every nonce is RFC 6979's, so every signature can be repeated.

Secrets are handed on to coincurve as bytes, which are wiped when their key goes, and to OpenSSL as
numbers: it wipes its own, Python does not. docs/secrets.md tells what stays.
"""

import hmac
from collections.abc import Callable
from typing import Final

from coincurve import PrivateKey, PublicKey
from coincurve.context import GLOBAL_CONTEXT
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    encode_dss_signature,
)
from cryptography.hazmat.primitives.hashes import SHA256

from attestkit._crypto.pem import armour
from attestkit._crypto.zeroize import Secret, own_copy, wipe, wipe_field
from attestkit.errors import FormatError, SignatureError, UsageError

__all__ = [
    "P256_ORDER",
    "P256_SPKI_HEAD",
    "K256Key",
    "P256Key",
    "k256_public_key",
    "k256_recover",
    "k256_sign",
    "k256_sign_recoverable",
    "k256_verify",
    "p256_verify",
    "p256_verify_der",
]

_CURVE: Final = ec.SECP256R1()
# Made once: making it takes about 2 us, a tenth of a signature.
_P256_SIGNATURE: Final = ec.ECDSA(SHA256(), deterministic_signing=True)
_K256_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
# RFC 5958 and RFC 5915 around the scalar, the curve named in the algorithm alone.
_PKCS8_HEAD: Final = bytes.fromhex(
    "308187020100301306072a8648ce3d020106082a8648ce3d030107046d306b0201010420"
)
_PKCS8_POINT: Final = bytes.fromhex("a14403420004")
# RFC 5480, up to and with the 04 of the point.
P256_SPKI_HEAD: Final = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")


class _Signer(PrivateKey):
    """coincurve's key on our own bytes, without its second half for Schnorr signatures.

    The making of that leaves a copy of the secret in memory, and takes as long as a signature.
    """

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self.context = GLOBAL_CONTEXT
        self.public_key = PublicKey.from_valid_secret(secret)


class K256Key(Secret):
    """A secp256k1 key, prepared once for many signatures; its secret is wiped when it goes."""

    __slots__ = ("_key", "_secret", "public_key")

    def __init__(self, secret: bytes) -> None:
        """Take the 32-byte big-endian scalar; UsageError if it is not 32 bytes or not in 1..n-1."""
        _check_size("a secp256k1 secret", secret, 32)
        self._secret = own_copy(secret)
        try:
            self._key = _Signer(self._secret)
        except ValueError as error:
            raise UsageError("a secp256k1 secret must be in 1..n-1") from error
        self.public_key: bytes = self._key.public_key.format()  # 33 bytes, compressed SEC1

    def sign_recoverable(self, digest: bytes) -> bytes:
        """Return r, s and v (65 bytes; s low, v 0 or 1) over a 32-byte digest."""
        _check_size("a digest", digest, 32)
        signature: bytes = self._key.sign_recoverable(digest, hasher=None)
        return signature

    def sign(self, digest: bytes) -> bytes:
        """Return r and s (64 bytes, s low) over a 32-byte digest."""
        return self.sign_recoverable(digest)[:64]

    def __del__(self, *, _wipe: Callable[[object, str], None] = wipe_field) -> None:
        _wipe(self, "_secret")

    def __repr__(self) -> str:
        return f"K256Key(public_key={self.public_key.hex()})"


def k256_public_key(secret: bytes, *, compressed: bool = True) -> bytes:
    """Return the SEC1 public key of a 32-byte scalar, 33 bytes compressed or else 65.

    Raises:
        UsageError: the secret is not 32 bytes or not in 1..n-1.
    """
    _check_size("a secp256k1 secret", secret, 32)
    try:
        public: bytes = PublicKey.from_secret(secret).format(compressed)
    except ValueError as error:
        raise UsageError("a secp256k1 secret must be in 1..n-1") from error
    return public


def k256_sign(secret: bytes, digest: bytes) -> bytes:
    """Return r and s (64 bytes, s low) over a 32-byte digest; UsageError as `K256Key`."""
    return K256Key(secret).sign(digest)


def k256_sign_recoverable(secret: bytes, digest: bytes) -> bytes:
    """Return r, s and v (65 bytes) over a 32-byte digest; UsageError as `K256Key`."""
    return K256Key(secret).sign_recoverable(digest)


def k256_recover(signature: bytes, digest: bytes) -> bytes:
    """Return the compressed public key (33 bytes) that made the 65-byte `signature` over `digest`.

    Recovery alone proves nothing: compare the result with the key that you expect.

    Raises:
        SignatureError: the signature is not 65 bytes, or no key can have made it.
        UsageError: the digest is not 32 bytes.
    """
    _check_size("a digest", digest, 32)
    if len(signature) != 65:
        raise SignatureError(f"a recoverable signature is 65 bytes, not {len(signature)}")
    try:
        key = PublicKey.from_signature_and_message(signature, digest, hasher=None)
    except ValueError as error:
        raise SignatureError("no secp256k1 key can have made this signature") from error
    public: bytes = key.format()
    return public


def k256_verify(public_key: bytes, signature: bytes, digest: bytes) -> bool:
    """Tell whether r and s over a 32-byte digest hold; a high s never does.

    Args:
        public_key: SEC1, compressed (33 bytes) or uncompressed (65).
        signature: r and s, 64 bytes.
        digest: 32 bytes.

    Raises:
        UsageError: the key is no point, the signature is not 64 bytes or r or s is not in
            1..n-1, or the digest is not 32 bytes.
    """
    head = public_key[:1]
    # libsecp256k1 would take the hybrid form (06, 07) too, which nobody else in this world does.
    if (len(public_key), head) not in {(33, b"\x02"), (33, b"\x03"), (65, b"\x04")}:
        raise UsageError("invalid public key: want 33 or 65 bytes of SEC1")
    try:
        key = PublicKey(public_key)
    except ValueError as error:
        raise UsageError("invalid public key: not on secp256k1") from error
    r, s = _split(signature, _K256_ORDER)
    _check_size("a digest", digest, 32)
    valid: bool = key.verify(encode_dss_signature(r, s), digest, hasher=None)
    return valid


class P256Key(Secret):
    """A P-256 key pair, with its encodings byte for byte as the guest agent writes them.

    Make one with `from_scalar` or `from_pem`. Equal scalars make equal keys.
    """

    __slots__ = ("_scalar", "private", "public_point")

    def __init__(self, private: ec.EllipticCurvePrivateKey, scalar: bytes = b"") -> None:
        """Take the key, and its scalar where that is known.

        To ask OpenSSL for it leaves copies behind that nobody can wipe.
        """
        self._scalar = own_copy(scalar)
        self.private: ec.EllipticCurvePrivateKey = private  # for attestkit._crypto alone
        point = private.public_key().public_numbers()
        x, y = point.x.to_bytes(32, "big"), point.y.to_bytes(32, "big")
        self.public_point: bytes = x + y

    @classmethod
    def from_scalar(cls, scalar: bytes) -> "P256Key":
        """Take the 32-byte big-endian scalar; UsageError if it is not 32 bytes or not in 1..n-1."""
        _check_size("a P-256 scalar", scalar, 32)
        number = int.from_bytes(scalar, "big")
        if not 0 < number < P256_ORDER:
            raise UsageError("a P-256 scalar must be in 1..n-1")
        return cls(ec.derive_private_key(number, _CURVE), scalar)

    @classmethod
    def from_pem(cls, text: str) -> "P256Key":
        """Read PEM, PKCS#8 or SEC1, not encrypted.

        Raises:
            FormatError: this is no PEM private key, or one of another kind.
        """
        # Late: it brings ciphers and SSH, and most programs read no key.
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        # Replaced, because the error of an encoder would carry the secret.
        data = text.encode("ascii", "replace")
        key = None
        try:
            key = load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm, InternalError):
            pass  # its text quotes the lines around the key, in which a part of it may be
        finally:
            wipe(data)
        if key is None:
            raise FormatError("not the PEM of an unencrypted private key")
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != _CURVE.name:
            raise FormatError("the PEM holds a private key of another kind than P-256")
        return cls(key)

    @property
    def scalar(self) -> bytes:
        """The secret, 32 bytes big-endian."""
        if not self._scalar:
            number = self.private.private_numbers().private_value
            self._scalar = number.to_bytes(32, "big")
        return own_copy(self._scalar)

    @property
    def spki_der(self) -> bytes:
        """The SubjectPublicKeyInfo in DER, 91 bytes (RFC 5480)."""
        return P256_SPKI_HEAD + self.public_point

    @property
    def pkcs8_der(self) -> bytes:
        """The private key in DER with its public key, 138 bytes (RFC 5958)."""
        scalar = self.scalar
        der = b"".join((_PKCS8_HEAD, scalar, _PKCS8_POINT, self.public_point))
        wipe(scalar)
        return der

    @property
    def pkcs8_pem(self) -> str:
        """The private key in PEM: 64 characters a line, LF, one at the end too."""
        der = self.pkcs8_der
        text = armour("PRIVATE KEY", der)
        wipe(der)
        return text

    def sign(self, data: bytes) -> bytes:
        """Return r and s (64 bytes) over the SHA-256 of `data`; s is not made low."""
        return _raw(self.sign_der(data))

    def sign_der(self, data: bytes) -> bytes:
        """Return the signature over the SHA-256 of `data` in DER, as X.509 has it."""
        return self.private.sign(data, _P256_SIGNATURE)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, P256Key):
            return NotImplemented
        ours, theirs = self.scalar, other.scalar
        try:
            return hmac.compare_digest(ours, theirs)
        finally:
            wipe(ours)
            wipe(theirs)

    def __hash__(self) -> int:
        return hash(self.public_point)

    def __del__(self, *, _wipe: Callable[[object, str], None] = wipe_field) -> None:
        _wipe(self, "_scalar")

    def __repr__(self) -> str:
        return f"P256Key(public_point={self.public_point.hex()})"


def _raw(der: bytes) -> bytes:
    """Return r and s of a P-256 signature that was written here; a third of a parser's time."""
    r_end = 4 + der[3]
    r, s = der[4:r_end], der[r_end + 2 :]
    return r[-32:].rjust(32, b"\0") + s[-32:].rjust(32, b"\0")


def p256_verify(public_point: bytes, signature: bytes, data: bytes) -> None:
    """Check r and s (64 bytes) over the SHA-256 of `data` with the key x and y (64 bytes).

    Raises:
        SignatureError: the signature does not hold, or it or the key is malformed.
    """
    try:
        r, s = _split(signature, P256_ORDER)
    except UsageError as error:
        raise SignatureError(f"P-256: {error}") from error
    p256_verify_der(public_point, encode_dss_signature(r, s), data)


def p256_verify_der(public_point: bytes, signature: bytes, data: bytes) -> None:
    """Check a signature in DER over the SHA-256 of `data` with the key x and y (64 bytes).

    Raises:
        SignatureError: the signature does not hold, or it or the key is malformed.
    """
    if len(public_point) != 64:
        raise SignatureError(f"P-256: a public key is 64 bytes, not {len(public_point)}")
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, b"\x04" + public_point)
    except ValueError as error:
        raise SignatureError("P-256: the public key is not on the curve") from error
    try:
        key.verify(signature, data, ec.ECDSA(SHA256()))
    except InvalidSignature as error:
        raise SignatureError("P-256: the signature does not hold") from error


def _split(signature: bytes, order: int) -> tuple[int, int]:
    """Return r and s of a 64-byte signature, each in 1..order-1."""
    _check_size("a signature", signature, 64)
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    if not (0 < r < order and 0 < s < order):
        raise UsageError("invalid signature: r and s must be in 1..n-1")
    return r, s


def _check_size(what: str, data: bytes, size: int) -> None:
    if len(data) != size:
        raise UsageError(f"{what} is {size} bytes, not {len(data)}")
