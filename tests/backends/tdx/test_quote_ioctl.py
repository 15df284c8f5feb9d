"""Quotes by the ioctl of a named driver: its own request, its own number, and no other tried."""

import ctypes
import errno
import os
import struct
from mmap import PAGESIZE
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.backends.tdx.device import TdxDevice
from attestkit.backends.tdx.quote_ioctl import GENERATIONS, parse_generation, quote_by_ioctl
from attestkit.errors import (
    AttestKitError,
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
    UsageError,
)
from tests.backends.tdx.fake_td import FakeTd, open_files
from tests.backends.tdx.qgs_server import KEY_ID, QUOTE, framed, response

if TYPE_CHECKING:
    from collections.abc import Callable

REPORT = bytes(range(256)) * 4
IN_FLIGHT, FAILED, NO_SERVICE = 0xFFFFFFFFFFFFFFFF, 1 << 63, (1 << 63) + 1
FRAMED, BARE = ("C", "C'"), ("D", "D'")

Reply = tuple[int, bytes, int | None]  # status, answer, and a length if it is not the answer's


class Driver:
    """An out-of-tree driver of one generation, and the host behind it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.td = FakeTd(folder)
        self.generation = GENERATIONS[name]
        self.framed = name in FRAMED
        self.reply: Reply = (0, framed(response()) if self.framed else QUOTE, None)
        self.fail: list[int] = []
        self.requests: list[bytes] = []
        self.headers: list[tuple[int, ...]] = []
        self.commands: list[int] = []
        self.address = self.size = 0
        self.now = 0.0
        self.on_sleep: Callable[[], None] = lambda: None

    def answer(self, status: int, answer: bytes, length: int | None = None) -> None:
        """Write what the host answers into the buffer."""
        length = len(answer) if length is None else length
        ctypes.memmove(self.address + 8, struct.pack("<Q", status), 8)
        ctypes.memmove(self.address + 20, struct.pack("<I", length), 4)
        ctypes.memmove(self.address + 24, answer, len(answer))

    def ioctl(self, fd: int, command: int, buffer: bytearray) -> int:
        """Read the request, and answer."""
        del fd
        self.commands.append(command)
        if command != self.generation.number:
            raise OSError(errno.ENOTTY, "")
        self.address, self.size = struct.unpack("=QQ", buffer)
        raw = ctypes.string_at(self.address, self.size)
        header = struct.unpack_from("<QQII", raw)
        self.headers.append(header)
        self.requests.append(raw[24 : 24 + header[2]])
        if self.fail and (number := self.fail.pop(0)):
            self.answer(FAILED, b"\xee" * 2000)  # which the next try must not see
            raise OSError(number, os.strerror(number))
        self.answer(*self.reply)
        return 0

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        self.on_sleep()

    def quote(self) -> bytes:
        """Ask for a quote; nothing stays open."""
        before = open_files()
        calls = self.td.calls._replace(ioctl=self.ioctl)
        device = TdxDevice(self.td.paths.tdx_guest, calls=calls, sleep=self.sleep)
        try:
            return quote_by_ioctl(
                device, self.generation, REPORT, clock=lambda: self.now, sleep=self.sleep
            )
        finally:
            assert open_files() == before


@pytest.fixture(params=[*FRAMED, *BARE])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Driver:
    """Return a driver of each generation."""
    return Driver(tmp_path, request.param)


@pytest.fixture(params=FRAMED)
def framing(request: pytest.FixtureRequest, tmp_path: Path) -> Driver:
    """Return a driver of each generation that exchanges messages."""
    return Driver(tmp_path, request.param)


def test_a_quote_comes_out(driver: Driver) -> None:
    """One call of the driver's own number."""
    assert driver.quote() == QUOTE
    assert driver.commands == [driver.generation.number]


def test_the_buffer_is_as_specified(driver: Driver) -> None:
    """Page-aligned, 16 KiB, version 1, and the request behind 24 bytes of header."""
    driver.quote()
    assert driver.address % PAGESIZE == 0
    assert driver.size == 16384
    assert driver.headers == [(1, 0, len(driver.requests[0]), 0)]


def test_each_generation_has_its_request(driver: Driver) -> None:
    """C and C' a QGS message behind its big-endian length, D and D' the bare report."""
    driver.quote()
    (request,) = driver.requests
    if driver.framed:
        assert len(request) == 4 + 1048
        assert request[:4] == b"\0\0\x04\x18"
        assert struct.unpack_from("<HHIIIII", request, 4) == (1, 1, 0, 1048, 0, 1024, 0)
        request = request[28:]
    assert request == REPORT


