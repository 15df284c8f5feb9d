"""The server's side of field encryption, written for tests with other libraries.

Curves and ciphers are those of `cryptography` and Python's integers; attestkit uses libsodium and
libsecp256k1. Boxes of NaCl are PyNaCl's.
"""

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from nacl.public import Box, PrivateKey, PublicKey

P: Final = 2**255 - 19
Bind = Callable[[tuple[str | int, ...]], bytes]


def hkdf(shared: bytes, info: bytes) -> bytes:
    """Return the key of 32 bytes."""
    return HKDF(hashes.SHA256(), 32, None, info).derive(shared)


def montgomery(public: bytes) -> bytes:
    """Map an Ed25519 key to X25519: u = (1 + y) / (1 - y)."""
    y = int.from_bytes(public, "little") & (2**255 - 1)
    return ((1 + y) * pow(1 - y, -1, P) % P).to_bytes(32, "little")


def hchacha20(key: bytes, nonce: bytes) -> bytes:
    """Return the subkey of XChaCha20 (draft-irtf-cfrg-xchacha-03, 2.2)."""
    words = [int.from_bytes(data, "little") for data in _words(b"expand 32-byte k" + key + nonce)]
    columns = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
    diagonals = ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))
    for _ in range(10):
        for a, b, c, d in (*columns, *diagonals):
            for x, y, z, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                words[x] = (words[x] + words[y]) & 0xFFFFFFFF
                turned = words[z] ^ words[x]
                words[z] = (turned << bits | turned >> (32 - bits)) & 0xFFFFFFFF
    return b"".join(word.to_bytes(4, "little") for word in words[:4] + words[12:])


def _words(data: bytes) -> list[bytes]:
    return [data[at : at + 4] for at in range(0, len(data), 4)]


class FieldServer:
    """A model with a key of one algorithm, which opens requests and seals answers."""

    def __init__(self, algorithm: str, cipher: str, seed: bytes | None = None) -> None:
        self.cipher = cipher  # gcm, xchacha, box
        self.algorithm = algorithm
        if algorithm == "ecdsa":
            self._k256 = ec.generate_private_key(ec.SECP256K1())
            self.public = self._point(self._k256)
        else:
            seed = seed or os.urandom(32)
            signing = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
            self.public = signing.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
            self._x25519 = hashlib.sha512(seed).digest()[:32]

    @staticmethod
    def _point(key: ec.EllipticCurvePrivateKey) -> bytes:
        return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)

    def open(self, text: str, bound: bytes = b"") -> str:
        """Open a text of a request."""
        data = bytes.fromhex(text)
        if self.algorithm == "ecdsa":
            peer = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), data[:65])
            shared = self._k256.exchange(ec.ECDH(), peer)
            key = hkdf(shared, b"ecdsa_encryption")
            return AESGCM(key).decrypt(data[65:77], data[77:], bound or None).decode()
        if self.cipher == "box":
            box = Box(PrivateKey(self._x25519), PublicKey(data[:32]))
            return box.decrypt(data[56:], data[32:56]).decode()
        mine = x25519.X25519PrivateKey.from_private_bytes(self._x25519)
        shared = mine.exchange(x25519.X25519PublicKey.from_public_bytes(data[:32]))
        return self._decrypt(hkdf(shared, b"ed25519_encryption"), data[32:], bound).decode()

    def seal(self, client: str, text: str, bound: bytes = b"") -> str:
        """Seal a text of an answer to the client's key."""
        public = bytes.fromhex(client)
        if self.algorithm == "ecdsa":
            own = ec.generate_private_key(ec.SECP256K1())
            peer = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), public)
            key, nonce = hkdf(own.exchange(ec.ECDH(), peer), b"ecdsa_encryption"), os.urandom(12)
            sealed = AESGCM(key).encrypt(nonce, text.encode(), bound or None)
            return (self._point(own) + nonce + sealed).hex()
        if self.cipher == "box":
            secret = PrivateKey.generate()
            box = Box(secret, PublicKey(montgomery(public)))
            return (secret.public_key.encode() + box.encrypt(text.encode())).hex()
        mine = x25519.X25519PrivateKey.generate()
        theirs = x25519.X25519PublicKey.from_public_bytes(montgomery(public))
        key = hkdf(mine.exchange(theirs), b"ed25519_encryption")
        published = mine.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return (published + self._encrypt(key, text.encode(), bound)).hex()

    def _decrypt(self, key: bytes, data: bytes, bound: bytes) -> bytes:
        if self.cipher == "gcm":
            return AESGCM(key).decrypt(data[:12], data[12:], bound or None)
        subkey = hchacha20(key, data[:16])
        return ChaCha20Poly1305(subkey).decrypt(bytes(4) + data[16:24], data[24:], bound or None)

    def _encrypt(self, key: bytes, text: bytes, bound: bytes) -> bytes:
        if self.cipher == "gcm":
            nonce = os.urandom(12)
            return nonce + AESGCM(key).encrypt(nonce, text, bound or None)
        nonce = os.urandom(24)
        cipher = ChaCha20Poly1305(hchacha20(key, nonce[:16]))
        return nonce + cipher.encrypt(bytes(4) + nonce[16:], text, bound or None)


def event(document: object) -> bytes:
    """Return an event of a stream."""
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def at(document: Any, *path: str | int) -> Any:
    """Return a value inside of a document."""
    for step in path:
        document = document[step]
    return document
