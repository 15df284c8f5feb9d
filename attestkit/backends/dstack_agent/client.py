"""A client of the dstack guest agent API over HTTP/1.1: on a unix socket, or at a URL.

Nothing that the agent sends is trusted: an answer is bounded in time and in size, its status and
body become errors of ours, and no error holds the body of an answer, which may be a key.

Every call has a connection of its own: it costs about 0.1 ms, and there is nothing to share between
threads, to inherit over a fork, or to find dead after the agent was restarted.
"""

import io
import json
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, cast

from attestkit._formats import strict_json
from attestkit._formats.strict_json import check_depth
from attestkit._sanitize import one_line
from attestkit.errors import (
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    FormatError,
    QuoteUnavailableError,
    UnsupportedError,
    UsageError,
)

if TYPE_CHECKING:
    import socket
    from http.client import HTTPResponse

    from _typeshed import WriteableBuffer

__all__ = ["MAX_ANSWER", "MAX_REQUEST", "TIMEOUT", "AgentClient", "Answer"]

MAX_ANSWER: Final = 1 << 25
"""Bytes of the longest answer, its head and its framing included: 32 MiB."""

MAX_REQUEST: Final = 10 << 20
"""Bytes of the longest request that agents take: 10 MiB."""

TIMEOUT: Final = 60.0
"""Seconds that a call may take, all in all; a quote takes some on a loaded machine."""

_MAX_HEAD: Final = 1 << 18  # bytes before the body; interim responses count
_ANSWER_LIMIT: Final = "32 MiB"
_HEAD_LIMIT: Final = "256 KiB before a body"
_PIECE: Final = 1 << 16  # bytes read at once
_LONGEST_TEXT: Final = 200  # characters of the agent's own words in an error
_URL: Final = ("http://", "https://")
_ONCE: Final = frozenset({"EmitEvent"})  # asking twice would not be the same as asking once
_SINCE: Final = {  # the releases of the agent that have a method, where not all have it
    "EmitEvent": "releases from 0.6.0 on do not have it any more",
    "Sign": "it came with release 0.5.6",
    "Version": "it came with release 0.5.7",
}
_UNREACHABLE: Final = (  # why there is no connection, in words
    (FileNotFoundError, "is not there: no such socket"),
    (NotADirectoryError, "is not there: no such socket"),
    (PermissionError, "may not be used by this user: join the group that owns its socket"),
    (ConnectionRefusedError, "is not running: nobody listens there"),
    (TimeoutError, "cannot be reached: nobody took the connection in time"),
)


class Answer(NamedTuple):
    """What an agent answered with status 200."""

    text: str  # the body
    server: str  # who says that it is, from the header Server; empty without one


