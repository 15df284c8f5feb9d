"""The server's side of EHBP, on pyhpke and cryptography: it shares no code with the client."""

import secrets
from collections.abc import Sequence
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

KEY_PROBLEM: Final = (
    b'{"type":"urn:ietf:params:ehbp:error:key-config","title":"HPKE key configuration mismatch"}'
)


class EhbpServer:
    """An enclave's middleware with a key pair of HPKE."""

    def __init__(self, seed: bytes = b"seed of a key pair of 32 bytes..") -> None:
        pyhpke = pytest.importorskip("pyhpke")
        self._suite: Any = pyhpke.CipherSuite.new(
            pyhpke.KEMId.DHKEM_X25519_HKDF_SHA256,
            pyhpke.KDFId.HKDF_SHA256,
            pyhpke.AEADId.AES256_GCM,
        )
        self._pair = self._suite.kem.derive_key_pair(seed)
        self.public_key: bytes = self._pair.public_key.to_public_bytes()

    def open(self, headers: dict[str, str], body: bytes) -> tuple[bytes, "EhbpAnswer"]:
        """Return the body of a request, and what seals the answer to it."""
        encapsulated = bytes.fromhex(headers["Ehbp-Encapsulated-Key"])
        context = self._suite.create_recipient_context(
            encapsulated, self._pair.private_key, b"ehbp request"
        )
        plain = b"".join(context.open(chunk) for chunk in chunks_of(body) if chunk)
        return plain, EhbpAnswer(context.export(b"ehbp response", 32), encapsulated)


class EhbpAnswer:
    """Seals the answer to one request."""

    def __init__(self, secret: bytes, encapsulated: bytes) -> None:
        self.nonce = secrets.token_bytes(32)
        mac = HMAC(encapsulated + self.nonce, hashes.SHA256())
        mac.update(secret)
        key = mac.finalize()
        self._aead = AESGCM(HKDFExpand(hashes.SHA256(), 32, b"key").derive(key))
        self._base = HKDFExpand(hashes.SHA256(), 12, b"nonce").derive(key)
        self._sequence = 0

    def headers(self, kind: str = "application/json") -> list[tuple[str, str]]:
        """Return the headers of the answer."""
        return [
            ("Content-Type", kind),
            ("Ehbp-Response-Nonce", self.nonce.hex()),
            ("Transfer-Encoding", "chunked"),
        ]

    def seal(self, *pieces: bytes) -> bytes:
        """Return further chunks of the body, one for each piece."""
        found = b""
        for piece in pieces:
            low = int.from_bytes(self._base[4:], "big") ^ self._sequence
            nonce = self._base[:4] + low.to_bytes(8, "big")
            self._sequence += 1
            chunk = self._aead.encrypt(nonce, piece, b"")
            found += len(chunk).to_bytes(4, "big") + chunk
        return found


def chunks_of(body: bytes) -> Sequence[bytes]:
    """Return the chunks of a body."""
    found, at = [], 0
    while at < len(body):
        size = int.from_bytes(body[at : at + 4], "big")
        found.append(body[at + 4 : at + 4 + size])
        assert len(found[-1]) == size
        at += 4 + size
    return found
