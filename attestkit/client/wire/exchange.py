"""One request and its answer on the wire: hashes of both bodies, and their encryption.

Hashes are of the bytes on the wire, without the framing of HTTP and before any decoding, as
services sign them.
"""

import hashlib
import re
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from attestkit._sanitize import one_line
from attestkit.client.wire.steps import ConnectionVerifier
from attestkit.errors import ServiceError, UsageError

if TYPE_CHECKING:
    from attestkit.client.sealing.protocol import Headers, Opener, SealedRequest, Sealing

MAX_IDENTIFIERS: Final = 4096
"""Maximum number of identifiers of one answer that are kept."""

_GAP: Final = 64  # bytes of space around the colon
_LONGEST: Final = 200  # bytes of an identifier
_WINDOW: Final = 512  # bytes; more than any match has
_FOUND: Final = re.compile(
    rb'"id"[ \t]{0,%d}:[ \t]{0,%d}"([^"\\\r\n]{1,%d})"' % (_GAP, _GAP, _LONGEST)
)
_HIDDEN: Final = re.compile(
    rb'"id"[ \t]*(?:[\r\n]|:[ \t]*[\r\n])'  # lines of `data` may be joined
    rb'|"id"(?:[ \t]{%d}|[ \t]*:[ \t]{%d})'
    % (_GAP + 1, _GAP + 1)
    + rb'|"id"[ \t]*:[ \t]*"[^"\\\r\n]*\\'
    + rb'|"id"[ \t]*:[ \t]*"[^"\\\r\n]{%d}' % (_LONGEST + 1)
    + rb'|"(?:\\u0069(?:d|\\u0064)|i\\u0064)"'
)
_UTF16_OR_32: Final = (b"\xfe\xff", b"\xff\xfe", b"\0")


class IdentifierScan:
    """Search for identifiers (JSON members `id`) in one answer while it is received.

    Attributes:
        found: The identifiers, at most `MAX_IDENTIFIERS`.
        hides: Whether the answer may have identifiers that the search does not find.
    """

    __slots__ = ("_start", "_tail", "found", "hides")

    def __init__(self) -> None:
        self.found: set[str] = set()
        self.hides: bool = False
        self._start, self._tail = b"", b""

    def feed(self, data: bytes) -> None:
        """Search `data`, the next bytes of the answer's body, which may be cut anywhere."""
        if len(self._start) < 4:
            self._start += data[: 4 - len(self._start)]
            self.hides |= self._start.startswith(_UTF16_OR_32) or b"\0" in self._start
        window = self._tail + data
        for match in _FOUND.finditer(window):
            identifier = match[1].decode("utf-8", "replace")
            if len(self.found) < MAX_IDENTIFIERS:
                self.found.add(identifier)
            self.hides |= identifier not in self.found
        self.hides |= _HIDDEN.search(window) is not None
        self._tail = window[-_WINDOW:]


MAX_BEGINNING: Final = 1 << 16
"""Bytes of an answer that are kept, in which its identifier is found."""

MAX_AT_ONCE: Final = 1 << 20
"""Maximum size in bytes of an error body that is read before the caller gets the answer."""

_FRAMING: Final = {"content-length", "transfer-encoding"}


@dataclass(slots=True, eq=False, repr=False)
class WireRecord:
    """Record of one request and its answer on the wire.

    Attributes:
        status: Status of the answer.
        headers: Headers of the answer.
        beginning: The first bytes of the answer's body, at most 64 KiB.
        response_sha256: SHA-256 of the answer's body; None until it was read to its end.
        identifiers: Identifiers in the answer's body.
        sealed: Whether the request was encrypted to a key that the server's evidence names.
        authenticated: False if the request was encrypted and the answer came unencrypted, so that
            an attacker may have written it.
    """

    sealed: bool = False
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    response_sha256: bytes | None = None
    authenticated: bool = True
    identifiers: IdentifierScan = field(default_factory=IdentifierScan)
    _request: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    _response: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    _beginning: bytearray = field(default_factory=bytearray)

    @property
    def request_sha256(self) -> bytes:
        """SHA-256 of the request's body, as far as it was sent."""
        return self._request.digest()

    @property
    def beginning(self) -> bytes:
        """The first bytes of the answer's body."""
        return bytes(self._beginning)

    @property
    def has_ended(self) -> bool:
        """Whether the answer was read to its end."""
        return self.response_sha256 is not None

    def sent(self, data: bytes) -> None:
        """Hash `data`, the next bytes of the request's body, as they are sent."""
        self._request.update(data)

    def received(self, data: bytes) -> None:
        """Hash and search `data`, the next bytes of the answer's body, as they are received."""
        self._response.update(data)
        self.identifiers.feed(data)
        if len(self._beginning) < MAX_BEGINNING:
            self._beginning += data[: MAX_BEGINNING - len(self._beginning)]

    def ended(self) -> None:
        """Note the end of the answer's body: set `response_sha256`."""
        self.response_sha256 = self._response.digest()


