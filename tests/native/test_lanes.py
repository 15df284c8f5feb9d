"""Multi-lane hashing and replay match hashlib at every level."""

import ctypes
import hashlib
import mmap
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attestkit import _native
from attestkit._native import _python_log as python_core
from attestkit.errors import FormatError, UsageError
from tests.raising import raises
from tests.runner.cases import every_case

pytestmark = pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)

# 251 is prime, so swapped or repeated blocks change the result.
PATTERN = bytes(i % 251 for i in range(8192))
EDGES = (0, 1, 47, 48, 111, 112, 127, 128, 129, 239, 240, 255, 256, 257, 367, 368, 384, 1000, 4096)
# Features that dispatch checks, one level after the other: the allowed AK_CPU_* bits.
LEVELS = {"portable": 0, "avx2 without bmi2": 4, "avx2": 2 | 4, "avx512": 2 | 4 | 8}
WINDOW = 4096  # events that rtmr_replay.c sorts at a time

Columns = tuple[bytes, bytes]


@pytest.fixture(params=LEVELS)
def _limit_level(request: pytest.FixtureRequest) -> Iterator[None]:
    """Limit the kernels to a level, and remove the limit afterwards."""
    lib = pytest.importorskip("attestkit._native._lib").lib
    before, allowed = lib.ak_cpu_features(), LEVELS[request.param]
    if allowed & ~before:
        pytest.skip(f"this CPU has no {request.param}")
    lib.ak_cpu_limit(allowed)
    yield
    lib.ak_cpu_limit(before)


every_level = pytest.mark.usefixtures("_limit_level")
any_bytes = settings(
    max_examples=200,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the level applies to all of them
)


def sha384_of(messages: list[bytes]) -> list[bytes]:
    """Return the digests computed by hashlib."""
    return [hashlib.sha384(message).digest() for message in messages]


def random_bytes(size: int, seed: int) -> bytes:
    """Return reproducible bytes without a pattern."""
    return hashlib.shake_128(b"%d" % seed).digest(size)


def random_registers(count: int, seed: int) -> bytes:
    """Return reproducible register numbers without a pattern."""
    return bytes(byte % 4 for byte in random_bytes(count, seed))


def make_log(registers: bytes, seed: int = 0) -> Columns:
    """Return registers and as many distinct digests."""
    return registers, random_bytes(48 * len(registers), seed)


@every_level
@every_case("size", EDGES)
def test_sha384_at_block_boundaries(size: int) -> None:
    """Padding is in the last block if it fits, otherwise in one more."""
    assert _native.sha384(PATTERN[:size]) == hashlib.sha384(PATTERN[:size]).digest()


@every_level
@every_case("count", range(21))
def test_sha384_of_any_number_of_messages(count: int) -> None:
    """Fewer messages than lanes, as many, and more; of equal and of different lengths."""
    for sizes in (
        [48] * count,
        [(251 * i) % 700 for i in range(count)],
        [EDGES[i % len(EDGES)] for i in range(count)],
        [5000 if i == 0 else 10 for i in range(count)],
        [5000 if i == count - 1 else 10 for i in range(count)],
    ):
        messages = [PATTERN[i : i + size] for i, size in enumerate(sizes)]
        assert _native.sha384_many(messages) == sha384_of(messages), sizes


@every_level
@any_bytes
@given(st.lists(st.binary(max_size=400), max_size=24))
def test_sha384_of_arbitrary_messages(messages: list[bytes]) -> None:
    """Lanes are refilled whenever a message ends."""
    assert _native.sha384_many(messages) == python_core.sha384_many(messages) == sha384_of(messages)


@every_level
@every_case("register_count", range(6))
def test_replay_of_every_order_of_registers(register_count: int) -> None:
    """All orders of up to five events, alone and as one batch."""
    logs = [
        make_log(bytes(order), seed)
        for seed, order in enumerate(product(range(4), repeat=register_count))
    ]
    expected = python_core.replay_many(logs)
    assert [_native.replay(*log) for log in logs] == expected
    assert _native.replay_many(logs) == expected


@every_level
@every_case("count", range(21))
def test_replay_of_any_number_of_chains(count: int) -> None:
    """One chain per log, so that each number of idle lanes occurs."""
    logs = [make_log(bytes([i % 4]) * (1 + i % 3), i) for i in range(count)]
    assert _native.replay_many(logs) == python_core.replay_many(logs)


@every_level
@any_bytes
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 30)).map(lambda run: bytes([run[0]]) * run[1]),
        max_size=12,
    ),
    st.integers(0, 2**32),
)
def test_replay_of_chains_of_any_length(runs: list[bytes], seed: int) -> None:
    """A lane whose chain has ended takes the next one; the last chain runs alone."""
    whole = make_log(b"".join(runs), seed)
    assert _native.replay(*whole) == python_core.replay(*whole)
    logs = [make_log(run, seed + i) for i, run in enumerate(runs)]
    assert _native.replay_many(logs) == python_core.replay_many(logs)


