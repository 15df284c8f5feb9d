"""The compiled and the Python core agree on every quote, valid or not."""

import gc
import random
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from struct import pack
from typing import Any

import pytest
from hypothesis import strategies as st

from attestkit import _native
from attestkit._native import _python_quote as python_core
from attestkit.errors import FormatError
from attestkit.quote import EnclaveReport, Quote, TdQuoteBody
from tests.raising import raises
from tests.runner.cases import every_case
from tests.samples.quotes import BODY_SIZES, INTEL, PATTERN, made_quote, made_quotes, samples
from tests.thorough import thorough

compiled = pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)

SAMPLES = samples() + made_quotes()


def layout_or_error(
    layout: Callable[[bytes], tuple[object, ...]], data: bytes
) -> tuple[object, ...]:
    """Return the layout that a core finds, or reason, offset and text of its error."""
    try:
        return layout(data)
    except FormatError as error:
        return error.reason, error.offset, str(error)


def read_with_both(data: bytes) -> tuple[object, ...]:
    """Return the result of a quote, after checking that both cores agree."""
    result = layout_or_error(_native.quote_layout, data)
    assert result == layout_or_error(python_core.quote_layout, data)
    made, twins = Quote.parse(data) if isinstance(result[0], int) else None, PARSE(data)
    assert read_fields(made) == read_fields(twins)
    return result


def read_enclave_body(quote: Any) -> EnclaveReport:
    """Return the body of an enclave's quote."""
    start = 48 if quote.version < 5 else 54
    return EnclaveReport.parse(quote._data[start : start + 384])


class PythonQuote(python_core.QuoteBase):
    """A quote of the Python core."""

    __slots__ = ()

    body = property(python_core.body_getter(TdQuoteBody, read_enclave_body))


PARSE, PARSE_MANY = python_core.quote_parsers(PythonQuote, PythonQuote)


def read_fields(quote: object) -> tuple[object, ...]:
    """Return the fields of a quote of either core; None for fields that an enclave lacks."""
    names = ("version", "tee_type", "padding", "report_data", "_data", "_made", "body")
    td = ("mrtd", "rtmrs") if getattr(quote, "tee_type", 0) else ()
    return tuple(getattr(quote, name, None) for name in names + td)


@compiled
@every_case("data", SAMPLES, ids=len)
def test_cores_agree_on_samples(data: bytes) -> None:
    """A valid quote has the same layout in both cores, with any zero padding."""
    result = read_with_both(data)
    assert isinstance(result[0], int)
    assert read_with_both(data + bytes(9)) == result
    assert read_with_both(data.ljust(131072, b"\0")) == result
    assert read_with_both(data.ljust(131073, b"\0"))[:2] == ("too_long", 131072)


@compiled
@every_case("data", SAMPLES, ids=len)
def test_cores_agree_on_truncated_quotes(data: bytes) -> None:
    """A truncated quote is rejected with the same reason and offset."""
    end = _native.quote_layout(data)[-1]
    for size in range(end):
        reason, offset, _ = read_with_both(data[:size])
        assert isinstance(reason, str)
        assert offset == size


@compiled
@pytest.mark.parametrize("data", made_quotes()[2:5], ids=len)
def test_cores_agree_on_flipped_bits(data: bytes) -> None:
    """A quote with one flipped bit has the same result."""
    for index in range(len(data)):
        for bit in (0, 7):
            changed = bytearray(data)
            changed[index] ^= 1 << bit
            read_with_both(bytes(changed))


@pytest.mark.parametrize("cores", [_native, python_core], ids=["selected", "python"])
def test_quote_parsers_leak_no_references(cores: Any) -> None:
    """No reference remains after parsing, including batches with invalid quotes."""
    one, other = (type(name, (cores.QuoteBase,), {"__slots__": ()}) for name in ("One", "Other"))
    parse, parse_many = cores.quote_parsers(one, other)
    valid, enclave, invalid = made_quote(), made_quote(3, 0), made_quote()[:-1]
    batches = [(valid, enclave, invalid, valid), (valid, "text"), (invalid,), ()]
    held = [valid, enclave, invalid, one, other, *batches[:-1]]  # the empty tuple is a singleton
    before = [sys.getrefcount(item) for item in held]
    for _ in range(100):
        assert [len(parse_many(batch)) for batch in batches] == [2, 1, 0, 0]
        assert type(parse(valid)) is one
        assert type(parse(enclave)) is other
        assert parse(invalid) is parse(None) is None
    assert [sys.getrefcount(item) for item in held] == before


def test_quote_parsers_require_quote_classes() -> None:
    """Other classes are rejected; an instance made without a parser has no fields."""
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
def test_quotes_are_not_tracked_by_garbage_collector(*, enabled: bool) -> None:
    """Creating many quotes runs no collection, and keeps the collector's state."""
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
    assert seen.count("start") <= 1  # a collection after the batch
    assert not any(map(gc.is_tracked, made))
    assert not gc.is_tracked(Quote.parse(data[0]))
    assert made[0].rtmrs is made[0].rtmrs


