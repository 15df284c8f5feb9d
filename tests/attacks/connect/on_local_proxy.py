"""Attempts on the local proxy of `connect --serve`: web pages, other hosts, and smuggling."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import httpx
import pytest

import attestkit
from attestkit.client.local_proxy import LocalProxy, listen_address
from attestkit.errors import UsageError
from attestkit.testing import AttestedServer
from tests.attacks.attempts import Surfaces
from tests.untyped import untyped

attacks = Surfaces("connect")
HOST: Final = b"127.0.0.1:8337"
OWN: Final = [(b"host", HOST)]


class Transport:
    """A transport that keeps requests, and answers with nothing."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    async def handle_async_request(self, request: Any) -> Any:
        """Keep a request."""
        self.requests.append(request)
        await request.aread()
        return httpx.Response(204, headers=[("Connection", "x-hop"), ("X-Hop", "1")])


class _Endpoint:
    origin, timeout = "https://proven.example", 1.0


def forward(headers: list[tuple[bytes, bytes]], **scope: Any) -> tuple[int, list[Any], Any]:
    """Send a request to the proxy; return the status, what was forwarded, and the headers."""
    proxy, transport = LocalProxy(untyped(_Endpoint), ("127.0.0.1", 8337)), Transport()
    proxy._transport, proxy._library = transport, "httpx"
    sent: list[Any] = []
    given = {
        "type": "http",
        "method": "GET",
        "raw_path": b"/v1",
        "query_string": b"",
        "server": ("127.0.0.1", 8337),
        "headers": headers,
        **scope,
    }

    async def receive() -> Any:
        return {"type": "http.request", "body": b""} if not sent else await asyncio.sleep(9)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(proxy(given, receive, send))
    return sent[0]["status"], transport.requests, sent[0]["headers"]


def check_forwarded() -> None:
    """Check that an ordinary request is forwarded."""
    status, requests, _ = forward(OWN)
    assert (status, len(requests)) == (204, 1)


_PAGES: Final[dict[str, dict[str, Any]]] = {
    "its name bound to 127.0.0.1": {"headers": [(b"host", b"evil.example:8337")]},
    "a name that begins with the address": {"headers": [(b"host", b"127.0.0.1.evil.example:8337")]},
    "a name that ends with localhost": {"headers": [(b"host", b"evil.localhost:8337")]},
    "another port of this machine": {"headers": [(b"host", b"127.0.0.1:80")]},
    "no port": {"headers": [(b"host", b"127.0.0.1")]},
    "the address as one number": {"headers": [(b"host", b"2130706433:8337")]},
    "a short form of the address": {"headers": [(b"host", b"127.1:8337")]},
    "a user before the address": {"headers": [(b"host", b"evil@127.0.0.1:8337")]},
    "two hosts in one header": {"headers": [(b"host", HOST + b", evil.example")]},
    "the second host the right one": {"headers": [(b"host", b"evil.example"), (b"host", HOST)]},
    "an origin of nothing": {"headers": [*OWN, (b"origin", b"null")]},
    "an origin of the proxy itself": {"headers": [*OWN, (b"origin", b"http://" + HOST)]},
    "an image in it": {"headers": [*OWN, (b"sec-fetch-site", b"cross-site")]},
    "a link in it": {"headers": [*OWN, (b"sec-fetch-site", b"none")]},
    "a preflight": {
        "headers": [*OWN, (b"origin", b"https://evil.example")],
        "method": "OPTIONS",
    },
    "a form": {"headers": [*OWN, (b"origin", b"https://evil.example")], "method": "POST"},
}


def page(request: dict[str, Any]) -> None:
    """Send a request of a web page, which is not forwarded, and which the page cannot read."""
    check_forwarded()
    status, requests, headers = forward(**request)
    assert (status, requests) == (403, [])
    assert not any(name.startswith(b"access-control") for name, _ in headers)


for _name, _request in _PAGES.items():
    attacks.add("confuse", f"web page with {_name} at the local proxy", partial(page, _request))


@attacks.attempt("confuse")
def web_socket_of_a_page_at_the_local_proxy() -> None:
    """Browsers allow pages to open them to any host."""
    check_forwarded()
    proxy, sent = LocalProxy(untyped(_Endpoint), ("127.0.0.1", 8337)), list[Any]()

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(proxy({"type": "websocket", "headers": OWN}, receive, send))
    assert sent == [{"type": "websocket.close"}]