def test_the_key_id_is_no_part_of_the_quote(framing: Driver) -> None:
    """What the service sends in front of the quote is left out, as over vsock."""
    framing.reply = (0, framed(response(key_id=KEY_ID)), None)
    assert framing.quote() == QUOTE


# -- statuses ----------------------------------------------------------------------------------

STATUSES = [
    (FAILED, QuoteUnavailableError, "quoting service failed"),
    (NO_SERVICE, QuoteUnavailableError, "has no quoting service"),
    (1, BackendError, "unknown status 0x0000000000000001"),
    (IN_FLIGHT - 1, BackendError, "unknown status 0xfffffffffffffffe"),
]


@pytest.mark.parametrize(("status", "kind", "text"), STATUSES)
def test_each_status_has_its_text(
    driver: Driver, status: int, kind: type[BackendError], text: str
) -> None:
    """A quote beside a failure is none, and nothing else is tried."""
    driver.reply = (status, driver.reply[1], None)
    with pytest.raises(BackendError, match=text) as caught:
        driver.quote()
    assert type(caught.value) is kind
    assert len(driver.commands) == 1


def test_a_request_in_flight_is_waited_for(driver: Driver) -> None:
    """By looking again, not by asking again."""
    final = driver.reply
    driver.reply = (IN_FLIGHT, b"", None)

    def on_sleep() -> None:
        if driver.now > 20:
            driver.answer(*final)

    driver.on_sleep = on_sleep
    assert driver.quote() == QUOTE
    assert 20 < driver.now < 21
    assert len(driver.commands) == 1


def test_a_request_that_stays_in_flight_is_given_up(driver: Driver) -> None:
    """After 30 seconds, with what to expect next."""
    driver.reply = (IN_FLIGHT, b"", None)
    with pytest.raises(QuoteUnavailableError, match=r"in flight after 30 s.*busy"):
        driver.quote()
    assert 30 <= driver.now < 31
    assert len(driver.commands) == 1


def test_waiting_in_the_driver_counts(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline is that of the whole request."""
    driver.reply = (IN_FLIGHT, b"", None)
    plain = driver.ioctl

    def slow(fd: int, command: int, buffer: bytearray) -> int:
        driver.now += 29.5
        return plain(fd, command, buffer)

    monkeypatch.setattr(driver, "ioctl", slow)
    with pytest.raises(QuoteUnavailableError, match="in flight"):
        driver.quote()
    assert 30 <= driver.now < 30.1


# -- answers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [16384 - 24 + 1, 0xFFFFFFFF])
def test_an_answer_longer_than_the_buffer_is_refused(driver: Driver, length: int) -> None:
    """Nothing beyond the buffer is read."""
    driver.reply = (0, driver.reply[1], length)
    with pytest.raises(BackendError, match=f"claims an answer of {length} bytes"):
        driver.quote()


def test_an_answer_may_fill_the_buffer(driver: Driver) -> None:
    """Up to its last byte."""
    room = 16384 - 24
    quote = bytes(room - 28 if driver.framed else room)
    driver.reply = (0, framed(response(quote)) if driver.framed else quote, None)
    assert driver.quote() == quote


def test_no_answer_is_a_failure_of_the_host(driver: Driver) -> None:
    """Success, and nothing: as in the empty outblob of configfs-tsm."""
    driver.reply = (0, b"", None)
    with pytest.raises(QuoteUnavailableError, match="answered nothing"):
        driver.quote()


def test_less_than_a_quote_is_a_failure_of_the_host(driver: Driver) -> None:
    """One byte less than the shortest quote, and the shortest."""
    for size in (1019, 1020):
        quote = bytes(size)
        driver.reply = (0, framed(response(quote)) if driver.framed else quote, None)
        if size == 1020:
            assert driver.quote() == quote
        else:
            with pytest.raises(QuoteUnavailableError, match="gave 1019 bytes"):
                driver.quote()


MALFORMED = [
    (b"\0\0\x14", "sent 3 bytes, less than a length"),
    (framed(response(), 15), "announced a message of 15 bytes"),
    (framed(response(), 5143), "announced a message of 5143 bytes and sent 5144"),
    (framed(response(), 5145), "announced a message of 5145 bytes and sent 5144"),
    (framed(response(), 0xFFFFFFFF), "announced a message of 4294967295 bytes"),
    (framed(response(major=2)), "version 2"),
    (framed(response(kind=0)), "type 0"),
]


@pytest.mark.parametrize(("answer", "text"), MALFORMED)
def test_a_malformed_message_is_told_by_what_is_wrong(
    framing: Driver, answer: bytes, text: str
) -> None:
    """It is a BackendError that names the field, as over vsock."""
    framing.reply = (0, answer, None)
    with pytest.raises(BackendError, match=text) as caught:
        framing.quote()
    assert type(caught.value) is BackendError


def test_a_failure_in_a_message_is_told_by_its_name(framing: Driver) -> None:
    """The service's code is told with its name, as over vsock."""
    framing.reply = (0, framed(response(b"", code=0x12003)), None)
    with pytest.raises(QuoteUnavailableError, match="0x00012003, invalid parameter"):
        framing.quote()


@given(status=st.sampled_from([0, 0, FAILED, 5]), answer=st.binary(max_size=2000), data=st.data())
def test_any_answer_gives_bytes_or_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, status: int, answer: bytes, data: st.DataObject
) -> None:
    """Whatever the host puts into the buffer."""
    driver = Driver(tmp_path_factory.mktemp("td"), data.draw(st.sampled_from([*GENERATIONS])))
    length = data.draw(st.none() | st.integers(0, 0xFFFFFFFF))
    driver.reply = (status, answer, length)
    try:
        quote = driver.quote()
    except AttestKitError:
        return
    assert type(quote) is bytes
    assert 1020 <= len(quote) <= 16384


