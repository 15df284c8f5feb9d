"""Lines of the access log: format, escaping, batches and dropped lines."""

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from attestkit.serve.server_log.access_log import AccessLog
from attestkit.serve.server_log.stderr_sink import LONGEST_LINE
from tests.serve.server_log.captured_log import CapturedLog
from tests.untyped import untyped

NOW = 1_700_000_000.25
# host ident user [time] "request" status bytes, then attestkit's duration and request id
COMMON = re.compile(
    r'(\S+) (\S+) (\S+) \[([^]]+)\] "((?:[^"\\]|\\.)*)" (\d{3}) (\d+) (\d+\.\d{6}) (\S+)'
)


class RecordingSink:
    """A sink that keeps the written batches."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []

    def write(self, lines: list[bytes], patience: float = 0.0) -> None:
        """Keep a batch."""
        assert patience >= 0
        self.batches.append(lines)


def create_access_log(*, json_form: bool = False) -> tuple[AccessLog, RecordingSink]:
    """Return a log and its sink."""
    sink = RecordingSink()
    return AccessLog(untyped(sink), json_form=json_form, now=lambda: NOW), sink


def format_request(path: bytes, *, json_form: bool = False, **changes: Any) -> str:
    """Return the line of one request."""
    log, sink = create_access_log(json_form=json_form)
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
    asyncio.run(_run(lambda: log.record(*{**request, **changes}.values())))
    log.flush()
    [[line]] = sink.batches
    assert line.endswith(b"\n")
    return line[:-1].decode("ascii")


async def _run(call: Callable[[], object]) -> None:
    call()


def test_text_format_is_common_log_format() -> None:
    """The line is in the common log format, with duration and request id."""
    line = format_request(b"/prpc/Worker.Info")
    found = COMMON.fullmatch(line)
    assert found is not None
    assert found.groups() == (
        *("192.0.2.7", "http", "-", "14/Nov/2023:22:13:20 +0000", "POST /prpc/Worker.Info"),
        *("200", "512", "0.000123", "ab12-f"),
    )


def test_json_format_members() -> None:
    """The object has the members of a log record and those of the request."""
    assert json.loads(format_request(b"/GetKey", json_form=True, listener="dstack", client="")) == {
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


def test_refused_request_has_dashes() -> None:
    """Unknown values of a refused request are dashes."""
    line = format_request(b"", client="", verb="", status=431, request_id=b"")
    assert line == '- http - [14/Nov/2023:22:13:20 +0000] "- -" 431 512 0.000123 -'


@pytest.mark.parametrize("json_form", [False, True])
def test_query_is_not_logged(json_form: bool) -> None:
    """The query is not logged, because it may contain secrets."""
    line = format_request(b"/GetKey?path=s3cret&purpose=x", json_form=json_form)
    assert "s3cret" not in line
    assert "?" not in line
    assert "/GetKey" in line


def damaged(path: bytes) -> "example":
    """Return an example of a request with untrusted bytes everywhere."""
    return example(path=path, client='"\n\x1b\udc80', verb='G"\n')


@pytest.mark.slow
@pytest.mark.parametrize("json_form", [False, True])
@given(path=st.binary(max_size=600), client=st.text(max_size=80), verb=st.text(max_size=80))
@damaged(b'/x" 200 0 0.000000 -\r\n127.0.0.1 forged')
@damaged(b"/\x1b[2J\x00\x7f\x9b\xe2\x80\xae")
@damaged(b"/\\" * 300)
@damaged(b"/" + b"\xff" * 40_000)
def test_untrusted_bytes_are_escaped(path: bytes, client: str, verb: str, json_form: bool) -> None:
    """Untrusted bytes cannot end the line or its quotes; a long path is truncated."""
    line = format_request(path, client=client.replace(" ", "_"), verb=verb, json_form=json_form)
    assert line.isprintable()
    assert len(line) < LONGEST_LINE
    if json_form:
        assert json.loads(line)["status"] == 200
    else:
        found = COMMON.fullmatch(line)
        assert found is not None
        assert (found[6], found[9]) == ("200", "ab12-f")


def record_request(log: AccessLog, n: int = 0) -> None:
    """Record a request."""
    log.record("dstack", "", "POST", b"/GetKey", 200, 100, 0.001, b"1-%x" % n)


async def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def test_requests_are_written_in_batches() -> None:
    """Requests are written later, in order, in one batch; 1000 of them at once."""

    async def main() -> None:
        log, sink = create_access_log()
        for n in range(10):
            record_request(log, n)
        assert sink.batches == []
        await _until(lambda: bool(sink.batches))
        [lines] = sink.batches
        assert [line.split()[-1] for line in lines] == [b"1-%x" % n for n in range(10)]
        record_request(log)
        await _until(lambda: len(sink.batches) == 2)  # the timer is armed again
        log.flush()
        assert len(sink.batches) == 2  # an empty batch is not written
        for n in range(2500):
            record_request(log, n)
        assert [len(batch) for batch in sink.batches[2:]] == [1000, 1000]
        log.flush()
        assert sum(map(len, sink.batches[2:])) == 2500

    asyncio.run(main())


def test_requests_precede_later_error(captured: CapturedLog) -> None:
    """Pending requests are written before an error record of any thread."""
    access, logger = captured.log.access_log(lambda: NOW), logging.getLogger("attestkit.serve")

    async def main() -> None:
        record_request(access, 1)
        logger.info("early")
        await asyncio.get_running_loop().run_in_executor(None, logger.error, "bad")
        record_request(access, 2)

    asyncio.run(main())
    captured.log.close()
    assert [line.split()[-1] for line in captured.read_lines()] == ["early", "1-1", "bad", "1-2"]


def test_blocked_reader_drops_lines_without_delay(captured: CapturedLog) -> None:
    """With a full pipe requests are dropped without delay; the number is logged later."""
    access = captured.log.access_log(lambda: NOW)

    async def main() -> None:
        # In development mode asyncio logs a callback over 0.1 s, which would be one more line.
        asyncio.get_running_loop().slow_callback_duration = 60.0
        slowest = 0.0
        for n in range(10_000):
            begin = time.monotonic()
            record_request(access, n)
            slowest = max(slowest, time.monotonic() - begin)
        assert slowest < 1

    asyncio.run(main())
    access.flush()
    lost = 10_000 - len(captured.read_lines())
    assert lost > 1000
    logging.getLogger("attestkit.serve").warning("after")
    dropped = f"{lost} log lines were dropped: the reader is too slow"
    lines = captured.read_lines()
    assert lines == [f"WARNING attestkit.serve: {dropped}", "WARNING attestkit.serve: after"]
