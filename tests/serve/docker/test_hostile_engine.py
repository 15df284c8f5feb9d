"""Whatever a container engine answers, the server ends it: in time, in little memory, and lives."""

import asyncio
import gzip
from collections.abc import Callable, Coroutine
from contextlib import closing
from typing import Any

import pytest

from attestkit.errors import BackendError
from attestkit.serve.docker import engine as containers
from attestkit.serve.docker.engine import Containers
from tests.serve.client import Connection
from tests.serve.docker.engine import ID, Engine, Script, run, scripted
from tests.serve.docker.test_engine import LISTED
from tests.serve.server import environment, running_server

LIST, ONE, LOG = "/containers/json", "/containers/app/json", f"/containers/{ID}/logs"
ANSWERS = ("/version", LIST, ONE, LOG)
MIB = 1 << 20
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
OH = b"HTTP/1.1 500 Oh\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
BLANKS = b" " * 65_536
STRANGE = "what answers at ADDRESS is no container engine"


class Endless:
    """A response without an end, and how many bytes of it were taken."""

    def __init__(self, head: bytes, piece: bytes) -> None:
        self.taken = 0
        self._head = head
        self._piece = piece

    async def __call__(self, writer: asyncio.StreamWriter) -> None:
        """Send it until the client goes away."""
        writer.write(self._head)
        while True:
            writer.write(self._piece)
            await writer.drain()
            self.taken += len(self._piece)


def whole(response: bytes) -> Script:
    """Return the script of a response as it is."""

    async def script(writer: asyncio.StreamWriter) -> None:
        writer.write(response)
        await writer.drain()

    return script


def body(text: bytes, head: bytes = OK) -> bytes:
    """Return a response with a body."""
    return head + b"Content-Length: %d\r\n\r\n" % len(text) + text


async def _log_of(engine: Engine) -> bytes:
    async with Containers(engine.address).logs("app", {"stdout": "1"}, 5.0) as log:
        return await log.read()


def _asked(engine: Engine, path: str) -> Coroutine[Any, Any, object]:
    """Return the question that leads to the one for `path`."""
    return _log_of(engine) if path in (ONE, LOG) else Containers(engine.address).list()


def failure(path: str, script: Script) -> str:
    """Return the text of the error that such an answer to `path` leads to."""

    async def main() -> str:
        async with scripted() as engine:
            engine.answers[path] = 0, script
            with pytest.raises(BackendError) as caught:
                await _asked(engine, path)
            return str(caught.value).replace(engine.address, "ADDRESS")

    return run(main())


