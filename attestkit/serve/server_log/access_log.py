"""Access log: one line for each request that was answered or refused.

Recording a request appends one tuple. Lines are formatted and written in batches: by a timer of the
event loop, when a thousand are pending, and before an error is logged.

The text format is the common log format with the listener as ident, and two more fields:

    CLIENT LISTENER - [TIME] "VERB PATH" STATUS BYTES SECONDS REQUEST-ID

A JSON line has the members of any log record, and each of these by name.

The client is an IP address; on a unix socket it is the peer's credentials from the kernel,
`pid=PID,uid=UID,gid=GID`. The pid of a process in another namespace is 0.

A path is logged without its query, which may contain secrets.
"""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from time import gmtime, strftime
from typing import Final, TypeAlias

from attestkit.serve.server_log.stderr_sink import StderrSink

_Entry: TypeAlias = tuple[float, str, str, str, bytes, int, int, float, bytes]

_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred of unix(7)
_INTERVAL: Final = 0.2  # seconds
_BATCH: Final = 1000  # requests
_LONGEST_PATH: Final = 256  # bytes
_LONGEST_CLIENT: Final = 64
_TEXT: Final = b'%b %b - [%b] "%b %b" %d %d %.6f %b\n'
_JSON: Final = (
    b'{"time":"%b.%03dZ","level":"info","logger":"attestkit.access","message":"%b %b",'
    b'"listener":"%b","client":"%b","method":"%b","path":"%b","status":%d,"size":%d,'
    b'"seconds":%.6f,"request_id":"%b"}\n'
)


class AccessLog:
    """Queue of requests that are written to a sink as lines.

    Args:
        sink: Destination of the lines.
        json_form: Write JSON instead of text.
        now: Returns the Unix time.
    """

    def __init__(self, sink: StderrSink, *, json_form: bool, now: Callable[[], float]) -> None:
        self._sink = sink
        self._line = _json_line if json_form else _text_line
        self._now = now
        self._entries: deque[_Entry] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def record(  # noqa: PLR0917 - keyword arguments would cost a third more
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
        """Queue one request; must be called in the event loop.

        Args:
            listener: Name of the listener.
            client: The peer, from `client_name`.
            verb: HTTP method; empty if the request was refused before it was parsed.
            path: Request target as received.
            status: HTTP status of the response.
            size: Bytes of the response body.
            seconds: Duration.
            request_id: Request id in ASCII; empty if none was assigned.
        """
        at, path = self._now(), path[:_LONGEST_PATH]
        self._entries.append((at, listener, client, verb, path, status, size, seconds, request_id))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_INTERVAL, self._expired)
        elif len(self._entries) >= _BATCH:
            self.flush()

    def _expired(self) -> None:
        self._timer = None
        self.flush()

    def flush(self, patience: float = 0.0) -> None:
        """Write all pending lines, waiting up to `patience` seconds for the reader; thread-safe."""
        lines = []
        try:
            while True:
                lines.append(self._line(self._entries.popleft()))
        except IndexError:
            pass
        if lines:
            self._sink.write(lines, patience)


def client_name(address: tuple[str, int] | None, transport: asyncio.BaseTransport) -> str:
    """Return the peer: its IP address, or on a unix socket its process and user.

    Empty if the kernel does not provide it.
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
    """Return ASCII text that fits between quotes in both formats, with backslashes doubled."""
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
    return strftime("%d/%b/%Y:%H:%M:%S +0000", gmtime(at)).encode("ascii")


@lru_cache(2)
def _rfc3339(at: int) -> bytes:
    return strftime("%Y-%m-%dT%H:%M:%S", gmtime(at)).encode("ascii")
