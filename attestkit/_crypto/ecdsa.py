"""ECDSA on secp256k1 and P-256, with deterministic signatures (RFC 6979).

coincurve gets secrets as bytes, which are wiped when the key object is destroyed. OpenSSL gets them
as Python integers, which cannot be wiped; see docs/security/secrets.md.
"""

import hmac
from collections.abc import Callable
from typing import Final

from coincurve import PrivateKey, PublicKey
from coincurve.context import GLOBAL_CONTEXT
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from attestkit._argument_checks import require_size
from attestkit._crypto.k256_agreement import COMPRESSED, UNCOMPRESSED, read_k256_point
from attestkit._crypto.pem import encode_pem
from attestkit._crypto.zeroize import Secret, own_copy, wipe, wipe_field
from attestkit.errors import FormatError, SignatureError, UsageError

_K256_RANGE: Final = "secp256k1 secret: must be in 1..n-1"
_CURVE: Final = ec.SECP256R1()
# A constant, because creating it takes about 2 us, a tenth of a signature.
_P256_SIGNATURE: Final = ec.ECDSA(SHA256(), deterministic_signing=True)
_P256_VERIFICATION: Final = ec.ECDSA(SHA256())
K256_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_K256_HIGHEST_S: Final = (K256_ORDER // 2).to_bytes(32, "big")
P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
# PKCS#8 (RFC 5958, RFC 5915) before the scalar; the curve is in the algorithm only.
_PKCS8_HEAD: Final = bytes.fromhex(
    "308187020100301306072a8648ce3d020106082a8648ce3d030107046d306b0201010420"
)
_PKCS8_POINT: Final = bytes.fromhex("a14403420004")
ECDSA_SHA256: Final = bytes.fromhex("300a06082a8648ce3d040302")
"""AlgorithmIdentifier of ecdsa-with-SHA256 in DER, without parameters (RFC 5758, 3.2)."""
# SubjectPublicKeyInfo (RFC 5480) before the coordinates, including the 04 of the point.
P256_SPKI_HEAD: Final = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")


class _Signer(PrivateKey):
    """Private key for coincurve's functions; it refers to bytes that this module can wipe.

    coincurve's own class also creates a key pair for Schnorr signatures, which leaves a copy of the
    secret in memory and takes as long as a signature.
    """

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self.context = GLOBAL_CONTEXT
        self.public_key = PublicKey.from_valid_secret(secret)


class K256Key(Secret):
    """A secp256k1 key; its secret is wiped when the object is destroyed."""

    __slots__ = ("_key", "_secret", "public_key")

    def __init__(self, secret: bytes) -> None:
        """Create a key from its scalar, 32 bytes, big-endian.

        Raises:
            UsageError: If the secret does not have 32 bytes, or is not in 1..n-1.
        """
        require_size("secp256k1 secret", secret, 32)
        self._secret = own_copy(secret)
        try:
            self._key = _Signer(self._secret)
        except ValueError as error:
            raise UsageError(_K256_RANGE, reason="invalid_key") from error
        self.public_key: bytes = self._key.public_key.format()  # 33 bytes, compressed SEC1

    def sign_recoverable(self, digest: bytes) -> bytes:
        """Return the signature over a 32-byte digest: r, s (low) and v (0 or 1), 65 bytes.

        Raises:
            UsageError: If the digest does not have 32 bytes.
        """
        require_size("digest", digest, 32)
        signature: bytes = self._key.sign_recoverable(digest, hasher=None)
        return signature

    def sign(self, digest: bytes) -> bytes:
        """Return the signature over a 32-byte digest: r and s (low), 64 bytes.

        Raises:
            UsageError: If the digest does not have 32 bytes.
        """
        return self.sign_recoverable(digest)[:64]

    def __del__(self, *, _wipe: Callable[[object, str], None] = wipe_field) -> None:
        _wipe(self, "_secret")

    def __repr__(self) -> str:
        return f"K256Key(public_key={self.public_key.hex()})"


def k256_public_key(secret: bytes, *, compressed: bool = True) -> bytes:
    """Return the SEC1 public key of a 32-byte scalar: 33 bytes if compressed, else 65.

    Raises:
        UsageError: If the secret does not have 32 bytes, or is not in 1..n-1.
    """
    require_size("secp256k1 secret", secret, 32)
    try:
        public: bytes = PublicKey.from_secret(secret).format(compressed)
    except ValueError as error:
        raise UsageError(_K256_RANGE, reason="invalid_key") from error
    return public


def k256_recover(signature: bytes, digest: bytes) -> bytes:
    """Recover the public key (33 bytes, compressed) of a signature over a digest.

    Recovery does not verify anything: compare the result with the expected key.

    Args:
        signature: r, s and the recovery id (0 to 3), 65 bytes. A high s is refused: with it anyone
            can change a signature into a second one for the same key.
        digest: 32 bytes.

    Raises:
        SignatureError: If the signature does not have 65 bytes, s is high, the recovery id is above
            3, or no key matches.
        UsageError: If the digest does not have 32 bytes.
    """
    require_size("digest", digest, 32)
    if len(signature) != 65:
        message = f"secp256k1: recoverable signature must have 65 bytes, not {len(signature)}"
        raise SignatureError(message, reason="bad_signature")
    if signature[32:64] > _K256_HIGHEST_S:
        message = "secp256k1: recoverable signature with high s; only the form with low s is valid"
        raise SignatureError(message, reason="bad_signature")
    try:
        key = PublicKey.from_signature_and_message(signature, digest, hasher=None)
    except ValueError as error:
        message = "secp256k1: no public key matches the recoverable signature"
        raise SignatureError(message, reason="bad_signature") from error
    public: bytes = key.format()
    return public


def k256_verify(public_key: bytes, signature: bytes, digest: bytes) -> bool:
    """Return whether a signature over a digest is valid; a signature with high s is invalid.

    Args:
        public_key: SEC1, compressed (33 bytes) or uncompressed (65 bytes).
        signature: r and s, 64 bytes.
        digest: 32 bytes.

    Raises:
        UsageError: If the key is not a point of the curve, r or s is not in 1..n-1, or an argument
            has another size.
    """
    forms = COMPRESSED | UNCOMPRESSED
    key = read_k256_point(public_key, forms, "33 or 65 bytes of SEC1", "invalid public key")
    r, s = _split(signature, K256_ORDER)
    require_size("digest", digest, 32)
    valid: bool = key.verify(encode_dss_signature(r, s), digest, hasher=None)
    return valid


class P256Key(Secret):
    """A P-256 key pair, with the encodings of the dstack guest agent.

    Create it with `from_scalar` or `from_pem`. Keys are equal if their scalars are equal.
    """

    __slots__ = ("_scalar", "private", "public_point")

    def __init__(self, private: ec.EllipticCurvePrivateKey, scalar: bytes = b"") -> None:
        """Create a key pair from OpenSSL's P-256 key and, if known, its scalar (32 bytes).

        Exporting the scalar from OpenSSL leaves copies that cannot be wiped.
        """
        self._scalar = own_copy(scalar)
        self.private: ec.EllipticCurvePrivateKey = private  # for attestkit._crypto only
        point = private.public_key().public_numbers()
        x, y = point.x.to_bytes(32, "big"), point.y.to_bytes(32, "big")
        self.public_point: bytes = x + y

    @classmethod
    def from_scalar(cls, scalar: bytes) -> "P256Key":
        """Create a key pair from its scalar, 32 bytes, big-endian.

        Raises:
            UsageError: If the scalar does not have 32 bytes, or is not in 1..n-1.
        """
        require_size("P-256 scalar", scalar, 32)
        number = int.from_bytes(scalar, "big")
        if not 0 < number < P256_ORDER:
            raise UsageError("P-256 scalar: must be in 1..n-1", reason="invalid_key")
        return cls(ec.derive_private_key(number, _CURVE), scalar)

    @classmethod
    def from_pem(cls, text: str) -> "P256Key":
        """Parse `text`, an unencrypted private key in PEM: PKCS#8 or SEC1 ("EC PRIVATE KEY").

        Raises:
            FormatError: If the key is malformed, encrypted, or not a P-256 key.
        """
        # Lazy import: it loads ciphers and SSH, and most programs do not parse keys.
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        # "replace", because a UnicodeEncodeError would contain the secret.
        data = text.encode("ascii", "replace")
        key = None
        try:
            key = load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm, InternalError):
            pass  # raised below: the text of this error may contain a part of the key
        finally:
            wipe(data)
        if key is None:
            raise FormatError("private key: must be an unencrypted key in PEM", reason="syntax")
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != _CURVE.name:
            raise FormatError("private key: must be a P-256 key", reason="unsupported_algorithm")
        return cls(key)

    @property
    def public(self) -> ec.EllipticCurvePublicKey:
        """OpenSSL's public key, for attestkit._crypto only."""
        return self.private.public_key()

    @property
    def scalar(self) -> bytes:
        """The secret scalar, 32 bytes, big-endian: a copy, which the caller may wipe."""
        if not self._scalar:
            self._scalar = self.private.private_numbers().private_value.to_bytes(32, "big")
        return own_copy(self._scalar)

    @property
    def spki_der(self) -> bytes:
        """The SubjectPublicKeyInfo in DER, 91 bytes (RFC 5480)."""
        return P256_SPKI_HEAD + self.public_point

    @property
    def pkcs8_der(self) -> bytes:
        """The private key with its public key in DER, 138 bytes (RFC 5958)."""
        scalar = self.scalar
        der = b"".join((_PKCS8_HEAD, scalar, _PKCS8_POINT, self.public_point))
        wipe(scalar)
        return der

    @property
    def pkcs8_pem(self) -> str:
        """The private key in PEM, with 64 characters per line and LF line ends."""
        der = self.pkcs8_der
        text = encode_pem("PRIVATE KEY", der)
        wipe(der)
        return text

    def sign(self, data: bytes) -> bytes:
        """Return the signature over the SHA-256 of `data`: r and s (s may be high), 64 bytes."""
        return _raw(self.sign_der(data))

    def sign_der(self, data: bytes) -> bytes:
        """Return the signature over the SHA-256 of `data` in DER, as in X.509."""
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
    """Return r and s, 64 bytes, of a DER signature created here; thrice as fast as a parser."""
    r_end = 4 + der[3]
    r, s = der[4:r_end], der[r_end + 2 :]
    return r[-32:].rjust(32, b"\0") + s[-32:].rjust(32, b"\0")


