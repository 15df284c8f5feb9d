"""Quotes through the ioctls of out-of-tree drivers: requests, statuses and errors."""

import ctypes
import errno
import struct
from mmap import PAGESIZE
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.backends.tdx.device import TdxDevice
from attestkit.backends.tdx_ioctl import GENERATIONS, parse_generation, quote_by_ioctl
from attestkit.errors import (
    AttestKitError,
    BackendError,
    QuoteUnavailableError,
    UsageError,
)
from tests.backends.tdx.fake_td import FakeTd, count_open_files
from tests.backends.tdx.qgs_server import QUOTE, framed, response
from tests.raising import raises
from tests.runner.cases import every_case

if TYPE_CHECKING:
    from collections.abc import Callable

REPORT = bytes(range(256)) * 4
IN_FLIGHT, FAILED, NO_SERVICE = 0xFFFFFFFFFFFFFFFF, 1 << 63, (1 << 63) + 1
FRAMED, BARE = ("C", "C'"), ("D", "D'")

Reply = tuple[
    int, bytes, int | None
]  # status, response, and its length field (None: the length of the response)


class FakeDriver:
    """Out-of-tree driver of one generation, and the host that answers it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.td = FakeTd(folder)
        self.path = str(self.td.paths.tdx_guest)
        self.generation = GENERATIONS[name]
        self.framed = name in FRAMED
        self.reply: Reply = (0, framed(response()) if self.framed else QUOTE, None)
        self.requests: list[bytes] = []
        self.headers: list[tuple[int, ...]] = []
        self.commands: list[int] = []
        self.address = self.size = 0
        self.now = 0.0
        self.on_sleep: Callable[[], None] = lambda: None

    def write_response(self, status: int, answer: bytes, length: int | None = None) -> None:
        """Write the host's response into the buffer."""
        length = len(answer) if length is None else length
        ctypes.memmove(self.address + 8, struct.pack("<Q", status), 8)
        ctypes.memmove(self.address + 20, struct.pack("<I", length), 4)
        ctypes.memmove(self.address + 24, answer, len(answer))

    def ioctl(self, fd: int, command: int, buffer: bytearray) -> int:
        """Record the request, and respond."""
        del fd
        self.commands.append(command)
        if command != self.generation.number:
            raise OSError(errno.ENOTTY, "")
        self.address, self.size = struct.unpack("=QQ", buffer)
        raw = ctypes.string_at(self.address, self.size)
        header = struct.unpack_from("<QQII", raw)
        self.headers.append(header)
        self.requests.append(raw[24 : 24 + header[2]])
        self.write_response(*self.reply)
        return 0

    def sleep(self, seconds: float) -> None:
        """Advance the clock."""
        self.now += seconds
        self.on_sleep()

    def quote(self) -> bytes:
        """Request a quote, and assert that no descriptor is leaked."""
        before = count_open_files()
        calls = self.td.calls._replace(ioctl=self.ioctl)
        device = TdxDevice(self.td.paths.tdx_guest, calls=calls, sleep=self.sleep)
        try:
            return quote_by_ioctl(
                device, self.generation, REPORT, clock=lambda: self.now, sleep=self.sleep
            )
        finally:
            assert count_open_files() == before


@pytest.fixture(params=[*FRAMED, *BARE])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> FakeDriver:
    """Return a driver of each generation."""
    return FakeDriver(tmp_path, request.param)


@pytest.fixture(params=FRAMED)
def framing(request: pytest.FixtureRequest, tmp_path: Path) -> FakeDriver:
    """Return a driver of each generation that uses QGS messages."""
    return FakeDriver(tmp_path, request.param)


def test_get_quote_makes_one_ioctl_that_follows_the_abi(driver: FakeDriver) -> None:
    """The buffer is page-aligned, 16 KiB, version 1, with the request after a 24-byte header.

    C and C' take a QGS message after its big-endian length, D and D' the bare report.
    """
    assert driver.quote() == QUOTE
    assert driver.commands == [driver.generation.number]
    assert driver.address % PAGESIZE == 0
    assert driver.size == 16384
    assert driver.headers == [(1, 0, len(driver.requests[0]), 0)]
    (request,) = driver.requests
    if driver.framed:
        assert len(request) == 4 + 1048
        assert request[:4] == b"\0\0\x04\x18"
        assert struct.unpack_from("<HHIIIII", request, 4) == (1, 1, 0, 1048, 0, 1024, 0)
        request = request[28:]
    assert request == REPORT


# -- statuses ----------------------------------------------------------------------------------

STATUSES = [
    (FAILED, QuoteUnavailableError, "quoting_service", "see its log"),
    (NO_SERVICE, QuoteUnavailableError, "cannot_connect", "start its QGS (qgsd)"),
    (1, BackendError, "malformed_response", "0x0000000000000001"),
    (IN_FLIGHT - 1, BackendError, "malformed_response", "0xfffffffffffffffe"),
]


