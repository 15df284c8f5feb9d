"""The compiled core and its plain twin say the same of every quote, good or bad."""

import gc
import random
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from struct import pack, pack_into, unpack_from
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit import _native
from attestkit._native import _python_quote as plain
from attestkit.errors import FormatError
from attestkit.quote import Quote
from tests.quotes import BODY_SIZES, INTEL, PATTERN, made_quote, made_quotes, samples

compiled = pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)

SAMPLES = samples() + made_quotes()
EXAMPLES = 10_000  # of each part but the first, which is the one that the default run has time for
PARTS = [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, 6))]

# Places that decide: header, descriptor, lengths and types of version 4 and 5 TD quotes, of
# enclave quotes, and of the certification data behind them.
PLACES = (0, 2, 4, 12, 48, 50, 54, 432, 438, 632, 638, 702, 762, 764, 766, 1090, 1218, 1252, 1254)


def verdict(layout: Callable[[bytes], tuple[object, ...]], data: bytes) -> tuple[object, ...]:
    """Return what a core says of `data`: where the parts are, or why and where it breaks."""
    try:
        return layout(data)
    except FormatError as error:
        return error.reason, error.offset, str(error)


def agree(data: bytes) -> tuple[object, ...]:
    """Check that both cores say the same of `data`, and return it."""
    said = verdict(_native.quote_layout, data)
    assert said == verdict(plain.quote_layout, data)
    made, twins = Quote.parse(data) if isinstance(said[0], int) else None, PLAIN(data)
    assert read(made) == read(twins)
    return said


class Plain(plain.QuoteBase):
    """A quote of the plain core."""

    __slots__ = ()


PLAIN, PLAIN_MANY = plain.quote_parsers(Plain, Plain)


def read(quote: object) -> tuple[object, ...]:
    """Return what a quote of either core holds; of an enclave's, for what it has not, None."""
    names = ("version", "tee_type", "padding", "report_data", "_data", "_made")
    td = ("mrtd", "rtmrs") if getattr(quote, "tee_type", 0) else ()
    return tuple(getattr(quote, name, None) for name in names + td)


@compiled
@pytest.mark.parametrize("data", SAMPLES, ids=len)
def test_cores_agree_on_samples(data: bytes) -> None:
    """A well-formed quote has its parts at the same places in both, whatever zeros follow it."""
    said = agree(data)
    assert isinstance(said[0], int)
    assert agree(data + bytes(9)) == said
    assert agree(data.ljust(131072, b"\0")) == said
    assert agree(data.ljust(131073, b"\0"))[:2] == ("too_long", 131072)


@compiled
@pytest.mark.parametrize("data", SAMPLES, ids=len)
def test_cores_agree_on_cuts(data: bytes) -> None:
    """A quote cut at any length is refused by both, at the same byte for the same reason."""
    end = _native.quote_layout(data)[-1]
    for size in range(end):
        reason, offset, _ = agree(data[:size])
        assert isinstance(reason, str)
        assert offset == size


@compiled
@pytest.mark.parametrize("data", made_quotes()[2:5], ids=len)
def test_cores_agree_on_flipped_bits(data: bytes) -> None:
    """A quote with one bit changed gets one answer, wherever the bit is."""
    for index in range(len(data)):
        for bit in (0, 7):
            changed = bytearray(data)
            changed[index] ^= 1 << bit
            agree(bytes(changed))


@pytest.mark.parametrize("cores", [_native, plain], ids=["this", "plain"])
def test_references_are_given_back(cores: Any) -> None:
    """Quotes that are gone leave nothing behind, also where some of a batch are refused."""
    one, other = (type(name, (cores.QuoteBase,), {"__slots__": ()}) for name in ("One", "Other"))
    parse, parse_many = cores.quote_parsers(one, other)
    good, enclave, bad = made_quote(), made_quote(3, 0), made_quote()[:-1]
    batches = [(good, enclave, bad, good), (good, "text"), (bad,), ()]
    held = [good, enclave, bad, one, other, *batches[:-1]]  # of the empty tuple there is but one
    before = [sys.getrefcount(item) for item in held]
    for _ in range(100):
        assert [len(parse_many(batch)) for batch in batches] == [2, 1, 0, 0]
        assert type(parse(good)) is one
        assert type(parse(enclave)) is other
        assert parse(bad) is parse(None) is None
    assert [sys.getrefcount(item) for item in held] == before


def test_quotes_of_other_classes() -> None:
    """What is no quote's class cannot be filled in; a subclass that nobody fills in is empty."""
    if _native.CORE == "compiled":
        for classes in ((Quote, bytes), (1, Quote), (Quote,)):
            with pytest.raises(TypeError):
                _native.quote_parsers(*classes)

    class WithDictionary(Quote):
        pass

    quote = WithDictionary.__new__(WithDictionary)
    with pytest.raises(AttributeError):
        _ = quote.mrtd


