"""Messages hashed and registers folded side by side are what hashlib gives, at every level."""

import ctypes
import hashlib
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attestkit import _native
from attestkit._native import _python_log as twin
from attestkit.errors import FormatError, UsageError

pytestmark = pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)

# 251 is prime: blocks that are swapped or read twice show.
PATTERN = bytes(i % 251 for i in range(8192))
EDGES = (0, 1, 47, 48, 111, 112, 127, 128, 129, 239, 240, 255, 256, 257, 367, 368, 384, 1000, 4096)
# What dispatch looks at, one level after the other: the AK_CPU_* bits allowed.
LEVELS = {"portable": 0, "avx2 without bmi2": 4, "avx2": 2 | 4, "avx512": 2 | 4 | 8}
WINDOW = 4096  # events that rtmr_replay.c sorts at a time

Columns = tuple[bytes, bytes]


@pytest.fixture(params=LEVELS)
def _level(request: pytest.FixtureRequest) -> Iterator[None]:
    """Limit the kernels to a level, and lift the limit again."""
    lib = pytest.importorskip("attestkit._native._lib").lib
    before, allowed = lib.ak_cpu_features(), LEVELS[request.param]
    if allowed & ~before:
        pytest.skip(f"this CPU has no {request.param}")
    lib.ak_cpu_limit(allowed)
    yield
    lib.ak_cpu_limit(before)


every_level = pytest.mark.usefixtures("_level")
any_bytes = settings(
    max_examples=200,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the level holds for them all
)


def sha384_of(messages: list[bytes]) -> list[bytes]:
    """Return what hashlib says."""
    return [hashlib.sha384(message).digest() for message in messages]


def noise(size: int, seed: int) -> bytes:
    """Return bytes without a pattern, the same each time."""
    return hashlib.shake_128(b"%d" % seed).digest(size)


def any_order(count: int, seed: int) -> bytes:
    """Return register numbers without a pattern."""
    return bytes(byte % 4 for byte in noise(count, seed))


def log_of(registers: bytes, seed: int = 0) -> Columns:
    """Return registers and as many digests, all of them different."""
    return registers, noise(48 * len(registers), seed)


@every_level
@pytest.mark.parametrize("size", EDGES)
def test_one_message_at_the_edges_of_blocks(size: int) -> None:
    """Padding goes into the last block where it fits, and into one more where it does not."""
    assert _native.sha384(PATTERN[:size]) == hashlib.sha384(PATTERN[:size]).digest()


@every_level
@pytest.mark.parametrize("count", range(21))
def test_any_number_of_messages(count: int) -> None:
    """Fewer messages than lanes, as many, and more; of one length, and each of its own."""
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
def test_any_messages(messages: list[bytes]) -> None:
    """Lanes are filled again as messages end, wherever that is."""
    assert _native.sha384_many(messages) == twin.sha384_many(messages) == sha384_of(messages)


@every_level
@pytest.mark.parametrize("register_count", range(6))
def test_every_order_of_registers(register_count: int) -> None:
    """All orders of up to five events, alone and all of them as one batch."""
    logs = [
        log_of(bytes(order), seed)
        for seed, order in enumerate(product(range(4), repeat=register_count))
    ]
    expected = twin.replay_many(logs)
    assert [_native.replay(*log) for log in logs] == expected
    assert _native.replay_many(logs) == expected


@every_level
@pytest.mark.parametrize("count", range(21))
def test_any_number_of_chains(count: int) -> None:
    """A chain a log, so that each number of lanes is left idle once."""
    logs = [log_of(bytes([i % 4]) * (1 + i % 3), i) for i in range(count)]
    assert _native.replay_many(logs) == twin.replay_many(logs)


@every_level
@any_bytes
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 30)).map(lambda run: bytes([run[0]]) * run[1]),
        max_size=12,
    ),
    st.integers(0, 2**32),
)
def test_chains_of_any_length(runs: list[bytes], seed: int) -> None:
    """One log and many: a lane whose chain is done takes the next, the last goes on alone."""
    whole = log_of(b"".join(runs), seed)
    assert _native.replay(*whole) == twin.replay(*whole)
    logs = [log_of(run, seed + i) for i, run in enumerate(runs)]
    assert _native.replay_many(logs) == twin.replay_many(logs)


@every_level
def test_very_unequal_logs() -> None:
    """Nobody waits for the longest log, and nobody forgets it."""
    sizes = [0, 1, 700, 2, 0, 3, 300, *[1] * 40, 0, 500, 5]
    logs = [log_of(any_order(n, i), i) for i, n in enumerate(sizes)]
    assert _native.replay_many(logs) == twin.replay_many(logs)


