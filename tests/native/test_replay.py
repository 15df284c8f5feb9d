"""Replay and SHA-384 of the native core give what hashlib gives."""

import hashlib
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit import _native
from attestkit._native import _python_log as twin
from attestkit.errors import FormatError, UsageError
from attestkit.event_log import EventLog, WireEvent
from tests.thorough import thorough

# 251 is prime: blocks that are swapped or read twice show.
PATTERN = bytes(i % 251 for i in range(4096))

Columns = tuple[bytes, bytes]


def columns(registers: bytes, start: int = 0) -> Columns:
    """Return registers and as many digests, all of them different."""
    digests = [hashlib.sha384(bytes([start + i & 255])).digest() for i in range(len(registers))]
    return registers, b"".join(digests)


@pytest.mark.parametrize("core", [_native, twin], ids=["chosen", "twin"])
@pytest.mark.parametrize("size", [0, 1, 111, 112, 127, 128, 129, 239, 240, 255, 256, 1000, 4096])
def test_sha384_at_the_edges_of_blocks(core: Any, size: int) -> None:
    """Padding goes into the last block where it fits, and into one more where it does not."""
    digest = core.sha384(PATTERN[:size])
    assert digest == hashlib.sha384(PATTERN[:size]).digest()


@thorough(st.binary(max_size=600), few=300, many=2000)
def test_sha384_of_any_bytes(data: bytes) -> None:
    """Any message has the digest that hashlib gives it."""
    assert _native.sha384(data) == hashlib.sha384(data).digest()


def test_nothing_extended_is_zeros() -> None:
    """A register without records must be zero in the quote, so its replay is."""
    assert _native.replay(b"", b"") == twin.replay(b"", b"") == (bytes(48),) * 4


def test_one_extend_written_out() -> None:
    """A register becomes SHA-384 of itself and the digest; the other three do not move."""
    digest = PATTERN[:48]
    once = hashlib.sha384(bytes(48) + digest).digest()
    twice = hashlib.sha384(once + digest).digest()
    assert _native.replay(b"\2", digest) == (bytes(48), bytes(48), once, bytes(48))
    assert _native.replay(b"\2\2", digest * 2) == (bytes(48), bytes(48), twice, bytes(48))


@thorough(
    st.lists(st.integers(0, 3), max_size=40).map(bytes),
    st.integers(0, 255),
    few=300,
    many=3000,
)
def test_cores_agree_on_any_order_of_registers(registers: bytes, start: int) -> None:
    """The four chains do not get into each other's way, however they alternate."""
    log = columns(registers, start)
    assert _native.replay(*log) == twin.replay(*log)


@settings(max_examples=300, database=None, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), max_size=12).map(bytes), max_size=8))
def test_many_logs_at_once_are_each_by_itself(logs: list[bytes]) -> None:
    """A batch gives the values that one replay after the other gives, also for empty logs."""
    batch = [columns(registers, number) for number, registers in enumerate(logs)]
    one_by_one = [twin.replay(*log) for log in batch]
    assert _native.replay_many(batch) == twin.replay_many(batch) == one_by_one


@pytest.mark.parametrize("core", [_native, twin], ids=["chosen", "twin"])
def test_what_cannot_be_replayed_is_refused(core: Any) -> None:
    """A register that is not there, or a digest too few or too many, is an error in both cores."""
    replay, many = core.replay, core.replay_many
    with pytest.raises(FormatError) as caught:
        replay(b"\0\4", bytes(96))
    assert (caught.value.reason, caught.value.offset) == ("register", 1)
    with pytest.raises(FormatError, match="no such register"):
        many([(b"\0", bytes(48)), (b"\xff", bytes(48))])
    for digests in (b"", bytes(47), bytes(49), bytes(96)):
        with pytest.raises(UsageError, match="48 bytes"):
            replay(b"\0", digests)
    for count in (16383, 16384, 40000):  # one, and large enough to be replayed elsewhere
        for digests in (bytes(48), bytes(48 * count - 1), bytes(48 * count + 48)):
            with pytest.raises(UsageError, match="48 bytes"):
                replay(bytes(count), digests)
            with pytest.raises(UsageError, match="48 bytes"):
                many([(bytes(count), digests), (b"", b"")])
    with pytest.raises(UsageError, match="48 bytes"):
        # Together as long as they should be, each wrong.
        many([(b"\0", bytes(96)), (b"\0\0\0", bytes(96))])


class Lies(bytes):
    """Bytes that are not as many as they say."""

    def __len__(self) -> int:
        """Return what a digest has."""
        return 48


@pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)
@pytest.mark.parametrize("count", [1, 20000])
def test_what_lies_about_its_length_is_not_read(count: int) -> None:
    """Only what is exactly `bytes` is handed to C, which goes by lengths."""
    with pytest.raises(UsageError, match="48 bytes"):
        _native.replay(bytes(count), Lies(b""))
    with pytest.raises(UsageError, match="48 bytes"):
        _native.replay_many([(bytes(count), bytes(48 * count)), (b"\0", Lies(b""))])
    log = EventLog.from_wire([WireEvent(0, 1, Lies(b""), "", b"")] * count)
    with pytest.raises(UsageError, match="48 bytes"):
        log.replay()


@pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)
def test_a_thread_with_little_stack_is_enough() -> None:
    """The core's frames leave room in the 128 kB that threads have on musl."""
    log = columns(bytes([0, 1, 2, 3] * 600))
    found: list[object] = []
    size = threading.stack_size(128 * 1024)
    try:
        work = threading.Thread(target=lambda: found.extend(_native.replay_many([log] * 4)))
        work.start()
        work.join()
    finally:
        threading.stack_size(size)
    assert found == [twin.replay(*log)] * 4