@pytest.mark.parametrize(("status", "kind", "reason", "text"), STATUSES)
def test_get_quote_status_gives_reason_and_text(
    driver: FakeDriver, status: int, kind: type[BackendError], reason: str, text: str
) -> None:
    """A quote next to a failure status is ignored, and nothing else is tried."""
    driver.reply = (status, driver.reply[1], None)
    with raises(kind, reason, path=driver.path, part=text):
        driver.quote()
    assert len(driver.commands) == 1


def test_get_quote_in_flight_is_polled(driver: FakeDriver) -> None:
    """The status in the buffer is polled; the ioctl is not repeated."""
    final = driver.reply
    driver.reply = (IN_FLIGHT, b"", None)

    def on_sleep() -> None:
        if driver.now > 20:
            driver.write_response(*final)

    driver.on_sleep = on_sleep
    assert driver.quote() == QUOTE
    assert 20 < driver.now < 21
    assert len(driver.commands) == 1


def test_get_quote_in_flight_times_out_after_30_s(driver: FakeDriver) -> None:
    """The error states that the device stays busy until the host responds."""
    driver.reply = (IN_FLIGHT, b"", None)
    with raises(
        QuoteUnavailableError, "timed_out", path=driver.path, part="busy until the host responds"
    ):
        driver.quote()
    assert 30 <= driver.now < 31
    assert len(driver.commands) == 1


def test_get_quote_deadline_includes_the_ioctl(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline covers the complete request."""
    driver.reply = (IN_FLIGHT, b"", None)
    plain = driver.ioctl

    def slow(fd: int, command: int, buffer: bytearray) -> int:
        driver.now += 29.5
        return plain(fd, command, buffer)

    monkeypatch.setattr(driver, "ioctl", slow)
    with raises(QuoteUnavailableError, "timed_out"):
        driver.quote()
    assert 30 <= driver.now < 30.1


# -- responses ---------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [16384 - 24 + 1, 0xFFFFFFFF])
def test_get_quote_length_beyond_buffer_is_malformed(driver: FakeDriver, length: int) -> None:
    """Nothing beyond the buffer is read."""
    driver.reply = (0, driver.reply[1], length)
    with raises(BackendError, "malformed_response", path=driver.path, part=f"(byte 20) {length}"):
        driver.quote()


def test_get_quote_response_may_fill_the_buffer(driver: FakeDriver) -> None:
    """A response may end at the last byte of the buffer."""
    room = 16384 - 24
    quote = bytes(room - 28 if driver.framed else room)
    driver.reply = (0, framed(response(quote)) if driver.framed else quote, None)
    assert driver.quote() == quote


def test_get_quote_short_quote_is_unavailable(driver: FakeDriver) -> None:
    """The minimum size of a quote is 1020 bytes."""
    for size in (1019, 1020):
        quote = bytes(size)
        driver.reply = (0, framed(response(quote)) if driver.framed else quote, None)
        if size == 1020:
            assert driver.quote() == quote
        else:
            with raises(QuoteUnavailableError, "too_short", path=driver.path):
                driver.quote()


MALFORMED = [
    (b"\0\0\x14", "truncated", "3 bytes, expected at least 4"),
    (framed(response(), 15), "malformed_response", "length 15"),
    (framed(response(), 5143), "malformed_response", "length 5143, but 5144 bytes follow"),
    (framed(response(major=2)), "malformed_response", "version (byte 0) 2"),
]


@pytest.mark.parametrize(("answer", "reason", "text"), MALFORMED)
def test_get_quote_malformed_message_names_the_field(
    framing: FakeDriver, answer: bytes, reason: str, text: str
) -> None:
    """The error is the same as over vsock."""
    framing.reply = (0, answer, None)
    with raises(BackendError, reason, path=framing.path, part=text):
        framing.quote()


@given(status=st.sampled_from([0, 0, FAILED, 5]), answer=st.binary(max_size=2000), data=st.data())
def test_get_quote_any_response_gives_quote_or_attestkit_error(
    tmp_path_factory: pytest.TempPathFactory, status: int, answer: bytes, data: st.DataObject
) -> None:
    """Arbitrary buffer contents never raise another exception."""
    driver = FakeDriver(tmp_path_factory.mktemp("td"), data.draw(st.sampled_from([*GENERATIONS])))
    length = data.draw(st.none() | st.integers(0, 0xFFFFFFFF))
    driver.reply = (status, answer, length)
    try:
        quote = driver.quote()
    except AttestKitError:
        return
    assert type(quote) is bytes
    assert 1020 <= len(quote) <= 16384


# -- generations -------------------------------------------------------------------------------


@every_case("name", ["", "A", "B", "c", "C''", None, 1])
def test_parse_generation_unknown_name_lists_generations(name: object) -> None:
    """An unknown generation is a usage error."""
    with raises(UsageError, "unknown_name", part="C, C', D, D'"):
        parse_generation(name)
