"""Client of the dstack guest agent API over HTTP/1.1, by a UNIX socket or a URL.

The agent is not trusted: responses have a size limit and a timeout, failures are AttestKitErrors,
and errors contain nothing of a response, which may be a key, but the error message of one with an
error status.

Each call opens a connection, which costs about 0.1 ms. So the client has no connection to share
between threads or across a fork, and works after a restart of the agent. It remembers the agent's
API, which an upgrade of the agent changes: make a new client then.

Agents of dstack 0.6 serve two APIs: `dstack.guest.v1` at `/v1`, and the older one, v0, at `/v0` and
`/`. Agents before that serve v0 at `/` only.
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from attestkit._formats import strict_json
from attestkit._outcomes.reasons import BackendReason, BackendUnavailableReason
from attestkit._sanitize import one_line
from attestkit._system import bounded_http
from attestkit.backends.dstack_agent.endpoint import describe_wrong_file, parse_endpoint, printable
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
from attestkit.keys.agent_keys import AgentApi

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
_V1: Final = "v1/"  # prefix of the methods of `dstack.guest.v1`
_V0: Final = "v0/"  # prefix of the other methods, where an agent does not serve them at /
_NO_METHOD: Final = "Service not found"  # start of the error text of an API without the method
_NOT_IDEMPOTENT: Final = frozenset({"EmitEvent"})
_EVIDENCE: Final = frozenset({"GetQuote", "v1/Attest"})
_REMOVED: Final = "EmitEvent was removed"  # start of the error text of agents since release 0.6.0
_RELEASES: Final = {  # of agents with a method
    "EmitEvent": "removed in release 0.6.0",
    "Sign": "added in release 0.5.6",
    "Version": "added in release 0.5.7",
}
_REASONS: Final[Mapping[bounded_http.ExchangeFailure, BackendReason]] = {
    "too_large": "too_large",
    "timed_out": "timed_out",
    "truncated": "truncated",
    "malformed": "malformed_response",
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
    """Body and Server header of an agent's response, whose status is 200."""

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
        self._address = parse_endpoint(endpoint)
        self._name = f"guest agent at {printable(endpoint)}"
        self._timeout = timeout
        self._clock = clock
        self._closed = False
        self._api: AgentApi | None = None
        self._mount = ""  # of methods of v0

    def find_api(self) -> AgentApi:
        """Return the agent's newest API, "v1" (`dstack.guest.v1`) or "v0"; it is then remembered.

        Raises:
            BackendUnavailableError: If the agent has v1 without Version or refuses it, so it is not
                an agent or its socket is limited to other methods; or as for `post`.
            BackendError: If the response is malformed, or the call failed for another reason.
        """
        if self._api is None:
            self._api = self._probe_api()
        return self._api

    def _probe_api(self) -> AgentApi:
        """Return "v1" if the agent answers Version of its API v1, else "v0".

        The status is 404 if the API v1 is missing, but also if it lacks the method; only the latter
        response has an error text of the API.
        """
        method = f"{_V1}Version"
        self._check_open()
        status, _, data = self._exchange(method, method, b"{}")
        mounted = (_error_text(data) or "").startswith(_NO_METHOD)
        if status == 403 or (status == 404 and mounted):
            text = f"{self._name}: no method {method}: not a guest agent, or its socket is limited"
            raise BackendUnavailableError(
                f"{text}; use dstack.sock, or allow the method Version",
                reason="missing",
                path=self.endpoint,
            )
        if status == 404 or (status == 400 and mounted):
            return "v0"
        if status != 200:
            raise self._status_error(method, status, _message(status, data), arguments=False)
        try:
            strict_json.string(strict_json.read_object(data, "body"), "version")
        except FormatError as error:
            problem = str(error)
        else:
            return "v1"
        raise self._call_error("malformed_response", method, f"malformed response: {problem}")

    def call(self, method: str, arguments: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Call a method such as "GetQuote" or "v1/Attest"; return its response, a JSON object.

        Args:
            method: Name of the method; methods of the API v1 begin with "v1/".
            arguments: Members of the JSON object to send; None: an empty object.

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
        """Call a method as `call` does, but return the response's text, JSON that is not parsed.

        Only UTF-8 and nesting depth are checked.

        Raises:
            UsageError: If `method` is not a valid name, or the client is closed; if the arguments
                cannot be encoded as JSON or have more than 10 MiB, or the agent rejects them.
            UnsupportedError: If the agent does not have the method, or refuses it.
            BackendUnavailableError: If the agent is not accessible.
            BackendBusyError: If the agent is overloaded or does not respond in time.
            QuoteUnavailableError: If GetQuote, or Attest of the API v1, fails.
            BackendError: If the call failed for another reason. With the reason `outcome_unknown`,
                EmitEvent may have taken effect.
        """
        self._check_open()
        if not method.removeprefix(_V1).isidentifier():
            text = f"method: must be a name such as GetQuote or v1/Attest, not {method!r}"
            raise UsageError(text, reason="wrong_value")
        try:
            body = json.dumps({} if arguments is None else dict(arguments)).encode()
        except (TypeError, ValueError) as error:
            text = f"{method}: arguments cannot be encoded as JSON: {error}"
            raise UsageError(text, reason="wrong_type") from error
        if len(body) > MAX_REQUEST:
            text = f"{method}: request too large: {len(body)} bytes, the limit is {MAX_REQUEST}"
            raise UsageError(text, reason="too_large")
        status, server, data = self._exchange_method(method, body)
        if status != 200:
            message = _message(status, data)
            raise self._status_error(method, status, message, arguments=bool(arguments))
        try:
            strict_json.check_depth(data)
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

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError(f"{self._name}: the client is closed; make another", reason="closed")

    def __repr__(self) -> str:
        api = "" if self._api is None else f", api={self._api!r}"
        return f"AgentClient({self.endpoint!r}{api})"

    # -- HTTP ----------------------------------------------------------------------------------

    def _exchange_method(self, method: str, body: bytes) -> tuple[int, str, bytes]:
        """POST `body`, JSON, to a method; return status, header field Server, and body.

        If the agent serves no API at `/`, methods of v0 are requested below `/v0`.
        """
        if method.startswith(_V1):
            return self._exchange(method, method, body)
        found = self._exchange(method, self._mount + method, body)
        if found[0] != 404 or self._mount or _error_text(found[2]) is not None:
            return found
        other = self._exchange(method, _V0 + method, body)
        if other[0] == 404 and _error_text(other[2]) is None:
            return found
        self._mount = _V0
        return other

    def _exchange(self, method: str, target: str, body: bytes) -> tuple[int, str, bytes]:
        """POST `body` to `target` on a new connection; return status, header Server, and body.

        `method` is the name of the agent's method, for errors and the choice of the error type.
        """
        address = self._address
        limits = bounded_http.ResponseLimits(_MAX_HEAD, MAX_RESPONSE, self._timeout, self._clock)
        path = f"{address.prefix}/{target}"
        host = bounded_http.host_header(address.host, address.port) if address.host else "localhost"
        request = bounded_http.Request("POST", host, path, bounded_http.JSON_POST, body)
        try:
            found = bounded_http.exchange(self._connect, request, limits)
        except bounded_http.ExchangeError as error:
            if error.kind == "timed_out" and method not in _NOT_IDEMPOTENT:
                text = f"{self._name}: {method}: {error}; retry later"
                raise BackendBusyError(text, reason="timed_out", path=self.endpoint) from error
            reason: BackendReason = _REASONS.get(error.kind, "connection_lost")
            raise self._call_error(reason, method, str(error)) from error
        return found.status, found.headers.get("server", ""), found.body

    def _call_error(self, reason: BackendReason, method: str, text: str) -> BackendError:
        """Return the error of a call of `method` that was sent; `text` describes the failure.

        EmitEvent may have extended RTMR3 although the call failed. Its error therefore has the
        reason `outcome_unknown`, and names the event log as the place to check.
        """
        text = f"{self._name}: {method}: {text}"
        if method in _NOT_IDEMPOTENT:
            text += "; the event may have been emitted: check the event log"
            reason = "outcome_unknown"
        return BackendError(text, reason=reason, path=self.endpoint)

    def _connect(self, time_left: bounded_http.TimeLeft) -> "socket.socket":
        address = self._address
        import socket  # slow to import

        sock = None
        try:
            if not address.path:
                sock = bounded_http.connect_tcp(
                    address.host, address.port, self._timeout, time_left
                )
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return self._start_tls(sock, time_left) if address.tls else sock
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(time_left())
            sock.connect(address.path)
        except (OSError, ValueError) as error:
            if sock is not None:
                sock.close()
            raise self._connect_error(error) from error
        return sock

    def _start_tls(
        self, sock: "socket.socket", time_left: bounded_http.TimeLeft
    ) -> "socket.socket":
        import ssl  # slow to import

        return bounded_http.start_tls(
            sock, self._address.host, ssl.create_default_context(), time_left
        )

    def _connect_error(self, error: Exception) -> Exception:
        """Return the AttestKitError for an exception raised while connecting."""
        text = getattr(error, "strerror", None) or str(error)
        if isinstance(error, UnicodeError) or text == "AF_UNIX path too long":
            text = f"{self._name}: invalid endpoint: {one_line(text, _LONGEST_TEXT)}"
            return UsageError(text, reason="wrong_value")
        if isinstance(error, BlockingIOError):  # EAGAIN of a UNIX socket: its backlog is full
            text = f"{self._name}: too many pending connections of the socket; retry later"
            return BackendBusyError(text, reason="overloaded", path=self.endpoint)
        reason: BackendUnavailableReason = "cannot_connect"
        text = f"cannot connect: {one_line(text, _LONGEST_TEXT)}"
        if isinstance(error, OSError) and (problem := describe_wrong_file(self._address.path)):
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
        """Return the error for a response to `method` with an HTTP status other than 200.

        `message` is the error message of the agent. `arguments` is whether the call had arguments:
        without them, a status of 400 is not the caller's error.
        """
        # Releases of the agent return 400 for every error; the message tells them apart.
        if status == 404 or (status == 400 and message.startswith(_NO_METHOD)):
            releases = _RELEASES.get(
                method, "the release is older, or its API is not that of dstack.sock"
            )
            if method.startswith(_V1) and not message.startswith(_NO_METHOD):
                releases = "the agent has no v1 API, which release 0.6.0 added"
            text = f"{self._name}: no method {method}: {releases}"
            return UnsupportedError(text, reason="feature")
        if status == 403:  # nothing was run
            rule = f"refused by the agent's access rules: {message or 'status 403'}"
            text = f"{self._name}: {method}: {rule}"
            return UnsupportedError(text, reason="feature")
        problem = f"request failed: {message or f'status {status}'}"
        text = f"{self._name}: {method}: {problem}"
        if "unavailable in simulator mode" in message or message.startswith(_REMOVED):
            return UnsupportedError(text, reason="feature")
        rejected = status == 400 and arguments and not message.startswith("Failed to ")
        if rejected and method not in _EVIDENCE:
            return UsageError(text, reason="wrong_value")
        return self._backend_error(method, status, problem)

    def _backend_error(self, method: str, status: int, problem: str) -> BackendError:
        text = f"{self._name}: {method}: {problem}"
        if method in _EVIDENCE and status in (400, 500):
            return QuoteUnavailableError(text, reason="agent_error", path=self.endpoint)
        if status in (408, 429, 503):
            return BackendBusyError(text, reason="overloaded", path=self.endpoint)
        shown = "" if status in (400, 500) else f" (status {status})"
        if status >= 500:  # the register may have been extended before the failure
            return self._call_error("agent_error", method, f"{problem}{shown}")
        return BackendError(f"{text}{shown}", reason="agent_error", path=self.endpoint)


def _check_arguments(endpoint: object, timeout: object) -> None:
    if not isinstance(endpoint, str) or not endpoint or "\0" in endpoint:
        raise UsageError(f"endpoint: must be a URL or path, not {endpoint!r}", reason="wrong_value")
    if not isinstance(timeout, (int, float)) or not 0 < timeout <= 86400:
        text = f"timeout: must be above 0 and at most 86400 seconds, not {timeout!r}"
        raise UsageError(text, reason="out_of_range")


# -- bodies of errors ----------------------------------------------------------------------------


def _read_error(data: bytes) -> object:
    """Return the member `error` of a JSON object; None if it is missing, or `data` is malformed."""
    try:
        strict_json.check_depth(data)
        return json.loads(data)["error"]
    except (FormatError, ValueError, RecursionError, LookupError, TypeError):
        return None


def _error_text(data: bytes) -> str | None:
    """Return the message in `data`, an API's error in JSON; None for other bodies, as of a page."""
    found = _read_error(data[:_LONGEST_BODY])
    return found if isinstance(found, str) else None


def _message(status: int, data: bytes) -> str:
    """Return the error message in `data`, the body of a response, as one short line; may be empty.

    It is the message in JSON of the API or of the HTTP framework, of an error status. All else in
    the response may be a key.
    """
    if status < 400:
        return ""
    found = _read_error(data[:_LONGEST_BODY])
    if isinstance(found, dict):  # from the HTTP framework (Rocket) of the agent
        found = found.get("description")
    return one_line(found, _LONGEST_TEXT) if isinstance(found, str) else ""
