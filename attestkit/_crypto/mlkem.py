"""ML-KEM-768 (FIPS 203): a key encapsulation mechanism that also resists quantum computers."""

from typing import TYPE_CHECKING, Final

from cryptography.exceptions import UnsupportedAlgorithm

from attestkit._argument_checks import require_size
from attestkit.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from types import ModuleType

PUBLIC_SIZE: Final = 1184
"""Bytes of a public key."""

CIPHERTEXT_SIZE: Final = 1088
"""Bytes of an encapsulated secret."""

_MISSING: Final = (
    "ML-KEM: the installed release of cryptography, or its OpenSSL, lacks it; install cryptography "
    "50 or newer"
)


class MlKemKey:
    """A key pair of ML-KEM-768, made at random.

    Raises:
        UnsupportedError: If the installed release of cryptography has no ML-KEM.
    """

    __slots__ = ("_private", "public_key")

    def __init__(self) -> None:
        try:
            self._private = _mlkem().MLKEM768PrivateKey.generate()
        except UnsupportedAlgorithm as error:  # of this OpenSSL
            raise UnsupportedError(_MISSING, reason="feature") from error
        self.public_key: bytes = self._private.public_key().public_bytes_raw()  # 1184 bytes

    def decapsulate(self, ciphertext: bytes) -> bytes:
        """Return the shared secret, 32 bytes; an altered ciphertext gives another secret, no error.

        Raises:
            UsageError: If the ciphertext does not have 1088 bytes.
        """
        require_size("ML-KEM-768 ciphertext", ciphertext, CIPHERTEXT_SIZE)
        secret: bytes = self._private.decapsulate(ciphertext)
        return secret

    def __repr__(self) -> str:
        return "MlKemKey()"


def mlkem_encapsulate(public_key: bytes) -> tuple[bytes, bytes]:
    """Return a random shared secret, 32 bytes, and its encapsulation to `public_key`, 1088 bytes.

    `public_key` is the recipient's encapsulation key of ML-KEM-768, 1184 bytes.

    Raises:
        UsageError: If the key does not have 1184 bytes, or is not a key of ML-KEM-768.
        UnsupportedError: If the installed release of cryptography has no ML-KEM.
    """
    require_size("ML-KEM-768 public key", public_key, PUBLIC_SIZE)
    try:
        recipient = _mlkem().MLKEM768PublicKey.from_public_bytes(public_key)
    except ValueError as error:
        raise UsageError("invalid ML-KEM-768 public key", reason="invalid_key") from error
    except UnsupportedAlgorithm as error:  # of this OpenSSL
        raise UnsupportedError(_MISSING, reason="feature") from error
    secret, ciphertext = recipient.encapsulate()
    return secret, ciphertext


def _mlkem() -> "ModuleType":
    # Lazy: older releases of cryptography have no ML-KEM, and nothing else needs it.
    try:
        from cryptography.hazmat.primitives.asymmetric import mlkem
    except ImportError as error:
        raise UnsupportedError(_MISSING, reason="feature") from error
    return mlkem
