"""Quotes: parse one and read eight fields, beside dcap-qvl; parse a thousand.

The eight fields are those a `Quote` has itself: version, TEE type, MRTD, four RTMRs and the report
data. `attestkit` checks more than its peer meanwhile: that nothing but zeros follows the quote, and
that the QE report holds the SHA-256 of the attestation key.

`dcap-qvl` reads each field from the quote, as its documentation does; `dcap-qvl-hoisted` takes
`report` and `header` out first, which saves it seven objects.
"""

from collections.abc import Callable
from typing import Any

import dcap_qvl  # type: ignore[import-untyped]  # it ships no types
import pytest

from attestkit._native import _python_quote as twin
from attestkit.quote import Quote
from tests.quotes import sample
from tests.vectors import HAVE_SHARED, needs_shared

pytestmark = needs_shared

Benchmark = Callable[..., Any]
Fields = tuple[object, ...]

QUOTES = (
    {
        "v4": sample("quotes/dcap-qvl/tdx_quote"),
        "v5": sample("quotes/go-tdx-guest/quote_v5_sample.dat"),
    }
    if HAVE_SHARED
    else {}
)


def attestkit(data: bytes) -> Fields:
    """Read the fields with attestkit."""
    quote = Quote.parse(data)
    rtmrs = quote.rtmrs
    return (
        quote.version,
        quote.tee_type,
        quote.mrtd,
        rtmrs[0],
        rtmrs[1],
        rtmrs[2],
        rtmrs[3],
        quote.report_data,
    )


def peer(data: bytes) -> Fields:
    """Read the fields with dcap-qvl."""
    quote = dcap_qvl.parse_quote(data)
    return (
        quote.header.version,
        quote.header.tee_type,
        quote.report.mr_td,
        quote.report.rt_mr0,
        quote.report.rt_mr1,
        quote.report.rt_mr2,
        quote.report.rt_mr3,
        quote.report.report_data,
    )


def peer_hoisted(data: bytes) -> Fields:
    """Read the fields with dcap-qvl, with as few of its objects as it takes."""
    quote = dcap_qvl.parse_quote(data)
    header, report = quote.header, quote.report
    return (
        header.version,
        header.tee_type,
        report.mr_td,
        report.rt_mr0,
        report.rt_mr1,
        report.rt_mr2,
        report.rt_mr3,
        report.report_data,
    )


# A call takes less than the timer does: time a thousand at once.
ROUNDS = {"iterations": 1000, "rounds": 200, "warmup_rounds": 5}

READERS = {"attestkit": attestkit, "dcap-qvl": peer, "dcap-qvl-hoisted": peer_hoisted}


@pytest.mark.parametrize("version", QUOTES)
@pytest.mark.parametrize("how", READERS)
def test_parse_and_read(benchmark: Benchmark, version: str, how: str) -> None:
    """Bytes to eight fields."""
    benchmark.group = f"quote {version}, 8 fields"  # type: ignore[attr-defined] # a fixture's attribute
    data = QUOTES[version]
    found = benchmark.pedantic(READERS[how], (data,), **ROUNDS)  # type: ignore[attr-defined] # the same
    assert tuple(map(str, found)) == tuple(map(str, attestkit(data)))


@pytest.mark.parametrize("how", ["attestkit", "dcap-qvl"])
def test_body(benchmark: Benchmark, how: str) -> None:
    """Bytes to the whole body: all of its fields here, a copy-on-read object there."""
    benchmark.group = "quote v4, body"  # type: ignore[attr-defined] # a fixture's attribute
    data = QUOTES["v4"]

    def here() -> object:
        return Quote.parse(data).body.report_data

    def there() -> object:
        return dcap_qvl.parse_quote(data).report.report_data

    read = here if how == "attestkit" else there
    assert benchmark.pedantic(read, **ROUNDS)  # type: ignore[attr-defined] # the same


@pytest.mark.parametrize("how", ["attestkit", "dcap-qvl"])
def test_thousand(benchmark: Benchmark, how: str) -> None:
    """A thousand quotes, parsed one after the other."""
    benchmark.group = "1,000 quotes"  # type: ignore[attr-defined] # a fixture's attribute
    quotes = [QUOTES["v4"]] * 1000
    if how == "attestkit":
        found = benchmark(Quote.parse_many, quotes)
    else:
        found = benchmark(lambda: [dcap_qvl.parse_quote(data) for data in quotes])
    assert len(found) == 1000


def test_twin(benchmark: Benchmark) -> None:
    """What the check costs without the compiled core."""
    benchmark.group = "quote v4, plain core"  # type: ignore[attr-defined] # a fixture's attribute
    data = QUOTES["v4"]
    assert benchmark(twin.quote_padding, data, len(data)) == 70
