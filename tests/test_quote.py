"""Quotes are parsed field by field; a quote that violates a rule is rejected with its reason."""

import copy
import json
import pickle
from typing import Any

import pytest

from attestkit._native import quote_layout
from attestkit.errors import FormatError, UsageError
from attestkit.quote import (
    TEE_SGX,
    TEE_TDX,
    Certification,
    EnclaveReport,
    QeReport,
    Quote,
    QuoteHeader,
    TdQuoteBody,
)
from tests.raising import raises
from tests.runner.cases import every_case
from tests.samples.quotes import PATTERN, VECTORS, made_quote, made_quotes, sample
from tests.untyped import untyped, with_false_length
from tests.vectors import load, needs_shared, path_of, td_fields

NEGATIVE: list[dict[str, Any]] = load("quotes.json").get("negative", [])
GOOD = [v for v in VECTORS if v["trailing_all_zero"]]


def check_enclave_report(report: EnclaveReport, listed: dict[str, Any]) -> None:
    """Compare a report with the fields of a vector."""
    for name, value in listed.items():
        if not name.startswith("reserved"):
            field = getattr(report, name)
            assert (field if isinstance(value, int) else field.hex()) == value
    if all(listed[f"reserved{i}_all_zero"] for i in (1, 2, 3, 4)):
        assert not any(report.isv_ext_prod_id + report.config_id + report.isv_family_id)
        assert report.config_svn == 0


def check_header(header: QuoteHeader, listed: dict[str, Any]) -> None:
    """Compare a header with the fields of a vector."""
    assert header.version == listed["version"]
    assert header.attestation_key_type == listed["att_key_type"]
    assert header.tee_type == listed["tee_type"]
    assert header.qe_svn == listed.get("qe_svn")
    assert header.pce_svn == listed.get("pce_svn")
    assert header.qe_vendor_id.hex() == listed["qe_vendor_id"]
    assert header.user_data.hex() == listed["user_data"]


def check_signature_data(quote: Quote, listed: dict[str, Any]) -> None:
    """Compare the part after the body with the fields of a vector."""
    assert quote.signature.hex() == listed["ecdsa_signature"]
    assert quote.attestation_key.hex() == listed["attestation_key"]
    check_enclave_report(quote.qe_report, listed["qe_report"])
    assert quote.qe_report_signature.hex() == listed["qe_report_signature"]
    assert quote.qe_auth_data.hex() == listed["qe_auth_data"]
    prefix = "inner_" if listed["version"] > 3 else ""
    assert quote.certification.type == listed[f"{prefix}cert_data_type"]
    assert len(quote.certification.data) == listed[f"{prefix}cert_data_len"]


@needs_shared
@every_case("vector", GOOD, ids=path_of)
def test_quote_of_hardware_matches_vector(vector: dict[str, Any]) -> None:
    """A captured quote has the fields that other parsers found in it."""
    data = sample(vector["path"])
    quote = Quote.parse(data)
    assert len(data) == vector["total_len"]
    assert quote.raw == data[: vector["canonical_len"]]
    assert quote.padding == vector["trailing_len"]
    assert (quote.version, quote.tee_type) == (vector["version"], vector["tee_type"])
    check_header(quote.header, vector)
    start, end = vector["signed_range"]
    assert quote.signed_region == data[start:end]
    check_signature_data(quote, vector)
    if vector["tee_type"] == TEE_SGX:
        assert isinstance(quote.body, EnclaveReport)
        check_enclave_report(quote.body, vector["body"])
    else:
        assert isinstance(quote.body, TdQuoteBody)
        listed = td_fields(vector["body"])
        assert quote.body == TdQuoteBody(**listed)
        assert quote.mrtd == listed["mrtd"]
        assert quote.rtmrs == tuple(listed[f"rtmr{i}"] for i in range(4))
    assert quote.report_data.hex() == vector["body"]["report_data"]


@needs_shared
@every_case("vector", GOOD, ids=path_of)
def test_quote_pck_chain_matches_vector(vector: dict[str, Any]) -> None:
    """The certificates of the chain are complete and in order."""
    from cryptography.x509 import load_der_x509_certificate

    chain = Quote.parse(sample(vector["path"])).pck_chain
    assert len(chain) == (vector["pck_chain_certs"] or 0)
    common = [load_der_x509_certificate(der).subject.rdns[0].rfc4514_string() for der in chain]
    listed = vector["cross_checks"].get("pck_subjects") or []
    names = [subject.rsplit(",", 1)[-1] for subject in listed]
    if vector["pck_chain_encoding"] == "der-concatenated":
        assert set(common) == set(names)
    else:
        assert common == names