class AgentClient:
    """Calls an agent's methods. Threads may share it, it survives a fork, and it pickles.

    Args:
        endpoint: `http://` or `https://` and what follows is the URL that methods are below;
            anything else is the path of a unix socket. Whoever reads what goes over plain HTTP
            reads keys: leave that to the machine itself.
        timeout: Seconds that one call may take.
        clock: Seconds of a clock that only goes forward.

    Raises:
        UsageError: The endpoint or the timeout cannot be.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        timeout: float = TIMEOUT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        _check_arguments(endpoint, timeout)
        self.endpoint = endpoint
        self._place = _read_url(endpoint) if endpoint.startswith(_URL) else _Place(path=endpoint)
        self._name = f"the agent at {_printable(endpoint)}"
        self._timeout = timeout
        self._clock = clock
        self._closed = False

    def call(self, method: str, arguments: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Call a method and return its answer, a JSON object; errors as `post`."""
        text = self.post(method, arguments).text
        try:
            return strict_json.read_object(text, "it")
        except FormatError as error:
            problem = str(error)
        # Raised here, because the causes of that error carry the whole text.
        raise BackendError(f"{self._name} answered {method} with what cannot be read: {problem}")

    def post(self, method: str, arguments: Mapping[str, object] | None = None) -> Answer:
        """Call a method and return its answer as it is: text that nests no deeper than JSON may.

        Raises:
            UsageError: The agent says that the arguments are wrong; or they are over 10 MiB, or
                this client is closed.
            UnsupportedError: The agent does not have this method.
            BackendUnavailableError: Nobody is there, or nobody that this user may talk to.
            BackendBusyError: The agent takes no more calls now, or it did not answer in time.
            QuoteUnavailableError: It gave no quote, to GetQuote.
            BackendError: Anything else that went wrong. After EmitEvent it may not be known whether
                there is an event; the text says so.
        """
        if self._closed:
            raise UsageError("this client of an agent is closed")
        if not method.isidentifier():
            raise UsageError(f"an agent's method is a name, not {method!r}")
        try:
            body = json.dumps({} if arguments is None else dict(arguments)).encode()
        except (TypeError, ValueError) as error:
            raise UsageError(f"{method}: its arguments are no JSON: {error}") from error
        if len(body) > MAX_REQUEST:
            raise UsageError(f"{method}: an agent takes 10 MiB at most, not {len(body)} bytes")
        status, server, data = self._exchange(method, body)
        if status != 200:
            self._refuse(method, status, _words(data), asked=bool(arguments))
        try:
            check_depth(data)
            return Answer(data.decode(), server)
        except FormatError as error:
            problem = str(error)
        except UnicodeDecodeError:
            problem = "it is not UTF-8"
        # Raised here, because the second carries the whole text.
        text = f"answered {method} with what cannot be read: {problem}"
        raise BackendError(self._broken(method, text))

    def close(self) -> None:
        """Refuse further calls. A second call does nothing."""
        self._closed = True

    def __repr__(self) -> str:
        return f"AgentClient({self.endpoint!r})"

    # -- the wire ------------------------------------------------------------------------------

    def _exchange(self, method: str, body: bytes) -> tuple[int, str, bytes]:
        """Send a request on a new connection; return status, Server header and body."""
        import http.client as http  # slow to import

        deadline = self._clock() + self._timeout
        connection = http.HTTPConnection(self._place.host or "localhost", self._place.port or None)
        sock = self._connect(deadline)
        wire = _Wire(sock, lambda: deadline - self._clock())
        connection.sock = cast("socket.socket", wire)  # all that http.client needs of one
        try:
            headers = {"Content-Type": "application/json", "Connection": "close"}
            connection.request("POST", f"{self._place.prefix}/{method}", body, headers)
            with connection.getresponse() as response:
                wire.take_body()
                return response.status, response.headers.get("Server", ""), _read_body(response)
        except TimeoutError as error:
            kind = BackendError if method in _ONCE else BackendBusyError
            text = f"did not answer {method} within {self._timeout:g} s"
            raise kind(self._broken(method, text)) from error
        except http.RemoteDisconnected:
            problem = "closed the connection without an answer to"
        except (http.IncompleteRead, _CutError):
            problem = "broke off in the middle of its answer to"
        except _TooLongError as error:
            problem = f"sent more than {error} as its answer to"
        except OSError as error:
            text = f"broke the connection during {method}: {error.strerror or error}"
            raise BackendError(self._broken(method, text)) from error
        except (http.HTTPException, ValueError) as error:
            problem = f"sent what is not HTTP ({type(error).__name__}) as its answer to"
        finally:
            sock.close()
        # Raised here, because some of those errors carry what was read.
        raise BackendError(self._broken(method, f"{problem} {method}"))

    def _broken(self, method: str, text: str) -> str:
        unknown = "; whether the event was emitted is not known: look for it in the log"
        return f"{self._name} {text}{unknown if method in _ONCE else ''}"

    def _connect(self, deadline: float) -> "socket.socket":
        place = self._place
        import socket  # here, so that whoever has no agent does not load it

        sock = None
        try:
            if not place.path:
                address = (place.host, place.port)
                sock = socket.create_connection(address, deadline - self._clock())
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return self._encrypted(sock) if place.tls else sock
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(deadline - self._clock())
            sock.connect(place.path)
        except (OSError, ValueError) as error:
            if sock is not None:
                sock.close()
            raise self._unreachable(error) from error
        return sock

    def _encrypted(self, sock: "socket.socket") -> "socket.socket":
        import ssl  # few agents have a URL, and fewer TLS

        context = ssl.create_default_context()
        return context.wrap_socket(sock, server_hostname=self._place.host)

    def _unreachable(self, error: Exception) -> Exception:
        """Return what to raise where no connection could be made."""
        text = getattr(error, "strerror", None) or str(error)
        if isinstance(error, UnicodeError) or text == "AF_UNIX path too long":
            return UsageError(f"{self._name} cannot be: {one_line(text, _LONGEST_TEXT)}")
        if isinstance(error, BlockingIOError):  # what Linux says of a unix socket's full queue
            return BackendBusyError(f"{self._name} has too many callers waiting")
        if isinstance(error, OSError) and (what := _no_socket(self._place.path)):
            return BackendUnavailableError(f"{self._name} {what}")
        for kind, saying in _UNREACHABLE:
            if isinstance(error, kind):
                return BackendUnavailableError(f"{self._name} {saying}")
        return BackendUnavailableError(
            f"{self._name} cannot be reached: {one_line(text, _LONGEST_TEXT)}"
        )

    # -- errors --------------------------------------------------------------------------------

    def _refuse(self, method: str, status: int, words: str, *, asked: bool) -> NoReturn:
        """Raise what a status other than 200 means; `words` are the agent's own.

        `asked` is False where there were no arguments that could be wrong.
        """
        # Releases of the agent say 400 to everything; theirs is told apart by its words.
        if status == 404 or (status == 400 and words.startswith("Service not found")):
            since = _SINCE.get(
                method, "it is of an older release, or its API is not that of dstack.sock"
            )
            raise UnsupportedError(f"{self._name} has no method {method}: {since}")
        text = f"{self._name} refused {method}: {words or f'status {status}'}"
        if "unavailable in simulator mode" in words:
            raise UnsupportedError(text)
        if method == "GetQuote" and status in (400, 500):
            raise QuoteUnavailableError(text)
        if status == 400 and asked and not words.startswith("Failed to "):
            raise UsageError(text)
        if status in (408, 429, 503):
            raise BackendBusyError(text)
        if status >= 500 and method in _ONCE:  # it may have failed behind the extend
            text = self._broken(method, f"refused {method}: {words or f'status {status}'}")
        raise BackendError(text if status in (400, 500) else f"{text} (status {status})")