@every_level
@pytest.mark.parametrize("count", [WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 3])
def test_log_that_goes_on_in_the_next_window(count: int) -> None:
    """Values are taken along, whether all chains go on or one of them starts late."""
    orders = (
        any_order(count, count),
        b"\2" * (count - 2) + b"\0\3",
    )
    logs = [log_of(order, count) for order in orders]
    expected = twin.replay_many(logs)
    assert [_native.replay(*log) for log in logs] == expected
    assert _native.replay_many([log_of(b"\1"), *logs])[1:] == expected


@every_level
def test_more_chains_than_a_window_has() -> None:
    """1024 chains are sorted at a time; logs of four chains and of one or none between them."""
    logs = [log_of((b"\0\1\2\3", b"\3\2\1\0", b"\1", b"")[i % 7 % 4], i) for i in range(900)]
    assert _native.replay_many(logs) == twin.replay_many(logs)


@pytest.mark.parametrize("cpus", [1, 2, 5])
def test_batches_for_several_threads(cpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many threads share it, a large batch comes back whole and in order."""
    monkeypatch.setattr("attestkit._native._threads.cpus", lambda: cpus)
    logs = [log_of(any_order(i * 37 % 500, i), i) for i in range(280)]
    assert sum(len(registers) for registers, _ in logs) > 2 * _native._EVENTS_OF_A_THREAD
    assert _native.replay_many(logs) == twin.replay_many(logs)


def test_long_log_by_itself() -> None:
    """A log that takes milliseconds drops the GIL, and has the same registers."""
    log = log_of(any_order(_native._MANY_EVENTS + 1, 1))
    assert _native.replay(*log) == twin.replay(*log)


@pytest.mark.parametrize("core", [_native, twin], ids=["compiled", "twin"])
@pytest.mark.parametrize("logs_before", [0, 3, 300])
def test_first_log_that_cannot_be_is_told(core: Any, logs_before: int) -> None:
    """Both cores name the register inside of its log; a large batch is refused like a small one."""
    many = core.replay_many
    good = [log_of(b"\0\1\2\3" * 50)] * logs_before
    with pytest.raises(FormatError) as caught:
        many([*good, log_of(b"\0\1\4"), (b"\0", b""), *good])
    assert (caught.value.reason, caught.value.offset) == ("register", 2)
    with pytest.raises(UsageError, match="48 bytes"):
        many([*good, (b"\0", b""), log_of(b"\0\1\4"), *good])


@every_level
@pytest.mark.parametrize("slack", [0, 1, 7, 13])
def test_nothing_is_read_behind_the_end(slack: int, guarded: Callable[[bytes], object]) -> None:
    """Inputs end where a page does that cannot be read; they start at any byte."""
    module = pytest.importorskip("attestkit._native._lib")
    ffi, lib = module.ffi, module.lib
    out = ffi.new("uint8_t[]", 192)
    for registers in (b"\0", b"\0\1", b"\0\1\2", b"\3\1\2\0\1" * 3):
        _, digests = log_of(registers, slack)
        status = lib.ak_replay(registers, guarded(digests), len(registers), out)
        assert status == 0
        assert tuple(bytes(out)[at : at + 48] for at in (0, 48, 96, 144)) == twin.replay(
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
    """Return a function that puts bytes right in front of a page that cannot be read."""
    ffi = pytest.importorskip("attestkit._native._lib").ffi
    size = 4 * mmap.PAGESIZE
    area = mmap.mmap(-1, size + mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(start + size), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0

    def put(data: bytes) -> object:
        ctypes.memmove(start + size - len(data), data, len(data))
        return ffi.cast("uint8_t *", start + size - len(data))

    yield put
    libc.mprotect(ctypes.c_void_p(start + size), ctypes.c_size_t(mmap.PAGESIZE), 3)


def test_forced_levels_agree() -> None:
    """A process started with ATTESTKIT_CPU hashes and replays the same."""
    lib = pytest.importorskip("attestkit._native._lib").lib
    code = (
        "from attestkit import _native as n; import hashlib; p = bytes(range(251)) * 20;"
        "m = [p[i:i * 40] for i in range(20)]; r = bytes(i * i % 4 for i in range(30));"
        "print(hashlib.sha256(repr((n.sha384_many(m), n.replay(r, p[:1440]),"
        "n.replay_many([(r, p[i:i + 1440]) for i in range(20)]))).encode()).hexdigest())"
    )
    said = set()
    for level in ("portable", "avx2", "avx512"):
        if LEVELS[level] & ~lib.ak_cpu_features():
            continue
        root = Path(_native.__file__).parents[2]
        env = {**os.environ, "PYTHONPATH": str(root), "ATTESTKIT_CPU": level}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        said.add(done.stdout)
    env = {**os.environ, "PYTHONPATH": str(root), "ATTESTKIT_PURE_PYTHON": "1"}
    env.pop("ATTESTKIT_CPU", None)
    plain = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert said == {plain.stdout}
