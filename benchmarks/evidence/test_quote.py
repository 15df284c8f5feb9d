"""Quotes: eight fields of one, of a thousand, and whole columns; body; certificate; plain Python.

`attestkit` checks more than its peers meanwhile: that nothing but zeros follows the quote, and that
the QE report holds the SHA-256 of the attestation key.
"""

from base64 import b64decode
from typing import Final

from pytest_benchmark.fixture import BenchmarkFixture

from attestkit import _native
from attestkit._native import _python_pck as pck_twin
from attestkit._native import _python_quote as twin
from attestkit.quote import Quote
from benchmarks.cases import OURS, Case, Samples
from benchmarks.evidence import quotes as bench_quotes
from benchmarks.racing import Entry, Ledger, each, play
from benchmarks.timing import Call


def _body(data: bytes) -> object:
    return Quote.parse(data).body.report_data


def _their_body(samples: Samples) -> Call:
    from dcap_qvl import parse_quote

    return Call(lambda data: parse_quote(data).report.report_data, samples.quote)


def _they_parse_many(samples: Samples) -> Call:
    from dcap_qvl import parse_quote

    many = [samples.quote] * bench_quotes.MANY
    return Call(lambda quotes: [parse_quote(data) for data in quotes], many)


def _pck_certificate(samples: Samples) -> bytes:
    """Return the PCK certificate of the quote in DER."""
    _, chain = Quote.parse(samples.quote).certification
    return b64decode(chain.partition(b"-----END")[0].partition(b"CERTIFICATE-----")[2])


def _they_load(samples: Samples) -> Call:
    from cryptography.x509 import load_der_x509_certificate

    return Call(load_der_x509_certificate, _pck_certificate(samples))


OTHERS: Final = (
    Case(
        "quotes-machines",
        "1,000 quotes of as many machines to 8 fields each",
        {
            OURS: lambda s: bench_quotes.each(bench_quotes.ours, bench_quotes.machines(s)),
            "dcap-qvl": lambda s: bench_quotes.each(
                bench_quotes.dcap_qvl(s), bench_quotes.machines(s)
            ),
        },
        bench_quotes.column_fields,
    ),
    Case(
        "body",
        "a quote to its whole body; all fields here, an object that copies on reading there",
        {
            OURS: lambda samples: Call(_body, samples.quote),
            "dcap-qvl": _their_body,
        },
    ),
    Case(
        "parse-many",
        "1,000 quotes parsed, no field read",
        {
            OURS: lambda samples: Call(Quote.parse_many, [samples.quote] * bench_quotes.MANY),
            "dcap-qvl": _they_parse_many,
        },
        len,
    ),
    Case(
        "padding",
        "the check of a quote's structure, compiled and in Python",
        {
            OURS: lambda samples: Call(Quote.parse, samples.quote),
            "plain Python": lambda samples: Call(twin.quote_layout, samples.quote),
        },
        lambda _: None,
    ),
    Case(
        "pck-certificate",
        "a PCK certificate to all its fields; cryptography: loaded, no field read",
        {
            OURS: lambda s: Call(_native.read_pck_certificate, _pck_certificate(s)),
            "cryptography": _they_load,
            "plain Python": lambda s: Call(pck_twin.read_pck_certificate, _pck_certificate(s)),
        },
        lambda found: found is not None,
    ),
)


@each((*bench_quotes.CASES, *OTHERS))
def test_quotes(benchmark: BenchmarkFixture, ledger: Ledger, entry: Entry) -> None:
    """One contender of a row."""
    play(benchmark, ledger, entry)
