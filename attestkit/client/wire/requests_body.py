"""Bodies of the library requests and of urllib3: their bytes are recorded as sent and received."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import IO, Any, Final, cast

from requests import PreparedRequest
from urllib3 import HTTPHeaderDict, HTTPResponse

from attestkit.client.wire.exchange import Exchange, WireRecord

_PIECE: Final = 1 << 16


def read_body(body: Any) -> bytes:
    """Return the whole body of a request as bytes; empty for None, as of a GET.

    `body` is what requests accepts: bytes, text (sent as UTF-8), a file or an iterable. A file, in
    text or binary mode, is read from its position to its end. Items of an iterable are text or
    bytes-like objects.
    """
    return b"".join(_pieces(body))


def with_whole_body(request: PreparedRequest) -> PreparedRequest:
    """Return a request whose body is bytes, so that it can be read more than once."""
    body: Any = request.body  # also a file or an iterator
    if body is None or isinstance(body, str | bytes):
        return request
    copied = request.copy()
    copied.body = read_body(body)
    return copied


def record_body(body: Any, record: WireRecord) -> Any:
    """Return a body that adds its bytes to `record`: text and bytes at once, others while sent.

    Args:
        body: Text, bytes, a file or an iterable; None returns None.
        record: Record of the request.
    """
    if body is None:
        return None
    if isinstance(body, str | bytes):
        record.sent(body.encode() if isinstance(body, str) else body)
        return body

    def recorded() -> Iterator[bytes]:
        for piece in _pieces(body):
            record.sent(piece)
            yield piece

    return recorded()


def _pieces(body: Any) -> Iterator[bytes]:
    if body is None:
        return
    if isinstance(body, str | bytes | bytearray):
        body = [body]
    elif hasattr(body, "read"):
        file = body
        body = iter(lambda: file.read(_PIECE) or None, None)
    for piece in body:
        yield piece.encode() if isinstance(piece, str) else bytes(piece)


class RecordedResponse(HTTPResponse):
    """A response of urllib3 with the content that the caller of requests gets.

    It wraps the response that urllib3 received. Each piece of that response's body, as TLS
    delivered it, is recorded first, and then decrypted if the request was encrypted to a key of
    the service; else the caller gets it unchanged.

    Attributes:
        record: Record of the exchange; complete once the answer was read to its end.
    """

    def __init__(self, answer: Any, exchange: Exchange, *hooks: Callable[[], None]) -> None:
        """Record status and headers of `answer`; its body is read when the caller reads.

        Args:
            answer: Response of urllib3 as received.
            exchange: Records the bytes of its body, and decrypts them if they are encrypted.
            hooks: Called once each: at the end of the answer, and when its connection is free.
        """
        headers = exchange.start(answer.status, list(answer.headers.items()))
        self.record: WireRecord = exchange.record
        super().__init__(
            body=cast("IO[bytes]", _AnswerReader(answer, exchange, *hooks)),
            headers=HTTPHeaderDict(headers),
            status=answer.status,
            version=answer.version,
            reason=answer.reason,
            preload_content=False,
            original_response=getattr(answer, "_original_response", None),
            enforce_content_length=False,  # the other answer does it
        )

    def stream(
        self, amt: int | None = _PIECE, decode_content: bool | None = None
    ) -> Generator[bytes, None, None]:
        """Yield the body in pieces, as they are received.

        Args:
            amt: Maximum number of bytes of a piece; None: no maximum.
            decode_content: Whether Content-Encoding is decoded; None: as the response is set.
        """
        while data := self.read1(amt, decode_content):
            yield data


@dataclass(eq=False, repr=False)
class _AnswerReader:
    """Body of the response `_answer` as a file, recorded and decrypted by `_exchange`.

    Content-Encoding is not decoded. `_ended` is called at the end of the body, `_release` when the
    connection is free; `_ready` has bytes for the caller that were not yet read.
    """

    _answer: Any
    _exchange: Exchange
    _ended: Callable[[], None]
    _release: Callable[[], None]
    _ready: bytearray = field(default_factory=bytearray, init=False)
    _finished: bool = field(default=False, init=False)
    closed: bool = field(default=False, init=False)

    def read(self, size: int | None = None) -> bytes:
        """Read up to `size` bytes, as soon as there are some; all for None or a negative size."""
        if size is None or size < 0:
            while not self._finished:
                self._receive()
            size = len(self._ready)
        return self.read1(size)

    def read1(self, size: int = _PIECE) -> bytes:
        """Read up to `size` bytes, as soon as there are some."""
        while not self._ready and not self._finished and size:
            self._receive()
        data = bytes(self._ready[:size])
        del self._ready[:size]
        return data

    def _receive(self) -> None:
        try:
            self._take()
        except BaseException:
            self.close()  # the rest must not be taken for another answer
            raise

    def _take(self) -> None:
        data = self._answer.read1(_PIECE, decode_content=False)
        if data:
            self._ready += self._exchange.feed(data)
        if not data or self._answer.length_remaining == 0:
            self._finished = True
            self._ready += self._exchange.finish()
            self._ended()
            self._release_once()

    def close(self) -> None:
        """Close the answer, and let the connection be used again if it was read to its end."""
        if self.closed:
            return
        self.closed = self._finished = True
        try:
            if not self._exchange.record.has_ended:
                self._ended()
            self._answer.close()
            self._answer.release_conn()
        finally:
            self._release_once()

    def _release_once(self) -> None:
        release, self._release = self._release, lambda: None
        release()
