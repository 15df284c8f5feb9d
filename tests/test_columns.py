"""Columns contain the fields that `Quote.parse` reads, and reject the same quotes."""

import copy
import gc
import pickle
import random
import tracemalloc
from array import array
from itertools import accumulate, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit import _native
from attestkit._native import _python_columns as python_core
from attestkit.columns import QuoteColumns, quote_columns
from attestkit.errors import FormatError, UsageError
from attestkit.quote import TEE_TDX, Quote, TdQuoteBody
from tests.raising import raises
from tests.runner.cases import every_case
from tests.samples.quotes import made_quote, made_quotes, samples, starts_of

ALL = samples() + made_quotes()
OF_TDS = [data for data in ALL if Quote.parse(data).tee_type == TEE_TDX]
OF_ENCLAVES = [data for data in ALL if data not in OF_TDS]
TD_15 = made_quote(5, TEE_TDX, 3)
SHORTEST = made_quote(4, TEE_TDX, auth=b"")
CORES: list[Any] = [_native] + [python_core] * (_native.CORE == "compiled")
WIDTHS = (16, 48, 48, 8, 8, 8, *[48] * 8, 64, 16, 48)  # of the fields of a body, in order
RTMRS = (328, 48, 4)


def make_column_class(core: Any) -> Any:
    """Return a class with columns of a core: one per field, and the RTMRs together."""
    fields_at = zip(accumulate(WIDTHS[:-1], initial=0), WIDTHS, strict=True)
    fields = [(at, width) for at, width in fields_at] + [RTMRS]
    columns = {f"column{number}": core.Column(*field) for number, field in enumerate(fields)}
    return type("Columns", (), columns)


CLASSES = [make_column_class(core) for core in CORES]


def columns_or_error(
    core: Any,
    made: Any,
    data: bytes,
    starts: list[int] | None,
) -> tuple[object, ...]:
    """Return the columns that a core reads, or text, offset and reason of its error."""
    packed = None if starts is None else array("Q", starts).tobytes()
    columns = made()
    try:
        columns._rows = core.quote_rows(data, packed)
    except FormatError as error:
        return error.message, error.offset, error.reason
    fields = [getattr(columns, f"column{number}") for number in range(len(WIDTHS))]
    fields += getattr(columns, f"column{len(WIDTHS)}")
    return list(columns._rows), [(view.shape, view.tobytes()) for view in fields]


def read_with_both(data: bytes, starts: list[int] | None = None) -> tuple[object, ...]:
    """Return the result, after checking that both cores agree."""
    first, *others = [
        columns_or_error(core, made, data, starts)
        for core, made in zip(CORES, CLASSES, strict=True)
    ]
    assert others in ([], [first])
    return first


def check_rows(columns: QuoteColumns, quotes: list[bytes]) -> None:
    """Compare every field of every row with its quote."""
    assert len(columns) == len(quotes)
    fields = {name: getattr(columns, name) for name in TdQuoteBody._fields}
    copies = {name: (view.shape[1], view.tobytes()) for name, view in fields.items() if quotes}
    for row, data in enumerate(quotes):
        quote = Quote.parse(data)
        body = quote.body
        assert isinstance(body, TdQuoteBody)
        assert columns.version[row] == quote.version
        assert columns.tee_type[row] == quote.tee_type
        assert columns.body_type[row] == (2 if body.tee_tcb_svn2 is None else 3)
        for name, (width, column) in copies.items():
            expected = getattr(body, name) or bytes(width)
            assert column[row * width : (row + 1) * width] == expected


@every_case("data", OF_TDS, ids=len)
@every_case("zeros", [0, 1, 9, 70])
def test_columns_of_single_quote(data: bytes, zeros: int) -> None:
    """Each valid TD quote is a batch of one, with any zero padding."""
    check_rows(quote_columns(data + bytes(zeros)), [data])
    check_rows(quote_columns(data + bytes(zeros), [0]), [data])
    read_with_both(data + bytes(zeros))


def test_columns_of_all_versions_and_bodies() -> None:
    """All versions and bodies in one batch, with repeated key bindings."""
    quotes = [data + bytes(len(data) % 4) for data in OF_TDS * 3]
    joined = b"".join(quotes)
    columns = quote_columns(joined)
    check_rows(columns, quotes)
    assert list(columns.offsets) == starts_of(quotes)
    assert read_with_both(joined) == read_with_both(joined, starts_of(quotes))


