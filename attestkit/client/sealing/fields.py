"""Field encryption: texts in a JSON request and its answer are encrypted, the rest is open.

Headers choose the protocol; `field_protocols` has those that are known.
A further protocol of this kind needs a `FieldProtocol`.
"""

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import parse_qsl

from attestkit._formats import strict_json
from attestkit._native import json_depth
from attestkit._sanitize import shown
from attestkit._system.clock import current_time
from attestkit.client.sealing.event_stream import EventSplitter, StreamEvent
from attestkit.client.sealing.field_cipher import ClientKey, FieldCipher
from attestkit.client.sealing.field_walk import (
    MAX_LEVELS,
    AnswerWalk,
    FieldTable,
    Path,
    RequestWalk,
    is_word,
)
from attestkit.client.sealing.protocol import Headers, SealedRequest, UnsealedAnswer, sealing_errors
from attestkit.errors import FormatError, ServiceError

MAX_BODY: Final = 64 << 20
"""Maximum size of the JSON of a request or an answer in bytes."""

OPEN: Final = (
    "that these are hidden: headers such as Authorization, model, roles, ids, options, counts, "
    "sizes, and requests without a body"
)
"""What no protocol protects, in words for `Proof.not_proven`."""

_DONE: Final = "[DONE]"
# Headers of the caller that describe the body, or could choose another protocol.
_REPLACED: Final = frozenset(
    {
        *("accept-encoding", "content-encoding", "content-length", "transfer-encoding"),
        *("x-signing-algo", "x-client-pub-key", "x-model-pub-key", "x-encryption-version"),
        *("x-encrypt-all-fields", "x-encrypt-tool-calls", "x-no-aliasing"),
        *("x-e2ee-version", "x-e2ee-nonce", "x-e2ee-timestamp"),
        *("x-venice-tee-client-pub-key", "x-venice-tee-model-pub-key"),
        "x-venice-tee-signing-algo",
    }
)
_DROPPED: Final = frozenset({"content-length", "content-encoding", "transfer-encoding"})


class RequestContext(NamedTuple):
    """Values that the associated data of a request and its answer may contain."""

    algorithm: str
    model: str  # member `model` of the request; empty if it has none
    nonce: str  # 64 hex digits, new for each request
    timestamp: int  # Unix seconds


class AssociatedData(Protocol):
    """Associated data (AEAD), which bind an encrypted text to its request and to its field."""

    def of_request(self, context: RequestContext, path: Path) -> bytes:
        """Return the associated data of a field of a request.

        Args:
            context: Model, nonce, time and algorithm of the request.
            path: Member names and list positions that lead to the field.
        """
        ...

    def of_answer(self, context: RequestContext, answer: Mapping[str, Any], path: Path) -> bytes:
        """Return the associated data of a field of an answer, or of an event of a stream.

        Args:
            context: Model, nonce, time and algorithm of the request.
            answer: The decoded answer or event.
            path: Member names and list positions that lead to the field.
        """
        ...


class EndpointTables(NamedTuple):
    """Known fields of the requests to an API endpoint, and of its answers."""

    request: FieldTable
    answer: FieldTable


MakeHeaders = Callable[[RequestContext, bytes, bytes], Headers]
"""Returns the headers of a request, from its context and the public keys of client and server."""


@dataclass(frozen=True)
class FieldProtocol:
    """Parameters of a protocol that encrypts fields of JSON."""

    name: str  # for errors
    algorithm: str  # name in headers and associated data
    cipher: FieldCipher
    endpoints: Mapping[str, EndpointTables]  # by the end of the path, such as `chat/completions`
    headers: MakeHeaders
    associated: AssociatedData | None  # None: a relay can move sealed texts between fields
    seal_empty: bool  # whether empty texts are encrypted, too
    not_proven: tuple[str, ...]  # limits of the encryption, in words for `Proof.not_proven`


