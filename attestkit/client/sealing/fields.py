"""Field encryption: texts inside of a JSON request and its answer are sealed, the rest is open.

Headers choose the protocol (attested-client.md, 2.4); `field_protocols` has those that are known.
Another protocol of this kind needs a `FieldProtocol` of its own.
"""

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import parse_qsl

from attestkit._formats import strict_json
from attestkit._native import json_depth
from attestkit._sanitize import shown
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
"""What every protocol leaves open."""

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
    """Associated data, which bind a sealed text to its request and its position in it."""

    def of_request(self, context: RequestContext, path: Path) -> bytes:
        """Return the associated data of a field of the request."""
        ...

    def of_answer(self, context: RequestContext, answer: Mapping[str, Any], path: Path) -> bytes:
        """Return the associated data of a field of an answer, or of an event of its stream."""
        ...


class EndpointTables(NamedTuple):
    """Fields of the requests to an endpoint, and of its answers."""

    request: FieldTable
    answer: FieldTable


MakeHeaders = Callable[[RequestContext, bytes, bytes], Headers]
"""Returns the headers of a request, from the keys of client and server as published."""


@dataclass(frozen=True)
class FieldProtocol:
    """Parameters of a protocol that seals fields."""

    name: str
    algorithm: str
    cipher: FieldCipher
    endpoints: Mapping[str, EndpointTables]  # by the end of the path, such as `chat/completions`
    headers: MakeHeaders
    associated: AssociatedData | None  # None: a relay can move sealed texts between fields
    seal_empty: bool
    not_proven: tuple[str, ...]


class FieldSealing:
    """Seals the fields of requests to a key. Thread-safe."""

    def __init__(
        self,
        protocol: FieldProtocol,
        public_key: bytes,
        *,
        model: str | None = None,
        allow_open: frozenset[str] = frozenset(),
        now: Callable[[], float] | None = None,
    ) -> None:
        """Seal to a key.

        Args:
            protocol: The protocol.
            public_key: Key of the server, as the protocol publishes it.
            model: The only model that requests may name; None for any.
            allow_open: Patterns of fields, such as `user`, that may be unencrypted with all fields
                beneath them, in requests and in answers.
            now: Clock of the timestamps, in Unix seconds; None for the system's.

        Raises:
            ServiceError: If the key is not valid (`sealing`).
        """
        protocol.cipher.check_key(public_key)
        self._protocol: FieldProtocol = protocol
        self._key: bytes = public_key
        self._model: str | None = model
        self._allowed: frozenset[str] = allow_open
        self._now: Callable[[], float] = now or _system_time
        opened = f"that these fields are hidden: {', '.join(sorted(allow_open))}"
        self.not_proven: tuple[str, ...] = (
            *protocol.not_proven,
            *((opened,) if allow_open else ()),
        )
        """What sealing leaves open, in a few words each."""

    def seal(self, method: str, target: str, headers: Headers, body: bytes) -> SealedRequest:
        """Seal a request; one without body is sent as it is, and so is its answer.

        Raises:
            ServiceError: If it is not JSON for a known endpoint, names another model, or has text
                that the protocol does not seal, also in its query (`sealing`).
        """
        if not body:
            _check_query(target)
            unsealed = UnsealedAnswer()
            return SealedRequest(method, target, _kept(headers), body, unsealed, is_sealed=False)
        if "?" in target or "#" in target:
            raise _refusal("request target: has a query, which would not be encrypted")
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
            f"request target {shown(target)}: {self._protocol.name} seals requests to {known} only"
        )

    def _context(self, document: Mapping[str, Any]) -> RequestContext:
        model = document.get("model", "")
        if not isinstance(model, str) or (model and not is_word(model)):
            raise _refusal("field model: must be a name of 1 to 256 characters without spaces")
        if self._model is not None and model != self._model:
            raise _refusal(
                f"field model: {shown(model)}, and the proof is about {shown(self._model)}; "
                "connect with that model"
            )
        nonce = secrets.token_hex(32)
        return RequestContext(self._protocol.algorithm, model, nonce, int(self._now()))


