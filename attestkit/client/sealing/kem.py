"""Requests encrypted to a key of ML-KEM-768, as Chutes takes them.

A chute is an AI model at Chutes; instances are the machines that run it, each with its own key.

Pieces of a streamed answer have no counter: their order is not protected, and a stream that ends
early is found only because the API marks its end inside of them.
"""

import secrets
import zlib
from base64 import b64encode
from collections.abc import Callable
from typing import Any, Final

from attestkit._crypto.aead import IV_SIZE, TAG_SIZE, chacha20_decrypt, chacha20_encrypt
from attestkit._crypto.hashes import hkdf_sha256
from attestkit._crypto.mlkem import CIPHERTEXT_SIZE, MlKemKey, mlkem_encapsulate
from attestkit._formats import strict_json
from attestkit._formats.bounded_gzip import gunzip
from attestkit._sanitize import one_line
from attestkit.client.sealing.protocol import Headers, SealedRequest, sealing_errors
from attestkit.errors import ServiceError

MAX_ANSWER: Final = 64 << 20
"""Maximum size of an answer in bytes, sealed and opened."""

MAX_EVENT: Final = 4 << 20
"""Maximum size of an event of a streamed answer in bytes."""

_ANSWER: Final = "encrypted answer: "  # begins the text of errors
_TARGET: Final = "/e2e/invoke"
_RESPONSE_KEY: Final = "e2e_response_pk"
_REQUEST: Final = b"e2e-req-v1"
_RESPONSE: Final = b"e2e-resp-v1"
_STREAM: Final = b"e2e-stream-v1"
_SALT: Final = 16  # bytes of the encapsulation
_GZIP: Final = 31  # window bits of zlib for a gzip header
# Neither can be inside of a text of JSON, where line feeds and quotes are escaped.
_DONE: Final = (b"\ndata: [DONE]", b"\ndata:[DONE]")
_REASON: Final = (b'"finish_reason":"', b'"finish_reason": "')
_TAIL: Final = 32  # bytes in which a mark of the end may be split between two pieces
_OWN: Final = frozenset(
    {
        *("accept-encoding", "content-encoding", "content-length", "content-type"),
        *("transfer-encoding", "x-chute-id", "x-e2e-nonce", "x-e2e-path", "x-e2e-stream"),
        "x-instance-id",
    }
)
_REPLACED: Final = frozenset({"content-encoding", "content-length", "content-type"})


class KemSealing:
    """Encrypts requests to the key of one instance, a machine that runs a chute (AI model).

    Args:
        key: Public key of ML-KEM-768, 1184 bytes.
        chute: UUID of the chute.
        instance: UUID of the instance that has the private key.
        take_nonce: Returns a nonce of the instance that was not used; ServiceError if none is left.
    """

    not_proven: Final = ("that these are hidden: path, headers such as Authorization, and sizes",)
    """Limits of the encryption, in a few words each, for `Proof.not_proven`."""

    def __init__(
        self, key: bytes, chute: str, instance: str, take_nonce: Callable[[], str]
    ) -> None:
        self._key = key
        self._chute = chute
        self._instance = instance
        self._take_nonce = take_nonce

    def seal(self, method: str, target: str, headers: Headers, body: bytes) -> SealedRequest:
        """Encrypt a request, which becomes `POST /e2e/invoke`.

        Args:
            method: Method of the request, such as "POST".
            target: Its path and query.
            headers: Its headers, names and values.
            body: Its whole body; empty if it has none.

        Raises:
            ServiceError: If parts of the request cannot be encrypted, the key is not valid, the
                installed cryptography lacks ML-KEM, or no nonce is left (reason `sealing`).
        """
        members = _check_request(method, target, headers, body)
        streamed = members.get("stream") is True
        with sealing_errors():
            response_key = MlKemKey()
            secret, encapsulated = mlkem_encapsulate(self._key)
        plaintext = _with_response_key(body, response_key.public_key, is_first=not members)
        nonce = secrets.token_bytes(IV_SIZE)
        key = hkdf_sha256(secret, _REQUEST, 32, encapsulated[:_SALT])
        packed = zlib.compress(plaintext, wbits=_GZIP)
        sealed = encapsulated + nonce + chacha20_encrypt(key, nonce, packed)
        kept = [(name, value) for name, value in headers if name.lower() not in _OWN]
        own = [
            ("Content-Type", "application/octet-stream"),
            ("Accept-Encoding", "identity"),
            ("X-Chute-Id", self._chute),
            ("X-Instance-Id", self._instance),
            ("X-E2E-Nonce", self._take_nonce()),
            ("X-E2E-Stream", "true" if streamed else "false"),
            ("X-E2E-Path", target),
        ]
        opener = KemOpener(response_key, streamed=streamed)
        return SealedRequest("POST", _TARGET, kept + own, sealed, opener)


