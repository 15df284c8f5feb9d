"""Encrypted HTTP Body Protocol (EHBP) of Tinfoil: bodies encrypted to an attested X25519 key.

A request's body is encrypted by HPKE; the keys of the answer are derived from the same context, so
that only the holder of the private key can answer it. Headers, URL and sizes stay open. The end of
an answer is not protected: streams of events must have the end that their API defines.
"""

import re
from typing import Final

from attestkit._crypto.aead import aes_gcm_decrypt
from attestkit._crypto.hashes import hkdf_sha256
from attestkit._crypto.hpke import HpkeSender, sequence_nonce
from attestkit.client.sealing import protocol
from attestkit.client.sealing.event_stream import EventStreamEnd
from attestkit.errors import ServiceError, UsageError, VerificationError

MAX_CHUNK: Final = 64 << 20
"""Maximum size of a chunk of an answer in bytes, as of Tinfoil's own programs."""

KEY_CONFIG_PROBLEM: Final = "urn:ietf:params:ehbp:error:key-config"
"""Type (RFC 9457) of the error body of a server that does not have the key."""

_OPEN: Final = (
    "that these are hidden, or unchanged: URL, headers such as Authorization, status, sizes, and "
    "requests without a body"
)
_SEALED_CHUNK: Final = 1 << 20  # bytes of a chunk of a request, before it is sealed
_INFO: Final = b"ehbp request"
_EXPORT: Final = b"ehbp response"
_KEY_HEADER: Final = "Ehbp-Encapsulated-Key"
_NONCE_HEADER: Final = "ehbp-response-nonce"
_FRAMING: Final = frozenset({"content-length", "transfer-encoding"})
_NONCE: Final = re.compile("[0-9a-f]{64}")
_EVENTS: Final = (b"data:", b"event:", b"id:", b"retry:", b":")  # begin a stream of events
_LONGEST_START: Final = 8
_LENGTH: Final = 4  # bytes of a chunk's length
_TAG: Final = 16


class EhbpSealing:
    """Encrypts bodies of requests to an enclave's key, each in its own HPKE context. Thread-safe.

    Args:
        public_key: X25519 public key of the enclave, 32 bytes, from its evidence.
    """

    not_proven: Final = (_OPEN, "that an answer is complete, unless its content has its own end")
    """Limits of the encryption, in a few words each, for `Proof.not_proven`."""

    def __init__(self, public_key: bytes) -> None:
        self._public_key = public_key

    def seal(
        self, method: str, target: str, headers: protocol.Headers, body: bytes
    ) -> protocol.SealedRequest:
        """Encrypt the body of a request.

        A request without body cannot be encrypted, and nor is its answer. It is sent unencrypted,
        but refused if its URL has a query, which could contain a secret.

        Args:
            method: Method of the request, such as "POST".
            target: Its path and query.
            headers: Its headers, names and values.
            body: Its whole body; empty if it has none.

        Raises:
            ServiceError: If the request has a query and no body, or the key is not valid.
        """
        own = [(name, value) for name, value in headers if not _is_of_ehbp(name)]
        if not body:
            if "?" in target:
                message = (
                    f"EHBP: {method} with a query and without body: the query would not be "
                    "encrypted; send its content in a body, or connect without encrypt=True"
                )
                raise ServiceError(message, reason="sealing")
            opener = _AnswerWithoutRequestBody()
            return protocol.SealedRequest(method, target, own, body, opener, is_sealed=False)
        try:
            sender = HpkeSender(self._public_key, _INFO)
        except UsageError as error:
            raise ServiceError(f"EHBP: key of the enclave: {error}", reason="sealing") from error
        own = [(name, value) for name, value in own if name.lower() not in _FRAMING]
        own += [(_KEY_HEADER, sender.encapsulated.hex()), ("Transfer-Encoding", "chunked")]
        sealed = bytearray()
        for at in range(0, len(body), _SEALED_CHUNK):
            chunk = sender.seal(body[at : at + _SEALED_CHUNK])
            sealed += len(chunk).to_bytes(_LENGTH, "big") + chunk
        return protocol.SealedRequest(method, target, own, bytes(sealed), EhbpOpener(sender))


class _AnswerWithoutRequestBody(protocol.UnsealedAnswer):
    def start(self, status: int, headers: protocol.Headers) -> protocol.Headers:
        """Return the headers of the answer to a request without body, whatever the `status`.

        Raises:
            ServiceError: If `headers` state that the answer is encrypted (reason `sealing`).
        """
        if any(name.lower() == _NONCE_HEADER for name, _ in headers):
            raise _refusal("the answer to a request without body must not be encrypted")
        return super().start(status, headers)


