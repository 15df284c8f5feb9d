"""Targets: what hardware signs, and what hosts hand out with it."""

import json
from functools import partial
from hashlib import sha384
from struct import pack
from typing import Final

from attestkit.attestation.azure import HclReport
from attestkit.attestation.snp import SnpCertificates
from attestkit.backends.simulator.pki.amd_chip import SimulatedChip
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.quoting_enclave import QuotingEnclave, TdBody
from attestkit.backends.simulator.td_reports import ReportQuoter
from attestkit.backends.tdx.qgs import parse_frame, parse_quote_response
from attestkit.columns import QuoteColumns, quote_columns
from attestkit.emulator.quote_service import answer_request
from attestkit.errors import BackendError, FormatError, UnsupportedError, UsageError
from attestkit.quote import TEE_TDX, Quote
from attestkit.snp_report import SnpReport
from attestkit.td_report import TdReport
from attestkit.verifier.evidence.formats import parse_evidence
from attestkit.verifier.platforms.snp.chain import read_endorsements
from fuzz.parsers.contract import ParserTarget, check, check_same, obeys, short, tried
from tests.attestation.hcl import hcl_bytes, jwk, runtime_json
from tests.samples.quotes import PATTERN, made_quote, made_quotes
from tests.vectors import data

PKI: Final = SimulatedPki(bytes(range(32)))
_PRODUCTS: Final = ("Milan", "Genoa", "Turin", "Venice")


def chip() -> SimulatedChip:
    """Return the simulator's processor, with its certificates."""
    return SimulatedChip(PKI.derive)