# -- without an end --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ANSWERS)
@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"\r\n", BLANKS),
        (CHUNKED, b"10000\r\n" + BLANKS + b"\r\n"),
        (CHUNKED, (b"10\r\n" + b" " * 16 + b"\r\n") * 3000),
        (b"Content-Length: 99999999999\r\n\r\n", BLANKS),
    ],
    ids=["no length", "chunks", "small chunks", "huge"],
)
def test_an_endless_answer_ends_at_its_limit(path: str, head: bytes, piece: bytes) -> None:
    """No more is taken than that, and what the kernel and the client have read ahead."""
    limit = 4 if path == LIST else 1
    endless = Endless((OH if path == LOG else OK) + head, piece)
    text = f"the container engine at ADDRESS answers with more than {limit} MiB"
    assert failure(path, endless) == text
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
def test_an_endless_head_ends(path: str, head: bytes, piece: bytes) -> None:
    """The HTTP client bounds lines and their number; a body is not even begun."""
    endless = Endless(head, piece)
    text = failure(path, endless)
    assert text == STRANGE or text.startswith("the container engine at ADDRESS cannot be reached: ")
    assert endless.taken < 4 * MIB


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"", b""),
        (OK + b"Content-Length: 100000\r\n\r\n", b" "),
        (OK, b"X: y\r\n"),
        (OK + CHUNKED, b"1\r\n \r\n"),
        (OH + b"\r\n", b"x"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["nothing", "body", "headers", "chunks", "refusal", "continue"],
)
@pytest.mark.parametrize("path", ["/version", LIST, ONE])
def test_a_slow_answer_ends(
    path: str, head: bytes, piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who sends a byte now and then is not waited for longer than who is silent."""
    monkeypatch.setattr(containers, "ANSWER_SECONDS", 0.2)

    async def script(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            await asyncio.sleep(0.01)
            writer.write(piece)
            await writer.drain()

    assert "cannot be reached: it does not answer" in failure(path, script)


def test_a_slow_refusal_of_a_log_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log may be silent, but not the answer that there is none."""
    monkeypatch.setattr(containers, "ANSWER_SECONDS", 0.2)

    async def script(writer: asyncio.StreamWriter) -> None:
        writer.write(OH + b"\r\n")
        while True:
            await asyncio.sleep(0.01)
            writer.write(b"x")
            await writer.drain()

    assert "cannot be reached: it does not answer" in failure(LOG, script)


# -- what is no answer -----------------------------------------------------------------------------

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
def test_what_is_no_answer(path: str, text: bytes) -> None:
    """It is refused in the same words, whatever is wrong with it."""
    assert failure(path, whole(body(text))) == STRANGE


@pytest.mark.parametrize("path", ANSWERS)
@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_what_is_no_refusal(path: str, text: bytes) -> None:
    """An error without a message is no engine's."""
    head = OH + b"Content-Type: application/json; charset=utf-8\r\n"
    assert failure(path, whole(body(text, head))) == STRANGE


def test_infinite_times() -> None:
    """A number that JSON has, and no clock."""
    text = b'[{"Id":"a","Image":"b","State":"c","Status":"d","Created":%s}]'
    for number in (b"1e999", b"-1e999", b"1e5", b"true", b'"1"', b"null", b"1" * 400):
        assert failure(LIST, whole(body(text % number))) == STRANGE


@pytest.mark.parametrize("path", ANSWERS)
def test_what_was_packed_is_not_unpacked(path: str) -> None:
    """A megabyte of gzip would be a gigabyte."""
    bomb = gzip.compress(b" " * (64 * MIB))
    head = (OH if path == LOG else OK) + b"Content-Encoding: gzip\r\n"
    text = failure(path, whole(body(bomb, head)))
    assert text == STRANGE or text.startswith("the container engine answers with status 500: ")


@pytest.mark.parametrize("path", ANSWERS)
@pytest.mark.parametrize("status", [204, 206, 301, 302, 304, 307, 399])
def test_other_statuses(path: str, status: int) -> None:
    """An engine sends nobody elsewhere, and has no half of an answer."""

    async def main() -> None:
        async with scripted() as engine:
            response = b"HTTP/1.1 %d So\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"
            engine.answers[path] = 0, whole(response % status)
            with pytest.raises(BackendError, match="is no container engine"):
                await _asked(engine, path)
            assert not any("elsewhere" in target for target in engine.asked)

    run(main())


def test_words_of_a_refusal_are_one_short_line() -> None:
    """They get into logs and onto pages."""
    head = OH + b"Content-Type: application/json\r\n"
    text = failure(LIST, whole(body(b'{"message":"a\\nb\\u001b[31m%s"}' % (b"x" * 9999), head)))
    assert text.startswith("the container engine answers with status 500: a b [31mxxx")
    assert len(text) < 300


# -- a live server ---------------------------------------------------------------------------------


HOSTILE: dict[str, Callable[[], Script]] = {
    "endless": lambda: Endless(OK + b"\r\n", BLANKS),
    "endless head": lambda: Endless(OK, b"X: y\r\n" * 10_000),
    "deep": lambda: whole(body(DEEP)),
    "infinite": lambda: whole(body(b'[{"Created":1e999}]')),
    "packed": lambda: whole(body(gzip.compress(BLANKS), OK + b"Content-Encoding: gzip\r\n")),
}
COMPOSE = '{"manifest_version":2,"name":"app","runner":"docker-compose","public_logs":true}'


def test_a_server_lives(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The page says what is wrong, a log is an error, and both are well when the engine is."""
    compose = tmp_path_factory.mktemp("app") / "app-compose.json"
    compose.write_text(COMPOSE)

    async def main() -> None:
        async with scripted() as engine:
            environ = environment(DOCKER_HOST=engine.address)
            with running_server("--app-compose", str(compose), environ=environ) as server:

                def get(target: str) -> tuple[int, str]:
                    with closing(Connection(server.url)) as connection:
                        answer = connection.send_request("GET", target)
                    return answer.status, answer.body.decode()

                for make in HOSTILE.values():
                    engine.answers[LIST] = engine.answers[ONE] = 0, make()
                    await asyncio.sleep(1.1)  # for which the page keeps an engine's answer
                    status, page = await asyncio.to_thread(get, "/")
                    assert (status, "container engine" in page) == (200, True)
                    status, text = await asyncio.to_thread(get, "/logs/app?text&bare")
                    assert (status, "container engine" in text) == (500, True), text
                engine.answers[LIST] = 200, [LISTED]
                await asyncio.sleep(1.1)
                assert "app-1" in (await asyncio.to_thread(get, "/"))[1]
                server.check_log()

    run(main())