@compiled
@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_has_no_work_with_quotes(*, enabled: bool) -> None:
    """It does not come along while many are made, does not look at them, and is as it was."""
    seen: list[str] = []
    data = [made_quote()] * 10_000
    before = gc.isenabled()
    gc.callbacks.append(lambda phase, _: seen.append(phase))
    try:
        (gc.enable if enabled else gc.disable)()
        made = Quote.parse_many(data)
        assert gc.isenabled() is enabled
    finally:
        gc.callbacks.pop()
        (gc.enable if before else gc.disable)()
    assert seen.count("start") <= 1  # where the quotes had been made
    assert not any(map(gc.is_tracked, made))
    assert not gc.is_tracked(Quote.parse(data[0]))
    assert made[0].rtmrs is made[0].rtmrs


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A sample with up to four changes, most of them where they decide something.

    One draw of bytes is many times faster than a strategy for each choice.
    """
    seed = draw(st.binary(min_size=16, max_size=16))
    data = bytearray(SAMPLES[seed[0] % len(SAMPLES)])
    for i in range(1 + seed[1] % 4):
        kind, place, value = seed[2 + 3 * i], seed[3 + 3 * i], seed[4 + 3 * i]
        at = PLACES[place % len(PLACES)] if kind & 8 else (place << 8 | value) % max(len(data), 1)
        if kind & 7 == 0:
            del data[at:]
        elif kind & 7 == 1:
            data += bytes([value & 1]) * (place & 15)
        elif kind & 7 == 2 and at + 4 <= len(data):
            pack_into("<I", data, at, (unpack_from("<I", data, at)[0] + value - 128) % 2**32)
        elif kind & 7 == 3:
            del data[at : at + 1 + value % 8]
        elif at < len(data):
            data[at] = value if kind & 7 == 4 else data[at] ^ 1 << value % 8
    return bytes(data)


@compiled
@pytest.mark.parametrize("part", PARTS)
def test_cores_agree_on_mutated_quotes(part: int) -> None:
    """Whatever is done to a real quote, both cores give one answer."""
    # The others are there to spread the examples over the machine's cores.

    @settings(max_examples=EXAMPLES if part else EXAMPLES // 8, deadline=None, database=None)
    @given(mutated())
    def check(data: bytes) -> None:
        agree(data)

    check()


def lie(source: random.Random, truth: int) -> int:
    """Return `truth`, now and then a little off, and seldom something else."""
    return truth if source.random() < 0.97 else max(0, truth + source.choice((-1, 1, 6, 2**31)))


def start(source: random.Random) -> bytes:
    """Return header and body of a quote, nearly always such as may be together."""
    version = source.choice((3, 4, 4, 5, 5))
    tee_type = 0 if version == 3 else source.choice((0, 0x81, 0x81))
    body_type = source.choice((2, 3)) if tee_type else 1
    size = BODY_SIZES[body_type] if version == 5 else 584 if tee_type else 384
    header = pack("<HHI4x16s20x", lie(source, version) & 15, 2, lie(source, tee_type), INTEL)
    descriptor = pack("<HI", lie(source, body_type) & 15, lie(source, size))
    return header + (descriptor if version == 5 else b"") + PATTERN[:size]


@st.composite
def nearly(draw: st.DrawFn) -> bytes:
    """Bytes that look like a quote up to some check, and like anything from there on."""
    rest = draw(st.binary(max_size=96))
    source = random.Random(rest)
    depth = source.randrange(7)
    if depth == 0:
        return rest
    data = start(source)
    if depth == 1:
        return data + rest
    inner = rest
    if depth > 5:
        inner += pack("<HI", lie(source, source.randint(1, 5)) & 15, lie(source, 20)) + bytes(20)
    if depth > 4:
        inner = PATTERN[:448] + pack("<H", lie(source, len(rest)) & 0xFFFF) + inner
    if depth > 3 and data[0] > 3:
        inner = pack("<HI", lie(source, 6) & 15, lie(source, len(inner))) + inner
    if depth > 2:
        inner = PATTERN[:128] + inner
    if source.random() < 0.3:
        inner = inner[: source.randrange(len(inner) + 1)]
    return data + pack("<I", lie(source, len(inner))) + inner


@compiled
@pytest.mark.parametrize("part", PARTS)
def test_cores_agree_on_anything(part: int) -> None:
    """Whatever bytes come, both cores give one answer."""
    # The others are there to spread the examples over the machine's cores.

    @settings(max_examples=EXAMPLES if part else EXAMPLES // 8, deadline=None, database=None)
    @given(nearly())
    def check(data: bytes) -> None:
        agree(data)

    check()


@pytest.fixture(params=[0, 2**32 - 1], ids=["portable", "best"])
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Limit the kernels, then lift the limit."""
    lib = pytest.importorskip("attestkit._native._lib").lib
    lib.ak_cpu_limit(request.param)
    yield
    lib.ak_cpu_limit(2**32 - 1)


@compiled
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("size", [0, 1, 54, 55, 56, 63, 64, 65, 119, 120, 128, 1000, 65535])
def test_key_binding_is_sha256(size: int) -> None:
    """The binding is SHA-256 over key and authentication data, in every kernel, at block edges."""
    auth = (PATTERN[:251] * 262)[:size]
    data = made_quote(auth=auth)
    assert _native.quote_layout(data)[-1] == len(data)
    for at in {700, 763} | ({1220, 1219 + size} if size else set()):
        changed = bytearray(data)
        changed[at] ^= 0x10
        with pytest.raises(FormatError) as caught:
            _native.quote_layout(bytes(changed))
        assert caught.value.reason == "qe_binding"
        assert caught.value.offset == 770 + 320


@compiled
@pytest.mark.usefixtures("kernels")
def test_key_binding_of_many_keys() -> None:
    """The kernels hash keys of all bytes, not only those of a pattern."""
    source = random.Random(384)
    for _ in range(300):
        key, auth = source.randbytes(64), source.randbytes(source.randrange(200))
        data = made_quote(key=key, auth=auth)
        assert sha256(key + auth).digest() in data
        assert _native.quote_layout(data)[-1] == len(data)
