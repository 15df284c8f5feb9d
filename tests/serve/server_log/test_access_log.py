"""Every request is a line, made when there is time; no query and no control byte is in it."""

import asyncio
import json
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.serve.server_log.access_log import AccessLog
from attestkit.serve.server_log.log import Log
from attestkit.serve.server_log.stderr_sink import LONGEST_LINE
from tests.untyped import untyped

NOW = 1_700_000_000.25
# host ident user [time] "request" status bytes, and what is ours.
COMMON = re.compile(
    r'(\S+) (\S+) (\S+) \[([^]]+)\] "((?:[^"\\]|\\.)*)" (\d{3}) (\d+) (\d+\.\d{6}) (\S+)'
)


class Sink:
    """Keeps what is written, and how often it was."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []

    def write(self, lines: list[bytes], patience: float = 0.0) -> None:
        """Keep lines."""
        assert patience >= 0
        self.batches.append(lines)


def access_log(*, json_form: bool = False) -> tuple[AccessLog, Sink]:
    """Return a log and where its lines go."""
    sink = Sink()
    return AccessLog(untyped(sink), json_form=json_form, now=lambda: NOW), sink


def noted(path: bytes, *, json_form: bool = False, **changes: Any) -> str:
    """Return the line of one request."""
    log, sink = access_log(json_form=json_form)
    request = {
        "listener": "http",
        "client": "192.0.2.7",
        "verb": "POST",
        "path": path,
        "status": 200,
        "size": 512,
        "seconds": 0.0001234,
        "request_id": b"ab12-f",
    }
    asyncio.run(_run(lambda: log.note(*{**request, **changes}.values())))
    log.flush()
    [[line]] = sink.batches
    assert line.endswith(b"\n")
    return line[:-1].decode("ascii")


async def _run(call: Callable[[], object]) -> None:
    call()


def test_text() -> None:
    """The common log format, as its readers take it, with a duration and an id."""
    line = noted(b"/prpc/Worker.Info")
    found = COMMON.fullmatch(line)
    assert found is not None
    assert found.groups() == (
        *("192.0.2.7", "http", "-", "14/Nov/2023:22:13:20 +0000", "POST /prpc/Worker.Info"),
        *("200", "512", "0.000123", "ab12-f"),
    )


def test_json() -> None:
    """The members of any record, and each thing by name."""
    assert json.loads(noted(b"/GetKey", json_form=True, listener="dstack", client="")) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "info",
        "logger": "attestkit.access",
        "message": "POST /GetKey",
        "listener": "dstack",
        "client": "",
        "method": "POST",
        "path": "/GetKey",
        "status": 200,
        "size": 512,
        "seconds": 0.000123,
        "request_id": "ab12-f",
    }


def test_what_is_not_known() -> None:
    """A request that was refused before it was one has dashes."""
    line = noted(b"", client="", verb="", status=431, request_id=b"")
    assert line == '- http - [14/Nov/2023:22:13:20 +0000] "- -" 431 512 0.000123 -'


@pytest.mark.parametrize("json_form", [False, True])
def test_no_query_is_told(json_form: bool) -> None:
    """It may hold what is secret, as a path of a key."""
    line = noted(b"/GetKey?path=s3cret&purpose=x", json_form=json_form)
    assert "s3cret" not in line
    assert "?" not in line
    assert "/GetKey" in line


@pytest.mark.parametrize("json_form", [False, True])
def test_strangers_bytes(json_form: bool) -> None:
    """No path ends the line or its quotes, or steers a terminal; a long one is cut."""
    for path in (
        b'/x" 200 0 0.000000 -\r\n127.0.0.1 forged',
        b"/\x1b[2J\x00\x7f\x9b\xe2\x80\xae",
        b"/\\" * 300,
        b"/" + b"\xff" * 40_000,
    ):
        line = noted(path, json_form=json_form, verb='G"\n', client='"\n\x1b\udc80')
        assert line.isprintable()
        assert len(line) < LONGEST_LINE
        if json_form:
            assert json.loads(line)["status"] == 200
        else:
            found = COMMON.fullmatch(line)
            assert found is not None
            assert found[6] == "200"
            assert found[9] == "ab12-f"


@given(
    path=st.binary(max_size=600),
    client=st.text(max_size=80),
    verb=st.text(max_size=80),
    json_form=st.booleans(),
)
def test_any_request(path: bytes, client: str, verb: str, json_form: bool) -> None:
    """Whatever came, it is one line that can be read."""
    line = noted(path, client=client.replace(" ", "_"), verb=verb, json_form=json_form)
    assert line.isprintable()
    assert len(line) < LONGEST_LINE
    if json_form:
        assert json.loads(line)["status"] == 200
    else:
        assert COMMON.fullmatch(line)


def note(log: AccessLog, n: int = 0) -> None:
    """Note a request."""
    log.note("dstack", "", "POST", b"/GetKey", 200, 100, 0.001, b"1-%x" % n)


async def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def run(test: Callable[[AccessLog, Sink], Awaitable[None]]) -> None:
    """Run a test in an event loop, with a log."""
    log, sink = access_log()

    async def main() -> None:
        await test(log, sink)

    asyncio.run(main())


def test_a_batch_at_a_time() -> None:
    """Nothing is written at once; all that came together is, in order, in one go."""

    async def test(log: AccessLog, sink: Sink) -> None:
        for n in range(10):
            note(log, n)
        assert sink.batches == []
        await _until(lambda: bool(sink.batches))
        [lines] = sink.batches
        assert [line.split()[-1] for line in lines] == [b"1-%x" % n for n in range(10)]
        note(log)
        await _until(lambda: len(sink.batches) == 2)  # the timer works again
        log.flush()
        assert len(sink.batches) == 2  # and nothing is written for nothing

    run(test)


def test_a_thousand_do_not_wait() -> None:
    """So that memory is bounded however many come between two turns of the timer."""

    async def test(log: AccessLog, sink: Sink) -> None:
        for n in range(2500):
            note(log, n)
        assert [len(batch) for batch in sink.batches] == [1000, 1000]
        log.flush()
        assert sum(map(len, sink.batches)) == 2500

    run(test)


def test_requests_come_before_the_error_they_led_to() -> None:
    """An error record, from whatever thread, is preceded by what was held back."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    log = Log(writer)
    try:
        access = log.access_log(lambda: NOW)

        async def main() -> None:
            note(access, 1)
            logging.getLogger("attestkit.serve").info("early")
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, logging.getLogger("attestkit.serve").error, "bad")
            note(access, 2)

        asyncio.run(main())
        log.close()
        told = os.read(reader, 1 << 16).decode().splitlines()
    finally:
        log.close()
        os.close(reader)
        os.close(writer)
    assert told[0].endswith("early")
    assert told[1].endswith(" 1-1")
    assert told[2].endswith("bad")
    assert told[3].endswith(" 1-2")