def quote_samples() -> list[bytes]:
    """Return made quotes of every version, and one with a chain of certificates."""
    signed = QuotingEnclave(PKI).quote(TdBody().td10())
    chain = made_quote(certification=(5, b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END"))
    return [*made_quotes(), chain, made_quote(auth=b"") + bytes(5), signed]


def _quote(raw: bytes, quote: Quote) -> None:
    check_same("raw and padding", quote.raw + bytes(quote.padding), raw)
    check_same("the quote read again", Quote.parse(quote.raw), quote)
    check("the signed region", raw.startswith(quote.signed_region))
    quote.to_dict()
    repr(quote)
    tried(lambda: quote.pck_chain, len(raw), FormatError)
    check_same("registers", tried(lambda: quote.rtmrs, None, UsageError), quote.tee_type == TEE_TDX)
    check_same("of many", Quote.parse_many([raw])[0], quote)


def _columns(raw: bytes, columns: QuoteColumns) -> None:
    starts = columns.offsets.tolist()
    check_same("columns by offsets", quote_columns(raw, starts), columns)
    for at, mrtd in zip(starts, range(0, 48 * len(columns), 48), strict=True):
        end = next((other for other in starts if other > at), len(raw))
        found = bytes(columns.mrtd)[mrtd : mrtd + 48]
        check_same("MRTD", found, Quote.parse(raw[at:end]).mrtd)


def _td_report(raw: bytes) -> TdReport:
    """Read a report as it is, or with its hashes put right if it says so by an odd length."""
    if len(raw) == 1025:
        report = bytearray(raw[:1024])
        report[32:80] = sha384(report[256:495]).digest()
        report[80:128] = sha384(report[512:]).digest()
        raw = bytes(report)
    return TdReport.parse(raw)


def _accepted_td_report(raw: bytes, report: TdReport) -> None:
    check_same("raw", (report.raw[:32], report.raw[128:]), (raw[:32], raw[128:1024]))
    check_same(
        "bodies", (len(report.quote_body()), len(report.quote_body(extended=True))), (584, 648)
    )
    report.to_dict()
    repr(report)


def td_report_samples() -> list[bytes]:
    """Return reports of all versions, whose hashes the target puts right."""
    reports = []
    for version, valid in ((0, 0x1FF), (1, 0x301FF), (3, 0x301FF)):
        report = bytearray(1024)
        report[0], report[2] = 0x81, version
        report[256:264] = valid.to_bytes(8, "little")
        report[512:912] = PATTERN[:400]
        reports.append(bytes([*report, 0]))
    return [*reports, bytes(1024)]


def _snp_report(raw: bytes, report: SnpReport) -> None:
    check_same("raw", report.raw, raw)
    check_same("sizes", (len(report.signed_region), len(report.signature)), (672, 96))
    report.to_dict()
    repr(report)
    for which in ("current", "reported", "committed", "launch"):
        for product in _PRODUCTS:
            tried(partial(report.tcb, which, product), len(raw), FormatError)
    tried(report.tcb, len(raw), FormatError, UsageError)


def snp_report_samples() -> list[bytes]:
    """Return reports of every version."""
    first = chip().report(bytes(64))
    return [pack("<I", version) + first[4:] for version in (2, 3, 4, 5)]


def hcl_samples() -> list[bytes]:
    """Return HCL reports of both kinds, with one and with two keys."""
    two = runtime_json(jwk("HCLEkPub"), jwk())
    return [hcl_bytes(kind="tdx", size=0), hcl_bytes(), hcl_bytes(two, size=0)]


def _hcl_report(raw: bytes, report: HclReport) -> None:
    check_same("the report encoded again", report.encode(len(raw)), raw)
    check("its own binding", report.binds(report.report_data))
    check_same("SubjectPublicKeyInfo", report.content.attestation_key.spki[:2], b"\x30\x82")


def _snp_certificates(raw: bytes, table: SnpCertificates) -> None:
    repr(table)
    named = [one for one in table[:-1] if isinstance(one, bytes)]
    sizes = sum(map(len, named)) + sum(len(content) for _, content in table.others)
    check("no more than came", sizes <= len(raw))


def snp_tables() -> list[bytes]:
    """Return tables of certificates that are short, and one of real size."""
    guid = bytes.fromhex("63da758de6644564adc5f4b93be8accd")
    crl = bytes.fromhex("92f81bc358114d3d97ffd19f88dc67ea")
    pem = b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"
    one = pack("<16sII24x", guid, 48, 2) + b"0\0"
    two = pack("<16sII16sII24x", guid, 72, len(pem), crl, 72, 4) + pem
    return [b"", bytes(24), one, two, pack("<16sII24x", bytes(16), 48, 2) + b"??"]


def evidence_forms() -> list[bytes]:
    """Return bare reports, a quote, and both as hex digits or in an agent's response."""
    report, quote = chip().report(bytes(64)), made_quote(auth=b"")
    response = json.dumps({"quote": quote.hex(), "event_log": "[]"}).encode()
    table = snp_tables()[2]
    return [report, report + table, (report + table).hex().encode(), quote, response]


def _endorsements(raw: bytes) -> int:
    """Read certificates in whatever wrapping, at most six."""
    found = read_endorsements([raw], limit=6)
    return len(found)


def endorsement_samples() -> list[bytes]:
    """Return certificates of a chip: DER and PEM, real ones where they are."""
    made = chip()
    real = [data(f"dstack/dstack-attest/sev_snp_{name}.pem") for name in ("ask", "vcek")]
    return [made.ask_der, made.leaf_der, *filter(None, real), *snp_tables()]


def qgs_answers() -> list[bytes]:
    """Return answers of a QGS: a quote, a refusal, and what is neither."""
    quote = bytes(1020)
    good = pack("<HHIIIII", 1, 1, 1, 24 + len(quote), 0, 0, len(quote)) + quote
    named = pack("<HHIIIII", 1, 0, 1, 26 + len(quote), 0, 2, len(quote)) + b"id" + quote
    return [good, named, pack("<HHIIIII", 1, 1, 1, 24, 0x12001, 0, 0), bytes(16)]


def _qgs(raw: bytes) -> bytes:
    """Read the length before a message from its first four bytes, and the message."""
    if len(raw) >= 4:
        tried(lambda: parse_frame(raw[:4], "the QGS"), len(raw), BackendError)
    return parse_quote_response(raw, "the QGS")


class _Quoter(ReportQuoter):
    """Takes every report that does not begin with zero."""

    def __init__(self) -> None:
        super().__init__(PKI)

    def quote(self, report: bytes) -> bytes:
        """Return the end of the report, as if it were a quote."""
        if not report[0]:
            raise FormatError("no report", reason="unrecognized", offset=0)
        return report[-16:]


def _replied(raw: bytes, found: bytes) -> None:
    """The answer is one that our own client reads, or a refusal that it tells."""
    size = parse_frame(found[:4], "the QGS")
    check_same("its length", len(found), 4 + size)
    if tried(lambda: parse_quote_response(found[4:], "the QGS"), len(raw), BackendError):
        check("a quote of the report", found[-16:] in raw)


def qgs_requests() -> list[bytes]:
    """Return requests for quotes: by any key, by two, of another version, and what is none."""
    report = bytes(range(1, 129)) * 8
    plain = pack("<HHIIIII", 1, 1, 0, 24 + 1024, 0, 1024, 0) + report
    ids = bytes(16) + bytes.fromhex("e86c046e8cc44d958173fc43c1fa4f3f")
    named = pack("<HHIIIII", 1, 0, 0, 24 + 1056, 0, 1024, 32) + report + ids
    other = pack("<HHIII", 2, 0, 0, 16, 0)
    framed = [pack(">I", len(one)) + one for one in (plain, named, other, bytes(16), b"")]
    return [*framed, framed[0] + bytes(9), bytes(99)]


def _quote_targets() -> list[ParserTarget]:
    """Return the targets that read quotes."""
    return [
        ParserTarget(
            "quote",
            obeys(Quote.parse, FormatError, accepted=_quote),
            short(quote_samples, 8192),
            "quote.dict",
            8192,
        ),
        ParserTarget(
            "quote_columns",
            obeys(quote_columns, FormatError, accepted=_columns),
            short(
                lambda: [
                    made_quote(auth=b""),
                    made_quote(auth=b"") + bytes(7) + made_quote(5, 0x81, 3, auth=b""),
                ]
            ),
            "quote.dict",
        ),
    ]


def _qgs_targets() -> list[ParserTarget]:
    """Return those of the protocol with the quote generation service."""
    return [
        ParserTarget(
            "qgs",
            obeys(
                _qgs,
                BackendError,
                accepted=lambda raw, quote: check("it", raw.endswith(quote)),
            ),
            qgs_answers,
            max_len=1100,
        ),
        ParserTarget(
            "qgs_request",
            obeys(partial(answer_request, _Quoter()), FormatError, accepted=_replied),
            qgs_requests,
            max_len=1200,
        ),
    ]


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    return [
        *_quote_targets(),
        ParserTarget(
            "td_report",
            obeys(_td_report, FormatError, accepted=_accepted_td_report),
            td_report_samples,
            max_len=1025,
        ),
        ParserTarget(
            "snp_report",
            obeys(SnpReport.parse, FormatError, accepted=_snp_report),
            snp_report_samples,
            max_len=1200,
        ),
        ParserTarget(
            "snp_certificates",
            obeys(SnpCertificates.parse, FormatError, accepted=_snp_certificates),
            short(snp_tables, 1024),
            "x509.dict",
            1024,
        ),
        ParserTarget(
            "hcl_report",
            obeys(HclReport.parse, FormatError, accepted=_hcl_report),
            hcl_samples,
            "evidence.dict",
        ),
        ParserTarget(
            "snp_endorsements",
            obeys(_endorsements, FormatError),
            short(endorsement_samples),
            "x509.dict",
        ),
        ParserTarget(
            "evidence_formats",
            obeys(parse_evidence, FormatError, UnsupportedError),
            short(evidence_forms, 8192),
            "evidence.dict",
            8192,
        ),
        *_qgs_targets(),
    ]