class FieldSealing:
    """Encrypts the fields of JSON requests to the public key of a server. Thread-safe."""

    def __init__(
        self,
        protocol: FieldProtocol,
        public_key: bytes,
        *,
        model: str | None = None,
        allow_open: frozenset[str] = frozenset(),
        now: Callable[[], float] | None = None,
    ) -> None:
        """Choose protocol and key.

        Args:
            protocol: Which fields are encrypted, and how; see `field_protocols`.
            public_key: Key of the server: 32 bytes of Ed25519 or X25519, or 65 of secp256k1
                (uncompressed SEC1), as `protocol.cipher` demands.
            model: The only model that requests may name; None for any.
            allow_open: Patterns of fields, such as `user`, that may be unencrypted with all fields
                beneath them, in requests and in answers.
            now: Clock of the timestamps, in Unix seconds; None for the system's.

        Raises:
            ServiceError: If the key is not valid (reason `sealing`).
        """
        protocol.cipher.check_key(public_key)
        self._protocol: FieldProtocol = protocol
        self._key: bytes = public_key
        self._model: str | None = model
        self._allowed: frozenset[str] = allow_open
        self._now: Callable[[], float] = now or current_time
        opened = f"that these fields are hidden: {', '.join(sorted(allow_open))}"
        self.not_proven: tuple[str, ...] = (
            *protocol.not_proven,
            *((opened,) if allow_open else ()),
        )
        """Limits of the encryption, in a few words each, for `Proof.not_proven`."""

    def seal(self, method: str, target: str, headers: Headers, body: bytes) -> SealedRequest:
        """Encrypt the fields of a request.

        A request without body is sent unencrypted, and its answer is not encrypted, either.

        Args:
            method: Method of the request, such as "POST".
            target: Its path and query.
            headers: Its headers, names and values.
            body: Its whole body; empty if it has none.

        Raises:
            ServiceError: If it is not JSON for a known endpoint, does not name the model, or has
                text that the protocol does not encrypt, also in its query (reason `sealing`).
        """
        if not body:
            _check_query(target)
            unsealed = UnsealedAnswer()
            return SealedRequest(method, target, _kept(headers), body, unsealed, is_sealed=False)
        if "?" in target or "#" in target:
            raise _refusal("request target: must have no query, which would not be encrypted")
        tables = self._endpoint(target)
        document = _read_request(headers, body)
        context = self._context(document)
        protocol = self._protocol
        key = protocol.cipher.new_key()

        def seal_text(path: Path, text: str) -> str:
            data = protocol.associated
            bound = b"" if data is None else data.of_request(context, path)
            return protocol.cipher.seal(self._key, text.encode(), bound).hex()

        walk = RequestWalk(tables.request, self._allowed, seal_empty=protocol.seal_empty)
        sealed = walk.seal(document, seal_text)
        own = protocol.headers(context, key.public_key, self._key)
        opener = FieldOpener(protocol, AnswerWalk(tables.answer, self._allowed), context, key)
        return SealedRequest(
            method,
            target,
            [*_kept(headers), *own, ("Accept-Encoding", "identity")],
            json.dumps(sealed, ensure_ascii=False, separators=(",", ":")).encode(),
            opener,
        )

    def _endpoint(self, target: str) -> EndpointTables:
        endpoints = self._protocol.endpoints
        for name in sorted(endpoints, key=len, reverse=True):
            if target.endswith(f"/{name}"):
                return endpoints[name]
        known = ", ".join(sorted(endpoints))
        raise _refusal(
            f"request target {shown(target)}: must end with {known}, as {self._protocol.name} "
            "encrypts nothing else"
        )

    def _context(self, document: Mapping[str, Any]) -> RequestContext:
        model = document.get("model", "")
        if not isinstance(model, str) or (model and not is_word(model)):
            raise _refusal("field model of the request: must be 1 to 256 of A-Z a-z 0-9 ._:/@+-")
        if self._model is not None and model != self._model:
            raise _refusal(
                f"field model of the request: must be {shown(self._model)}, as verified, not "
                f"{shown(model)}; connect with that model"
            )
        nonce = secrets.token_hex(32)
        return RequestContext(self._protocol.algorithm, model, nonce, int(self._now()))