@needs_shared
@every_case("vector", NEGATIVE, ids=[f"{v['expect']}-{i}" for i, v in enumerate(NEGATIVE)])
def test_quote_mutation_fails_with_listed_reason(vector: dict[str, Any]) -> None:
    """Each listed mutation is rejected with its reason and an offset."""
    data = bytearray(sample(vector["base"]))
    for name, *arguments in vector["ops"]:
        if name == "truncate":
            del data[arguments[0] :]
        elif name == "set":
            value = bytes.fromhex(arguments[1])
            data[arguments[0] : arguments[0] + len(value)] = value
        elif name == "xor":
            data[arguments[0]] ^= arguments[1]
        else:
            data += bytes.fromhex(arguments[0])
    assert len(data) == vector["result_len"]
    if vector["expect"] == "accepted":
        quote = Quote.parse(bytes(data))
        assert quote.raw == data[: len(data) - quote.padding]
        return
    with pytest.raises(FormatError) as caught:
        Quote.parse(bytes(data))
    assert caught.value.reason == vector["expect"]
    assert caught.value.offset is not None
    assert 0 <= caught.value.offset <= len(data)


@every_case("data", made_quotes(), ids=len)
def test_quote_of_every_version_and_body_is_read(data: bytes) -> None:
    """Versions and bodies without a captured sample are read by their layout."""
    quote = Quote.parse(data)
    start = 54 if quote.version == 5 else 48
    if quote.tee_type == TEE_TDX:
        assert isinstance(quote.body, TdQuoteBody)
        body = quote.body.to_bytes()
        assert quote.mrtd == body[136:184]
        assert b"".join(quote.rtmrs) == body[328:520]
        assert quote.report_data == body[520:584]
        assert (quote.body.tee_tcb_svn2 is None) == (len(body) == 584)
    else:
        assert isinstance(quote.body, EnclaveReport)
        body = quote.body.raw
        assert quote.report_data == body[320:384]
    assert body == PATTERN[1 : 1 + len(body)]
    assert quote.signed_region == data[: start + len(body)]
    assert quote.signature == PATTERN[200:264]
    assert quote.attestation_key == PATTERN[100:164]
    assert quote.qe_report.raw[:320] == PATTERN[7:327]
    assert quote.qe_report_signature == PATTERN[64:128]
    assert quote.raw == data


def test_enclave_report_key_separation_fields() -> None:
    """The key separation fields are where older reports have reserved bytes."""
    report = EnclaveReport.parse(PATTERN[:384])
    assert report.cpu_svn == PATTERN[:16]
    assert report.misc_select == 0x13121110
    assert report.isv_ext_prod_id == PATTERN[32:48]
    assert report.config_id == PATTERN[192:256]
    assert report.isv_prod_id == 0x0605  # the pattern repeats after 251 bytes
    assert report.config_svn == 0x0A09
    assert report.isv_family_id == PATTERN[304:320]
    assert report.raw == PATTERN[:384]
    assert QeReport is EnclaveReport


@every_case("quote", [made_quote(3, 0), made_quote(4, 0), made_quote(5, 0, 1)], ids=len)
@every_case("name", ["mrtd", "rtmrs"])
def test_enclave_quote_registers_are_not_applicable(quote: bytes, name: str) -> None:
    """Access to a TD's registers of an SGX quote is a usage error."""
    with raises(UsageError, "not_applicable"):
        getattr(Quote.parse(quote), name)


@every_case(
    ("quote", "reason", "offset"),
    [
        (made_quote(2), "version", 0),
        (made_quote(3), "tee_type", 4),
        (made_quote(5, 0x81, 1), "body_tee_mismatch", 48),
        (made_quote(5, 0, 2), "body_tee_mismatch", 48),
        # Body type 4 has not been published in a signed quote.
        (made_quote(5)[:48] + b"\4" + made_quote(5)[49:], "body_type", 48),
        (made_quote(certification=(6, b"")), "inner_cert_type", 1252),
        (made_quote(certification=(0, b"")), "inner_cert_type", 1252),
        (made_quote() + bytes(70) + b"\n", "trailing_bytes", 1258 + 70),
        (made_quote().ljust(131073, b"\0"), "too_long", 131072),
        (bytes(1 << 20), "too_long", 131072),
    ],
)
def test_quote_violating_rule_names_reason_and_offset(
    quote: bytes, reason: str, offset: int
) -> None:
    """Rules without a listed mutation are enforced with their reason and offset."""
    with raises(FormatError, reason, offset=offset):
        Quote.parse(quote)


def test_quote_binding_covers_64_bytes() -> None:
    """The second half of the QE's report data must be zero."""
    data = bytearray(made_quote())
    data[770 + 320 + 63] = 1
    with raises(FormatError, "qe_binding", offset=770 + 320):
        Quote.parse(bytes(data))


@every_case("padding", [0, 70])
@every_case("data", made_quotes(), ids=len)
def test_quote_layout_is_that_of_the_parser(data: bytes, padding: int) -> None:
    """The offsets of an accepted quote, which its properties use, are those of the parser."""
    assert Quote.parse(data + bytes(padding))._layout == quote_layout(data)


def test_quote_padding_is_counted_and_ignored() -> None:
    """Zero bytes after a quote are counted, and do not take part in equality."""
    bare, padded = Quote.parse(made_quote()), Quote.parse(made_quote() + bytes(70))
    assert (bare.padding, padded.padding) == (0, 70)
    assert bare == padded
    assert hash(bare) == hash(padded)
    assert padded.raw == made_quote()
    assert bare != Quote.parse(made_quote(5, 0x81, 2))
    assert bare != made_quote()
    assert Quote.parse(made_quote().ljust(131072, b"\0")) == bare


