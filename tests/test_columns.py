"""Columns hold what `Quote.parse` finds in each quote, and what it refuses is refused here."""

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

import attestkit
from attestkit import _native
from attestkit._native import _python_columns as plain
from attestkit.columns import QuoteColumns, quote_columns
from attestkit.errors import FormatError, UsageError
from attestkit.quote import TEE_TDX, Quote, TdQuoteBody
from tests.quotes import made_quote, made_quotes, samples, starts_of

ALL = samples() + made_quotes()
OF_TDS = [data for data in ALL if Quote.parse(data).tee_type == TEE_TDX]
OF_ENCLAVES = [data for data in ALL if data not in OF_TDS]
TD_15 = made_quote(5, TEE_TDX, 3)
SHORTEST = made_quote(4, TEE_TDX, auth=b"")
CORES: list[Any] = [_native] + [plain] * (_native.CORE == "compiled")
WIDTHS = (16, 48, 48, 8, 8, 8, *[48] * 8, 64, 16, 48)  # of the fields of a body, in its order
RTMRS = (328, 48, 4)


def made_class(core: Any) -> Any:
    """Return a class with columns of a core: one of each field, and the RTMRs once more."""
    places = zip(accumulate(WIDTHS[:-1], initial=0), WIDTHS, strict=True)
    fields = [(at, width) for at, width in places] + [RTMRS]
    columns = {f"column{number}": core.Column(*field) for number, field in enumerate(fields)}
    return type("Columns", (), columns)


CLASSES = [made_class(core) for core in CORES]


def outcome(
    core: Any,
    made: Any,
    data: bytes,
    starts: list[int] | None,
) -> tuple[object, ...]:
    """Return what a core makes of quotes, field by field, or why and where it refuses."""
    packed = None if starts is None else array("Q", starts).tobytes()
    columns = made()
    try:
        columns._rows = core.quote_rows(data, packed)
    except FormatError as error:
        return error.message, error.offset, error.reason
    fields = [getattr(columns, f"column{number}") for number in range(len(WIDTHS))]
    fields += getattr(columns, f"column{len(WIDTHS)}")
    return list(columns._rows), [(view.shape, view.tobytes()) for view in fields]


def agree(data: bytes, starts: list[int] | None = None) -> tuple[object, ...]:
    """Check that both cores say the same, and return it."""
    first, *others = [
        outcome(core, made, data, starts) for core, made in zip(CORES, CLASSES, strict=True)
    ]
    assert others in ([], [first])
    return first


def check(columns: QuoteColumns, quotes: list[bytes]) -> None:
    """Compare every field of every row with the quote it is of."""
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
            wanted = getattr(body, name) or bytes(width)
            assert column[row * width : (row + 1) * width] == wanted


@pytest.mark.parametrize("data", OF_TDS, ids=len)
@pytest.mark.parametrize("zeros", [0, 1, 9, 70])
def test_a_batch_of_one(data: bytes, zeros: int) -> None:
    """Each well-formed quote of a TD is a batch, whatever zeros follow it."""
    check(quote_columns(data + bytes(zeros)), [data])
    check(quote_columns(data + bytes(zeros), [0]), [data])
    agree(data + bytes(zeros))


def test_every_field_of_every_quote() -> None:
    """All versions and bodies together, often enough for a binding to come again."""
    quotes = [data + bytes(len(data) % 4) for data in OF_TDS * 3]
    joined = b"".join(quotes)
    columns = quote_columns(joined)
    check(columns, quotes)
    assert list(columns.offsets) == starts_of(quotes)
    assert agree(joined) == agree(joined, starts_of(quotes))


def test_quotes_of_the_simulator() -> None:
    """Quotes that one machine signs, with different report data, of both versions."""
    pytest.importorskip("msgspec")  # the simulator's, which an emulated machine lacks
    for version in (4, 5):
        with attestkit.open("simulator", seed=bytes(32), quote_version=version) as tee:
            quotes = [tee.get_quote(bytes([number])) for number in range(5)]
        columns = quote_columns(b"".join([quote.raw for quote in quotes]))
        check(columns, [quote.raw for quote in quotes])
        assert columns.mrtd.tobytes() == quotes[0].mrtd * 5
        assert [column.tobytes() for column in columns.rtmrs] == [r * 5 for r in quotes[0].rtmrs]


