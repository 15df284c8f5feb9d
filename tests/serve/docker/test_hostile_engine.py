"""A hostile container engine: bounded time and memory, and the server keeps running."""

import asyncio
import gzip
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from attestkit.errors import BackendError
from attestkit.serve.docker import engine as containers
from attestkit.serve.docker.engine import ContainerEngine
from tests.raising import raises
from tests.serve.client import get
from tests.serve.docker.engine import ID, Engine, Script, run_engine, run_with_timeout, with_engine
from tests.serve.docker.test_responses import LISTED
from tests.serve.server import environment, running_server

pytestmark = pytest.mark.slow  # its tests start programs

LIST, ONE, LOG = "/containers/json", "/containers/app/json", f"/containers/{ID}/logs"
ANSWERS = ("/version", LIST, ONE, LOG)
MIB = 1 << 20
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
ERROR_HEAD = b"HTTP/1.1 500 Oh\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
SPACES = b" " * 65_536


class EndlessResponse:
    """A response without end; `taken` counts its bytes that were read."""

    def __init__(self, head: bytes, piece: bytes, pause: float = 0.0) -> None:
        self.taken = 0
        self._pause = pause
        self._head = head
        self._piece = piece

    async def __call__(self, writer: asyncio.StreamWriter) -> None:
        """Send until the client closes the connection."""
        writer.write(self._head)
        while True:
            writer.write(self._piece)
            await writer.drain()
            self.taken += len(self._piece)
            await asyncio.sleep(self._pause)


def send_response(response: bytes) -> Script:
    """Return a script that sends a response."""

    async def script(writer: asyncio.StreamWriter) -> None:
        writer.write(response)
        await writer.drain()

    return script


def encode_response(text: bytes, head: bytes = OK) -> bytes:
    """Return a response with a body."""
    return head + b"Content-Length: %d\r\n\r\n" % len(text) + text


async def _read_log(engine: Engine) -> bytes:
    async with ContainerEngine(engine.address).open_log("app", {"stdout": "1"}, 5.0) as log:
        return await log.read()


def _request_for(engine: Engine, path: str) -> Coroutine[Any, Any, object]:
    """Return the request whose last step is `path`."""
    return (
        _read_log(engine)
        if path in (ONE, LOG)
        else ContainerEngine(engine.address).list_containers()
    )


def get_error(path: str, response: Script | bytes) -> BackendError:
    """Return the error that a response to `path` causes: bytes, or a script that sends it."""
    script = send_response(response) if isinstance(response, bytes) else response

    async def main() -> BackendError:
        async with run_engine() as engine:
            engine.answers[path] = 0, script
            with pytest.raises(BackendError) as caught:
                await _request_for(engine, path)
            return caught.value

    return run_with_timeout(main())


# -- endless and slow responses -------------------------------------------------------------------


@pytest.mark.parametrize("path", ANSWERS)
@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"\r\n", SPACES),
        (CHUNKED, b"10000\r\n" + SPACES + b"\r\n"),
        (CHUNKED, (b"10\r\n" + b" " * 16 + b"\r\n") * 3000),
        (b"Content-Length: 99999999999\r\n\r\n", SPACES),
    ],
    ids=["no length", "chunks", "small chunks", "huge"],
)
def test_endless_body_is_bounded(path: str, head: bytes, piece: bytes) -> None:
    """Reading stops at the limit, plus the read-ahead of kernel and HTTP client."""
    limit = 4 if path == LIST else 1
    endless = EndlessResponse((ERROR_HEAD if path == LOG else OK) + head, piece)
    assert get_error(path, endless).reason == "too_large"
    assert endless.taken < 1.5 * limit * MIB + 2 * MIB  # chunks of 16 bytes take 22


@pytest.mark.parametrize("path", ANSWERS)
@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (OK, b"X: " + b"y" * 60_000 + b"\r\n"),
        (OK, b"X: " + b"y" * 8000 + b"\r\n"),
        (OK, b"X: y\r\n" * 10_000),
        (OK + b"X: ", b"y" * 60_000),
        (b"HTTP/1.1 200 ", b"y" * 60_000),
        (OK + CHUNKED + b"2\r\n[]\r\n0\r\n", b"X: y\r\n" * 10_000),
    ],
    ids=["long headers", "headers", "short headers", "a header", "a reason", "trailers"],
)
def test_endless_head_is_bounded(path: str, head: bytes, piece: bytes) -> None:
    """The HTTP client bounds the length and number of header lines."""
    endless = EndlessResponse(head, piece)
    assert get_error(path, endless).reason in {"malformed_response", "connection_lost"}
    assert endless.taken < 4 * MIB