@pytest.mark.parametrize("data", [made_quote(), made_quote(3, 0) + bytes(3)], ids=len)
def test_quote_pickle_and_copy_keep_padding(data: bytes) -> None:
    """Pickling and copying keep a quote and its padding."""
    quote = Quote.parse(data)
    for copied in (pickle.loads(pickle.dumps(quote)), copy.copy(quote), copy.deepcopy(quote)):
        assert copied == quote
        assert type(copied) is type(quote)
        assert copied.padding == quote.padding
        assert copied.body == quote.body


def test_quote_is_immutable() -> None:
    """Attributes of a quote cannot be set, deleted or added."""
    quote = Quote.parse(made_quote())
    for name in ("mrtd", "raw", "body", "other"):
        with pytest.raises(AttributeError):
            setattr(quote, name, b"")
        with pytest.raises(AttributeError):
            delattr(quote, name)
    with pytest.raises(AttributeError):
        _ = untyped(quote).other
    with pytest.raises(UsageError):
        Quote()
    assert quote.mrtd == made_quote()[184:232]


def test_quote_repr_is_one_short_line() -> None:
    """The repr is one short line."""
    text = repr(Quote.parse(made_quote()))
    assert text == f"<Quote v4 TDX, 1258 bytes, report_data {made_quote()[568:576].hex()}...>"
    assert repr(Quote.parse(made_quote(3, 0))).startswith("<Quote v3 SGX, ")


@every_case("data", made_quotes(), ids=len)
def test_quote_to_dict_has_every_field(data: bytes) -> None:
    """to_dict returns every field once, in JSON types."""
    quote = Quote.parse(data)
    fields = json.loads(json.dumps(quote.to_dict()))
    assert fields["version"] == quote.version
    assert fields["header"]["user_data"] == PATTERN[:20].hex()
    assert fields["body"]["report_data"] == quote.report_data.hex()
    assert fields["qe_report"]["isv_svn"] == quote.qe_report.isv_svn
    assert fields["certification"]["data"] == quote.certification.data.hex()
    assert "raw" not in fields["qe_report"]


@every_case("data", ["00", bytearray(made_quote()), memoryview(made_quote()), None])
def test_quote_of_other_type_is_usage_error(data: object) -> None:
    """A quote is bytes."""
    with raises(UsageError, "wrong_type"):
        Quote.parse(untyped(data))


def test_quote_of_bytes_subclass_uses_stored_bytes() -> None:
    """An overridden length of a bytes subclass is ignored."""
    assert Quote.parse(with_false_length(made_quote(), 1 << 40)) == Quote.parse(made_quote())
    some = [made_quote(), with_false_length(made_quote(), 1 << 40), made_quote()]
    assert Quote.parse_many(some) == [Quote.parse(made_quote())] * 3
    with raises(FormatError, "short_header", message="quote 3: truncated in the 48-byte header"):
        Quote.parse_many([*some, b"\4"])
    with raises(FormatError, "short_header"):
        Quote.parse(with_false_length(b"\4", 1 << 40))


def test_parse_many_keeps_order_and_names_invalid_quote() -> None:
    """Quotes are returned in order, and an error names the number of the quote."""
    quotes = made_quotes()
    assert Quote.parse_many(quotes) == [Quote.parse(data) for data in quotes]
    assert Quote.parse_many(iter(())) == []
    with raises(FormatError, "short_header", offset=1, start="quote 2: "):
        Quote.parse_many([*quotes[:2], b"\4"])
    with raises(UsageError, "wrong_type"):
        Quote.parse_many([quotes[0], untyped("00")])


@every_case("size", [0, 47, 49, 383, 385, 583, 585, 647, 649])
def test_quote_part_of_wrong_size_fails(size: int) -> None:
    """A header, a body and a report have fixed sizes."""
    for part in (QuoteHeader, TdQuoteBody, EnclaveReport):
        with raises(FormatError, "wrong_size"):
            part.parse(bytes(size))
        with pytest.raises(UsageError):
            part.parse(untyped(bytearray(size)))


@every_case("kind", [1, 2, 3, 4])
def test_quote_pck_chain_of_other_certification_is_empty(kind: int) -> None:
    """Certification data of other types contain no chain."""
    assert Quote.parse(made_quote(certification=(kind, b"\x30\0"))).pck_chain == ()


def test_quote_pck_chain_if_malformed_fails_on_access() -> None:
    """Certification data may be anything; access to a malformed chain names the byte."""
    quote = Quote.parse(made_quote(certification=(5, b"\x30\0")))
    assert quote.pck_chain == (b"\x30\0",)
    assert quote.pck_chain is quote.pck_chain
    quote = Quote.parse(made_quote(certification=(5, b"\x30\0\x30\1")))
    assert quote.certification == Certification(5, b"\x30\0\x30\1")
    with raises(FormatError, "truncated", offset=1258 + 2):
        _ = quote.pck_chain