@pytest.mark.parametrize("kind", ["Q", "q", "L", "l", "I", "i"])
def test_offsets_of_any_integers(kind: Any) -> None:
    """Offsets come as integers in a sequence, or in a buffer of 4 or 8 bytes each."""
    quotes = [SHORTEST, TD_15, SHORTEST]
    starts = starts_of(quotes)
    for offsets in (starts, tuple(starts), array(kind, starts), memoryview(array(kind, starts))):
        columns = quote_columns(b"".join(quotes), offsets)
        check(columns, quotes)
        assert list(columns.offsets) == starts


def test_what_is_before_the_first_offset_is_not_looked_at() -> None:
    """Offsets may leave out the start of a buffer, and every second quote never."""
    data = b"a header of some file" + SHORTEST + TD_15
    starts = [21, 21 + len(SHORTEST)]
    check(quote_columns(data, starts), [SHORTEST, TD_15])
    with pytest.raises(FormatError, match="quote 0: bytes other than zero follow") as caught:
        quote_columns(data, starts[:1])
    assert caught.value.offset == starts[1]


def test_an_empty_batch() -> None:
    """Of no quotes there are columns too; they are flat."""
    for columns in (quote_columns(b""), quote_columns(b"", []), quote_columns(SHORTEST, ())):
        assert len(columns) == 0
        assert all(getattr(columns, name).nbytes == 0 for name in columns.names)
        assert list(columns.offsets) == []


def test_views_are_as_numpy_wants_them() -> None:
    """Each column is contiguous and read-only, a row for a quote, and outlives its columns."""
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


def test_numpy_takes_columns_without_a_copy() -> None:
    """An array of NumPy is a view of the same memory."""
    numpy = pytest.importorskip("numpy", reason="NumPy is no dependency")
    columns = quote_columns(SHORTEST * 3, numpy.arange(3) * len(SHORTEST))
    mrtd = numpy.asarray(columns.mr_td)
    assert mrtd.shape == (3, 48)
    assert numpy.shares_memory(mrtd, numpy.asarray(columns.mr_td))
    assert (mrtd == mrtd[0]).all()
    assert numpy.asarray(columns.offsets).tolist() == list(
        range(0, 3 * len(SHORTEST), len(SHORTEST))
    )


def test_columns_cannot_be_changed_or_made() -> None:
    """Columns are what `quote_columns` returns, and stay as they are."""
    columns = quote_columns(SHORTEST * 2)
    assert repr(columns) == "<QuoteColumns of 2 quotes>"
    with pytest.raises(UsageError):
        QuoteColumns()
    with pytest.raises(AttributeError):
        columns.mr_td = memoryview(b"")
    with pytest.raises(AttributeError):
        del columns.mr_td
    with pytest.raises(TypeError):
        columns.mr_td[0, 0] = 1
    with pytest.raises(AttributeError):
        _ = QuoteColumns.mr_td
    assert set(TdQuoteBody._fields) < set(QuoteColumns.names)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_columns_pickle(protocol: int) -> None:
    """They are the same elsewhere, also where columns had been asked for, or there is no quote."""
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


def test_what_was_pickled_is_checked() -> None:
    """Whoever changes a pickle makes no columns of quotes that would be refused."""
    data = pickle.dumps(quote_columns(SHORTEST))
    assert data.count(SHORTEST) == 1
    forged = data.replace(SHORTEST, b"\6" + SHORTEST[1:])
    with pytest.raises(FormatError, match="quote 0: quote version is not"):
        pickle.loads(forged)


def test_columns_are_values() -> None:
    """Equal buffers with the same offsets are equal; a copy of what cannot change is itself."""
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