@dataclass(eq=False, repr=False)
class FieldOpener:
    """Decrypts the answer to one request: JSON, or a stream of events with JSON."""

    _protocol: FieldProtocol
    _walk: AnswerWalk
    _context: RequestContext
    _key: ClientKey
    _splitter: EventSplitter | None = None
    _body: bytearray = field(default_factory=bytearray)
    _done: bool = False
    authenticated: bool = True
    """Whether the answer is encrypted; an error is not."""

    def start(self, status: int, headers: Headers) -> Headers:
        """Check status and headers of the answer, and return the headers for the caller.

        An answer with a status other than 2xx is not encrypted, and is returned as received.

        Raises:
            ServiceError: If the answer is compressed, neither JSON nor a stream of events, or
                states that it is not encrypted (reason `sealing`).
        """
        values = {name.lower(): value.strip().lower() for name, value in headers}
        if not 200 <= status <= 299:
            self.authenticated = False
            return headers
        if values.get("content-encoding", "identity") != "identity":
            raise _refusal("answer: must not be compressed: only identity is accepted")
        if values.get("x-e2ee-applied", "true") == "false":
            raise _refusal("answer: must be encrypted, and X-E2EE-Applied states that it is not")
        kind = values.get("content-type", "").partition(";")[0].strip()
        if kind == "text/event-stream":
            self._splitter = EventSplitter()
        elif kind != "application/json":
            raise _refusal(
                "answer: Content-Type must be application/json or text/event-stream, not "
                f"{shown(kind)}"
            )
        return [(name, value) for name, value in headers if name.lower() not in _DROPPED]

    def feed(self, data: bytes) -> bytes:
        """Decrypt the next bytes of the answer's body; the result may be empty.

        JSON is decrypted as a whole by `finish`, a stream event by event. An answer that is not
        encrypted is returned unchanged.

        Args:
            data: The next bytes of the body, cut anywhere.
        """
        if not self.authenticated:
            return data
        if self._splitter is not None:
            return b"".join([self._open_event(event) for event in self._splitter.feed(data)])
        self._body += data
        if len(self._body) > MAX_BODY:
            raise _refusal(f"answer: over {MAX_BODY} bytes")
        return b""

    def finish(self) -> bytes:
        """Return the rest; a stream must have ended with `[DONE]`.

        Raises:
            ServiceError: If the answer is incomplete, or cannot be decrypted (reason `sealing`).
        """
        if not self.authenticated:
            return b""
        if self._splitter is None:
            return self._open_document(bytes(self._body)).encode()
        self._splitter.finish()
        if not self._done:
            raise _refusal(f"stream: ends without {_DONE}; the answer is incomplete")
        return b""

    def _open_event(self, event: StreamEvent) -> bytes:
        if self._done:
            raise _refusal(f"stream: {_DONE} must be the last event")
        for name, value in event.fields:
            if value and not is_word(value):
                raise _refusal(f"stream: {name} must be one word: only data is encrypted")
        if event.data is None:
            return event.encode()
        if event.data == _DONE:
            self._done = True
            return event.encode()
        return event._replace(data=self._open_document(event.data.encode())).encode()

    def _open_document(self, data: bytes) -> str:
        document = _read_json(data, "answer")
        associated, cipher = self._protocol.associated, self._protocol.cipher

        def open_text(path: Path, text: str) -> str:
            bound = b""
            if associated is not None:
                bound = associated.of_answer(self._context, document, path)
            try:
                sealed = strict_json.from_hex(text, "encrypted text")
                return cipher.open(self._key, sealed, bound).decode()
            except (FormatError, ServiceError, UnicodeDecodeError) as error:
                name = ".".join(map(str, path))
                raise _refusal(f"field {shown(name, 128)} of the answer: {error}") from error

        opened = self._walk.open(document, open_text)
        try:
            return json.dumps(opened, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        except ValueError as error:
            raise _refusal("answer: numbers must be finite") from error


def _check_query(target: str) -> None:
    """Check that a query has only names and numbers (`is_word`), because it is not encrypted.

    Args:
        target: Path and query of the request.

    Raises:
        ServiceError: If the query has other text (reason `sealing`).
    """
    query = target.partition("?")[2]
    pairs = parse_qsl(query, keep_blank_values=True, errors="surrogateescape")
    if "#" in target or not all(not text or is_word(text) for pair in pairs for text in pair):
        raise _refusal("request target: must have no text in its query: it is not encrypted")


def _kept(headers: Headers) -> Headers:
    return [(name, value) for name, value in headers if name.lower() not in _REPLACED]


def _read_request(headers: Headers, body: bytes) -> dict[str, Any]:
    values = {name.lower(): value.strip().lower() for name, value in headers}
    kind = values.get("content-type", "").partition(";")[0].strip()
    if kind != "application/json":
        raise _refusal(f"request: Content-Type must be application/json, not {shown(kind)}")
    if "content-encoding" in values:
        raise _refusal("request: must not be compressed; send it as plain JSON")
    if len(body) > MAX_BODY:
        raise _refusal(f"request: its body has {len(body)} bytes, at most {MAX_BODY}")
    return _read_json(body, "request")


def _read_json(data: bytes, what: str) -> dict[str, Any]:
    if json_depth(data, MAX_LEVELS) >= 0:
        raise _refusal(f"{what}: JSON must nest at most {MAX_LEVELS} levels")
    with sealing_errors():
        return strict_json.read_object(data, what)


def _refusal(message: str) -> ServiceError:
    return ServiceError(message, reason="sealing")