def _check_request(method: str, target: str, headers: Headers, body: bytes) -> dict[str, Any]:
    """Check that all of a request can be encrypted; return the members of its JSON body.

    Args:
        method: Method, which must be POST.
        target: Path; it must not have a query.
        headers: Names and values; the body must not be compressed.
        body: Whole body.

    Raises:
        ServiceError: If a part cannot be encrypted (reason `sealing`).
    """
    if method.upper() != "POST" or "?" in target:
        problem = "must be POST without a query: nothing else can be encrypted"
        raise ServiceError(f"request: {problem}", reason="sealing")
    if any(name.lower() == "content-encoding" for name, _ in headers):
        message = "request: must not be compressed; send it as plain JSON"
        raise ServiceError(message, reason="sealing")
    with sealing_errors():
        members = strict_json.read_object(body, "request")
    if _RESPONSE_KEY in members:
        message = f"request: {_RESPONSE_KEY}: must be left out: encryption adds it"
        raise ServiceError(message, reason="sealing")
    return members


def _with_response_key(body: bytes, key: bytes, *, is_first: bool) -> bytes:
    """Return the JSON object `body` with the base64 of `key` appended as `e2e_response_pk`.

    `is_first` says that the object has no other members. The other bytes of `body` are unchanged.
    """
    member = f'"{_RESPONSE_KEY}":"{b64encode(key).decode()}"'
    text = body.rstrip(b" \t\r\n")[:-1]
    return text + (b"" if is_first else b",") + member.encode() + b"}"