def test_columns_are_made_when_somebody_asks() -> None:
    """Until then 10 bytes are kept for each quote; then the column, and no other."""
    data = SHORTEST * 1000

    def kept() -> int:
        gc.collect()  # also what Python keeps of objects that are gone
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        columns = quote_columns(data)
        assert 10_000 <= kept() < 15_000
        report_data = columns.report_data
        assert 74_000 <= kept() < 80_000
        registers = columns.rtmrs
        assert 266_000 <= kept() < 275_000
    finally:
        tracemalloc.stop()
    assert columns.report_data is report_data
    assert columns.rtmrs is registers
    assert columns.rtmr2 is registers[2]


@pytest.mark.parametrize("number", range(3))
def test_one_bad_quote_of_three(number: int) -> None:
    """The first quote that is refused is told by its number, its byte and the rule."""
    quotes = [SHORTEST, TD_15, made_quote(auth=bytes(9))]
    for data, reason, offset in (
        (b"\6" + SHORTEST[1:], "version", 0),
        (SHORTEST[:12] + bytes(16) + SHORTEST[28:], "qe_vendor_id", 12),
        (TD_15[:-1] + b"\1", "inner_cert_size", None),
        (SHORTEST[:700] + b"\0" + SHORTEST[701:], "qe_binding", 770 + 320),
    ):
        batch = [*quotes[:number], data, *quotes[number + 1 :]]
        starts = starts_of(batch)
        for said in (agree(b"".join(batch), starts), agree(b"".join(batch))):
            assert said[2] == reason
            assert str(said[0]).startswith(f"quote {number}: ")
            assert offset is None or said[1] == starts[number] + offset


@pytest.mark.parametrize("data", OF_ENCLAVES, ids=len)
def test_quotes_of_enclaves_are_refused(data: bytes) -> None:
    """A quote of an SGX enclave has no row: zeros must not be taken for what a TD measured."""
    for starts in (None, [0, len(SHORTEST)]):
        message, offset, reason = agree(SHORTEST + data, starts)
        assert message == "quote 1: the quote is of an SGX enclave, which has no fields of a TD"
        assert (offset, reason) == (len(SHORTEST) + 4, "enclave")


def test_a_binding_is_believed_only_where_all_of_it_is_the_same() -> None:
    """Quotes whose keys start alike do not vouch for each other."""
    key, auth = bytes(64), bytes(32)
    good = made_quote(key=key, auth=auth)
    others = [
        made_quote(key=key[:63] + b"\1", auth=auth),
        made_quote(key=key, auth=auth[:31] + b"\1"),
        made_quote(key=key, auth=bytes(31)),
        made_quote(key=key, auth=b""),
    ]
    agree(b"".join([good, *others, good]))
    check(quote_columns(b"".join([good, *others, good])), [good, *others, good])
    # What vouches is in the quote: exchange it, and only the hash can tell.
    at = 770 + 320
    for other in others:
        forged = other[:at] + good[at : at + 64] + other[at + 64 :]
        for batch in ([good, forged], [good, good, forged], [good, other, forged]):
            said = agree(b"".join(batch))
            assert said[2] == "qe_binding"
            assert said[1] == sum(map(len, batch[:-1])) + at
            with pytest.raises(FormatError, match=f"quote {len(batch) - 1}: the QE report"):
                Quote.parse_many(batch)


@pytest.mark.parametrize("at", [0, 1])
def test_cut_at_every_length(at: int) -> None:
    """A quote that ends too early is refused in its place, and the error names the byte."""
    for size in range(1, len(SHORTEST)):
        batch = [SHORTEST, SHORTEST]
        batch[at] = SHORTEST[:size]
        starts = starts_of(batch)
        message, offset, _ = agree(b"".join(batch), starts)
        assert str(message).startswith(f"quote {at}: ")
        assert offset == starts[at] + size
        said = agree(b"".join(batch))
        assert str(said[0]).startswith(f"quote {at}: ")
        assert at == 0 or said[1] == offset