# -- errors of the call ------------------------------------------------------------------------

ERRORS = [
    (errno.ENOTTY, BackendUnavailableError, "another generation's"),
    (errno.EINVAL, BackendError, "is it another generation"),
    (errno.EIO, QuoteUnavailableError, "the host refused"),
    (errno.ETIMEDOUT, QuoteUnavailableError, "did not answer in time"),
    (errno.EFAULT, BackendError, "could not use our buffer"),
    (errno.ENOMEM, BackendError, "no memory"),
    (errno.EPERM, BackendUnavailableError, "security policy"),
]


@pytest.mark.parametrize(("number", "kind", "text"), ERRORS)
def test_each_errno_has_its_text_and_is_final(
    driver: Driver, number: int, kind: type[BackendError], text: str
) -> None:
    """No other number is tried after it."""
    driver.fail = [number]
    with pytest.raises(BackendError, match=text) as caught:
        driver.quote()
    assert type(caught.value) is kind
    assert driver.commands == [driver.generation.number]


def test_a_driver_of_another_generation_is_not_searched_for(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one number that was named is the only one that is called."""
    for name, other in GENERATIONS.items():
        if other != driver.generation:
            asked = Driver(driver.td.paths.tdx_guest.parents[1] / name, name)
            monkeypatch.setattr(asked, "ioctl", driver.ioctl)
            driver.commands.clear()
            with pytest.raises(BackendUnavailableError, match="ENOTTY"):
                asked.quote()
            assert driver.commands == [other.number]


def test_an_interrupted_request_is_made_again_once(driver: Driver) -> None:
    """With a fresh request: what the first try left in the buffer is gone."""
    driver.fail = [errno.EINTR]
    assert driver.quote() == QUOTE
    assert driver.headers[0] == driver.headers[1] == (1, 0, len(driver.requests[0]), 0)
    assert driver.requests[0] == driver.requests[1]
    driver.fail = [errno.EINTR] * 10
    driver.commands.clear()
    with pytest.raises(BackendBusyError):
        driver.quote()
    assert len(driver.commands) == 2


def test_a_busy_driver_is_waited_for_a_little(driver: Driver) -> None:
    """Then the caller is told to come back."""
    driver.fail = [errno.EBUSY]
    assert driver.quote() == QUOTE
    driver.fail = [errno.EBUSY] * 100
    with pytest.raises(BackendBusyError, match="another request"):
        driver.quote()
    assert driver.now < 1


@pytest.mark.parametrize("name", ["", "A", "B", "c", "C''", None, 1])
def test_other_generations_are_the_callers_mistake(name: object) -> None:
    """The text lists those that there are."""
    with pytest.raises(UsageError, match="C, C', D, D'"):
        parse_generation(name)
