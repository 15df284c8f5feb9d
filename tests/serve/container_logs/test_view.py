"""The log view streams a container's log with back-pressure and closes it with its client."""

import asyncio
import json
from contextlib import aclosing
from typing import cast

import pytest

from attestkit.errors import FormatError, NotFoundError
from attestkit.serve import listener_apps
from attestkit.serve.config.limits import LimitError, Limits
from attestkit.serve.container_logs.view import Frame, make_views
from attestkit.serve.docker import engine as containers
from attestkit.serve.http.views import Pieces, ViewRequest, ViewResponse
from tests.raising import raises
from tests.serve.asgi import Client
from tests.serve.docker.engine import (
    ID,
    Engine,
    encode_frames,
    run_engine,
    run_with_timeout,
    send_chunks,
    with_engine,
)
from tests.serve.guests import NOW, GuestClient, MakeGuest
from tests.untyped import untyped

PUBLIC = {"public_logs": True}
OUT, ERR = Frame("stdout", b"out\n"), Frame("stderr", b"err\n")


class LogView:
    """The log view of one guest."""

    def __init__(self, make_guest: MakeGuest, engine: Engine, **limits: float) -> None:
        limited = Limits(**untyped(limits))
        self.guest = make_guest(compose=PUBLIC, docker=engine.address, limits=limited)
        self.view = make_views(self.guest)["/logs/"]

    async def open(
        self, query: str = "text&bare", name: str = "app", client: str = ""
    ) -> ViewResponse:
        """Open a log."""
        return await self.view.show(self.guest, ViewRequest(name, query.encode(), client))

    async def read_pieces(
        self, query: str = "text&bare", name: str = "app", client: str = ""
    ) -> Pieces:
        """Return the pieces of a log after the first, which is empty and sends the head."""
        read_pieces = cast("Pieces", (await self.open(query, name, client)).body)
        assert await anext(read_pieces) == b""
        return read_pieces

    async def read_all(self, query: str = "text&bare", name: str = "app") -> str:
        """Return a complete log."""
        async with aclosing(await self.read_pieces(query, name)) as read_pieces:
            return b"".join([piece async for piece in read_pieces]).decode()

    @property
    def streams(self) -> int:
        """Return the number of open streams."""
        return self.guest.stats.streams


@with_engine
async def test_log_response_and_engine_request(engine: Engine, make_guest: MakeGuest) -> None:
    """The response's type and headers, the request to the engine, and its end."""
    engine.log = send_chunks(encode_frames([OUT, ERR]), encode_frames([OUT]))
    view = LogView(make_guest, engine)
    answer = await view.open("text&since=1h&tail=5&follow&timestamps&x=1")
    assert answer.content_type == b"text/plain; charset=utf-8"
    assert answer.headers == [(b"cache-control", b"no-store")]
    assert view.streams == 1
    async with aclosing(cast("Pieces", answer.body)) as read_pieces:
        lines = b"".join([piece async for piece in read_pieces]).splitlines()
    assert [tuple(json.loads(line).values()) for line in lines] == [
        *(("stdout", "out\n"), ("stderr", "err\n"), ("stdout", "out\n")),
    ]
    assert engine.asked[-1] == (
        f"/v1.45/containers/{ID}/logs?stdout=1&stderr=1&follow=1&timestamps=1&tail=5"
        f"&since={NOW - 3600}"
    )
    assert view.streams == 0
    assert await view.read_all() == "out\nerr\nout\n"


@with_engine
async def test_log_of_terminal_is_split_into_lines(engine: Engine, make_guest: MakeGuest) -> None:
    """With a TTY the bytes are lines, even if they look like a frame."""
    engine.log = send_chunks(b"one\r\nt", b"wo\r\n\1\0\0\0\0\0\0\1x")
    view = LogView(make_guest, engine)
    lines = (await view.read_all("text", "tty")).splitlines()
    assert [json.loads(line)["message"] for line in lines] == [
        *("one\r\n", "two\r\n", "\1\0\0\0\0\0\0\1x"),
    ]
    assert {json.loads(line)["channel"] for line in lines} == {"console"}