class _Place(NamedTuple):
    """Where an endpoint leads."""

    path: str = ""  # of a unix socket, else it is a URL
    host: str = ""
    port: int = 0
    tls: bool = False
    prefix: str = ""


def _check_arguments(endpoint: object, timeout: object) -> None:
    if not isinstance(endpoint, str) or not endpoint or "\0" in endpoint:
        raise UsageError("an agent's endpoint is a URL or the path of a socket")
    if not isinstance(timeout, (int, float)) or not 0 < timeout <= 86400:
        raise UsageError(f"a timeout is a number of seconds, at most 86400, not {timeout!r}")


def _no_socket(path: str) -> str:
    """Say what is at a socket's place where that is something else; empty if it may be one."""
    try:
        mode = Path(path).stat().st_mode if path else 0
    except (OSError, ValueError):
        return ""
    if stat.S_ISDIR(mode):
        return (
            "is a folder, and no socket: a container engine makes one where the host has no socket "
            "to mount; start the agent on the host, remove the folder there, and make the "
            "container anew"
        )
    if stat.S_ISREG(mode):
        return "is a file, and no socket: name the socket of a running agent"
    return ""


def _read_url(url: str) -> _Place:
    from urllib.parse import urlsplit  # http.client has it anyway

    wrong = UsageError(f"an agent's URL is http(s)://HOST[:PORT][/PATH], not {_printable(url)}")
    if not url.isascii() or not url.isprintable() or set(" ?#@\\") & set(url):
        raise wrong  # no user and password either: they would get into errors
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise wrong from error
    if not parts.hostname or port == 0:
        raise wrong
    tls = parts.scheme == "https"
    return _Place("", parts.hostname, port or (443 if tls else 80), tls, parts.path.rstrip("/"))


class _TooLongError(Exception):
    """The agent sent more than it may."""


class _CutError(Exception):
    """The agent sent less than it had announced."""


class _Wire:
    """What http.client sees of a connected socket, which is ours to close."""

    def __init__(self, sock: "socket.socket", time_left: Callable[[], float]) -> None:
        self._sock = sock
        self._time_left = time_left
        self._incoming = _Incoming(sock, time_left)

    def sendall(self, data: bytes) -> None:
        """Send all of `data`."""
        _wait_no_longer(self._sock, self._time_left())
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return what reads from here."""
        assert mode == "rb"
        return io.BufferedReader(self._incoming)

    def take_body(self) -> None:
        """Let as much come in as an answer may have; before, it is as much as a head may."""
        self._incoming.room += MAX_ANSWER - _MAX_HEAD
        self._incoming.limit = _ANSWER_LIMIT

    def close(self) -> None:
        """Do nothing: http.client closes before it reads an answer that ends the connection."""


class _Incoming(io.RawIOBase):
    """What a socket gives, bounded: in bytes, and in time all in all."""

    def __init__(self, sock: "socket.socket", time_left: Callable[[], float]) -> None:
        self._sock = sock
        self._time_left = time_left
        self.room = _MAX_HEAD
        self.limit = _HEAD_LIMIT

    def readable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Read what there is into `buffer`, and count it."""
        _wait_no_longer(self._sock, self._time_left())
        size = self._sock.recv_into(buffer)
        self.room -= size
        if self.room < 0:
            raise _TooLongError(self.limit)
        return size


def _wait_no_longer(sock: "socket.socket", seconds: float) -> None:
    if seconds <= 0:
        raise TimeoutError("timed out")
    sock.settimeout(seconds)


def _read_body(response: "HTTPResponse") -> bytes:
    """Read a body in pieces: what its length promises is allocated only when it has come."""
    if (response.length or 0) > MAX_ANSWER:
        raise _TooLongError(_ANSWER_LIMIT)
    pieces = []
    while piece := response.read(_PIECE):
        pieces.append(piece)
    if response.length:
        raise _CutError
    return b"".join(pieces)


def _words(data: bytes) -> str:
    """Return what an agent says of an error, as one short line; empty if that is nothing."""
    head = data[:_PIECE]
    try:
        check_depth(head)
        found = json.loads(head)["error"]
        if isinstance(found, dict):  # from the HTTP framework of the agent's releases
            found = found["description"]
        if isinstance(found, str):
            return one_line(found, _LONGEST_TEXT)
    except (FormatError, ValueError, RecursionError, LookupError, TypeError):
        pass
    return one_line(head.decode(errors="replace"), _LONGEST_TEXT)


def _printable(endpoint: str) -> str:
    return endpoint if endpoint.isprintable() else ascii(endpoint)