SLOW = {
    "nothing": (b"", b""),
    "body": (OK + b"Content-Length: 100000\r\n\r\n", b" "),
    "headers": (OK, b"X: y\r\n"),
    "chunks": (OK + CHUNKED, b"1\r\n \r\n"),
    "refusal": (ERROR_HEAD + b"\r\n", b"x"),
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}


@pytest.mark.parametrize(
    ("path", "name"),
    [*[(path, name) for path in ("/version", LIST, ONE) for name in SLOW], (LOG, "refusal")],
)
def test_slow_response_times_out(path: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The timeout applies to the whole response, even if bytes keep arriving."""
    monkeypatch.setattr(containers, "ANSWER_SECONDS", 0.2)
    assert get_error(path, EndlessResponse(*SLOW[name], pause=0.01)).reason == "timed_out"


# -- malformed responses --------------------------------------------------------------------------

DEEP = b"[" * 100_000
WRONG = {
    "deep": DEEP,
    "deep in an object": b'{"Id":' + DEEP,
    "deep and closed": DEEP + b"]" * 100_000,
    "many values": b"[" + b"{}," * 300_000 + b"{}]",
    "infinite": b'[{"Created":1e999}]',
    "not a number": b'[{"Created":NaN}]',
    "long number": b"[" + b"1" * 5000 + b"]",
    "twice": b'{"Id":"a","Id":"b"}',
    "not UTF-8": b"\xff",
    "zeros": bytes(1000),
    "nothing": b"",
}


@pytest.mark.parametrize("path", ["/version", LIST, ONE])
@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_malformed_body_is_refused(path: str, text: bytes) -> None:
    """Every malformed body has the same reason."""
    assert get_error(path, encode_response(text)).reason == "malformed_response"


@pytest.mark.parametrize("path", ANSWERS)
def test_compressed_body_is_not_decompressed(path: str) -> None:
    """A gzip body is not decompressed, because of its possible size."""
    bomb = gzip.compress(b" " * (64 * MIB))
    head = (ERROR_HEAD if path == LOG else OK) + b"Content-Encoding: gzip\r\n"
    assert get_error(path, encode_response(bomb, head)).reason in {
        "malformed_response",
        "agent_error",
    }


@pytest.mark.parametrize("path", ANSWERS)
@pytest.mark.parametrize("status", [204, 206, 301, 302, 304, 307, 399])
@with_engine
async def test_unexpected_status_is_refused(engine: Engine, path: str, status: int) -> None:
    """Redirects and partial responses are malformed, and are not followed."""
    response = b"HTTP/1.1 %d So\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"
    engine.answers[path] = 0, send_response(response % status)
    with raises(BackendError, "malformed_response"):
        await _request_for(engine, path)
    assert not any("elsewhere" in target for target in engine.asked)


# -- a running server -----------------------------------------------------------------------------


HOSTILE: dict[str, Callable[[], Script]] = {
    "endless": lambda: EndlessResponse(OK + b"\r\n", SPACES),
    "endless head": lambda: EndlessResponse(OK, b"X: y\r\n" * 10_000),
    "deep": lambda: send_response(encode_response(DEEP)),
}
COMPOSE = '{"manifest_version":2,"name":"app","runner":"docker-compose","public_logs":true}'


def test_serve_hostile_engine_keeps_running(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The page and the log show an error, and recover with the engine."""
    compose = tmp_path_factory.mktemp("app") / "app-compose.json"
    compose.write_text(COMPOSE)

    async def main() -> None:
        async with run_engine() as engine:
            environ = environment(DOCKER_HOST=engine.address)
            with running_server("--app-compose", str(compose), environ=environ) as server:

                def read(target: str) -> tuple[int, str]:
                    answer = get(server.url, target)
                    return answer.status, answer.body.decode()

                for make in HOSTILE.values():
                    engine.answers[LIST] = engine.answers[ONE] = 0, make()
                    await asyncio.sleep(1.1)  # longer than the page caches an engine's response
                    status, page = await asyncio.to_thread(read, "/")
                    assert (status, "container engine" in page) == (200, True)
                    status, text = await asyncio.to_thread(read, "/logs/app?text&bare")
                    assert (status, "container engine" in text) == (500, True), text
                engine.answers[LIST] = 200, [LISTED]
                await asyncio.sleep(1.1)
                assert "app-1" in (await asyncio.to_thread(read, "/"))[1]
                server.check_log()

    run_with_timeout(main())
