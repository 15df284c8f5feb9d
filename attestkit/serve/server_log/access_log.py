"""The access log: a line for each request that was answered or refused.

A request costs the appending of a tuple. Lines are made and written in batches, by a timer of the
event loop, when a thousand have come together, and before an error is logged.

As text that is the common log format, the listener in the place of ident, with two fields more:

    CLIENT LISTENER - [TIME] "VERB PATH" STATUS BYTES SECONDS REQUEST-ID

As JSON it is an object with the members of any record, and each of these by name.

The client is an address, or on a unix socket the process that connected and its user, as the kernel
knows them: `pid=PID,uid=UID,gid=GID`. A process that is not in our namespace is number 0.

A path is told without its query, which may hold what is secret.
"""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from time import gmtime
from typing import Final, TypeAlias

from attestkit.serve.server_log.stderr_sink import Sink

__all__ = ["AccessLog", "client_name"]

_Entry: TypeAlias = tuple[float, str, str, str, bytes, int, int, float, bytes]

_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred of unix(7)
_INTERVAL: Final = 0.2  # seconds
_BATCH: Final = 1000  # requests
_LONGEST_PATH: Final = 256  # bytes
_LONGEST_CLIENT: Final = 64
_MONTHS: Final = b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
_TEXT: Final = b'%b %b - [%b] "%b %b" %d %d %.6f %b\n'
_JSON: Final = (
    b'{"time":"%b.%03dZ","level":"info","logger":"attestkit.access","message":"%b %b",'
    b'"listener":"%b","client":"%b","method":"%b","path":"%b","status":%d,"size":%d,'
    b'"seconds":%.6f,"request_id":"%b"}\n'
)


class AccessLog:
    """Requests, as lines in a sink.

    Args:
        sink: Where the lines go.
        json_form: Whether they are JSON.
        now: Seconds since 1970.
    """

    def __init__(self, sink: Sink, *, json_form: bool, now: Callable[[], float]) -> None:
        self._sink = sink
        self._line = _json_line if json_form else _text_line
        self._now = now
        self._entries: deque[_Entry] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def note(  # noqa: PLR0917 - what a request was; names would cost a third more
        self,
        listener: str,
        client: str,
        verb: str,
        path: bytes,
        status: int,
        size: int,
        seconds: float,
        request_id: bytes,
    ) -> None:
        """Take a request that was answered or refused; to be called in the event loop.

        Args:
            listener: The name of the listener.
            client: Who asked: `client_name`.
            verb: Nothing, where the request was refused before its verb was known.
            path: As it came.
            status: What was answered.
            size: Bytes of the answer's body.
            seconds: How long it took.
            request_id: Ours, in ASCII; nothing, where it was given none.
        """
        self._entries.append(
            (
                self._now(),
                listener,
                client,
                verb,
                path[:_LONGEST_PATH],
                status,
                size,
                seconds,
                request_id,
            )
        )
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_INTERVAL, self._expired)
        elif len(self._entries) >= _BATCH:
            self.flush()

    def _expired(self) -> None:
        self._timer = None
        self.flush()

    def flush(self, patience: float = 0.0) -> None:
        """Write what has come together; from any thread."""
        lines = []
        try:
            while True:
                lines.append(self._line(self._entries.popleft()))
        except IndexError:
            pass
        if lines:
            self._sink.write(lines, patience)


def client_name(address: tuple[str, int] | None, transport: asyncio.BaseTransport) -> str:
    """Return who is at the other end: the address, or on a unix socket the process and its user.

    Nothing, where the kernel does not tell.
    """
    if address:
        return address[0]
    try:
        connection = transport.get_extra_info("socket")
        found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, gid = _CREDENTIALS.unpack(found)
    except (OSError, AttributeError, struct.error):
        return ""
    return f"pid={pid},uid={uid},gid={gid}"


def _text_line(entry: _Entry) -> bytes:
    at, listener, client, verb, path, status, size, seconds, request_id = entry
    return _TEXT % (
        _quoted(client) or b"-",
        _quoted(listener),
        _common_time(int(at)),
        _quoted(verb) or b"-",
        _quoted_path(path) or b"-",
        status,
        size,
        seconds,
        request_id or b"-",
    )


def _json_line(entry: _Entry) -> bytes:
    at, listener, client, verb, path, status, size, seconds, request_id = entry
    verb_bytes, path_bytes = _quoted(verb), _quoted_path(path)
    return _JSON % (
        _rfc3339(int(at)),
        int(at % 1 * 1000),
        *(verb_bytes, path_bytes, _quoted(listener), _quoted(client), verb_bytes, path_bytes),
        *(status, size, seconds, request_id),
    )


@lru_cache(1024)
def _quoted(text: str) -> bytes:
    """Return text that may stand in quotes, in either form: ASCII, with backslashes doubled."""
    return _quoted_path(text[:_LONGEST_CLIENT].encode("utf-8", "surrogateescape"))


@lru_cache(1024)
def _quoted_path(path: bytes) -> bytes:
    text = path.partition(b"?")[0].decode("ascii", "backslashreplace")
    if text.isprintable() and "\\" not in text and '"' not in text:
        return text.encode("ascii")
    escaped = "".join(f"\\x{ord(c):02x}" if c < " " or c == "\x7f" else c for c in text)
    return escaped.replace("\\", "\\\\").replace('"', '\\"').encode("ascii")


@lru_cache(2)
def _common_time(at: int) -> bytes:
    found = gmtime(at)
    return b"%02d/%b/%d:%02d:%02d:%02d +0000" % (
        found.tm_mday,
        _MONTHS[found.tm_mon - 1],
        *(found.tm_year, found.tm_hour, found.tm_min, found.tm_sec),
    )


@lru_cache(2)
def _rfc3339(at: int) -> bytes:
    found = gmtime(at)
    return b"%d-%02d-%02dT%02d:%02d:%02d" % found[:6]