EXTENSION: Final = "attestkit"
"""Name of the WireRecord in `response.extensions`: of requests that are sealed or recorded."""


def record_of(response: object) -> WireRecord | None:
    """Return the record of a response of httpx, httpx2 or requests; None if it has none."""
    extensions = getattr(response, "extensions", None)
    if isinstance(extensions, Mapping):
        found = extensions.get(EXTENSION)
    else:
        found = getattr(getattr(response, "raw", None), "record", None)
    return found if isinstance(found, WireRecord) else None


OnAnswer = Callable[[WireRecord], None]
"""Called once an answer was read to its end or closed early (`response_sha256` is None then)."""


class Exchange:
    """Recorder of one request and its answer, which it decrypts if the request was encrypted."""

    def __init__(self, sealed: "SealedRequest | None" = None) -> None:
        self.record: WireRecord = WireRecord(sealed=sealed is not None and sealed.is_sealed)
        self._opener: Opener | None = None if sealed is None else sealed.opener
        self._at_once = 0  # bytes

    @property
    def read_at_once(self) -> bool:
        """Whether the body is to be read before the caller gets the answer; see `Opener`."""
        return bool(getattr(self._opener, "read_at_once", False))

    def start(self, status: int, headers: "Headers") -> "Headers":
        """Record status and headers of the answer, and return the headers for the caller.

        Args:
            status: Status, such as 200.
            headers: Names and values.

        Raises:
            ServiceError: If they are not those of an answer that can be decrypted (reason
                `sealing`).
        """
        self.record.status, self.record.headers = status, tuple(headers)
        if self._opener is None:
            return headers
        opened = self._opener.start(status, headers)
        self.record.authenticated = bool(getattr(self._opener, "authenticated", True))
        # The length of what travels is not that of what the caller gets.
        return [(name, value) for name, value in opened if name.lower() != "content-length"]

    def feed(self, data: bytes) -> bytes:
        """Record `data`, the next bytes of the answer's body, and return those for the caller.

        These are decrypted if the request was encrypted, and may be none until more are received.

        Raises:
            ServiceError: If they cannot be decrypted, or `read_at_once` is set and the body is over
                1 MiB (reason `sealing`).
        """
        self.record.received(data)
        if self.read_at_once:
            self._at_once += len(data)
            if self._at_once > MAX_AT_ONCE:
                message = f"answer: status {self.record.status}: body: over {MAX_AT_ONCE} bytes"
                raise ServiceError(message, reason="sealing")
        return data if self._opener is None else self._opener.feed(data)

    def finish(self) -> bytes:
        """Record the end of the answer's body, and return the remaining bytes for the caller.

        Raises:
            ServiceError: If an encrypted answer is incomplete or cannot be decrypted, or the server
                answers that it lacks the key (SealingKeyError).
        """
        rest = b"" if self._opener is None else self._opener.finish()
        self.record.ended()
        return rest

    def sending(self, body: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the pieces of the request's body unchanged, and record them."""
        for piece in body:
            self.record.sent(piece)
            yield piece

    async def sending_async(self, body: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        """Yield the pieces of the request's body unchanged, and record them."""
        async for piece in body:
            self.record.sent(piece)
            yield piece


MAX_CONNECTIONS: Final = 16
"""Connections that are opened for one request, while servers close them after the evidence."""


def _identity_encoding(headers: "Headers") -> "Headers":
    """Return a request's headers with `Accept-Encoding: identity`."""
    kept = [(name, value) for name, value in headers if name.lower() != "accept-encoding"]
    return [*kept, ("Accept-Encoding", "identity")]


class ProvenRequests:
    """Common base of HTTP transports and adapters that send to one attested server only.

    Args:
        server_verifier: Verifier of the server.
        sealing: Returns a Sealing, which encrypts or amends the next request, or None to leave it
            unchanged.
        renew_sealing: Called with the Sealing of a request if the server answers that it lacks the
            key to which it was encrypted. Verifies the server again, and returns the Sealing to
            send the request once more, or None not to.
        on_answer: Called with a WireRecord once an answer was read to its end or closed early;
            None: answers are not recorded.
        headers: Names and values of headers that are added to requests without them.
    """

    def __init__(
        self,
        server_verifier: ConnectionVerifier,
        *,
        sealing: "Callable[[], Sealing | None] | None" = None,
        renew_sealing: "Callable[[Any], Sealing | None] | None" = None,
        on_answer: OnAnswer | None = None,
        headers: "Headers | None" = None,
    ) -> None:
        super().__init__()
        self._server_verifier, self._headers = server_verifier, headers or []
        self._sealing, self._renew_sealing = sealing, renew_sealing
        self._on_answer = on_answer

    def note(self, exchange: Exchange) -> None:
        """Call `on_answer`, if set, after an answer was read to its end or closed early."""
        if self._on_answer is not None:
            self._on_answer(exchange.record)

    def _seal(
        self, sealing: "Sealing", method: str, target: str, headers: "Headers", body: bytes
    ) -> "SealedRequest":
        """Encrypt or amend a request; set Content-Length and `Accept-Encoding: identity`.

        Args:
            sealing: What encrypts or amends it.
            method: Method of the request.
            target: Its path and query.
            headers: Its headers, names and values.
            body: Its whole body.

        Raises:
            ServiceError: If the request cannot be encrypted (reason `sealing`).
        """
        plain = [(name, value) for name, value in headers if name.lower() not in _FRAMING]
        sealed = sealing.seal(method, target, _identity_encoding(plain), body)
        if any(name.lower() == "transfer-encoding" for name, _ in sealed.headers):
            return sealed
        length = ("Content-Length", str(len(sealed.body)))
        return sealed._replace(headers=[*sealed.headers, length])

    def _open_headers(self, headers: "Headers") -> "Headers":
        """Return the headers of an unencrypted request as sent.

        If answers are recorded, they have `Accept-Encoding: identity`.
        """
        return headers if self._on_answer is None else _identity_encoding(headers)

    def _check_origin(self, scheme: str, host: str, port: int | None) -> None:
        """Check that a request's URL, which a redirect may have named, is at the endpoint's server.

        Args:
            scheme: Scheme of the URL.
            host: Host of the URL in ASCII, without brackets.
            port: Port of the URL; None: 443.

        Raises:
            UsageError: If the URL is not `https://` (reason `plain_http`).
            ServiceError: If host or port is not the endpoint's (reason `other_origin`).
        """
        if scheme != "https":
            message = f"URL: scheme must be https, not {one_line(scheme, 20)}"
            raise UsageError(message, reason="plain_http")
        port = 443 if port is None else port
        own, own_port = self._server_verifier.host, self._server_verifier.port
        if (host.lower(), port) != (own.lower(), own_port):
            message = (
                f"request to https://{one_line(host, 100)}:{port}: the endpoint is for "
                f"{own}:{own_port} only; use another one, with a policy of its own"
            )
            raise ServiceError(message, reason="other_origin")

    def _no_connection(self) -> ServiceError:
        """Return the error for a server that closes each connection after its evidence."""
        host, port = self._server_verifier.host, self._server_verifier.port
        message = (
            f"{host}:{port}: the server closed {MAX_CONNECTIONS} connections in a row, each "
            "after its evidence"
        )
        return ServiceError(message, reason="connection")