@pytest.mark.parametrize(
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
def test_offsets_that_cannot_be(starts: list[int], number: int) -> None:
    """Offsets that overlap, fall or lie outside are refused before any quote is looked at."""
    assert len(SHORTEST) == 1226
    for data in (SHORTEST * 2, bytes(2452)):
        message, offset, reason = agree(data, starts)
        assert str(message).startswith(f"quote {number}: the quote does not start behind the one")
        assert (offset, reason) == (starts[number], "offsets")


@pytest.mark.parametrize("offsets", [[-1], [2**64], array("i", [-1])])
def test_offsets_that_no_buffer_has(offsets: Any) -> None:
    """Integers that no offset can be are refused like others; signed ones are read as they are."""
    with pytest.raises(FormatError) as caught:
        quote_columns(SHORTEST, offsets)
    assert caught.value.reason == "offsets"
    with pytest.raises(FormatError, match="quote 1: the quote does not start"):
        quote_columns(SHORTEST, array("q", [0, -1]))


@pytest.mark.parametrize(
    "offsets", [5, [None], ["0"], [0.5], b"\0", array("B", [0]), array("d", [0]), array("H", [0])]
)
def test_offsets_are_integers(offsets: Any) -> None:
    """Offsets of another type, or of too few bytes, are a mistake of the caller."""
    with pytest.raises(UsageError):
        quote_columns(SHORTEST, offsets)


@pytest.mark.parametrize(
    "buffer", [bytearray(SHORTEST), memoryview(SHORTEST), "", None, [SHORTEST]]
)
def test_only_bytes(buffer: Any) -> None:
    """Buffers that others could change are not let in."""
    with pytest.raises(UsageError, match="are bytes, not"):
        quote_columns(buffer)


def test_a_quote_with_its_zeros_has_128_kib() -> None:
    """The bound of a quote holds in a batch, with the zeros between quotes."""
    padded = SHORTEST.ljust(131072, b"\0")
    check(quote_columns(padded + SHORTEST), [SHORTEST, SHORTEST])
    for starts in (None, [0, 131073]):
        said = agree(padded + b"\0" + SHORTEST, starts)
        assert said[1:] == (131072, "too_long")


def keyed(source: random.Random) -> bytes:
    """Return a quote of some machine, with zeros behind it now and then."""
    key = bytes([source.randrange(3)]) * 63 + bytes([source.randrange(3)])
    version, body = source.choice(((4, 0), (5, 2), (5, 3)))
    data = made_quote(version, TEE_TDX, body, source.choice((b"", bytes(32))), key=key)
    return data + bytes(source.choice((0, 0, 1, 70)))


@settings(max_examples=400, database=None, deadline=None)
@given(st.integers(0, 2**64), st.integers(0, 6), st.binary(max_size=8))
def test_any_batch(seed: int, changes: int, other: bytes) -> None:
    """Whatever is done to a batch, both cores say the same, and the same as Quote.parse."""
    source = random.Random(seed)
    quotes = [keyed(source) for _ in range(source.randrange(6))]
    data = bytearray(b"".join(quotes))
    for _ in range(changes // 2):
        if data:
            at = source.choice((source.randrange(len(data)), source.randrange(1 + len(data) % 640)))
            data[at % len(data)] ^= 1 << source.randrange(8)
    data += other if changes == 6 else b""
    starts = starts_of(quotes)
    said = agree(bytes(data), starts)
    agree(bytes(data))
    rows = [bytes(data[a:b]) for a, b in pairwise([*starts, len(data)])]
    if isinstance(said[0], list):
        assert len(Quote.parse_many(rows)) == len(rows) == len(said[0][2])
        return
    with pytest.raises(FormatError) as caught:
        Quote.parse_many(rows)
    assert (caught.value.message, caught.value.reason) == (said[0], said[2])


@settings(max_examples=300, database=None, deadline=None)
@given(st.binary(max_size=200), st.none() | st.lists(st.integers(0, 210), max_size=4))
def test_any_bytes(data: bytes, starts: list[int] | None) -> None:
    """Any bytes are refused with our own error, or are no quotes at all."""
    said = agree(SHORTEST + data, starts)
    assert isinstance(said[0], str) or not data.strip(b"\0") or starts == []


def test_many_machines() -> None:
    """A batch of more keys than are remembered at once is right all the same."""
    source = random.Random(384)
    fleet = [made_quote(key=source.randbytes(64)) for _ in range(400)]
    batch = [source.choice(fleet) for _ in range(1000)]
    check(quote_columns(b"".join(batch)), batch)