class EhbpOpener:
    """Decrypts the answer to one request, as a stream.

    Attributes:
        authenticated: Whether the answer is encrypted: False for an error status without the header
            Ehbp-Response-Nonce.
        read_at_once: Whether the body may be the error that the server does not have the key, so
            that it should be read before the caller gets the answer.
    """

    def __init__(self, sender: HpkeSender) -> None:
        self.authenticated: bool = True
        self.read_at_once: bool = False
        self._sender: HpkeSender | None = sender
        self._opened: tuple[_Chunks, _Content] | None = None
        self._problem = bytearray()

    def start(self, status: int, headers: protocol.Headers) -> protocol.Headers:
        """Check status and headers of the answer, and return the headers for the caller.

        Raises:
            ServiceError: If a successful answer is not encrypted, or the nonce is malformed.
        """
        nonces = [value for name, value in headers if name.lower() == _NONCE_HEADER]
        kinds = [value for name, value in headers if name.lower() == "content-type"]
        kind = kinds[0].partition(";")[0].strip().lower() if len(kinds) == 1 else ""
        sender, self._sender = self._sender, None
        if sender is None:
            raise _refusal("the answer must begin only once")
        if nonces:
            if len(nonces) > 1 or _NONCE.fullmatch(nonces[0]) is None:
                raise _refusal("Ehbp-Response-Nonce: must occur once, with 64 lowercase hex digits")
            chunks = _Chunks(sender, bytes.fromhex(nonces[0]))
            self._opened = chunks, _Content(status, events=kind == "text/event-stream")
            return [
                pair
                for pair in headers
                if not _is_of_ehbp(pair[0]) and pair[0].lower() not in _FRAMING
            ]
        if 200 <= status < 300:
            raise _refusal(f"the answer must be encrypted, as its status is {status}")
        self.authenticated = False
        self.read_at_once = status == 422 and kind == "application/problem+json"
        return headers

    def feed(self, data: bytes) -> bytes:
        """Decrypt the next bytes of the answer's body; the result may be empty.

        An answer that is not encrypted is returned unchanged.

        Args:
            data: The next bytes of the body, cut anywhere.

        Raises:
            ServiceError: If a chunk is malformed or was changed, or is over 64 MiB.
        """
        if self._opened is not None:
            chunks, content = self._opened
            opened = chunks.feed(data)
            content.feed(opened)
            return opened
        if self.read_at_once and len(self._problem) <= protocol.MAX_PROBLEM:
            self._problem += data
        return data

    def finish(self) -> bytes:
        """Check the end of the body, and return nothing more.

        Raises:
            SealingKeyError: If the answer is the error that the server does not have the key.
            ServiceError: If the body ends inside of a chunk, or a stream of events before its end.
        """
        if self._opened is not None:
            for part in self._opened:
                part.finish()
        elif protocol.read_problem(bytes(self._problem)).get("type") == KEY_CONFIG_PROBLEM:
            raise protocol.key_problem("EHBP")
        return b""


class _Content:
    """Check of the decrypted content: a stream of events must have the last event of its API.

    Headers are not authenticated, so a stream of events is also recognized by its first bytes.
    Truncated JSON is malformed, which the application notices.
    """

    def __init__(self, status: int, *, events: bool) -> None:
        self._status, self._events = status, events
        self._start = b""
        self._end = EventStreamEnd()

    def feed(self, opened: bytes) -> None:
        self._start += opened[: _LONGEST_START - len(self._start)]
        self._end.feed(opened)

    def finish(self) -> None:
        if self._status == 200 and not self._start:
            raise _refusal("the answer is empty: its end is not protected, so it may have been cut")
        events = self._events or self._start.startswith(_EVENTS)
        if events and 200 <= self._status < 300 and not self._end.complete:
            raise _refusal("the stream of events ended before its last event")


class _Chunks:
    """Decoder of the chunks of an answer: a length (4 bytes), then that many of ciphertext."""

    def __init__(self, sender: HpkeSender, nonce: bytes) -> None:
        secret = sender.export(_EXPORT, 32)
        self._key, self._base = derive_answer_keys(secret, sender.encapsulated, nonce)
        self._sequence = 0
        self._data = bytearray()

    def feed(self, data: bytes) -> bytes:
        self._data += data
        opened = bytearray()
        at = 0
        while (end := self._end_of_chunk(at)) is not None:
            if end > at + _LENGTH:  # an empty write of the application is not a message
                opened += self._open(bytes(self._data[at + _LENGTH : end]))
            at = end
        del self._data[:at]
        return bytes(opened)

    def finish(self) -> None:
        if self._data:
            raise _refusal("the answer ended inside of a chunk")

    def _end_of_chunk(self, at: int) -> int | None:
        """Return the offset of the end of the chunk at offset `at`; None while it is incomplete."""
        if len(self._data) < at + _LENGTH:
            return None
        size = int.from_bytes(self._data[at : at + _LENGTH], "big")
        if 0 < size < _TAG or size > MAX_CHUNK + _TAG:
            raise _refusal(f"a chunk has {size} bytes, must be {_TAG} to {MAX_CHUNK + _TAG}")
        end = at + _LENGTH + size
        return end if len(self._data) >= end else None

    def _open(self, chunk: bytes) -> bytes:
        nonce = sequence_nonce(self._base, self._sequence)
        self._sequence += 1
        try:
            return aes_gcm_decrypt(self._key, nonce, chunk)
        except VerificationError as error:
            raise _refusal(f"chunk {self._sequence} of the answer was changed") from error


def derive_answer_keys(secret: bytes, encapsulated: bytes, nonce: bytes) -> tuple[bytes, bytes]:
    """Return the AES-256-GCM key and the first nonce of an answer, 32 and 12 bytes.

    Args:
        secret: 32 bytes exported by the HPKE context of the request.
        encapsulated: Encapsulated key of the request, 32 bytes.
        nonce: Nonce in the header Ehbp-Response-Nonce of the answer, 32 bytes.
    """
    salt = encapsulated + nonce
    return hkdf_sha256(secret, b"key", 32, salt), hkdf_sha256(secret, b"nonce", 12, salt)


def _is_of_ehbp(name: str) -> bool:
    return name.lower().startswith("ehbp-")


def _refusal(problem: str) -> ServiceError:
    return ServiceError(f"EHBP: {problem}", reason="sealing")