class P256PublicKey:
    """A P-256 public key that keeps OpenSSL's key object, which takes about 10 us to create.

    Thread-safe.
    """

    __slots__ = ("point", "public")

    def __init__(self, point: bytes) -> None:
        """Create a key from its point: x and y, 64 bytes.

        Raises:
            SignatureError: If the point does not have 64 bytes, or is not on the curve.
        """
        if len(point) != 64:
            message = f"P-256: public key must have 64 bytes, not {len(point)}"
            raise SignatureError(message, reason="invalid_key")
        try:
            key = ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, b"\x04" + point)
        except ValueError as error:
            message = "P-256: public key not on the curve"
            raise SignatureError(message, reason="invalid_key") from error
        self.public: ec.EllipticCurvePublicKey = key  # for attestkit._crypto only
        self.point: bytes = point

    @property
    def spki_der(self) -> bytes:
        """The SubjectPublicKeyInfo in DER, 91 bytes (RFC 5480)."""
        return P256_SPKI_HEAD + self.point

    def verify(self, signature: bytes, data: bytes) -> None:
        """Verify a signature (r and s, 64 bytes) over the SHA-256 of `data`.

        Raises:
            SignatureError: If the signature is malformed or not valid.
        """
        try:
            r, s = _split(signature, P256_ORDER)
        except UsageError as error:
            raise SignatureError(f"P-256: {error}", reason="bad_signature") from error
        self.verify_der(encode_dss_signature(r, s), data)

    def verify_der(self, signature: bytes, data: bytes) -> None:
        """Verify a signature in DER over the SHA-256 of `data`.

        Raises:
            SignatureError: If the signature is malformed or not valid.
        """
        try:
            self.public.verify(signature, data, _P256_VERIFICATION)
        except InvalidSignature as error:
            raise SignatureError("P-256: invalid signature", reason="bad_signature") from error

    def __repr__(self) -> str:
        return f"P256PublicKey({self.point.hex()})"


def p256_verify(public_point: bytes, signature: bytes, data: bytes) -> None:
    """Verify a signature (r and s, 64 bytes) over the SHA-256 of `data`.

    `public_point` is the P-256 key: x and y, 64 bytes.

    Raises:
        SignatureError: If the signature is not valid, or signature or key are malformed.
    """
    P256PublicKey(public_point).verify(signature, data)


def p256_verify_der(public_point: bytes, signature: bytes, data: bytes) -> None:
    """Verify a signature in DER over the SHA-256 of `data`.

    `public_point` is the P-256 key: x and y, 64 bytes.

    Raises:
        SignatureError: If the signature is not valid, or signature or key are malformed.
    """
    P256PublicKey(public_point).verify_der(signature, data)


def _split(signature: bytes, order: int) -> tuple[int, int]:
    """Return r and s of a 64-byte signature; both must be in 1..order-1."""
    require_size("signature", signature, 64)
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    if not (0 < r < order and 0 < s < order):
        raise UsageError("invalid signature: r and s must be in 1..n-1", reason="out_of_range")
    return r, s