@dataclass(eq=False, repr=False)
class FieldOpener:
    """Opens the answer to one request: JSON, or a stream of events with JSON."""

    _protocol: FieldProtocol
    _walk: AnswerWalk
    _context: RequestContext
    _key: ClientKey
    _splitter: EventSplitter | None = None
    _body: bytearray = field(default_factory=bytearray)
    _done: bool = False
    authenticated: bool = True
    """Whether the answer is sealed; an error is not."""

    def start(self, status: int, headers: Headers) -> Headers:
        """Check the head, and return the headers without those about the sealed body.

        An answer with a status other than 2xx is not sealed, and is returned as it came.

        Raises:
            ServiceError: If the answer is compressed, of another type than JSON or a stream of
                events, or states that it is not sealed (`sealing`).
        """
        values = {name.lower(): value.strip().lower() for name, value in headers}
        if not 200 <= status <= 299:
            self.authenticated = False
            return headers
        if values.get("content-encoding", "identity") != "identity":
            raise _refusal("answer: is compressed, although nothing but identity is accepted")
        if values.get("x-e2ee-applied", "true") == "false":
            raise _refusal("answer: is not sealed, as X-E2EE-Applied states")
        kind = values.get("content-type", "").partition(";")[0].strip()
        if kind == "text/event-stream":
            self._splitter = EventSplitter()
        elif kind != "application/json":
            raise _refusal(
                f"answer: has the type {shown(kind)}, must be JSON or a stream of events"
            )
        return [(name, value) for name, value in headers if name.lower() not in _DROPPED]

    def feed(self, data: bytes) -> bytes:
        """Take some bytes of the body, and return what can be opened."""
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
            ServiceError: If the answer is incomplete, or cannot be opened (`sealing`).
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
            raise _refusal(f"stream: an event follows {_DONE}")
        for name, value in event.fields:
            if value and not is_word(value):
                raise _refusal(f"stream: {name} has text that is not sealed")
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
                sealed = strict_json.from_hex(text, "sealed text")
                return cipher.open(self._key, sealed, bound).decode()
            except (FormatError, ServiceError, UnicodeDecodeError) as error:
                name = ".".join(map(str, path))
                raise _refusal(f"field {shown(name, 128)} of the answer: {error}") from error

        opened = self._walk.open(document, open_text)
        try:
            return json.dumps(opened, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        except ValueError as error:
            raise _refusal("answer: has a number that is infinite") from error


def _check_query(target: str) -> None:
    """Check that a query has only names and numbers (`is_word`), because it is not encrypted."""
    query = target.partition("?")[2]
    pairs = parse_qsl(query, keep_blank_values=True, errors="surrogateescape")
    if "#" in target or not all(not text or is_word(text) for pair in pairs for text in pair):
        raise _refusal("request target: has text in its query, which would not be encrypted")


def _system_time() -> float:
    return datetime.now(timezone.utc).timestamp()


def _kept(headers: Headers) -> Headers:
    return [(name, value) for name, value in headers if name.lower() not in _REPLACED]


def _read_request(headers: Headers, body: bytes) -> dict[str, Any]:
    values = {name.lower(): value.strip().lower() for name, value in headers}
    kind = values.get("content-type", "").partition(";")[0].strip()
    if kind != "application/json":
        raise _refusal(f"request: has the type {shown(kind)}, and only JSON can be sealed")
    if "content-encoding" in values:
        raise _refusal("request: is compressed; send it as plain JSON")
    if len(body) > MAX_BODY:
        raise _refusal(f"request: its body has {len(body)} bytes, over {MAX_BODY}")
    return _read_json(body, "request")


def _read_json(data: bytes, what: str) -> dict[str, Any]:
    if json_depth(data, MAX_LEVELS) >= 0:
        raise _refusal(f"{what}: nests over {MAX_LEVELS} levels")
    with sealing_errors():
        return strict_json.read_object(data, what)


def _refusal(message: str) -> ServiceError:
    return ServiceError(message, reason="sealing")