@attacks.attempt("confuse")
def headers_that_a_program_names_as_those_of_its_connection() -> None:
    """They are not forwarded, in either direction, in whatever case they are named."""
    status, [request], headers = forward(
        [*OWN, (b"Connection", b"X-Secret, keep-alive"), (b"x-secret", b"1"), (b"te", b"gzip")]
    )
    assert status == 204
    assert {"x-secret", "te", "keep-alive", "connection"}.isdisjoint(request.headers)
    assert request.headers["host"] == "proven.example"
    assert b"x-hop" not in {name.lower() for name, _ in headers}


@attacks.attempt("confuse")
def target_of_two_slashes_names_no_host() -> None:
    """It goes to the proven server as it is."""
    _, [request], _ = forward(OWN, raw_path=b"//evil.example/a", query_string=b"b")
    assert request.url.host == "proven.example"
    assert request.extensions["target"] == b"//evil.example/a?b"


for _address in (
    "0.0.0.0:8337",
    "[::]:8337",
    "192.0.2.1:8337",
    "localhost:8337",
    "127.0.0.1.evil.example:8337",
    "127.0.0.1:65536",
    "127.0.0.1:0x50",
    "127.0.0.1:\u0668",
    "127.0.0.1",
    ":8337",
    "2130706433:8337",
):
    attacks.add(
        "confuse",
        f"local proxy that listens on {_address!a}",
        partial(listen_address, _address),
        UsageError,
        "wrong_value",
    )


# -- bytes of a program, through uvicorn to the proven server --------------------------------------


@contextmanager
def _running(server: AttestedServer, http: Any) -> Iterator[int]:
    """Run the proxy for a server; yield its port."""
    import uvicorn  # lazy: of the extra `serve`

    with attestkit.connect(server.url, policy=server.policy, server_ca=server.ca) as endpoint:
        proxy = LocalProxy(endpoint, ("127.0.0.1", 0))
        config = uvicorn.Config(proxy, http=http, log_level="critical", access_log=False)
        running = uvicorn.Server(config)
        with proxy._listen() as listener:
            thread = threading.Thread(target=running.run, args=([listener],), daemon=True)
            thread.start()
            try:
                yield listener.getsockname()[1]
            finally:
                running.should_exit = True
                thread.join(10)


def _smuggle(port: int, head: bytes, body: bytes, *, until: bytes | None = None) -> bytes:
    """Return what comes back until it ends with `until`; without it, in 0.3 seconds."""
    data = b"POST /outer HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % port + head + b"\r\n" + body
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.settimeout(0.3 if until is None else 60)
        connection.sendall(data)
        answer = b""
        try:
            while piece := connection.recv(4096):
                answer += piece
                if until is not None and answer.endswith(until):
                    break
        except TimeoutError:
            pass
        return answer


_HIDDEN: Final = b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
_SMUGGLED: Final[tuple[tuple[bytes, bytes], ...]] = (
    (b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n" % (5 + len(_HIDDEN)), b"0\r\n\r\n"),
    (b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", b"0\r\n\r\n"),
    (b"Transfer-Encoding : chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"),
    (b"Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"),
    (b"Content-Length: 0\r\nContent-Length: 5\r\n", b"0\r\n\r\n"),
    (b"Connection: content-length\r\nContent-Length: 5\r\n", b"0\r\n\r\n"),
    (b"X: a\n\nGET /hidden HTTP/1.1\r\n", b""),
)


def smuggle(http: str, proven_server: AttestedServer) -> None:
    """Lengths of two kinds reach the server as one request, or none: never as a hidden one."""
    pytest.importorskip("uvicorn")
    before = len(proven_server.requests)
    with _running(proven_server, http) as port:
        answer = _smuggle(port, b"Content-Length: 2\r\n", b"ok", until=b"\r\n\r\nok")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"ok")
        for head, body in _SMUGGLED:
            _smuggle(port, head, body + _HIDDEN)
    found = proven_server.requests[before:]
    assert {one.path for one in found} == {"/outer"}


for _parser in ("h11", "httptools"):
    attacks.add(
        "confuse",
        f"requests smuggled through the local proxy by {_parser}",
        partial(smuggle, _parser),
    )
