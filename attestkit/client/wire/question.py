"""One GET request for evidence over a connection, without I/O of its own (RFC 9112, by h11)."""

import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from attestkit._argument_checks import needs_extra
from attestkit._sanitize import one_line
from attestkit.client.wire.steps import Receive, Send, Step
from attestkit.errors import FormatError, ServiceError, UsageError

if TYPE_CHECKING:
    import h11

    from attestkit._outcomes.reasons import FormatReason

_PIECE: Final = 1 << 16  # bytes per read
MAX_HEAD: Final = 64 * 1024
"""Maximum size of status line and headers of an answer in bytes."""

_HEADERS: Final = [
    ("Accept", "application/json, */*"),
    ("Accept-Encoding", "identity"),
    ("User-Agent", "attestkit"),
]


class EvidenceReply(NamedTuple):
    """A complete answer with status 200."""

    body: bytes
    reusable: bool  # whether the connection takes another request


def request_evidence(
    host: str,
    target: str,
    headers: tuple[tuple[str, str], ...] = (),
    *,
    limit: int,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[Step, Any, EvidenceReply]:
    """Send a GET request for evidence, and return the answer.

    A generator of the `Send` and `Receive` steps for it, which the caller performs; see `steps`.

    Args:
        host: Value of the header Host.
        target: Path and query in ASCII, percent-encoded.
        headers: Headers besides Host, Accept, Accept-Encoding and User-Agent.
        limit: Maximum size of the body in bytes.
        seconds: Time limit for the whole exchange.
        clock: Returns the seconds of a monotonic clock.

    Raises:
        ServiceError: If the status is not 200 (reason `no_attestation`), the stream ends early
            (`connection`), or the time is up (`timeout`).
        FormatError: If the answer is not HTTP/1.1, is encoded, over `limit`, or followed by more
            bytes.
        UsageError: If h11 is not installed, or the target or a header is not valid.
    """
    with needs_extra("connect", "client"):
        import h11
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    deadline = clock() + seconds
    what = f"{host}: {one_line(target.partition('?')[0], 100)}"
    yield Send(_encode(connection, host, target, headers))
    body, room = bytearray(), limit + MAX_HEAD  # interim answers and framing are bounded, too
    while not isinstance(event := _next_event(connection, what), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            left = deadline - clock()
            if left <= 0:
                raise ServiceError(f"{what}: no answer within {seconds:g} s", reason="timeout")
            data = yield Receive(_PIECE, left)
            room -= len(data)
            _take(connection, data, what)
        elif isinstance(event, h11.Response):
            _check_head(event, what)
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.ConnectionClosed):
            raise ServiceError(f"{what}: closed without an answer", reason="connection")
        if room < 0 or len(body) > limit:
            raise FormatError(f"{what}: answer is over {limit} bytes", reason="too_large")
    if connection.trailing_data[0]:
        raise FormatError(f"{what}: bytes follow the end of the answer", reason="trailing_data")
    closed = connection.trailing_data[1]  # the end of the stream may have ended the body
    return EvidenceReply(bytes(body), not closed and connection.our_state is h11.DONE)


def _encode(
    connection: "h11.Connection", host: str, target: str, headers: tuple[tuple[str, str], ...]
) -> bytes:
    import h11

    try:
        request = h11.Request(
            method="GET", target=target, headers=[("Host", host), *_HEADERS, *headers]
        )
        sent = connection.send(request), connection.send(h11.EndOfMessage())
    except (h11.LocalProtocolError, UnicodeEncodeError) as error:
        message = "request for evidence: target and headers must be valid in HTTP/1.1, and ASCII"
        raise UsageError(message, reason="encoding") from error
    return b"".join(part or b"" for part in sent)


def _next_event(connection: "h11.Connection", what: str) -> Any:  # noqa: ANN401 - of many kinds
    import h11

    try:
        return connection.next_event()
    except h11.RemoteProtocolError as error:
        if connection.trailing_data[1]:  # the peer has closed
            message = f"{what}: the answer is truncated"
            raise ServiceError(message, reason="connection") from error
        reason: FormatReason = "too_large" if error.error_status_hint == 431 else "syntax"
        raise FormatError(f"{what}: invalid HTTP answer", reason=reason) from error


def _take(connection: "h11.Connection", data: bytes, what: str) -> None:
    import h11

    try:
        connection.receive_data(data)
    except (h11.RemoteProtocolError, RuntimeError) as error:
        raise FormatError(f"{what}: bytes follow the answer", reason="trailing_data") from error


def _check_head(response: "h11.Response", what: str) -> None:
    status = response.status_code
    if 300 <= status < 400:
        message = f"{what}: no evidence: HTTP status {status}; redirects are not followed"
        raise ServiceError(message, reason="no_attestation")
    if status != 200:
        message = f"{what}: no evidence: HTTP status must be 200, not {status}"
        raise ServiceError(message, reason="no_attestation")
    for name, value in response.headers:
        if name == b"content-encoding" and value.strip().lower() != b"identity":
            message = f"{what}: the answer must not have a Content-Encoding: none was requested"
            raise FormatError(message, reason="unsupported")
