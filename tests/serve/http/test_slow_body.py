"""What was to be answered at once, and would wait by the time that its body is there, waits."""

import asyncio
import json
import threading

import pytest

from attestkit.quote import Quote
from attestkit.serve import listener_apps
from attestkit.serve.rpc.dispatcher import DirectCall
from tests.serve.guests import Blocking, MakeGuest
from tests.serve.listening import GET, Connect, response, run

PATIENCE = 20.0
BODY = b'{"report_data": "ab"}'
HEAD = (
    b"POST /GetQuote HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n"
)


async def check_quote(reader: asyncio.StreamReader) -> None:
    """Read the quote that was asked for."""
    status, headers, body = await response(reader)
    assert (status, headers["content-type"]) == (200, "application/json")
    quote = Quote.parse(bytes.fromhex(json.loads(body)["quote"]))
    assert quote.report_data == b"\xab".ljust(64, b"\0")


async def check_another(connect: Connect) -> asyncio.StreamWriter:
    """Have another client served, while nobody has been given a quote."""
    reader, writer = await connect()
    writer.write(GET.replace(b"/path?query", b"/Version"))
    assert (await response(reader))[0] == 200
    assert not Blocking.threads
    return writer


async def check_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Ask for a quote where nothing waits any more: it is made by the loop."""
    writer.write(HEAD % len(BODY) + BODY)
    assert (await response(reader))[0] == 200
    assert threading.get_ident() in Blocking.threads


@pytest.mark.parametrize("first", [b"", BODY[:7]])
def test_an_event_is_written_between_head_and_body(
    first: bytes, make_guest: MakeGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quote waits for the disk in the device's thread, and all others are served meanwhile."""
    monkeypatch.setattr(Blocking, "threads", set())
    monkeypatch.setattr(Blocking, "blocking", False)
    guest = make_guest(Blocking)
    app = listener_apps.dstack_app(guest)
    heads, writing, written = asyncio.Queue[bytes](), asyncio.Event(), threading.Event()
    direct = app.direct

    def note(target: bytes, content_type: bytes | None) -> DirectCall | None:
        heads.put_nowait(target)
        return direct(target, content_type)

    monkeypatch.setattr(app, "direct", note)

    def write(loop: asyncio.AbstractEventLoop) -> None:
        loop.call_soon_threadsafe(writing.set)
        assert written.wait(PATIENCE)

    async def test(connect: Connect) -> None:
        reader, writer = await connect()
        writer.write(HEAD % len(BODY) + first)
        assert await heads.get() == b"/GetQuote"
        loop = asyncio.get_running_loop()
        work = asyncio.create_task(guest.on_device(lambda: write(loop), writes=True))
        await writing.wait()
        writer.write(BODY[len(first) :] + GET.replace(b"/path?query", b"/Version"))
        other = await check_another(connect)
        written.set()
        await check_quote(reader)
        assert len(Blocking.threads) == 1
        assert threading.get_ident() not in Blocking.threads
        assert (await response(reader))[0] == 200  # what is pipelined behind it comes behind it
        await work
        await check_at_once(reader, writer)
        for each in (writer, other):
            each.close()

    run(test, app)
