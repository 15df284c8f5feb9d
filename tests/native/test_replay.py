"""Replay of the native core matches hashlib, and its arguments are checked."""

import hashlib
import threading
from typing import Any

import pytest

from attestkit import _native
from attestkit._native import _python_log as python_core
from attestkit.errors import FormatError, UsageError
from attestkit.event_log import EventLog, WireEvent
from tests.raising import raises
from tests.untyped import with_false_length

Columns = tuple[bytes, bytes]


def make_columns(registers: bytes, start: int = 0) -> Columns:
    """Return registers and as many distinct digests."""
    digests = [hashlib.sha384(bytes([start + i & 255])).digest() for i in range(len(registers))]
    return registers, b"".join(digests)


def test_replay_without_events_is_zeros() -> None:
    """A register without events has the value zero."""
    assert _native.replay(b"", b"") == python_core.replay(b"", b"") == (bytes(48),) * 4


def test_replay_of_one_event_extends_one_register() -> None:
    """A register becomes the SHA-384 of itself and the digest; the others keep their value."""
    digest = bytes(range(48))
    once = hashlib.sha384(bytes(48) + digest).digest()
    twice = hashlib.sha384(once + digest).digest()
    assert _native.replay(b"\2", digest) == (bytes(48), bytes(48), once, bytes(48))
    assert _native.replay(b"\2\2", digest * 2) == (bytes(48), bytes(48), twice, bytes(48))


@pytest.mark.parametrize("core", [_native, python_core], ids=["selected", "python"])
def test_replay_of_invalid_columns_fails(core: Any) -> None:
    """An unknown register and a wrong number of digests are errors in both cores."""
    replay, many = core.replay, core.replay_many
    with raises(FormatError, "register", offset=1):
        replay(b"\0\4", bytes(96))
    with raises(FormatError, "register", offset=0):
        many([(b"\0", bytes(48)), (b"\xff", bytes(48))])
    for digests in (b"", bytes(47), bytes(49), bytes(96)):
        with raises(UsageError, "wrong_size"):
            replay(b"\0", digests)
    for count in (16383, 16384, 40000):  # one, and large enough to be replayed in threads
        for digests in (bytes(48), bytes(48 * count - 1), bytes(48 * count + 48)):
            with raises(UsageError, "wrong_size"):
                replay(bytes(count), digests)
            with raises(UsageError, "wrong_size"):
                many([(bytes(count), digests), (b"", b"")])
    with raises(UsageError, "wrong_size"):
        # The total length is right, that of each log is wrong.
        many([(b"\0", bytes(96)), (b"\0\0\0", bytes(96))])


@pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)
@pytest.mark.parametrize("count", [1, 20000])
def test_replay_of_bytes_subclass_is_usage_error(count: int) -> None:
    """Only exact `bytes` reach C, which uses stored lengths."""
    with raises(UsageError, "wrong_size"):
        _native.replay(bytes(count), with_false_length(b"", 48))
    with raises(UsageError, "wrong_size"):
        _native.replay_many(
            [(bytes(count), bytes(48 * count)), (b"\0", with_false_length(b"", 48))]
        )
    log = EventLog.from_wire([WireEvent(0, 1, with_false_length(b"", 48), "", b"")] * count)
    with raises(UsageError, "wrong_size"):
        log.replay()


@pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)
def test_replay_in_thread_with_small_stack() -> None:
    """The core fits into the 128 KiB stack of threads on musl."""
    log = make_columns(bytes([0, 1, 2, 3] * 600))
    found: list[object] = []
    size = threading.stack_size(128 * 1024)
    try:
        work = threading.Thread(target=lambda: found.extend(_native.replay_many([log] * 4)))
        work.start()
        work.join()
    finally:
        threading.stack_size(size)
    assert found == [python_core.replay(*log)] * 4