@every_case("kind", ["Q", "q", "L", "l", "I", "i"])
def test_columns_accept_offsets_of_any_integer_type(kind: Any) -> None:
    """Offsets are a sequence of integers, or a buffer of 4- or 8-byte integers."""
    quotes = [SHORTEST, TD_15, SHORTEST]
    starts = starts_of(quotes)
    for offsets in (starts, tuple(starts), array(kind, starts), memoryview(array(kind, starts))):
        columns = quote_columns(b"".join(quotes), offsets)
        check_rows(columns, quotes)
        assert list(columns.offsets) == starts


def test_columns_ignore_bytes_before_first_offset() -> None:
    """Bytes before the first offset are ignored; quotes between offsets are not."""
    data = b"a header of some file" + SHORTEST + TD_15
    starts = [21, 21 + len(SHORTEST)]
    check_rows(quote_columns(data, starts), [SHORTEST, TD_15])
    with raises(FormatError, "trailing_bytes", offset=starts[1]):
        quote_columns(data, starts[:1])


def test_columns_of_empty_batch_are_empty() -> None:
    """An empty batch has columns of size zero."""
    for columns in (quote_columns(b""), quote_columns(b"", []), quote_columns(SHORTEST, ())):
        assert len(columns) == 0
        assert all(getattr(columns, name).nbytes == 0 for name in columns.names)
        assert list(columns.offsets) == []


def test_column_views_are_contiguous_and_read_only() -> None:
    """Each column is contiguous and read-only, has one row per quote, and outlives the object."""
    quotes = [SHORTEST, TD_15]
    columns = quote_columns(b"".join(quotes))
    views = {name: getattr(columns, name) for name in columns.names}
    del columns
    for name, view in views.items():
        assert view.readonly
        assert view.contiguous
        assert view.format == "B"
        assert view.shape == (
            (2,) if name in ("version", "tee_type", "body_type") else (2, 48)
        ) or (view.shape in ((2, 8), (2, 16), (2, 64)))
    assert views["rtmr3"].tobytes() == quotes[0][520:568] + quotes[1][526:574]


def test_columns_are_immutable() -> None:
    """Columns are created by `quote_columns` only, and cannot be changed."""
    columns = quote_columns(SHORTEST * 2)
    assert repr(columns) == "<QuoteColumns of 2 quotes>"
    with pytest.raises(UsageError):
        QuoteColumns()
    with pytest.raises(AttributeError):
        columns.mrtd = memoryview(b"")
    with pytest.raises(AttributeError):
        del columns.mrtd
    with pytest.raises(TypeError):
        columns.mrtd[0, 0] = 1
    with pytest.raises(AttributeError):
        _ = QuoteColumns.mrtd
    assert set(TdQuoteBody._fields) < set(QuoteColumns.names)


