"""Replay and SHA-384 of the native core give what hashlib gives."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit import _native
from attestkit._native import _python_log as twin
from attestkit.errors import FormatError, UsageError

# 251 is prime: blocks that are swapped or read twice show.
PATTERN = bytes(i % 251 for i in range(4096))

Columns = tuple[bytes, bytes]


def columns(registers: bytes, start: int = 0) -> Columns:
    """Return registers and as many digests, all of them different."""
    digests = [hashlib.sha384(bytes([start + i & 255])).digest() for i in range(len(registers))]
    return registers, b"".join(digests)


@pytest.mark.parametrize("core", [_native, twin], ids=["chosen", "twin"])
@pytest.mark.parametrize("size", [0, 1, 111, 112, 127, 128, 129, 239, 240, 255, 256, 1000, 4096])
def test_sha384_at_the_edges_of_blocks(core: object, size: int) -> None:
    """Padding goes into the last block where it fits, and into one more where it does not."""
    digest = core.sha384(PATTERN[:size])  # type: ignore[attr-defined] # both modules have it
    assert digest == hashlib.sha384(PATTERN[:size]).digest()


@settings(max_examples=2000, database=None, deadline=None)
@given(st.binary(max_size=600))
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


@settings(max_examples=3000, database=None, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=40).map(bytes), st.integers(0, 255))
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
def test_what_cannot_be_replayed_is_refused(core: object) -> None:
    """A register that is not there, or a digest too few or too many, is an error in both cores."""
    replay, many = core.replay, core.replay_many  # type: ignore[attr-defined] # both have them
    with pytest.raises(FormatError) as caught:
        replay(b"\0\4", bytes(96))
    assert (caught.value.reason, caught.value.offset) == ("register", 1)
    with pytest.raises(FormatError, match="no such register"):
        many([(b"\0", bytes(48)), (b"\xff", bytes(48))])
    for digests in (b"", bytes(47), bytes(49), bytes(96)):
        with pytest.raises(UsageError, match="48 bytes"):
            replay(b"\0", digests)
    with pytest.raises(UsageError, match="48 bytes"):
        # Together as long as they should be, each wrong.
        many([(b"\0", bytes(96)), (b"\0\0\0", bytes(96))])
