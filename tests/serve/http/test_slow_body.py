"""A request is routed to the device thread if the device became busy during its body."""

import asyncio
import json
import threading

import pytest

from attestkit.quote import Quote
from attestkit.serve import listener_apps
from attestkit.serve.rpc.service import MethodRoute
from tests.serve.guests import Blocking, MakeGuest
from tests.serve.http.listening import GET, Connect, response, run

PATIENCE = 20.0
BODY = b'{"report_data": "ab"}'
HEAD = (
    b"POST /GetQuote HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n"
)


async def check_quote(reader: asyncio.StreamReader) -> None:
    """Check the response with the requested quote."""
    status, headers, body = await response(reader)
    assert (status, headers["content-type"]) == (200, "application/json")
    quote = Quote.parse(bytes.fromhex(json.loads(body)["quote"]))
    assert quote.report_data == b"\xab".ljust(64, b"\0")


async def check_other_request(connect: Connect) -> asyncio.StreamWriter:
    """Check that another request is answered while no quote has been created."""
    reader, writer = await connect()
    writer.write(GET.replace(b"/path?query", b"/Version"))
    assert (await response(reader))[0] == 200
    assert not Blocking.threads
    return writer


async def check_direct_quote(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Check that the event loop creates a quote directly when the device is idle."""
    writer.write(HEAD % len(BODY) + BODY)
    assert (await response(reader))[0] == 200
    assert threading.get_ident() in Blocking.threads


@pytest.mark.parametrize("first", [b"", BODY[:7]])
def test_event_written_during_body_delays_quote(
    first: bytes, make_guest: MakeGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quote waits in the device thread; other requests are served."""
    monkeypatch.setattr(Blocking, "threads", set())
    monkeypatch.setattr(Blocking, "blocking", False)
    guest = make_guest(Blocking)
    app = listener_apps.dstack_app(guest)
    heads, writing, written = asyncio.Queue[bytes](), asyncio.Event(), threading.Event()
    direct = app.direct

    def note(target: bytes, content_type: bytes | None) -> MethodRoute | None:
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
        other = await check_other_request(connect)
        written.set()
        await check_quote(reader)
        assert len(Blocking.threads) == 1
        assert threading.get_ident() not in Blocking.threads
        assert (await response(reader))[0] == 200  # the pipelined request is answered after it
        await work
        await check_direct_quote(reader, writer)
        for each in (writer, other):
            each.close()

    run(test, app)
