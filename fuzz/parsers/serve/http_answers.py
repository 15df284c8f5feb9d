"""Targets: what an agent, a PCCS and a container engine answer over HTTP, on sockets of ours."""

import io
import json
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from types import SimpleNamespace
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import SplitResult

from attestkit._system.bounded_http import TimeLeft
from attestkit.backends.dstack_agent.client import MAX_RESPONSE, AgentClient, AgentResponse
from attestkit.collateral.http_getter import HttpGetter
from attestkit.collateral.responses import BODY_LIMIT, Response
from attestkit.errors import (
    BackendError,
    CollateralError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from attestkit.serve.docker.engine import ContainerEngine
from attestkit.serve.docker.responses import (
    MAX_LIST,
    NAME,
    Container,
    ContainerDetails,
    read_container,
    read_list,
    read_version,
)
from fuzz.parsers.contract import ParserTarget, check, obeys

T = TypeVar("T")


class _Buffer(Protocol):
    def __setitem__(self, key: slice, value: bytes) -> None: ...

    def __len__(self) -> int: ...


class _Socket:
    """A connected socket whose other side has said all that it says, and has gone.

    Its bytes come in pieces of the size that the first of them says.
    """

    def __init__(self, raw: bytes) -> None:
        self._left = io.BytesIO(raw[1:])
        self._size = (raw[0] if raw else 0) or 4096

    def recv_into(self, buffer: _Buffer) -> int:
        """Put the next piece into a buffer."""
        data = self._left.read(min(self._size, len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def sendall(self, data: bytes) -> None:
        """Take what is sent."""

    def settimeout(self, seconds: float) -> None:
        """Take how long to wait."""
        assert seconds > 0

    def close(self) -> None:
        """Close nothing."""


OK: Final = b"HTTP/1.1 200 OK\r\n"
CHUNKED: Final = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def http_samples() -> list[bytes]:
    """Return answers in every framing, whole and in pieces; refusals; and what is no HTTP."""
    body = b'{"a":1}'
    answers = [
        OK + b"Content-Length: 7\r\nServer: dstack\r\n\r\n" + body,
        OK + b"\r\n" + body,
        CHUNKED + b'3;x="y"\r\n{"a\r\n4\r\n":1}\r\n0\r\nX: y\r\n\r\n',
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"X: y\r\n z\r\nContent-Length: 7\r\n\r\n" + body,
        OK + b"Content-Length: 9\r\n\r\n" + body,
        OK + b"Content-Encoding: gzip\r\nContent-Length: 0\r\n\r\n",
        b'HTTP/1.0 500 Oh\r\nContent-Length: 13\r\n\r\n{"error":"no"}',
        b"HTTP/1.1 404 No\r\nContent-Type: text/plain\r\n\r\nno",
        b"HTTP/1.1 204 No\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
    ]
    return [b"", *(b"\0" + one for one in answers), *(b"\3" + one for one in answers[:3])]


def _is_told(raw: bytes, body: bytes) -> None:
    """A body that is not in chunks stands in the answer as it is."""
    check("a body out of what came", len(body) <= len(raw))
    if b"chunked" not in raw.lower():
        check("it stands in the answer", body in raw)


# -- an agent --------------------------------------------------------------------------------------


class _Agent(AgentClient):
    """A client whose connection is made already."""

    def __init__(self, raw: bytes) -> None:
        super().__init__("/agent.sock", clock=lambda: 0.0)
        self._raw = raw

    def _connect(self, time_left: TimeLeft) -> Any:
        del time_left
        return _Socket(self._raw)


def _post(raw: bytes) -> AgentResponse:
    return _Agent(raw).post("GetQuote", {"report_data": ""})


def _answered(raw: bytes, found: AgentResponse) -> None:
    check("types", (type(found.text), type(found.server)) == (str, str))
    check("no more than there may be", len(found.text) <= MAX_RESPONSE)
    _is_told(raw, found.text.encode())


# -- a PCCS ----------------------------------------------------------------------------------------


class _Getter(HttpGetter):
    """A getter that gets from bytes."""

    def __init__(self, raw: bytes) -> None:
        super().__init__(timeout=3600)
        self._raw = raw

    def _connect(self, parts: SplitResult, time_left: TimeLeft) -> Any:
        del parts, time_left
        return _Socket(self._raw)


def _get(raw: bytes) -> Response:
    return _Getter(raw)("http://pccs/sgx")


def _got(raw: bytes, found: Response) -> None:
    check("a status", 100 <= found.status <= 999)
    check("names in lower case", all(name == name.lower() for name in found.headers))
    check("values are text", all(type(text) is str for text in found.headers.values()))
    check("no more than there may be", len(found.body) <= BODY_LIMIT)
    _is_told(raw, found.body)


# -- a container engine ----------------------------------------------------------------------------


class _Answer(AbstractAsyncContextManager["_Answer"]):
    """A response of the engine's, as the HTTP client gives it; its body comes in pieces."""

    def __init__(self, status: int, kind: str, body: bytes) -> None:
        self.status = status
        self.headers = {"Content-Type": kind}
        self.content = self
        self._pieces = [body[at : at + 700] for at in range(0, len(body), 700)]

    async def readany(self) -> bytes:
        """Return the next piece; nothing at the end."""
        return self._pieces.pop(0) if self._pieces else b""

    async def __aexit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        """Close nothing."""


_STATUSES: Final = (200, 200, 200, 204, 302, 400, 404, 500)
_KINDS: Final = ("application/json", "text/plain; charset=utf-8")
_QUESTIONS: Final[tuple[tuple[Callable[[bytes], object], str], ...]] = (
    (read_list, ""),
    (read_container, "app"),
    (read_version, ""),
)


def _ask(raw: bytes) -> object:
    """Ask an engine: the first byte says what, the second how the answer begins."""
    read, name = _QUESTIONS[(raw[0] if raw else 0) % len(_QUESTIONS)]
    how = raw[1] if len(raw) > 1 else 0
    answer = _Answer(_STATUSES[how % 8], _KINDS[how // 8 % 2], raw[2:])

    async def get(_url: str, **_options: object) -> _Answer:
        return answer

    docker: Any = SimpleNamespace(session=SimpleNamespace(get=get), docker_host="unix://localhost")
    return _done(
        ContainerEngine("/engine.sock")._request(docker, "path", read, most=MAX_LIST, name=name)
    )


def _done(question: Coroutine[Any, Any, T]) -> T:
    """Run what waits for nothing to its end, without an event loop."""
    try:
        question.send(None)
    except StopIteration as end:
        found: T = end.value
        return found
    raise AssertionError("there is nothing to wait for")


def _told(raw: bytes, found: object) -> None:
    if isinstance(found, ContainerDetails):
        check("an id that may be in a path", NAME.fullmatch(found.id) and len(found.id) <= 1024)
        check("a boolean", type(found.config.tty) is bool)
    elif isinstance(found, list):
        check("no more than came", 60 * len(found) <= len(raw))
        for one in found:
            _check_container(one)
    else:
        check("a version", str(found).replace(".", "").isdigit())


def _check_container(one: Container) -> None:
    texts = (one.id, *(one.names or ()), one.image, one.state, one.status)
    check("texts", all(type(text) is str for text in texts))
    check("a short name", len(one.name) <= 1024)


def engine_samples() -> list[bytes]:
    """Return an answer to each question, refusals, and what is neither."""
    listed = {
        "Id": "ab" * 32,
        "Names": ["/app-1", "/b/alias"],
        "Image": "busybox:1",
        "Created": 1_764_113_675,
        "State": "running",
        "Status": "Up 2 hours",
        "Labels": {"a": "b"},
    }
    one = {"Id": "ab" * 32, "Config": {"Tty": False}}
    bodies = ([listed, {**listed, "Names": None}], one, {"ApiVersion": "1.45"})
    good = [bytes([at, 0]) + json.dumps(body).encode() for at, body in enumerate(bodies)]
    refusal = b'{"message":"No such container: app"}'
    bad = [b"\0\5" + refusal, b"\1\6" + refusal, b"\2\7" + refusal, b"\0\x0fno\n", b"\0\3"]
    return [*good, *bad, b"", b'\0\0[{"Created":1e999}]']


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    agent = obeys(_post, BackendError, UnsupportedError, UsageError, accepted=_answered)
    pccs = obeys(_get, CollateralError, accepted=_got)
    engine = obeys(_ask, BackendError, NotFoundError, accepted=_told)
    return [
        ParserTarget("agent_http", agent, http_samples, "http.dict", 1024),
        ParserTarget("pccs_http", pccs, http_samples, "http.dict", 1024),
        ParserTarget("engine", engine, engine_samples, "docker.dict", 2048),
    ]