@every_case("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_columns_pickle_round_trips(protocol: int) -> None:
    """Pickling keeps all columns, whether accessed before or not, and empty batches."""
    data = b"a header" + SHORTEST + bytes(9) + TD_15
    for columns in (
        quote_columns(data, [8, 8 + len(SHORTEST) + 9]),
        quote_columns(data[8:]),
        quote_columns(b""),
        quote_columns(data, []),
    ):
        _ = columns.rtmrs
        again = pickle.loads(pickle.dumps(columns, protocol))
        assert again == columns
        assert list(again.offsets) == list(columns.offsets)
        for name in columns.names:
            assert getattr(again, name) == getattr(columns, name)


def test_columns_unpickled_are_verified() -> None:
    """A manipulated pickle with an invalid quote is rejected."""
    data = pickle.dumps(quote_columns(SHORTEST))
    assert data.count(SHORTEST) == 1
    forged = data.replace(SHORTEST, b"\6" + SHORTEST[1:])
    with raises(FormatError, "version", offset=0):
        pickle.loads(forged)


def test_columns_are_value_objects() -> None:
    """Equal buffers with equal offsets are equal; a copy is the object itself."""
    columns = quote_columns(SHORTEST * 2)
    _ = columns.report_data
    same = quote_columns(bytes(bytearray(SHORTEST * 2)), [0, len(SHORTEST)])
    assert columns == same
    assert hash(columns) == hash(same)
    others = [quote_columns(data) for data in (SHORTEST, SHORTEST * 2 + b"\0")]
    others.append(quote_columns(SHORTEST * 2, [len(SHORTEST)]))
    assert columns not in others
    assert columns != SHORTEST * 2
    assert copy.copy(columns) is copy.deepcopy(columns) is columns


def test_columns_are_created_on_first_access() -> None:
    """Before access 11 bytes per quote are used; each access creates one column."""
    data = SHORTEST * 1000

    def used_memory() -> int:
        gc.collect()  # free lists of the interpreter too
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        columns = quote_columns(data)
        assert 10_000 <= used_memory() < 15_000
        report_data = columns.report_data
        assert 74_000 <= used_memory() < 80_000
        registers = columns.rtmrs
        assert 266_000 <= used_memory() < 275_000
    finally:
        tracemalloc.stop()
    assert columns.report_data is report_data
    assert columns.rtmrs is registers
    assert columns.rtmr2 is registers[2]


@pytest.mark.parametrize("number", range(3))
def test_columns_with_invalid_quote_name_number_offset_and_reason(number: int) -> None:
    """The error names the first invalid quote, its byte and the rule."""
    quotes = [SHORTEST, TD_15, made_quote(auth=bytes(9))]
    for data, reason, offset in (
        (b"\6" + SHORTEST[1:], "version", 0),
        (SHORTEST[:12] + bytes(16) + SHORTEST[28:], "qe_vendor_id", 12),
        (TD_15[:-1] + b"\1", "inner_cert_size", None),
        (SHORTEST[:700] + b"\0" + SHORTEST[701:], "qe_binding", 770 + 320),
    ):
        batch = [*quotes[:number], data, *quotes[number + 1 :]]
        starts = starts_of(batch)
        for result in (read_with_both(b"".join(batch), starts), read_with_both(b"".join(batch))):
            assert result[2] == reason
            assert str(result[0]).startswith(f"quote {number}: ")
            assert offset is None or result[1] == starts[number] + offset


@every_case("data", OF_ENCLAVES, ids=len)
def test_columns_of_enclave_quote_fail(data: bytes) -> None:
    """A quote of an SGX enclave has no row, because zeros are not measurements of a TD."""
    for starts in (None, [0, len(SHORTEST)]):
        message, offset, reason = read_with_both(SHORTEST + data, starts)
        assert message == "quote 1: a quote of an SGX enclave has no TD fields"
        assert (offset, reason) == (len(SHORTEST) + 4, "enclave")


def test_columns_binding_cache_compares_all_bytes() -> None:
    """A verified key binding is reused only for identical key and authentication data."""
    key, auth = bytes(64), bytes(32)
    valid = made_quote(key=key, auth=auth)
    others = [
        made_quote(key=key[:63] + b"\1", auth=auth),
        made_quote(key=key, auth=auth[:31] + b"\1"),
        made_quote(key=key, auth=bytes(31)),
        made_quote(key=key, auth=b""),
    ]
    read_with_both(b"".join([valid, *others, valid]))
    check_rows(quote_columns(b"".join([valid, *others, valid])), [valid, *others, valid])
    # With the binding of the cached quote, only the hash detects the forgery.
    at = 770 + 320
    for other in others:
        forged = other[:at] + valid[at : at + 64] + other[at + 64 :]
        for batch in ([valid, forged], [valid, valid, forged], [valid, other, forged]):
            result = read_with_both(b"".join(batch))
            assert result[2] == "qe_binding"
            assert result[1] == sum(map(len, batch[:-1])) + at
            with raises(FormatError, "qe_binding", offset=at, start=f"quote {len(batch) - 1}: "):
                Quote.parse_many(batch)


@pytest.mark.parametrize("at", [0, 1])
def test_columns_of_truncated_quote_name_its_end(at: int) -> None:
    """The error names the truncated quote and the byte at which it ends."""
    for size in range(1, len(SHORTEST)):
        batch = [SHORTEST, SHORTEST]
        batch[at] = SHORTEST[:size]
        starts = starts_of(batch)
        message, offset, _ = read_with_both(b"".join(batch), starts)
        assert str(message).startswith(f"quote {at}: ")
        assert offset == starts[at] + size
        result = read_with_both(b"".join(batch))
        assert str(result[0]).startswith(f"quote {at}: ")
        assert at == 0 or result[1] == offset


@every_case(
    ("starts", "number"),
    [
        ([0, 0], 1),
        ([0, 5, 3], 2),
        ([1226, 0], 1),
        ([0, 2452], 1),
        ([2452], 0),
        ([0, 2**63], 1),
        ([0, 2**64 - 1], 1),
    ],
)
def test_columns_with_invalid_offsets_fail(starts: list[int], number: int) -> None:
    """Overlapping, decreasing and out-of-range offsets are rejected before any quote is read."""
    assert len(SHORTEST) == 1226
    for data in (SHORTEST * 2, bytes(2452)):
        message, offset, reason = read_with_both(data, starts)
        assert str(message).startswith(f"quote {number}: ")
        assert (offset, reason) == (starts[number], "offsets")


@pytest.mark.parametrize("offsets", [[-1], [2**64], array("i", [-1])])
def test_columns_with_out_of_range_integers_fail(offsets: Any) -> None:
    """Integers outside 0 to 2**64-1 are rejected; signed buffers are read as signed."""
    with raises(FormatError, "offsets"):
        quote_columns(SHORTEST, offsets)
    with raises(FormatError, "offsets", start="quote 1: "):
        quote_columns(SHORTEST, array("q", [0, -1]))


@every_case(
    "offsets", [5, [None], ["0"], [0.5], b"\0", array("B", [0]), array("d", [0]), array("H", [0])]
)
def test_columns_with_offsets_of_other_type_are_usage_error(offsets: Any) -> None:
    """Offsets of other types or widths are rejected."""
    with raises(UsageError, "wrong_type"):
        quote_columns(SHORTEST, offsets)


@every_case("buffer", [bytearray(SHORTEST), memoryview(SHORTEST), "", None, [SHORTEST]])
def test_columns_of_other_buffer_type_are_usage_error(buffer: Any) -> None:
    """Mutable buffers are rejected."""
    with raises(UsageError, "wrong_type"):
        quote_columns(buffer)


def test_columns_of_quote_over_128_kib_fail() -> None:
    """The limit of a quote applies in a batch, including its padding."""
    padded = SHORTEST.ljust(131072, b"\0")
    check_rows(quote_columns(padded + SHORTEST), [SHORTEST, SHORTEST])
    for starts in (None, [0, 131073]):
        result = read_with_both(padded + b"\0" + SHORTEST, starts)
        assert result[1:] == (131072, "too_long")


def make_random_quote(source: random.Random) -> bytes:
    """Return a quote of one of several machines, sometimes with padding."""
    key = bytes([source.randrange(3)]) * 63 + bytes([source.randrange(3)])
    version, body = source.choice(((4, 0), (5, 2), (5, 3)))
    data = made_quote(version, TEE_TDX, body, source.choice((b"", bytes(32))), key=key)
    return data + bytes(source.choice((0, 0, 1, 70)))


@settings(max_examples=400, database=None, deadline=None)
@given(st.integers(0, 2**64), st.integers(0, 6), st.binary(max_size=8))
def test_columns_of_mutated_batch_agree_with_quote_parse(
    seed: int, changes: int, other: bytes
) -> None:
    """Both cores and Quote.parse agree on any mutated batch."""
    source = random.Random(seed)
    quotes = [make_random_quote(source) for _ in range(source.randrange(6))]
    data = bytearray(b"".join(quotes))
    for _ in range(changes // 2):
        if data:
            at = source.choice((source.randrange(len(data)), source.randrange(1 + len(data) % 640)))
            data[at % len(data)] ^= 1 << source.randrange(8)
    data += other if changes == 6 else b""
    starts = starts_of(quotes)
    result = read_with_both(bytes(data), starts)
    read_with_both(bytes(data))
    rows = [bytes(data[a:b]) for a, b in pairwise([*starts, len(data)])]
    if isinstance(result[0], list):
        assert len(Quote.parse_many(rows)) == len(rows) == len(result[0][2])
        return
    with pytest.raises(FormatError) as caught:
        Quote.parse_many(rows)
    assert (caught.value.message, caught.value.reason) == (result[0], result[2])


def test_columns_of_many_machines() -> None:
    """A batch may have more keys than the cache of key bindings."""
    source = random.Random(384)
    fleet = [made_quote(key=source.randbytes(64)) for _ in range(400)]
    batch = [source.choice(fleet) for _ in range(1000)]
    check_rows(quote_columns(b"".join(batch)), batch)
