"""A log is shown as it comes, at its client's pace, and ends with its client."""

import asyncio
import json
from collections.abc import MutableMapping
from contextlib import aclosing
from typing import Any, cast

import pytest

from attestkit.errors import BackendError, FormatError, NotFoundError
from attestkit.serve import listener_apps
from attestkit.serve.config.limits import LimitError, Limits
from attestkit.serve.container_logs.docker_frames import LONGEST, Frame
from attestkit.serve.container_logs.view import views
from attestkit.serve.docker import engine as containers
from attestkit.serve.http.views import Answer, Asked, Pieces
from tests.serve.asgi import Client
from tests.serve.docker.engine import ID, Engine, framed, run, say, scripted
from tests.serve.guests import NOW, MakeGuest
from tests.untyped import untyped

PUBLIC = {"public_logs": True}
OUT, ERR = Frame("stdout", b"out\n"), Frame("stderr", b"err\n")


class Shown:
    """The view of one guest."""

    def __init__(self, make_guest: MakeGuest, engine: Engine, **limits: float) -> None:
        limited = Limits(**untyped(limits))
        self.guest = make_guest(compose=PUBLIC, docker=engine.address, limits=limited)
        self.view = views(self.guest)["/logs/"]

    async def open(self, query: str = "text&bare", name: str = "app", client: str = "") -> Answer:
        """Ask for a log."""
        return await self.view.show(self.guest, Asked(name, query.encode(), client))

    async def pieces(self, query: str = "text&bare", name: str = "app", client: str = "") -> Pieces:
        """Return the pieces of a log behind the first, which is empty and sends the head."""
        pieces = cast("Pieces", (await self.open(query, name, client)).body)
        assert await anext(pieces) == b""
        return pieces

    async def whole(self, query: str = "text&bare", name: str = "app") -> str:
        """Return a log to its end."""
        async with aclosing(await self.pieces(query, name)) as pieces:
            return b"".join([piece async for piece in pieces]).decode()

    @property
    def streams(self) -> int:
        """How many are open."""
        return self.guest.stats.streams


def test_a_log(make_guest: MakeGuest) -> None:
    """Type and headers of the answer, what the engine is asked, and that nothing stays open."""

    async def main() -> None:
        async with scripted() as engine:
            engine.log = say(framed([OUT, ERR]), framed([OUT]))
            shown = Shown(make_guest, engine)
            answer = await shown.open("text&since=1h&tail=5&follow&timestamps&x=1")
            assert answer.content_type == b"text/plain; charset=utf-8"
            assert answer.headers == [(b"cache-control", b"no-store")]
            assert shown.streams == 1
            async with aclosing(cast("Pieces", answer.body)) as pieces:
                lines = b"".join([piece async for piece in pieces]).splitlines()
            assert [tuple(json.loads(line).values()) for line in lines] == [
                *(("stdout", "out\n"), ("stderr", "err\n"), ("stdout", "out\n")),
            ]
            assert engine.asked[-1] == (
                f"/v1.45/containers/{ID}/logs?stdout=1&stderr=1&follow=1&timestamps=1&tail=5"
                f"&since={NOW - 3600}"
            )
            assert shown.streams == 0
            assert await shown.whole() == "out\nerr\nout\n"

    run(main())


def test_a_terminal(make_guest: MakeGuest) -> None:
    """No frames: the bytes are lines of one channel, also such that look like a frame."""

    async def main() -> None:
        async with scripted() as engine:
            engine.log = say(b"one\r\nt", b"wo\r\n\1\0\0\0\0\0\0\1x")
            shown = Shown(make_guest, engine)
            lines = (await shown.whole("text", "tty")).splitlines()
            assert [json.loads(line)["message"] for line in lines] == [
                *("one\r\n", "two\r\n", "\1\0\0\0\0\0\0\1x"),
            ]
            assert {json.loads(line)["channel"] for line in lines} == {"console"}

    run(main())


@pytest.mark.parametrize(
    ("query", "name", "kind", "text"),
    [
        ("since=x", "app", FormatError, "Invalid since"),
        ("until=x", "nope", FormatError, "Invalid until"),
        ("", "nope", NotFoundError, "No such container: nope"),
        ("", "../version", NotFoundError, "No such container: ../version"),
    ],
)
def test_refusals_come_before_the_answer(
    make_guest: MakeGuest, query: str, name: str, kind: type[Exception], text: str
) -> None:
    """What is wrong is raised by the question, not by the first piece, and counts no stream."""

    async def main() -> None:
        async with scripted() as engine:
            shown = Shown(make_guest, engine)
            with pytest.raises(kind) as caught:
                await shown.open(query, name)
            assert str(caught.value) == text
            assert (shown.streams, untyped(shown.view.show).__self__._open) == (0, {})

    run(main())