class KemOpener:
    """Decrypts the answer to a request that was encrypted with `KemSealing`."""

    def __init__(self, key: MlKemKey, *, streamed: bool) -> None:
        self._key = key
        self._streamed = streamed
        self._stream_key: bytes | None = None
        self._pending = bytearray()
        self._size = 0
        self._tail = b"\n"  # the first line begins
        self._ended = False
        self._done_inside = False
        self.authenticated: bool = True
        """Whether the answer is encrypted; an error of the service is not."""

    def start(self, status: int, headers: Headers) -> Headers:
        """Check the headers of the answer, and return the headers for the caller.

        An answer with a status other than 2xx is not encrypted, and is returned as received.

        Raises:
            ServiceError: If an encrypted answer is compressed, too (reason `sealing`).
        """
        self.authenticated = 200 <= status < 300
        if not self.authenticated:
            return headers
        if any(
            name.lower() == "content-encoding" and value.strip().lower() != "identity"
            for name, value in headers
        ):
            raise _refusal("must not be compressed: only identity is accepted")
        kind = "text/event-stream" if self._streamed else "application/json"
        kept = [(name, value) for name, value in headers if name.lower() not in _REPLACED]
        return [*kept, ("Content-Type", kind)]

    def feed(self, data: bytes) -> bytes:
        """Decrypt the next bytes of the answer's body; the result may be empty.

        A stream is decrypted line by line, any other answer as a whole by `finish`. An answer with
        an error status is returned unchanged.

        Args:
            data: The next bytes of the body, cut anywhere.

        Raises:
            ServiceError: If a line cannot be decrypted, or the body is too large (reason
                `sealing`).
        """
        if not self.authenticated:
            return data
        self._size += len(data)
        if self._size > MAX_ANSWER:
            raise _refusal(f"{self._size} bytes or more, over {MAX_ANSWER}")
        self._pending += data
        return self._events(len(data)) if self._streamed else b""

    def finish(self) -> bytes:
        """Return the remaining decrypted bytes; of an answer that is not streamed, all of them.

        Raises:
            ServiceError: If it cannot be decrypted, or a stream had neither `[DONE]` nor a
                `finish_reason` (reason `sealing`).
        """
        if not self.authenticated:
            return b""
        if not self._streamed:
            return self._open_whole(bytes(self._pending))
        rest = self._line(bytes(self._pending)) if self._pending else b""
        self._pending.clear()
        if not self._ended:
            raise _refusal("ended before [DONE] or a finish_reason")
        return rest

    def _events(self, size: int) -> bytes:
        """Return the plaintext of the complete lines; keep the bytes of an incomplete one.

        Args:
            size: Number of new bytes; only they can contain the end of a line.
        """
        end = self._pending.rfind(b"\n", len(self._pending) - size)
        if len(self._pending) - end - 1 > MAX_EVENT:
            raise _refusal(f"an event is over {MAX_EVENT} bytes")
        lines = bytes(self._pending[: end + 1])
        del self._pending[: end + 1]
        return b"".join([self._line(line) for line in lines.split(b"\n")])

    def _line(self, line: bytes) -> bytes:
        """Return the plaintext of one line of the stream; empty for a line without data."""
        if not line.startswith(b"data:"):
            return b""
        text = line[5:].strip()
        if text == b"[DONE]":
            # Not sealed, but clients stop reading at it: only behind an end that is sealed.
            if not self._ended:
                raise _refusal("ended before [DONE] or a finish_reason")
            return b"" if self._done_inside else b"data: [DONE]\n\n"
        with sealing_errors(_ANSWER):
            event = strict_json.read_object(text, "event")
        return self._event(event)

    def _event(self, event: dict[str, Any]) -> bytes:
        if "e2e_error" in event or "error" in event:
            told = one_line(str(event.get("e2e_error", event.get("error"))), 200)
            raise _refusal(f"the service reports an error (unencrypted): {told}")
        if "e2e_init" in event:
            if self._stream_key is not None:
                raise _refusal("the event e2e_init must occur once")
            self._stream_key = self._derive(_decoded(event, "e2e_init"), _STREAM)
            return b""
        if "e2e" not in event:
            return b""  # such as counts of the gateway's: not sealed, and left out
        if self._stream_key is None:
            raise _refusal("the event e2e_init must come before events e2e")
        piece = _decrypt(self._stream_key, _decoded(event, "e2e"))
        self._watch(piece)
        return piece

    def _watch(self, piece: bytes) -> None:
        """Note whether the stream has an end mark of the API: `[DONE]` or a `finish_reason`.

        Args:
            piece: The next decrypted bytes; a mark may be split between two pieces.
        """
        window = self._tail + piece
        self._done_inside = self._done_inside or any(mark in window for mark in _DONE)
        self._ended = self._ended or self._done_inside or any(mark in window for mark in _REASON)
        self._tail = window[-_TAIL:]

    def _open_whole(self, body: bytes) -> bytes:
        if len(body) < CIPHERTEXT_SIZE + IV_SIZE + TAG_SIZE:
            raise _refusal(f"{len(body)} bytes are too few; it is truncated")
        key = self._derive(body[:CIPHERTEXT_SIZE], _RESPONSE)
        packed = _decrypt(key, body[CIPHERTEXT_SIZE:])
        with sealing_errors(_ANSWER):
            return gunzip(packed, MAX_ANSWER, "content")

    def _derive(self, encapsulated: bytes, info: bytes) -> bytes:
        with sealing_errors(_ANSWER):
            secret = self._key.decapsulate(encapsulated)
        return hkdf_sha256(secret, info, 32, encapsulated[:_SALT])


def _decoded(event: dict[str, Any], name: str) -> bytes:
    with sealing_errors(_ANSWER):
        return strict_json.from_base64(event[name], name)


def _decrypt(key: bytes, sealed: bytes) -> bytes:
    """Return the plaintext of a part of an answer.

    Args:
        key: Key of ChaCha20-Poly1305, 32 bytes.
        sealed: Nonce, 12 bytes, and ciphertext with its tag.

    Raises:
        ServiceError: If it cannot be decrypted (reason `sealing`).
    """
    with sealing_errors(_ANSWER):
        return chacha20_decrypt(key, sealed[:IV_SIZE], sealed[IV_SIZE:])


def _refusal(problem: str) -> ServiceError:
    return ServiceError(f"{_ANSWER}{problem}", reason="sealing")
