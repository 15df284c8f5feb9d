"""`attestkit connect URL --serve`: programs reach a proven server through it, web pages do not."""

import http.client
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from attestkit.__main__ import main
from attestkit.testing import AttestedServer
from tests.cli.attested import options
from tests.cli.program import PATIENCE, start

Make = Callable[..., AttestedServer]
_SECONDS: Final = 30


class App:
    """An ASGI application with a stream, cookies, and an answer that breaks off."""

    def __init__(self) -> None:
        self.go_on = threading.Event()  # the stream sends its second part
        self.left = threading.Event()  # the client of the stream has left

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer as the path says."""
        if scope["type"] != "http":
            return
        headers = [(b"set-cookie", b"session=secret"), (b"keep-alive", b"timeout=5")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        if scope["path"] == "/broken":
            raise ConnectionAbortedError
        if scope["path"] == "/endless":
            while (await receive())["type"] != "http.disconnect":
                pass
            self.left.set()
            return
        import asyncio  # the loop is that of the server

        if scope["path"] == "/stream":
            assert await asyncio.to_thread(self.go_on.wait, _SECONDS)
        await send({"type": "http.response.body", "body": b"second"})


@contextmanager
def serving(server: AttestedServer, folder: Path, *words: str) -> Iterator[str]:
    """Run the command; yield the address of the proxy. It prints no traceback."""
    given = [server.url, *options(server, folder), "--serve", "127.0.0.1:0", *words]
    with start("connect", *given) as process:
        assert process.stderr is not None
        timer = threading.Timer(PATIENCE, process.kill)
        timer.start()
        printed = ""
        try:
            while not (found := re.search(r"listening on http://(\S+:\d+), for https", printed)):
                line = process.stderr.readline().decode()
                assert line, printed
                printed += line
            yield found[1]
        finally:
            timer.cancel()
            process.send_signal(signal.SIGINT)
            _, rest = process.communicate(timeout=PATIENCE)
        printed += rest.decode()
        assert "Traceback" not in printed
        assert printed.endswith("attestkit: interrupted\n")
        assert process.returncode == 130


@pytest.fixture
def app() -> App:
    """The application of the server."""
    return App()


@pytest.mark.slow  # starts a program
def test_requests_are_forwarded(attested_server: Make, tmp_path: Path) -> None:
    """Method, target, headers and body arrive unchanged; headers of one connection do not."""
    server = attested_server()
    with serving(server, tmp_path) as address, httpx.Client(base_url=f"http://{address}") as own:
        sent = {"X-One": "1", "Connection": "x-two", "X-Two": "2", "Accept-Encoding": "identity"}
        answer = own.post("/a%2Fb//c?d=%20&e", content=b"body", headers=sent)
        assert (answer.status_code, answer.content) == (200, b"body")
        assert own.post("/", content=iter([b"in ", b"parts"])).content == b"in parts"
        assert own.head("/").status_code == 200
    first, second, third = server.requests
    assert (first.method, first.query, first.body_size) == ("POST", "d=%20&e", 4)
    names = dict(first.headers)
    assert (names["x-one"], names["accept-encoding"]) == ("1", "identity")
    assert names["host"] == server.url.removeprefix("https://")
    assert names.keys().isdisjoint({"x-two", "keep-alive"})
    assert (second.body_size, third.method) == (8, "HEAD")
    assert any(b"POST /a%2Fb//c?d=%20&e HTTP/1.1\r\n" in data for data in server.received)


@pytest.mark.slow  # starts a program
def test_streams_and_cookies(attested_server: Make, app: App, tmp_path: Path) -> None:
    """An answer is passed on as it comes; cookies of one program are not sent by another."""
    server = attested_server(app)
    with serving(server, tmp_path) as address, httpx.Client(base_url=f"http://{address}") as own:
        with own.stream("GET", "/stream") as answer:
            assert "keep-alive" not in answer.headers
            pieces = answer.iter_raw()
            assert next(pieces) == b"first"
            app.go_on.set()
            assert b"".join(pieces) == b"second"
        with httpx.Client(base_url=f"http://{address}") as other:
            assert other.get("/").text == "firstsecond"
        with own.stream("GET", "/endless") as answer:
            assert next(answer.iter_raw()) == b"first"
        assert app.left.wait(_SECONDS)
        with pytest.raises(httpx.RemoteProtocolError):
            own.get("/broken")
        assert own.get("/").text == "firstsecond"
    sent = [("cookie", "session=secret") in request.headers for request in server.requests]
    assert sent == [False, False, True, True, True]  # the second request is of another program


@pytest.mark.slow  # starts a program
def test_web_pages_are_refused(attested_server: Make, tmp_path: Path) -> None:
    """Another Host, as after DNS rebinding, an Origin, and WebSockets are refused."""
    server = attested_server()
    refused = [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ]
    with serving(server, tmp_path) as address:
        host, port = address.split(":")
        for headers in refused:
            answer = httpx.post(f"http://{address}/", headers=headers, content=b"x")
            assert answer.status_code == 403
        assert httpx.get(f"http://{address}/", headers={"Host": f"localhost:{port}"}).is_success
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        upgrade["Sec-WebSocket-Key"] = "dGhlIHNhbXBsZSBub25jZQ=="
        connection = http.client.HTTPConnection(host, int(port), timeout=_SECONDS)
        connection.request("GET", "/", headers=upgrade)
        assert connection.getresponse().status == 403
        connection.close()
    assert len(server.requests) == 1


@pytest.mark.slow  # starts a program
def test_server_changes_while_it_serves(attested_server: Make, tmp_path: Path) -> None:
    """A renewed key is proven; a swapped one is refused, and the request not sent."""
    server = attested_server()
    with serving(server, tmp_path) as address, httpx.Client(base_url=f"http://{address}") as own:
        assert own.post("/", content=b"1").text == "1"
        server.rotate()
        server.disconnect()
        assert own.post("/", content=b"2").text == "2"
        server.swap_key()
        server.disconnect()
        answer = own.post("/", content=b"3")
        assert (answer.status_code, "refused" in answer.text) == (502, True)
        server.restore()
        server.disconnect()
        assert own.post("/", content=b"4").text == "4"
        server.close()
        assert own.post("/", content=b"5").status_code == 502
    assert [request.body_size for request in server.requests] == [1, 1, 1]


def test_occupied_address_is_code_1(
    attested_server: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An address in use is one line, after the proof."""
    server = attested_server()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        words = [server.url, *options(server, tmp_path), "--serve", address]
        assert main(["connect", *words]) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert err == f"attestkit: --serve {address}: cannot listen: Address already in use"