def usually(source: random.Random, truth: int) -> int:
    """Return `truth`, a nearby value in 3 percent of the calls."""
    return truth if source.random() < 0.97 else max(0, truth + source.choice((-1, 1, 6, 2**31)))


def make_start(source: random.Random) -> bytes:
    """Return header and body of a quote, nearly always a consistent pair."""
    version = source.choice((3, 4, 4, 5, 5))
    tee_type = 0 if version == 3 else source.choice((0, 0x81, 0x81))
    body_type = source.choice((2, 3)) if tee_type else 1
    size = BODY_SIZES[body_type] if version == 5 else 584 if tee_type else 384
    header = pack(
        "<HHI4x16s20x", usually(source, version) & 15, 2, usually(source, tee_type), INTEL
    )
    descriptor = pack("<HI", usually(source, body_type) & 15, usually(source, size))
    return header + (descriptor if version == 5 else b"") + PATTERN[:size]


@st.composite
def nearly_valid_quotes(draw: st.DrawFn) -> bytes:
    """Return bytes that are valid up to some check, and arbitrary after it."""
    rest = draw(st.binary(max_size=96))
    source = random.Random(rest)
    depth = source.randrange(7)
    if depth == 0:
        return rest
    data = make_start(source)
    if depth == 1:
        return data + rest
    inner = rest
    if depth > 5:
        inner += pack(
            "<HI", usually(source, source.randint(1, 5)) & 15, usually(source, 20)
        ) + bytes(20)
    if depth > 4:
        inner = PATTERN[:448] + pack("<H", usually(source, len(rest)) & 0xFFFF) + inner
    if depth > 3 and data[0] > 3:
        inner = pack("<HI", usually(source, 6) & 15, usually(source, len(inner))) + inner
    if depth > 2:
        inner = PATTERN[:128] + inner
    if source.random() < 0.3:
        inner = inner[: source.randrange(len(inner) + 1)]
    return data + pack("<I", usually(source, len(inner))) + inner


@compiled
@thorough(nearly_valid_quotes(), few=400, many=30_000)
def test_cores_agree_on_nearly_valid_quotes(data: bytes) -> None:
    """Both cores have the same result for a quote that violates some rule."""
    read_with_both(data)


@pytest.fixture(params=[0, 2**32 - 1], ids=["portable", "best"])
def _limit_kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Limit the kernels, and remove the limit afterwards."""
    lib = pytest.importorskip("attestkit._native._lib").lib
    lib.ak_cpu_limit(request.param)
    yield
    lib.ak_cpu_limit(2**32 - 1)


@compiled
@pytest.mark.usefixtures("_limit_kernels")
@every_case("size", [0, 1, 54, 55, 56, 63, 64, 65, 119, 120, 128, 1000, 65535])
def test_key_binding_is_sha256(size: int) -> None:
    """The binding is SHA-256 over key and authentication data, at block boundaries."""
    auth = (PATTERN[:251] * 262)[:size]
    data = made_quote(auth=auth)
    assert _native.quote_layout(data)[-1] == len(data)
    for at in {700, 763} | ({1220, 1219 + size} if size else set()):
        changed = bytearray(data)
        changed[at] ^= 0x10
        with raises(FormatError, "qe_binding", offset=770 + 320):
            _native.quote_layout(bytes(changed))


@compiled
@pytest.mark.usefixtures("_limit_kernels")
def test_key_binding_of_random_keys() -> None:
    """Keys without a pattern are hashed correctly."""
    source = random.Random(384)
    for _ in range(300):
        key, auth = source.randbytes(64), source.randbytes(source.randrange(200))
        data = made_quote(key=key, auth=auth)
        assert sha256(key + auth).digest() in data
        assert _native.quote_layout(data)[-1] == len(data)


@pytest.mark.parametrize("core", [_native, python_core])
def test_body_getter_accepts_quotes_only(core: Any) -> None:
    """Other objects have no body."""
    getter = core.body_getter(TdQuoteBody, read_enclave_body)
    for other in (None, b"", TdQuoteBody):
        with pytest.raises(TypeError):
            getter(other)


def test_body_is_created_once_and_shares_fields() -> None:
    """A quote has one body, with the objects of its MRTD and report data."""
    for data in (made_quote(4), made_quote(5, body_type=2), made_quote(5, body_type=3)):
        quote = Quote.parse(data)
        body = quote.body
        assert isinstance(body, TdQuoteBody)
        assert body is quote.body
        assert body.to_bytes() in data
        assert body == TdQuoteBody.parse(body.to_bytes())
    enclave = Quote.parse(made_quotes()[0])
    assert isinstance(enclave.body, EnclaveReport)
    assert enclave.body is enclave.body


@compiled
@pytest.mark.parametrize("kind", [int, list, None])
def test_body_getter_requires_a_tuple_class(kind: Any) -> None:
    """The class of bodies is a subclass of tuple."""
    with pytest.raises(TypeError):
        _native.body_getter(kind, read_enclave_body)
