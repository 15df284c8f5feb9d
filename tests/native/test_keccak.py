"""Keccak of both cores: published values, another implementation, and the limits of its input."""

import os
import random
import threading
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit import _native
from attestkit._native import _python

CORES = pytest.mark.parametrize("core", [_native, _python], ids=["selected", "python"])
SIZES = [32, 48, 64]
LARGE = 1 << 18  # from this number of bytes on, the compiled core releases the GIL

# Keccak team, KeccakKAT.zip: ShortMsgKAT_256.txt, messages of 0, 8 and 16 bits; Ethereum's selector
# of `transfer(address,uint256)` is the start of a published digest.
VECTORS = [
    (b"", "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"),
    (bytes.fromhex("cc"), "eead6dbfc7340a56caedc044696a168870549a6a7f6f56961e84a54bd9970b8a"),
    (bytes.fromhex("41fb"), "a8eaceda4d47b3281a795ad9e1ea2122b407baf9aabcb9e18b5717b7873537d2"),
    (b"transfer(address,uint256)", "a9059cbb"),
]


def expected(data: bytes, size: int) -> bytes:
    """Return the digest of pycryptodome, or of the twin under sanitizers, which do not load it."""
    if "libasan" in os.environ.get("LD_PRELOAD", ""):  # it needs RTLD_DEEPBIND
        twin: bytes = _python.keccak(data, size)
        return twin
    other = pytest.importorskip("Crypto.Hash.keccak", reason="pycryptodome is missing")
    found: bytes = other.new(data=data, digest_bits=8 * size).digest()
    return found


@CORES
@pytest.mark.parametrize(("message", "digest"), VECTORS)
def test_keccak256_equals_published_value(core: Any, message: bytes, digest: str) -> None:
    """Messages whose digests others published."""
    assert core.keccak(message, 32).hex().startswith(digest)


@CORES
@pytest.mark.parametrize("size", SIZES)
def test_keccak_of_every_length_around_blocks_equals_oracle(core: Any, size: int) -> None:
    """0 to three blocks of the longest rate; the padding takes one byte, several, or a block."""
    data = random.Random(size).randbytes(3 * 136 + 1)
    for length in range(len(data) + 1):
        assert core.keccak(data[:length], size) == expected(data[:length], size), length


@settings(max_examples=200, database=None, deadline=None)
@given(st.binary(max_size=700), st.sampled_from(SIZES))
def test_cores_agree_on_keccak_of_any_message(data: bytes, size: int) -> None:
    """Any bytes: both cores and pycryptodome."""
    assert _native.keccak(data, size) == _python.keccak(data, size) == expected(data, size)


@CORES
@pytest.mark.parametrize("size", [-1, 0, 28, 31, 33, 65, 100, 200])
def test_keccak_of_other_digest_size_is_refused(core: Any, size: int) -> None:
    """No size but the three is ever used as a length of memory."""
    with pytest.raises(ValueError, match="32, 48 or 64 bytes"):
        core.keccak(b"", size)


@pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)
def test_keccak_between_buffers_of_exact_size() -> None:
    """Nothing is read or written beside message and digest, at any alignment."""
    module = pytest.importorskip("attestkit._native._lib")
    for shift in (0, 1, 7):
        for length in (0, 1, 71, 72, 135, 136, 137):
            data = bytes(range(length))
            message = module.ffi.new("uint8_t[]", shift + length)
            module.ffi.memmove(message + shift, data, length)
            digest = module.ffi.new("uint8_t[]", shift + 32 + 1)
            digest[shift + 32] = 0xA5
            module.lib.ak_keccak(message + shift, length, 32, digest + shift)
            assert bytes(module.ffi.buffer(digest)[shift:]) == expected(data, 32) + b"\xa5"


@pytest.mark.parametrize("length", [LARGE - 1, LARGE, LARGE + 1])
def test_keccak_around_size_that_releases_gil(length: int) -> None:
    """Digests are equal on both sides of the size from which on the GIL is released."""
    data = random.Random(length).randbytes(length)
    assert _native.keccak(data, 32) == expected(data, 32)


@pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)
def test_large_keccak_lets_other_threads_run() -> None:
    """While 16 MiB are hashed, another thread makes progress."""
    running, ticks = threading.Event(), []

    def tick() -> None:
        while not running.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    started = time.monotonic()
    _native.keccak(bytes(1 << 24), 32)
    ended = time.monotonic()
    running.set()
    thread.join()
    assert any(started < at < ended for at in ticks)