def test_a_reader_that_is_stuck_holds_nobody_up() -> None:
    """Ten thousand requests with a full pipe are counted, and told when it is empty again."""
    reader, writer = os.pipe()
    log = Log(writer)
    try:
        access = log.access_log(lambda: NOW)

        async def main() -> None:
            slowest = 0.0
            for n in range(10_000):
                begin = time.monotonic()
                note(access, n)
                slowest = max(slowest, time.monotonic() - begin)
            assert slowest < 1

        asyncio.run(main())
        access.flush()
        before = os.read(reader, 1 << 20).decode().splitlines()
        logging.getLogger("attestkit.serve").warning("after")
        told, after = os.read(reader, 1 << 20).decode().splitlines()
    finally:
        log.close()
        os.close(reader)
        os.close(writer)
    lost = 10_000 - len(before)
    assert lost > 1000
    dropped = f"{lost} lines of the log were dropped: nobody took them"
    assert told == f"WARNING attestkit.serve: {dropped}"
    assert after.endswith("after")


def test_it_costs_little() -> None:
    """A request costs the loop well under the microseconds that it has itself."""

    async def main() -> float:
        log, _ = access_log()
        note(log)
        best = 1.0
        for _ in range(50):
            log.flush()
            begin = time.perf_counter()
            for _ in range(900):
                log.note("dstack", "", "POST", b"/GetKey", 200, 100, 0.001, b"1-1")
            best = min(best, (time.perf_counter() - begin) / 900)
        return best

    assert asyncio.run(main()) < 2e-6  # 0.15 us where it was measured
