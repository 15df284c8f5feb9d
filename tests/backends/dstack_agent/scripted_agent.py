"""Guest agent with scripted responses, one request per connection."""

import contextlib
import json
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pytest

from attestkit.backends.dstack_agent.client import AgentClient
from attestkit.errors import AttestKitError
from tests.concurrency.keeping import Keeping
from tests.samples.quotes import made_quote

SECRET = "5ec2e7" * 10 + "5ec2"  # in responses, in place of a key
PATIENCE = 60  # seconds before a step counts as hung


class Request(NamedTuple):
    """Request of a client."""

    line: str  # "POST /GetKey HTTP/1.1"
    headers: dict[str, str]  # names in lower case
    message: Any  # the body, as JSON

    @property
    def method(self) -> str:
        """Return the last segment of the request target; below v0 or v1 also that segment."""
        *_, mount, name = self.line.split(" ")[1].split("/")
        return f"{mount}/{name}" if mount in ("v0", "v1") else name


# A response, or a function that serves the connection.
Script: TypeAlias = bytes | Callable[[socket.socket, Request], None]


class ScriptedAgent:
    """Server on a UNIX socket, with one thread and one connection at a time.

    `answers` has a response for each method; "" is the default. Without one there is nothing at
    /v0 and /v1, as in releases before 0.6.0.
    """

    def __init__(self, path: str, answers: Mapping[str, Script]) -> None:
        self.path = path
        self.answers = dict(answers)
        self.requests: list[Request] = []
        self.failure: BaseException | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(64)
        self._thread = threading.Thread(target=self._serve, name="scripted agent", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(PATIENCE)
                with Keeping() as kept, contextlib.suppress(ConnectionError):
                    self._answer(connection)
                if kept.error is not None:
                    self.failure = kept.error

    def _answer(self, connection: socket.socket) -> None:
        request = read_request(connection)
        if request is None:
            return
        self.requests.append(request)
        default = self.answers.get("", PAGE if "/" in request.method else NOT_FOUND)
        script = self.answers.get(request.method, default)
        if isinstance(script, bytes):
            connection.sendall(script)
        else:
            script(connection, request)

    def stop(self) -> None:
        """Stop listening, join the thread, and raise its exception."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        if self.failure is not None:
            raise self.failure


def read_request(connection: socket.socket) -> Request | None:
    """Read a complete request; return None if the client has closed the connection."""
    with connection.makefile("rb") as lines:
        line = lines.readline().decode().strip()
        if not line:
            return None
        headers = {}
        while header := lines.readline().decode().strip():
            name, _, value = header.partition(":")
            headers[name.lower()] = value.strip()
        body = lines.read(int(headers.get("content-length", "0")))
    return Request(line, headers, json.loads(body))


def wait_for_close(connection: socket.socket, _: Request) -> None:
    """Send nothing until the client closes the connection."""
    connection.recv(1)


def response(body: object, status: int = 200, **headers: str) -> bytes:
    """Return a complete response; `body` is bytes, or a value to encode as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(data)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + data


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
NOT_FOUND = response({"error": "Service not found: it"}, 404)
PAGE = response(b"<!DOCTYPE html><html><h1>404: Not Found</h1></html>", 404)


@contextlib.contextmanager
def scripted_agent(
    answers: Mapping[str, Script] | Script, path: str | None = None
) -> Iterator[ScriptedAgent]:
    """Run an agent until the end of the block; a single response is that of all methods."""
    folder = tempfile.mkdtemp(prefix="ak")  # short: sun_path is limited
    by_method = answers if isinstance(answers, Mapping) else {"": answers}
    agent = ScriptedAgent(path or str(Path(folder) / "s"), by_method)
    try:
        yield agent
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        agent.stop()


def request_error(
    script: Script, method: str = "Info", timeout: float = PATIENCE
) -> AttestKitError:
    """Return the error raised for a response; assert that no part of the body is in it."""
    arguments = {} if method == "Info" else {"value": 1}
    with scripted_agent(script) as agent:
        with pytest.raises(AttestKitError) as caught:
            AgentClient(agent.path, timeout=timeout).call(method, arguments)
        assert len(agent.requests) == 1, "the request was repeated"
    error: BaseException | None = caught.value
    while error is not None:
        shown = repr(error) + repr(vars(error)) + repr(getattr(error, "object", ""))
        shown += repr(getattr(error, "partial", "")) + repr(getattr(error, "doc", ""))
        assert SECRET not in shown
        error = error.__cause__ or error.__context__
    assert type(caught.value).__module__ == "attestkit.errors"
    return caught.value


def agent_with_defaults(**answers: Script) -> contextlib.AbstractContextManager[ScriptedAgent]:
    """Run an agent with these responses; by default it has a synthetic quote."""
    usual: dict[str, Script] = {
        "GetQuote": response({"quote": made_quote().hex(), "event_log": "[]"}),
        "Version": response({"version": "0.5.8"}),
    }
    return scripted_agent(usual | answers)
