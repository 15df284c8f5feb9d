"""Benchmark cases for quotes: parsing one or a thousand, and verifying one.

The eight fields are version, TEE type, MRTD, four RTMRs and the report data.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any, Final

import attestkit
from attestkit.columns import QuoteColumns, quote_columns
from attestkit.quote import Quote
from benchmarks.cases import OURS, SEED, Case, Samples
from benchmarks.timing import Call

__all__ = [
    "CASES",
    "MANY",
    "column_fields",
    "columns",
    "dcap_qvl",
    "each",
    "eight_columns",
    "machines",
    "ours",
]

Fields = tuple[Any, ...]

MANY: Final = 1000
AT: Final = 1790000000  # verification time, seconds since 1970
NONCE: Final = b"benchmark"
# Offsets in a TD quote of version 4: the attestation key, the QE report data, which bind the key,
# and the length of the QE authentication data.
KEY: Final = slice(700, 764)
BINDING: Final = slice(1090, 1154)
AUTH: Final = 1218


def ours(data: bytes) -> Fields:
    """Parse the fields with attestkit."""
    quote = Quote.parse(data)
    rtmr0, rtmr1, rtmr2, rtmr3 = quote.rtmrs
    tee = quote.tee_type
    return (quote.version, tee, quote.mrtd, rtmr0, rtmr1, rtmr2, rtmr3, quote.report_data)


def dcap_qvl(_: Samples) -> Callable[[bytes], Fields]:
    """Parse the fields with dcap-qvl, each from the quote, as in its documentation."""
    from dcap_qvl import parse_quote

    def read(data: bytes) -> Fields:
        quote = parse_quote(data)
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

    return read


def dcap_qvl_hoisted(_: Samples) -> Callable[[bytes], Fields]:
    """Parse the fields with dcap-qvl, creating as few of its objects as possible (7 fewer)."""
    from dcap_qvl import parse_quote

    def read(data: bytes) -> Fields:
        quote = parse_quote(data)
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

    return read


def cvm_attest(_: Samples) -> Callable[[bytes], Fields]:
    """Parse the fields with cvm-attest, as hex."""
    from cvm_attest.tdx.quote import parse_td_quote

    def read(data: bytes) -> Fields:
        quote = parse_td_quote(data)
        header, body = quote["header"], quote["body"]
        return (
            header["version"],
            header["tee_type"],
            body["mrtd"],
            body["rtmr0"],
            body["rtmr1"],
            body["rtmr2"],
            body["rtmr3"],
            body["report_data"],
        )

    return read


def dk_tee_attestation(_: Samples) -> Callable[[bytes], Fields]:
    """Parse the fields with dk-tee-attestation, which checks version and TEE type only."""
    from dk_tee_attestation.intel_tdx_attestation_report_verification_utils import IntelTdxVerifier

    parse = IntelTdxVerifier._parse_quote

    def read(data: bytes) -> Fields:
        quote = parse(data)
        found = quote.measurements
        return (4, 0x81, found.mr_td, *found.rtmr, quote.report_data)

    return read


def evidence_api(_: Samples) -> Callable[[bytes], Fields]:
    """Parse the fields with evidence-api."""
    from evidence_api.tdx.quote import TdxQuote

    def read(data: bytes) -> Fields:
        quote = TdxQuote(data)
        header, body = quote.header, quote.body
        return (
            header.ver,
            header.tee_type.value,
            body.mrtd,
            body.rtmr0,
            body.rtmr1,
            body.rtmr2,
            body.rtmr3,
            body.reportdata,
        )

    return read


def plain(fields: Fields) -> Fields:
    """Return the fields as numbers and bytes; some peers return hex."""
    version, tee, *values = fields
    number = int(tee, 16) if isinstance(tee, str) else tee
    as_bytes = (bytes.fromhex(v) if isinstance(v, str) else bytes(v) for v in values)
    return (version, number, *as_bytes)


def _one(reader: Callable[[Samples], Callable[[bytes], Fields]]) -> Callable[[Samples], Call]:
    return lambda samples: Call(reader(samples), samples.quote)


def each(read: Callable[[bytes], Fields], quotes: Sequence[bytes]) -> Call:
    """Parse quotes one by one."""
    return Call(lambda quotes: [read(data) for data in quotes], quotes)


def _each(reader: Callable[[Samples], Callable[[bytes], Fields]]) -> Callable[[Samples], Call]:
    return lambda samples: each(reader(samples), [samples.quote] * MANY)


def machines(samples: Samples) -> list[bytes]:
    """Return 1,000 quotes with a different attestation key each and invalid signatures."""
    quote = samples.quote
    size = int.from_bytes(quote[AUTH : AUTH + 2], "little")
    auth = quote[AUTH + 2 :][:size]
    found = []
    for number in range(MANY):
        key = number.to_bytes(64, "big")
        binding = sha256(key + auth).digest() + bytes(32)
        between = quote[KEY.stop : BINDING.start]
        found.append(quote[: KEY.start] + key + between + binding + quote[BINDING.stop :])
    return found


def eight_columns(data: bytes) -> QuoteColumns:
    """Parse concatenated quotes into columns of the eight fields."""
    columns = quote_columns(data)
    _ = columns.version, columns.tee_type, columns.mrtd, columns.rtmrs, columns.report_data
    return columns


def columns(quotes: Sequence[bytes]) -> Call:
    """Parse concatenated quotes into columns."""
    return Call(eight_columns, b"".join(quotes))


def column_fields(found: QuoteColumns | list[Fields]) -> list[Fields]:
    """Return the eight fields of each quote."""
    if isinstance(found, list):
        return [plain(fields) for fields in found]
    columns = found
    names = ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "report_data")
    flat = [bytes(getattr(columns, name)) for name in names]
    sizes = [len(column) // len(columns) for column in flat]
    return [
        (
            columns.version[n],
            columns.tee_type[n],
            *(column[n * size :][:size] for column, size in zip(flat, sizes, strict=True)),
        )
        for n in range(len(columns))
    ]


def _verification(samples: Samples) -> Call:
    """Verify a quote with attestkit."""
    del samples  # uses a quote of the simulator, with its root and collateral
    with attestkit.open("simulator", seed=SEED) as tee:
        quote = tee.get_quote(NONCE).raw
        backend = tee.backend
        verifier = attestkit.Verifier(
            trust_anchor=backend.trust_anchor, collateral=backend.collateral(AT)
        )
    return Call(lambda data: verifier.verify(data, report_data=NONCE, now=AT), quote)


def _dcap_qvl_verification(samples: Samples) -> Call:
    """Verify a quote with dcap-qvl, with parsed collateral."""
    del samples
    from dcap_qvl import QuoteCollateralV3, verify_with_root_ca

    with attestkit.open("simulator", seed=SEED) as tee:
        quote = tee.get_quote(NONCE).raw
        backend = tee.backend
        root, collateral = backend.trust_anchor, backend.collateral(AT).to_json()
    parsed = QuoteCollateralV3.from_json(collateral)
    return Call(lambda data: verify_with_root_ca(data, parsed, root, AT), quote)


CASES: Final = (
    Case(
        "quote",
        "a quote to 8 fields",
        {
            OURS: _one(lambda _: ours),
            "dcap-qvl": _one(dcap_qvl),
            "dcap-qvl, hoisted": _one(dcap_qvl_hoisted),
            "cvm-attest": _one(cvm_attest),
            "dk-tee-attestation": _one(dk_tee_attestation),
            "evidence-api": _one(evidence_api),
        },
        plain,
    ),
    Case(
        "quotes",
        "1,000 quotes to 8 fields each",
        {OURS: _each(lambda _: ours), "dcap-qvl": _each(dcap_qvl)},
        column_fields,
    ),
    Case(
        "columns",
        "one quote 1,000 times into columns, its key hashed once; peers: to 8 fields each",
        {
            OURS: lambda samples: columns([samples.quote] * MANY),
            "dcap-qvl": _each(dcap_qvl),
        },
        column_fields,
    ),
    Case(
        "columns-machines",
        "1,000 quotes of as many machines into columns; peers: to 8 fields each",
        {
            OURS: lambda samples: columns(machines(samples)),
            "dcap-qvl": lambda samples: each(dcap_qvl(samples), machines(samples)),
        },
        column_fields,
    ),
    Case(
        "verify",
        "a quote verified",
        {OURS: _verification, "dcap-qvl": _dcap_qvl_verification},
        lambda result: str(getattr(result, "status", None) or result.tcb.status.value),
    ),
)