def test_no_engine(make_guest: MakeGuest) -> None:
    """An engine that is not there is told before the answer as well."""

    async def main() -> None:
        shown = Shown(make_guest, Engine("/nowhere/docker.sock"))
        with pytest.raises(
            BackendError, match=r"engine at /nowhere/docker\.sock cannot be reached"
        ):
            await shown.open()

    run(main())


WORDS = b"Error grabbing logs: unexpected EOF\n"
BROKEN = {
    "frame cut": (say(framed([OUT]), framed([OUT])[:-1]), "broke off in the middle of a frame"),
    "header cut": (say(framed([OUT]), b"\1\0\0"), "broke off in the middle of a frame"),
    "engine gone": (say(framed([OUT]), then="break"), "broke off: the container engine went away"),
    "channel unknown": (
        say(framed([OUT]) + b"\4" + bytes(11)),
        "sends no frames: 0400000000000000",
    ),
    "no frames": (say(framed([OUT]) + b"HTTP/1.1 500"), "sends no frames: 485454502f312e31"),
    "too long": (
        say(framed([OUT]) + b"\1\0\0\0" + (LONGEST + 1).to_bytes(4, "big"), then="wait"),
        "sends no frames: 0100000000100001",
    ),
    "engine's own": (
        say(framed([OUT]) + b"\3\0\0\0" + len(WORDS).to_bytes(4, "big") + WORDS, then="wait"),
        "the container engine failed: Error grabbing logs: unexpected EOF",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("query", ["text", "text&bare", "bare", ""])
def test_a_log_that_breaks_off(make_guest: MakeGuest, fault: str, query: str) -> None:
    """All that came is shown; the error is the last line, an object, and the engine is let go."""
    log, text = BROKEN[fault]

    async def main() -> None:
        async with scripted() as engine:
            shown = Shown(make_guest, engine)
            engine.log = say(framed([OUT]))
            good = await shown.whole(query)
            engine.log = log
            engine.gone.clear()
            *lines, last = (await shown.whole(query)).splitlines(keepends=True)
            assert "".join(lines).rstrip("\n") == good.rstrip("\n")
            assert last.endswith("\n")
            [(key, error)] = json.loads(last).items()
            assert (key, text in error) == ("error", True)
            await engine.gone.wait()
            assert shown.streams == 0

    run(main())


def test_half_a_character_at_the_break(make_guest: MakeGuest) -> None:
    """What waited for its end is shown before the error."""

    async def main() -> None:
        async with scripted() as engine:
            engine.log = say(framed([Frame("stdout", b"a\xe2\x82")]), then="break")
            shown = Shown(make_guest, engine)
            first, last = (await shown.whole()).splitlines()
            assert (first, list(json.loads(last))) == ("a�", ["error"])

    run(main())


@pytest.mark.parametrize("name", ["app", "tty"])
def test_many_short_lines(make_guest: MakeGuest, name: str) -> None:
    """They come whole, in pieces of which none keeps the server for long, and others have turns."""

    async def main() -> None:
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async with scripted() as engine:
            count = 20_000
            data = framed([Frame("stdout", b"\n")]) if name == "app" else b"\n"
            engine.log = say(data * count)
            shown = Shown(make_guest, engine)
            found, longest = 0, 0
            async with aclosing(await shown.pieces("text", name)) as pieces:
                counting = asyncio.create_task(others())
                async for piece in pieces:
                    found += piece.count(b"\n")
                    longest = max(longest, piece.count(b"\n"))
                counting.cancel()
            assert found == count
            assert longest <= 1000
            assert turns >= count / 1000 - 1

    run(main())


@pytest.mark.parametrize("then", ["end", "break"])
def test_a_last_piece_in_parts(make_guest: MakeGuest, then: str) -> None:
    """What is left of it when the log ends is shown before its end, or before the error."""

    async def main() -> None:
        async with scripted() as engine:
            cut = Frame("stdout", b"a\xe2\x82")
            engine.log = say(framed([OUT] * 2500 + [cut]), then=then)
            *lines, last = (await Shown(make_guest, engine).whole()).splitlines()
            if then == "break":
                assert json.loads(last) == {
                    "error": "the log broke off: the container engine went away"
                }
                last = lines.pop()
            assert (lines, last) == (["out"] * 2500, "a\ufffd")

    run(main())


def test_silence(make_guest: MakeGuest) -> None:
    """A log without a word ends after a while, without an error; words put that off."""

    async def main() -> None:
        async with scripted() as engine:
            shown = Shown(make_guest, engine, stream_seconds=1.0)
            engine.log = say(framed([OUT]), then="wait")
            loop = asyncio.get_running_loop()
            begin = loop.time()
            assert await shown.whole("text&bare&follow") == "out\n"
            assert loop.time() - begin >= 1.0
            await engine.gone.wait()

            async def talk(writer: asyncio.StreamWriter) -> None:
                for _ in range(4):
                    await say(framed([OUT]), then="wait")(writer)
                    await asyncio.sleep(0.4)
                await say()(writer)

            engine.log = talk
            assert await shown.whole("text&bare&follow") == "out\n" * 4

    run(main())


def test_a_container_that_says_nothing(make_guest: MakeGuest) -> None:
    """The engine says yes with its first words only; the client's answer does not wait for them."""

    async def main() -> None:
        async with scripted() as engine:
            engine.head = b""
            engine.log = say(then="wait")
            shown = Shown(make_guest, engine, stream_seconds=1.0)
            pieces = await shown.pieces("text&bare&follow")
            assert (shown.streams, engine.gone.is_set()) == (1, False)
            await pieces.aclose()
            await engine.gone.wait()
            assert shown.streams == 0
            assert await shown.whole("text&bare&follow") == ""  # after a second

    run(main())


@pytest.mark.parametrize(
    ("refusal", "text"),
    [
        (
            b'501 No\r\nContent-Length: 16\r\n\r\n{"message":"no"}',
            "the container engine answers with status 501: no",
        ),
        (
            b'404 No\r\nContent-Length: 16\r\n\r\n{"message":"no"}',
            "No such container: app",
        ),
        (b"500 No\r\nContent-Length: 0\r\n\r\n", "what answers at ADDRESS is no container engine"),
        (b"200 OK\r\nContent-Length: x\r\n\r\n", "what answers at ADDRESS is no container engine"),
    ],
)
def test_a_late_refusal(
    make_guest: MakeGuest, monkeypatch: pytest.MonkeyPatch, refusal: bytes, text: str
) -> None:
    """One that comes when the answer has begun is a line of it."""

    async def main() -> None:
        async with scripted() as engine:
            opened = asyncio.Event()
            engine.head = b""

            async def refuse(writer: asyncio.StreamWriter) -> None:
                await opened.wait()
                writer.write(b"HTTP/1.1 " + refusal)

            engine.log = refuse
            monkeypatch.setattr(containers, "REFUSAL_SECONDS", 0.0)
            async with aclosing(await Shown(make_guest, engine).pieces()) as pieces:
                opened.set()
                [(key, error)] = json.loads(await anext(pieces)).items()
                assert (key, error.replace(engine.address, "ADDRESS")) == ("error", text)
                with pytest.raises(StopAsyncIteration):
                    await anext(pieces)

    run(main())


@pytest.mark.parametrize("how", ["waiting", "between", "unread", "forgotten"])
def test_a_client_that_goes(make_guest: MakeGuest, how: str) -> None:
    """The engine's connection ends at once, whatever we were about to do."""

    async def main() -> None:
        async with scripted() as engine:
            engine.log = say(framed([OUT]), then="wait")
            shown = Shown(make_guest, engine)
            pieces = cast("Pieces", (await shown.open("text&bare&follow")).body)
            assert shown.streams == 1
            if how in {"waiting", "between"}:
                assert await anext(pieces) == b""
            if how in {"waiting", "between"}:
                assert await anext(pieces) == b"out\n"
            if how == "waiting":
                task = asyncio.ensure_future(anext(pieces))
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            if how != "forgotten":
                await pieces.aclose()
                assert shown.streams == 0
            del pieces
            await engine.gone.wait()
            assert shown.streams == 0

    run(main())


def test_back_pressure(make_guest: MakeGuest) -> None:
    """A client that takes nothing more stops the engine, after a bounded number of bytes."""

    async def main() -> None:
        stuck = asyncio.Event()
        written = 0

        async def flood(writer: asyncio.StreamWriter) -> None:
            nonlocal written
            send = say(framed([Frame("stdout", bytes(1000))] * 20), then="wait")
            while True:
                sending = asyncio.ensure_future(send(writer))
                # Ended here, it learns later that its client is gone: no test's business then.
                sending.add_done_callback(lambda task: task.cancelled() or task.exception())
                if not (await asyncio.wait({sending}, timeout=0.5))[0]:
                    stuck.set()
                await sending
                written += 20_000

        async with scripted() as engine:
            engine.log = flood
            shown = Shown(make_guest, engine)
            async with aclosing(await shown.pieces("text&bare&follow")) as pieces:
                assert await anext(pieces)
                await stuck.wait()
                assert 100_000 < written < 2_000_000
                taken, before = 0, written
                while written < before + 1_000_000:  # it goes on as the client does
                    taken += len(await anext(pieces))
                assert taken > 500_000

    run(main())


def test_limit_of_streams(make_guest: MakeGuest) -> None:
    """Each client has its own; one that it closes makes room, one that was refused takes none."""

    async def main() -> None:
        async with scripted() as engine:
            engine.log = say(framed([OUT]), then="wait")
            shown = Shown(make_guest, engine, streams=2)
            first, second = [await shown.pieces("follow", client="192.0.2.1") for _ in range(2)]
            for _ in range(3):
                with pytest.raises(LimitError, match="you have 2 logs open already"):
                    await shown.open("follow", client="192.0.2.1")
            other = await shown.pieces("follow", client="192.0.2.2")
            assert shown.streams == 3
            await first.aclose()
            with pytest.raises(NotFoundError):
                await shown.open("follow", "nope", "192.0.2.1")
            third = await shown.pieces("follow", client="192.0.2.1")
            with pytest.raises(LimitError):
                await shown.open("follow", client="192.0.2.1")
            for pieces in (second, third, other):
                await pieces.aclose()
            assert (shown.streams, untyped(shown.view.show).__self__._open) == (0, {})

    run(main())


def test_statuses(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> None:
    """What is wrong before the answer is a status with an error in JSON."""
    with_engine = make_guest(compose=PUBLIC, docker="/nowhere/docker.sock")
    client = Client(listener_apps.external_app(with_engine), loop)
    for target, status, text in (
        ("/logs/app?since=1.5h", 400, "Invalid since"),
        ("/logs/app?text&text", 400, "text is given twice"),
        ("/logs/..%2Fversion", 404, "No such container: ../version"),
        ("/logs/", 404, "No such path: /logs/"),
        ("/logs/a/b", 404, "No such path: /logs/a/b"),
        ("/logs", 404, "No such path: /logs"),
        ("/logs/app", 500, "the container engine at /nowhere/docker.sock cannot be reached"),
    ):
        response = client.get(target)
        assert (response.status, response.error()[: len(text)]) == (status, text)
    assert client.post("/logs/app").status == 404
    none = Client(
        listener_apps.external_app(make_guest(compose=PUBLIC, limits=Limits(streams=0))), loop
    )
    response = none.get("/logs/app")
    assert (response.status, "logs open already" in response.error()) == (503, True)


@pytest.mark.parametrize("compose", [{}, {"public_logs": False}])
def test_logs_that_are_not_public(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop, compose: dict[str, bool]
) -> None:
    """Without the app's word there is no such path, and nobody is asked; nor on other listeners."""
    guest = make_guest(compose=compose)
    client = Client(listener_apps.external_app(guest), loop)
    assert client.get("/logs/app?since=x").error() == client.get("/nope").error().replace(
        "/nope", "/logs/app"
    )
    public = make_guest(compose=PUBLIC)
    for app in (
        listener_apps.dstack_app(public),
        listener_apps.tappd_app(public),
        listener_apps.dev_app(public),
    ):
        assert Client(app, loop).get("/logs/app?since=x").status == 404


def test_head(make_guest: MakeGuest) -> None:
    """HEAD finds out whether there is a log, and keeps none open; the version is told."""

    async def main() -> None:
        sent: list[int] = []

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message.get("status", 0))
            if "headers" in message:
                assert dict(message["headers"])[b"x-app-version"] == b"v0.5.11 (unknown)"

        async with scripted() as engine:
            engine.log = say(framed([OUT]), then="wait")
            guest = make_guest(compose=PUBLIC, docker=engine.address)
            scope = {"type": "http", "method": "HEAD", "query_string": b"follow", "headers": []}
            for name in (b"app", b"nope"):
                scope["raw_path"] = b"/logs/" + name
                await listener_apps.external_app(guest)(scope, untyped(None), send)
                assert guest.stats.streams == 0
            assert sent == [200, 0, 404, 0]
            await engine.gone.wait()

    run(main())