@pytest.mark.parametrize(
    ("query", "name", "reason", "text"),
    [
        ("until=x", "nope", "wrong_value", "Invalid until"),
        ("", "nope", "container", "No such container: nope"),
    ],
)
@with_engine
async def test_log_invalid_request_fails_before_response(
    engine: Engine, *, make_guest: MakeGuest, query: str, name: str, reason: str, text: str
) -> None:
    """Errors are raised before the response starts, and no stream is counted."""
    view = LogView(make_guest, engine)
    kind = NotFoundError if reason == "container" else FormatError
    with raises(kind, reason) as caught:
        await view.open(query, name)
    assert str(caught.value) == text
    assert (view.streams, untyped(view.view.show).__self__._open) == (0, {})


NOT_AN_ENGINE = "container engine at ADDRESS: not a response of the Docker API; check $DOCKER_HOST"
ENGINE_ERROR = b"Error grabbing logs: unexpected EOF\n"
BROKEN = {
    "frame cut": (
        send_chunks(encode_frames([OUT]), encode_frames([OUT])[:-1]),
        "ends inside a frame",
    ),
    "engine gone": (
        send_chunks(encode_frames([OUT]), then="break"),
        "connection to the container engine was lost",
    ),
    "engine's own": (
        send_chunks(
            encode_frames([OUT])
            + b"\3\0\0\0"
            + len(ENGINE_ERROR).to_bytes(4, "big")
            + ENGINE_ERROR,
            then="wait",
        ),
        "container engine: Error grabbing logs: unexpected EOF",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("query", ["text", "text&bare", "bare", ""])
def test_log_broken_stream_ends_with_error(make_guest: MakeGuest, fault: str, query: str) -> None:
    """Complete frames are shown, then an error object, and the engine's connection is closed."""
    log, text = BROKEN[fault]

    async def main() -> None:
        async with run_engine() as engine:
            view = LogView(make_guest, engine)
            engine.log = send_chunks(encode_frames([OUT]))
            good = await view.read_all(query)
            engine.log = log
            engine.gone.clear()
            *lines, last = (await view.read_all(query)).splitlines(keepends=True)
            assert "".join(lines).rstrip("\n") == good.rstrip("\n")
            assert last.endswith("\n")
            [(key, error)] = json.loads(last).items()
            assert (key, text in error) == ("error", True)
            await engine.gone.wait()
            assert view.streams == 0

    run_with_timeout(main())


@pytest.mark.parametrize("name", ["app", "tty"])
@with_engine
async def test_log_short_lines_leave_event_loop_free(
    engine: Engine, make_guest: MakeGuest, name: str
) -> None:
    """Many short lines arrive in bounded pieces, and other tasks run in between."""
    iterations = 0

    async def count_iterations() -> None:
        nonlocal iterations
        while True:
            iterations += 1
            await asyncio.sleep(0)

    count = 20_000
    data = encode_frames([Frame("stdout", b"\n")]) if name == "app" else b"\n"
    engine.log = send_chunks(data * count)
    view = LogView(make_guest, engine)
    found, longest = 0, 0
    async with aclosing(await view.read_pieces("text", name)) as read_pieces:
        counting = asyncio.create_task(count_iterations())
        async for piece in read_pieces:
            found += piece.count(b"\n")
            longest = max(longest, piece.count(b"\n"))
        counting.cancel()
    assert found == count
    assert longest <= 1000
    assert iterations >= count / 1000 - 1


@pytest.mark.parametrize("then", ["end", "break"])
@with_engine
async def test_log_remaining_bytes_precede_end(
    engine: Engine, make_guest: MakeGuest, then: str
) -> None:
    """Buffered bytes are shown before the end of the log or the error."""
    cut = Frame("stdout", b"a\xe2\x82")
    engine.log = send_chunks(encode_frames([OUT] * 2500 + [cut]), then=then)
    *lines, last = (await LogView(make_guest, engine).read_all()).splitlines()
    if then == "break":
        assert list(json.loads(last)) == ["error"]
        last = lines.pop()
    assert (lines, last) == (["out"] * 2500, "a\ufffd")


@with_engine
async def test_log_silence_ends_stream(engine: Engine, make_guest: MakeGuest) -> None:
    """A silent log ends without error after stream_seconds; output resets the timer."""
    view = LogView(make_guest, engine, stream_seconds=1.0)
    engine.log = send_chunks(encode_frames([OUT]), then="wait")
    loop = asyncio.get_running_loop()
    begin = loop.time()
    assert await view.read_all("text&bare&follow") == "out\n"
    assert loop.time() - begin >= 1.0
    await engine.gone.wait()

    async def send_slowly(writer: asyncio.StreamWriter) -> None:
        for _ in range(4):
            await send_chunks(encode_frames([OUT]), then="wait")(writer)
            await asyncio.sleep(0.4)
        await send_chunks()(writer)

    engine.log = send_slowly
    assert await view.read_all("text&bare&follow") == "out\n" * 4


@with_engine
async def test_log_without_output_starts_response(engine: Engine, make_guest: MakeGuest) -> None:
    """The response starts, although the engine sends its head only with the first output."""
    engine.head = b""
    engine.log = send_chunks(then="wait")
    view = LogView(make_guest, engine, stream_seconds=1.0)
    read_pieces = await view.read_pieces("text&bare&follow")
    assert (view.streams, engine.gone.is_set()) == (1, False)
    await read_pieces.aclose()
    await engine.gone.wait()
    assert view.streams == 0
    assert await view.read_all("text&bare&follow") == ""  # after one second


@pytest.mark.parametrize(
    ("refusal", "text"),
    [
        (
            b'404 No\r\nContent-Length: 16\r\n\r\n{"message":"no"}',
            "No such container: app",
        ),
        (b"200 OK\r\nContent-Length: x\r\n\r\n", NOT_AN_ENGINE),
    ],
)
@with_engine
async def test_log_late_engine_error_is_a_line(
    engine: Engine,
    make_guest: MakeGuest,
    monkeypatch: pytest.MonkeyPatch,
    refusal: bytes,
    text: str,
) -> None:
    """An engine error after the response has started is a line of it."""
    opened = asyncio.Event()
    engine.head = b""

    async def refuse(writer: asyncio.StreamWriter) -> None:
        await opened.wait()
        writer.write(b"HTTP/1.1 " + refusal)

    engine.log = refuse
    monkeypatch.setattr(containers, "REFUSAL_SECONDS", 0.0)
    async with aclosing(await LogView(make_guest, engine).read_pieces()) as read_pieces:
        opened.set()
        [(key, error)] = json.loads(await anext(read_pieces)).items()
        assert (key, error.replace(engine.address, "ADDRESS")) == ("error", text)
        with pytest.raises(StopAsyncIteration):
            await anext(read_pieces)


@pytest.mark.parametrize("state", ["waiting", "between", "unread", "forgotten"])
@with_engine
async def test_log_client_disconnect_closes_engine(
    engine: Engine, make_guest: MakeGuest, state: str
) -> None:
    """The engine's connection is closed at once, whatever the view was doing."""
    engine.log = send_chunks(encode_frames([OUT]), then="wait")
    view = LogView(make_guest, engine)
    read_pieces = cast("Pieces", (await view.open("text&bare&follow")).body)
    assert view.streams == 1
    if state in {"waiting", "between"}:
        assert await anext(read_pieces) == b""
        assert await anext(read_pieces) == b"out\n"
    if state == "waiting":
        task = asyncio.ensure_future(anext(read_pieces))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    if state != "forgotten":
        await read_pieces.aclose()
        assert view.streams == 0
    del read_pieces
    await engine.gone.wait()
    assert view.streams == 0


@with_engine
async def test_log_slow_client_stops_engine(engine: Engine, make_guest: MakeGuest) -> None:
    """A client that does not read stops the engine after a bounded number of bytes."""
    stuck = asyncio.Event()
    written = 0

    async def flood(writer: asyncio.StreamWriter) -> None:
        nonlocal written
        send = send_chunks(encode_frames([Frame("stdout", bytes(1000))] * 20), then="wait")
        while True:
            sending = asyncio.ensure_future(send(writer))
            # The task may notice the disconnect after the test has ended.
            sending.add_done_callback(lambda task: task.cancelled() or task.exception())
            if not (await asyncio.wait({sending}, timeout=0.5))[0]:
                stuck.set()
            await sending
            written += 20_000

    engine.log = flood
    view = LogView(make_guest, engine)
    async with aclosing(await view.read_pieces("text&bare&follow")) as read_pieces:
        assert await anext(read_pieces)
        await stuck.wait()
        assert 100_000 < written < 2_000_000
        taken, before = 0, written
        while written < before + 1_000_000:  # it continues at the client's pace
            taken += len(await anext(read_pieces))
        assert taken > 500_000


@with_engine
async def test_log_stream_limit_is_per_client(engine: Engine, make_guest: MakeGuest) -> None:
    """A closed stream frees a slot; a refused one occupies none."""
    engine.log = send_chunks(encode_frames([OUT]), then="wait")
    view = LogView(make_guest, engine, streams=2)
    first, second = [await view.read_pieces("follow", client="192.0.2.1") for _ in range(2)]
    for _ in range(3):
        with raises(LimitError, "streams"):
            await view.open("follow", client="192.0.2.1")
    other = await view.read_pieces("follow", client="192.0.2.2")
    assert view.streams == 3
    await first.aclose()
    with raises(NotFoundError, "container"):
        await view.open("follow", "nope", "192.0.2.1")
    third = await view.read_pieces("follow", client="192.0.2.1")
    with raises(LimitError, "streams"):
        await view.open("follow", client="192.0.2.1")
    for read_pieces in (second, third, other):
        await read_pieces.aclose()
    assert (view.streams, untyped(view.view.show).__self__._open) == (0, {})


INVALID_NAMES = (
    *("..", ".", "-a", "_a", "..%2Fversion", "..%2fversion", "%2e%2e%2fversion", "a%2F..", "a%3Fb"),
    *("a%23b", "a%20b", "%C3%A9", "a%00", "a%0A", "a%25", "%ff", "a;b", "a:b", "a" * 256),
)


def test_log_error_statuses(make_guest: MakeGuest, guest_client: GuestClient) -> None:
    """Errors before the response are a status with JSON."""
    with_engine = make_guest(compose=PUBLIC, docker="/nowhere/docker.sock")
    client = guest_client("external", with_engine)
    for target, status, text in (
        ("/logs/app?since=1.5h", 400, "Invalid since"),
        ("/logs/app?text&text", 400, "text: given more than once"),
        *((f"/logs/{name}?since=x", 400, "Invalid container name") for name in INVALID_NAMES),
        ("/logs/", 404, "No such path: /logs/"),
        ("/logs/a/b", 404, "No such path: /logs/a/b"),
        ("/logs", 404, "No such path: /logs"),
        ("/logs/app", 500, "container engine at /nowhere/docker.sock: cannot connect"),
    ):
        response = client.get(target)
        assert (response.status, response.error()[: len(text)]) == (status, text)
    assert client.post("/logs/app").status == 404
    none = guest_client("external", compose=PUBLIC, limits=Limits(streams=0))
    response = none.get("/logs/app")
    assert response.status == 503
    assert response.error() == "container logs: 0 are open for this client; close one"


@pytest.mark.parametrize("compose", [{}, {"public_logs": False}])
def test_log_private_logs_are_404(guest_client: GuestClient, compose: dict[str, bool]) -> None:
    """Without public_logs the path does not exist."""
    client = guest_client("external", compose=compose)
    assert client.get("/logs/app?since=x").error() == client.get("/nope").error().replace(
        "/nope", "/logs/app"
    )


@with_engine
async def test_log_head_request_opens_no_stream(engine: Engine, make_guest: MakeGuest) -> None:
    """HEAD returns the status and the version, and leaves no stream open."""
    engine.log = send_chunks(encode_frames([OUT]), then="wait")
    guest = make_guest(compose=PUBLIC, docker=engine.address)
    client = Client(listener_apps.external_app(guest), asyncio.get_running_loop())
    for name, status in (("app", 200), ("nope", 404)):
        response = await client.send("HEAD", f"/logs/{name}?follow")
        assert (response.status, response.headers["x-app-version"]) == (status, "v0.5.11 (unknown)")
        assert guest.stats.streams == 0
    await engine.gone.wait()
