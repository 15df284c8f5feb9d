"""Client of the dstack guest agent API over HTTP/1.1, by a UNIX socket or a URL.

The agent is not trusted: responses have a size limit and a timeout, failures are AttestKitErrors,
and errors never contain the body of a response, which may be a key.

Each call opens a connection, which costs about 0.1 ms. So the client has no state to share between
threads or across a fork, and works after a restart of the agent.
"""

import json
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from attestkit._formats import strict_json
from attestkit._formats.strict_json import check_depth
from attestkit._reasons import BackendReason, BackendUnavailableReason
from attestkit._sanitize import one_line
from attestkit._system.bounded_http import ResponseLimits, TooLargeError, exchange
from attestkit.errors import (
    AttestKitError,
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

MAX_RESPONSE: Final = 1 << 25
"""Limit of the body of a response in bytes: 32 MiB."""

MAX_REQUEST: Final = 10 << 20
"""Limit of a request in bytes, the same as that of agents: 10 MiB."""

TIMEOUT: Final = 60.0
"""Default timeout of a call in seconds; a quote can take several on a loaded machine."""

_MAX_HEAD: Final = 1 << 18  # bytes before the body, including interim (1xx) responses
_LONGEST_BODY: Final = 1 << 16  # bytes that are parsed for the agent's message in an error
_LONGEST_TEXT: Final = 200  # characters of the agent's message in an error
_URL: Final = ("http://", "https://")
_NOT_IDEMPOTENT: Final = frozenset({"EmitEvent"})
_RELEASES: Final = {  # of agents with a method
    "EmitEvent": "removed in release 0.6.0",
    "Sign": "added in release 0.5.6",
    "Version": "added in release 0.5.7",
}
_CONNECT_ERRORS: Final[tuple[tuple[type[OSError], BackendUnavailableReason, str], ...]] = (
    (FileNotFoundError, "missing", "no such socket; start the agent"),
    (NotADirectoryError, "missing", "no such socket; start the agent"),
    (
        PermissionError,
        "permission_denied",
        "no permission to connect; join the group that owns the socket",
    ),
    (ConnectionRefusedError, "cannot_connect", "connection refused; start the agent"),
    (TimeoutError, "cannot_connect", "connection timed out"),
)


class AgentResponse(NamedTuple):
    """A response of an agent with status 200."""

    text: str  # the body
    server: str  # the header field Server; empty without one


class AgentClient:
    """Client of a guest agent. It is thread-safe, works after a fork, and can be pickled.

    Args:
        endpoint: The base URL of the methods (`http://` or `https://`), or the path of a UNIX
            socket. Responses contain keys: use plain HTTP only for the loopback interface.
        timeout: Timeout of a call in seconds.
        clock: Returns monotonic seconds.

    Raises:
        UsageError: If the endpoint or the timeout is invalid.
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
        is_url = endpoint.startswith(_URL)
        self._address = _parse_url(endpoint) if is_url else _Address(path=endpoint)
        self._name = f"guest agent at {_printable(endpoint)}"
        self._timeout = timeout
        self._clock = clock
        self._closed = False

    def call(self, method: str, arguments: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Call a method and return its response, a JSON object.

        Raises:
            AttestKitError: As for `post`; also BackendError if the response is not a JSON object.
        """
        text = self.post(method, arguments).text
        try:
            return strict_json.read_object(text, "body")
        except FormatError as error:
            problem = str(error)
        # Outside of the handler: the causes of the error contain the whole response.
        raise self._call_error("malformed_response", method, f"malformed response: {problem}")

    def post(self, method: str, arguments: Mapping[str, object] | None = None) -> AgentResponse:
        """Call a method and return its response as text, with only its nesting depth checked.

        Raises:
            UsageError: If the agent rejects the arguments, they have more than 10 MiB, or the
                client is closed.
            UnsupportedError: If the agent does not have the method.
            BackendUnavailableError: If the agent is not accessible.
            BackendBusyError: If the agent is overloaded or does not respond in time.
            QuoteUnavailableError: If GetQuote fails.
            BackendError: If the call failed for another reason. With the reason `outcome_unknown`,
                EmitEvent may have taken effect.
        """
        if self._closed:
            raise UsageError(f"{self._name}: the client is closed", reason="closed")
        if not method.isidentifier():
            raise UsageError(f"method: not an identifier: {method!r}", reason="wrong_value")
        try:
            body = json.dumps({} if arguments is None else dict(arguments)).encode()
        except (TypeError, ValueError) as error:
            text = f"{method}: arguments cannot be encoded as JSON: {error}"
            raise UsageError(text, reason="wrong_type") from error
        if len(body) > MAX_REQUEST:
            text = f"{method}: request too large: {len(body)} bytes, the limit is {MAX_REQUEST}"
            raise UsageError(text, reason="too_large")
        status, server, data = self._exchange(method, body)
        if status != 200:
            raise self._status_error(method, status, _message(data), arguments=bool(arguments))
        try:
            check_depth(data)
            return AgentResponse(data.decode(), server)
        except FormatError as error:
            problem = str(error)
        except UnicodeDecodeError:
            problem = "not UTF-8"
        # Outside of the handlers: UnicodeDecodeError contains the whole response.
        raise self._call_error("malformed_response", method, f"malformed response: {problem}")

    def close(self) -> None:
        """Close the client. A second call has no effect."""
        self._closed = True

    def __repr__(self) -> str:
        return f"AgentClient({self.endpoint!r})"

    # -- HTTP ----------------------------------------------------------------------------------

    def _exchange(self, method: str, body: bytes) -> tuple[int, str, bytes]:
        """Send a request on a new connection; return status, header field Server, and body."""
        import http.client as http  # slow to import

        deadline = self._clock() + self._timeout
        address = self._address
        connection = http.HTTPConnection(address.host or "localhost", address.port or None)
        limits = ResponseLimits(_MAX_HEAD, MAX_RESPONSE, lambda: deadline - self._clock())
        headers = {"Content-Type": "application/json", "Connection": "close"}
        request = ("POST", f"{address.prefix}/{method}", body, headers)
        sock = self._connect(deadline)
        try:
            found = exchange(connection, sock, limits, request)
            return found.status, found.headers.get("Server", ""), found.body
        except TimeoutError as error:
            text = f"no response within {self._timeout:g} s"
            if method in _NOT_IDEMPOTENT:
                raise self._call_error("timed_out", method, text) from error
            text = f"{self._name}: {method}: {text}; retry later"
            raise BackendBusyError(text, reason="timed_out", path=self.endpoint) from error
        except http.RemoteDisconnected:
            problem = self._call_error("connection_lost", method, "connection closed, no response")
        except http.IncompleteRead:
            problem = self._call_error("truncated", method, "truncated response")
        except TooLargeError as error:
            problem = self._call_error("too_large", method, f"response of more than {error}")
        except OSError as error:
            text = f"connection lost: {error.strerror or error}"
            raise self._call_error("connection_lost", method, text) from error
        except (http.HTTPException, ValueError) as error:
            text = f"malformed HTTP response: {type(error).__name__}"
            problem = self._call_error("malformed_response", method, text)
        finally:
            sock.close()
        # Outside of the handlers: some of these errors contain the response.
        raise problem

    def _call_error(self, reason: BackendReason, method: str, text: str) -> BackendError:
        """Return the error of a call whose request was sent, so an event may have been emitted."""
        text = f"{self._name}: {method}: {text}"
        if method in _NOT_IDEMPOTENT:
            text += "; the event may have been emitted: check the event log"
            reason = "outcome_unknown"
        return BackendError(text, reason=reason, path=self.endpoint)

    def _connect(self, deadline: float) -> "socket.socket":
        address = self._address
        import socket  # slow to import

        sock = None
        try:
            if not address.path:
                host_port = (address.host, address.port)
                sock = socket.create_connection(host_port, deadline - self._clock())
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return self._start_tls(sock) if address.tls else sock
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(deadline - self._clock())
            sock.connect(address.path)
        except (OSError, ValueError) as error:
            if sock is not None:
                sock.close()
            raise self._connect_error(error) from error
        return sock

    def _start_tls(self, sock: "socket.socket") -> "socket.socket":
        import ssl  # slow to import

        context = ssl.create_default_context()
        return context.wrap_socket(sock, server_hostname=self._address.host)

    def _connect_error(self, error: Exception) -> Exception:
        """Return the error for a connection that failed."""
        text = getattr(error, "strerror", None) or str(error)
        if isinstance(error, UnicodeError) or text == "AF_UNIX path too long":
            text = f"{self._name}: invalid endpoint: {one_line(text, _LONGEST_TEXT)}"
            return UsageError(text, reason="wrong_value")
        if isinstance(error, BlockingIOError):  # EAGAIN of a UNIX socket: its backlog is full
            text = f"{self._name}: too many pending connections; retry later"
            return BackendBusyError(text, reason="overloaded", path=self.endpoint)
        reason: BackendUnavailableReason = "cannot_connect"
        text = f"cannot connect: {one_line(text, _LONGEST_TEXT)}"
        if isinstance(error, OSError) and (problem := _wrong_file_type(self._address.path)):
            reason, text = "missing", problem
        else:
            for kind, kind_reason, problem in _CONNECT_ERRORS:
                if isinstance(error, kind):
                    reason, text = kind_reason, problem
                    break
        return BackendUnavailableError(f"{self._name}: {text}", reason=reason, path=self.endpoint)

    # -- errors --------------------------------------------------------------------------------

    def _status_error(
        self, method: str, status: int, message: str, *, arguments: bool
    ) -> AttestKitError:
        """Return the error for a status other than 200.

        `message` is the error message of the agent; `arguments` is False if the call had none, so
        they cannot be the cause.
        """
        # Releases of the agent return 400 for every error; the message tells them apart.
        if status == 404 or (status == 400 and message.startswith("Service not found")):
            releases = _RELEASES.get(
                method, "the release is older, or its API is not that of dstack.sock"
            )
            text = f"{self._name}: no method {method}: {releases}"
            return UnsupportedError(text, reason="feature")
        problem = f"request failed: {message or f'status {status}'}"
        text = f"{self._name}: {method}: {problem}"
        if "unavailable in simulator mode" in message:
            return UnsupportedError(text, reason="feature")
        rejected = status == 400 and arguments and not message.startswith("Failed to ")
        if rejected and method != "GetQuote":
            return UsageError(text, reason="wrong_value")
        return self._backend_error(method, status, problem)

    def _backend_error(self, method: str, status: int, problem: str) -> BackendError:
        text = f"{self._name}: {method}: {problem}"
        if method == "GetQuote" and status in (400, 500):
            return QuoteUnavailableError(text, reason="agent_error", path=self.endpoint)
        if status in (408, 429, 503):
            return BackendBusyError(text, reason="overloaded", path=self.endpoint)
        shown = "" if status in (400, 500) else f" (status {status})"
        if status >= 500:  # the register may have been extended before the failure
            return self._call_error("agent_error", method, f"{problem}{shown}")
        return BackendError(f"{text}{shown}", reason="agent_error", path=self.endpoint)


class _Address(NamedTuple):
    """The address of an endpoint."""

    path: str = ""  # of a UNIX socket; empty for a URL
    host: str = ""
    port: int = 0
    tls: bool = False
    prefix: str = ""


def _check_arguments(endpoint: object, timeout: object) -> None:
    if not isinstance(endpoint, str) or not endpoint or "\0" in endpoint:
        raise UsageError("endpoint: must be a URL or the path of a socket", reason="wrong_value")
    if not isinstance(timeout, (int, float)) or not 0 < timeout <= 86400:
        text = f"timeout: must be above 0 and at most 86400 seconds: {timeout!r}"
        raise UsageError(text, reason="out_of_range")


def _wrong_file_type(path: str) -> str:
    """Return the error text for a directory or file instead of a socket; otherwise empty."""
    try:
        mode = Path(path).stat().st_mode if path else 0
    except (OSError, ValueError):
        return ""
    if stat.S_ISDIR(mode):
        return (
            "not a socket but a directory, as a container engine creates where the host has no "
            "socket to mount; start the agent on the host, remove the directory there, and "
            "recreate the container"
        )
    if stat.S_ISREG(mode):
        return "not a socket but a file; use the socket of a running agent"
    return ""


def _parse_url(url: str) -> _Address:
    from urllib.parse import urlsplit  # imported by http.client as well

    wrong = UsageError(
        f"endpoint: not http(s)://HOST[:PORT][/PATH]: {_printable(url)}", reason="wrong_value"
    )
    if not url.isascii() or not url.isprintable() or set(" ?#@\\") & set(url):
        raise wrong  # "@" also: user and password would be shown in errors
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise wrong from error
    if not parts.hostname or port == 0:
        raise wrong
    tls = parts.scheme == "https"
    return _Address("", parts.hostname, port or (443 if tls else 80), tls, parts.path.rstrip("/"))


def _message(data: bytes) -> str:
    """Return the error message in the body of a response, as one short line; may be empty."""
    head = data[:_LONGEST_BODY]
    try:
        check_depth(head)
        found = json.loads(head)["error"]
        if isinstance(found, dict):  # from the HTTP framework (Rocket) of the agent
            found = found["description"]
        if isinstance(found, str):
            return one_line(found, _LONGEST_TEXT)
    except (FormatError, ValueError, RecursionError, LookupError, TypeError):
        pass
    return one_line(head.decode(errors="replace"), _LONGEST_TEXT)


def _printable(endpoint: str) -> str:
    return endpoint if endpoint.isprintable() else ascii(endpoint)
