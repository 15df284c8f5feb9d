"""One request and its answer on the wire: hashes of both bodies, and their encryption.

Hashes are of the bytes on the wire, without the framing of HTTP and before any decoding, as
services sign them.
"""

import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from attestkit.client.wire.answer_identifiers import IdentifierScan
from attestkit.errors import ServiceError

if TYPE_CHECKING:
    from attestkit.client.sealing.protocol import Headers, Opener, SealedRequest

MAX_BEGINNING: Final = 1 << 16
"""Bytes of an answer that are kept, in which its identifier is found."""

MAX_AT_ONCE: Final = 1 << 20
"""Bytes of an answer that is read before the caller gets it: a problem document."""

_OWN_HEADERS: Final = {"accept-encoding", "content-length", "transfer-encoding"}


class WireRecord:
    """Record of one request and its answer on the wire.

    Attributes:
        status: Status of the answer.
        headers: Headers of the answer.
        beginning: The first bytes of the answer's body, at most 64 KiB.
        response_sha256: Of the whole body of the answer; None until it was read to its end.
        identifiers: Those in the answer's body.
        sealed: Whether the request was sealed to a key that was proven.
        authenticated: Whether the answer's content is that of the proven key: False for a sealed
            request whose answer came unsealed.
    """

    __slots__ = (
        "_beginning",
        "_request",
        "_response",
        "authenticated",
        "headers",
        "identifiers",
        "response_sha256",
        "sealed",
        "status",
    )

    def __init__(self, *, sealed: bool = False) -> None:
        self._request, self._response = hashlib.sha256(), hashlib.sha256()
        self._beginning = bytearray()
        self.identifiers: IdentifierScan = IdentifierScan()
        self.status: int = 0
        self.headers: tuple[tuple[str, str], ...] = ()
        self.response_sha256: bytes | None = None
        self.sealed: bool = sealed
        self.authenticated: bool = True

    @property
    def request_sha256(self) -> bytes:
        """Of the request's body, as far as it was sent."""
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
        """Add bytes of the request."""
        self._request.update(data)

    def received(self, data: bytes) -> None:
        """Add bytes of the answer."""
        self._response.update(data)
        self.identifiers.feed(data)
        if len(self._beginning) < MAX_BEGINNING:
            self._beginning += data[: MAX_BEGINNING - len(self._beginning)]

    def ended(self) -> None:
        """Note the end of the answer."""
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
"""Called once an answer was read to its end, or closed before (`response_sha256` is None then)."""


class Exchange:
    """The answer to one request: records it, and opens it if the request was sealed."""

    def __init__(self, sealed: "SealedRequest | None" = None) -> None:
        self.record: WireRecord = WireRecord(sealed=sealed is not None and sealed.is_sealed)
        self._opener: Opener | None = None if sealed is None else sealed.opener
        self._at_once = 0  # bytes

    @property
    def read_at_once(self) -> bool:
        """Whether the body is to be read before the caller gets the answer; see `Opener`."""
        return bool(getattr(self._opener, "read_at_once", False))

    def start(self, status: int, headers: "Headers") -> "Headers":
        """Take the head of the answer, and return the headers for the caller.

        Raises:
            ServiceError: If the answer cannot be opened (reason `sealing`).
        """
        self.record.status, self.record.headers = status, tuple(headers)
        if self._opener is None:
            return headers
        opened = self._opener.start(status, headers)
        self.record.authenticated = bool(getattr(self._opener, "authenticated", True))
        # The length of what travels is not that of what the caller gets.
        return [(name, value) for name, value in opened if name.lower() != "content-length"]

    def feed(self, data: bytes) -> bytes:
        """Take some bytes of the body, and return those for the caller, possibly none.

        Raises:
            ServiceError: If they cannot be opened, or the answer is to be read at once and is over
                1 MiB (reason `sealing`).
        """
        self.record.received(data)
        if self.read_at_once:
            self._at_once += len(data)
            if self._at_once > MAX_AT_ONCE:
                message = f"answer: status {self.record.status} with over {MAX_AT_ONCE} bytes"
                raise ServiceError(message, reason="sealing")
        return data if self._opener is None else self._opener.feed(data)

    def finish(self) -> bytes:
        """Take the end of the body, and return the rest for the caller."""
        rest = b"" if self._opener is None else self._opener.finish()
        self.record.ended()
        return rest

    def sending(self, body: Iterable[bytes]) -> Iterator[bytes]:
        """Record the request's body while it is sent."""
        for piece in body:
            self.record.sent(piece)
            yield piece

    async def sending_async(self, body: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        """Record the request's body while it is sent."""
        async for piece in body:
            self.record.sent(piece)
            yield piece


def plain_headers(headers: "Headers") -> "Headers":
    """Return a request's headers without those of its framing; the answer's body is not encoded."""
    kept = [(name, value) for name, value in headers if name.lower() not in _OWN_HEADERS]
    return [*kept, ("Accept-Encoding", "identity")]


def identity_encoding(headers: "Headers") -> "Headers":
    """Return a request's headers which ask for a body that is not encoded."""
    kept = [(name, value) for name, value in headers if name.lower() != "accept-encoding"]
    return [*kept, ("Accept-Encoding", "identity")]


def framed_headers(sealed: "SealedRequest") -> "Headers":
    """Return the headers of a sealed request with the length of its body."""
    if any(name.lower() == "transfer-encoding" for name, _ in sealed.headers):
        return sealed.headers
    return [*sealed.headers, ("Content-Length", str(len(sealed.body)))]