@every_level
def test_replay_of_very_unequal_logs() -> None:
    """Short logs are complete although one log is much longer."""
    sizes = [0, 1, 700, 2, 0, 3, 300, *[1] * 40, 0, 500, 5]
    logs = [make_log(random_registers(n, i), i) for i, n in enumerate(sizes)]
    assert _native.replay_many(logs) == python_core.replay_many(logs)


@every_level
@every_case("count", [WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 3])
def test_replay_of_log_over_several_windows(count: int) -> None:
    """Values are carried over, whether all chains continue or one starts late."""
    orders = (
        random_registers(count, count),
        b"\2" * (count - 2) + b"\0\3",
    )
    logs = [make_log(order, count) for order in orders]
    expected = python_core.replay_many(logs)
    assert [_native.replay(*log) for log in logs] == expected
    assert _native.replay_many([make_log(b"\1"), *logs])[1:] == expected


@every_level
def test_replay_of_more_chains_than_a_window() -> None:
    """1024 chains are sorted at a time; logs with four chains, one and none between them."""
    logs = [make_log((b"\0\1\2\3", b"\3\2\1\0", b"\1", b"")[i % 7 % 4], i) for i in range(900)]
    assert _native.replay_many(logs) == python_core.replay_many(logs)


@pytest.mark.parametrize("cpus", [1, 2, 5])
def test_replay_many_in_threads_is_complete_and_ordered(
    cpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large batch is complete and in order with any number of threads."""
    monkeypatch.setattr("attestkit._native._threads.cpus", lambda: cpus)
    logs = [make_log(random_registers(i * 37 % 500, i), i) for i in range(280)]
    assert sum(len(registers) for registers, _ in logs) > 2 * _native._EVENTS_PER_THREAD
    assert _native.replay_many(logs) == python_core.replay_many(logs)


def test_replay_of_long_log_releases_gil() -> None:
    """A log that takes milliseconds releases the GIL, and has the same registers."""
    log = make_log(random_registers(_native._MANY_EVENTS + 1, 1))
    assert _native.replay(*log) == python_core.replay(*log)


@pytest.mark.parametrize("core", [_native, python_core], ids=["compiled", "python"])
@pytest.mark.parametrize("logs_before", [0, 3, 300])
def test_replay_many_error_names_first_invalid_log(core: Any, logs_before: int) -> None:
    """Both cores name the register inside its log, in large and small batches."""
    many = core.replay_many
    valid = [make_log(b"\0\1\2\3" * 50)] * logs_before
    with raises(FormatError, "register", offset=2):
        many([*valid, make_log(b"\0\1\4"), (b"\0", b""), *valid])
    with raises(UsageError, "wrong_size"):
        many([*valid, (b"\0", b""), make_log(b"\0\1\4"), *valid])


@every_level
@every_case("slack", [0, 1, 7, 13])
def test_sha384_and_replay_read_no_byte_after_end(
    slack: int, guarded: Callable[[bytes], object]
) -> None:
    """Inputs end at an unreadable page and start at any alignment."""
    module = pytest.importorskip("attestkit._native._lib")
    ffi, lib = module.ffi, module.lib
    out = ffi.new("uint8_t[]", 192)
    for registers in (b"\0", b"\0\1", b"\0\1\2", b"\3\1\2\0\1" * 3):
        _, digests = make_log(registers, slack)
        status = lib.ak_replay(registers, guarded(digests), len(registers), out)
        assert status == 0
        assert tuple(bytes(out)[at : at + 48] for at in (0, 48, 96, 144)) == python_core.replay(
            registers, digests
        )
    for sizes in ([size - slack] for size in (127, 128, 129, 255, 256, 900)):
        count = 9
        data = PATTERN[: count * sizes[0]]
        assert len(data) == count * sizes[0]
        starts = [i * sizes[0] for i in range(count)]
        digests = ffi.new("uint8_t[]", 48 * count)
        lib.ak_sha384_many(guarded(data), starts, sizes * count, count, digests)
        messages = [data[start : start + sizes[0]] for start in starts]
        assert bytes(digests) == b"".join(sha384_of(messages))


@pytest.fixture
def guarded() -> Iterator[Callable[[bytes], object]]:
    """Return a function that copies bytes in front of an unreadable page."""
    ffi = pytest.importorskip("attestkit._native._lib").ffi
    size = 4 * mmap.PAGESIZE
    area = mmap.mmap(-1, size + mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(start + size), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0

    def copy_to_page_end(data: bytes) -> object:
        ctypes.memmove(start + size - len(data), data, len(data))
        return ffi.cast("uint8_t *", start + size - len(data))

    yield copy_to_page_end
    libc.mprotect(ctypes.c_void_p(start + size), ctypes.c_size_t(mmap.PAGESIZE), 3)
