"""Every kernel decodes hex like Python's own functions."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit import _native
from attestkit._native import _python
from tests.runner.cases import every_case

# Required AK_CPU_* bits per kernel.
LEVELS = {"portable": 0, "avx2": 4, "vbmi": 2 | 4 | 8 | 16}
DATA = random.Random(16).randbytes(4096)


@pytest.fixture(params=LEVELS)
def lib(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Limit the core to each kernel that this CPU supports."""
    found = pytest.importorskip("attestkit._native._lib").lib
    needs = LEVELS[request.param]
    found.ak_cpu_limit(2**32 - 1)
    if needs & ~found.ak_cpu_features():
        pytest.skip(f"this CPU does not support {request.param}")
    found.ak_cpu_limit(needs)
    yield found
    found.ak_cpu_limit(2**32 - 1)


def decode(lib: Any, text: bytes, shift: int = 0) -> bytes | None:
    """Decode with the core between buffers of exact size, `shift` bytes off alignment."""
    ffi = pytest.importorskip("attestkit._native._lib").ffi
    memory = ffi.new("uint8_t[]", shift + len(text))
    ffi.memmove(memory + shift, text, len(text))
    found = ffi.new("uint8_t[]", shift + len(text) // 2)
    if not lib.ak_hex_decode(memory + shift, len(text), found + shift):
        return None
    return bytes(ffi.buffer(found)[shift:])


@pytest.mark.parametrize("shift", [0, 1, 31])
def test_hex_of_every_length_and_alignment(lib: Any, shift: int) -> None:
    """0 to 300 bytes in upper, lower and mixed case, at several alignments."""
    for size in range(301):
        data = DATA[size : 2 * size]
        digits = data.hex().encode()
        for text in (digits, digits.upper(), digits[:size] + digits[size:].upper()):
            assert decode(lib, text, shift) == data
            assert decode(lib, text[1:], shift) is None or size == 0


def test_decode_hex_accepts_only_digits_at_every_position(lib: Any) -> None:
    """Only the 22 hex digits are accepted, at every position of 130 characters."""
    digits = DATA[:65].hex().encode()
    values = {character: int(chr(character), 16) for character in b"0123456789abcdefABCDEF"}
    for at in range(130):
        for character in range(256):
            found = decode(lib, digits[:at] + bytes([character]) + digits[at + 1 :])
            if character not in values:
                assert found is None, (at, character)
                continue
            assert found is not None
            assert found[at // 2] >> (0 if at % 2 else 4) & 15 == values[character], (at, character)
            assert (
                found.hex()[:at] + found.hex()[at + 1 :]
                == (digits[:at] + digits[at + 1 :]).decode()
            )


CORES = [_native, _python]


@every_case("core", CORES, ids=["selected", "python"])
@every_case("size", [0, 1, 48, 1499, 1500, 1501, 1502, 4096])
def test_hex_around_native_threshold(core: Any, size: int) -> None:
    """Results are equal on both sides of the size from which the core is used."""
    data = DATA[:size]
    for text in (data.hex(), data.hex().upper()):
        assert core.unhex(text) == core.unhex(text.encode()) == data


@every_case("core", CORES, ids=["selected", "python"])
@every_case("size", [2, 2000])
@every_case("suffix", ["0", "0g", " 00", "00 ", "0x00", "é0", "١٢", "\ud800", "0\0", "\n"])
def test_unhex_of_invalid_text_is_none(core: Any, size: int, suffix: str) -> None:
    """Odd lengths, whitespace, prefixes and non-ASCII digits are not hex."""
    text = "ab" * size + suffix
    assert core.unhex(text) is None
    assert core.unhex(text.encode(errors="surrogatepass")) is None


@settings(max_examples=300, database=None, deadline=None)
@given(st.binary(max_size=64) | st.text(max_size=64), st.integers(0, 1))
def test_cores_agree_on_arbitrary_hex_input(text: bytes | str, many: int) -> None:
    """Any bytes and text, alone and after many digits."""
    head = "0123456789abcdefABCDEF" * 200 * many
    joined = head.encode() + text if isinstance(text, bytes) else head + text
    assert _native.unhex(joined) == _python.unhex(joined)
