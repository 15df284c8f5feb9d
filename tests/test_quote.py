"""Quotes say what their bytes say; one that breaks a rule is refused by that rule's name."""

import copy
import json
import os
import pickle
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import strategies as st

import attestkit.quote
from attestkit.errors import AttestKitError, FormatError, UsageError
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
from tests.quotes import PATTERN, VECTORS, made_quote, made_quotes, sample
from tests.thorough import thorough
from tests.untyped import untyped
from tests.vectors import load, needs_shared

NEGATIVE: list[dict[str, Any]] = load("quotes.json").get("negative", [])
GOOD = [v for v in VECTORS if v["trailing_all_zero"]]


def path_of(vector: dict[str, Any]) -> str:
    """Return the name of a vector, for pytest."""
    return str(vector["path"])


def check_enclave(report: EnclaveReport, listed: dict[str, Any]) -> None:
    """Compare a report with the fields a vector lists."""
    for name, value in listed.items():
        if not name.startswith("reserved"):
            field = getattr(report, name)
            assert (field if isinstance(value, int) else field.hex()) == value
    if all(listed[f"reserved{i}_all_zero"] for i in (1, 2, 3, 4)):
        assert not any(report.isv_ext_prod_id + report.config_id + report.isv_family_id)
        assert report.config_svn == 0


def check_header(header: QuoteHeader, listed: dict[str, Any]) -> None:
    """Compare a header with the fields a vector lists."""
    assert header.version == listed["version"]
    assert header.attestation_key_type == listed["att_key_type"]
    assert header.tee_type == listed["tee_type"]
    assert header.qe_svn == listed.get("qe_svn")
    assert header.pce_svn == listed.get("pce_svn")
    assert header.qe_vendor_id.hex() == listed["qe_vendor_id"]
    assert header.user_data.hex() == listed["user_data"]


def check_signature_data(quote: Quote, listed: dict[str, Any]) -> None:
    """Compare what follows the body with the fields a vector lists."""
    assert quote.signature.hex() == listed["ecdsa_signature"]
    assert quote.attestation_key.hex() == listed["attestation_key"]
    check_enclave(quote.qe_report, listed["qe_report"])
    assert quote.qe_report_signature.hex() == listed["qe_report_signature"]
    assert quote.qe_auth_data.hex() == listed["qe_auth_data"]
    prefix = "inner_" if listed["version"] > 3 else ""
    assert quote.certification.type == listed[f"{prefix}cert_data_type"]
    assert len(quote.certification.data) == listed[f"{prefix}cert_data_len"]


@needs_shared
@pytest.mark.parametrize("vector", GOOD, ids=path_of)
def test_every_listed_field(vector: dict[str, Any]) -> None:
    """A real quote has the fields that other parsers found in it."""
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
        check_enclave(quote.body, vector["body"])
    else:
        assert isinstance(quote.body, TdQuoteBody)
        listed = {name: bytes.fromhex(value) for name, value in vector["body"].items()}
        assert quote.body == TdQuoteBody(**listed)
        assert quote.mrtd == listed["mr_td"]
        assert quote.rtmrs == tuple(listed[f"rtmr{i}"] for i in range(4))
    assert quote.report_data.hex() == vector["body"]["report_data"]


@needs_shared
@pytest.mark.parametrize("vector", GOOD, ids=path_of)
def test_pck_chain(vector: dict[str, Any]) -> None:
    """The certificates of a chain come out whole and in the order they are in."""
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
@pytest.mark.parametrize(
    "vector", NEGATIVE, ids=[f"{v['expect']}-{i}" for i, v in enumerate(NEGATIVE)]
)
def test_every_mutation_by_its_name(vector: dict[str, Any]) -> None:
    """Each listed way to break a quote is refused with the listed reason, and with a byte."""
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


@needs_shared
@pytest.mark.parametrize("vector", VECTORS, ids=path_of)
def test_cut_at_every_length(vector: dict[str, Any]) -> None:
    """A quote that ends too early is refused, and the error names the byte where it ends."""
    data = sample(vector["path"])[: vector["canonical_len"]]
    for size in range(len(data)):
        with pytest.raises(FormatError) as caught:
            Quote.parse(data[:size])
        assert caught.value.offset == size
    assert Quote.parse(data).padding == 0


@pytest.mark.parametrize("data", made_quotes(), ids=len)
def test_made_quotes(data: bytes) -> None:
    """Versions and bodies of which there is no real sample are read as they are laid out."""
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


def test_fields_of_an_enclave_report() -> None:
    """The fields of key separation lie where the reserved bytes of old reports were."""
    report = EnclaveReport.parse(PATTERN[:384])
    assert report.cpu_svn == PATTERN[:16]
    assert report.misc_select == 0x13121110
    assert report.isv_ext_prod_id == PATTERN[32:48]
    assert report.config_id == PATTERN[192:256]
    assert report.isv_prod_id == 0x0605  # the pattern is 251 bytes long
    assert report.config_svn == 0x0A09
    assert report.isv_family_id == PATTERN[304:320]
    assert report.raw == PATTERN[:384]
    assert QeReport is EnclaveReport


@pytest.mark.parametrize(
    "quote", [made_quote(3, 0), made_quote(4, 0), made_quote(5, 0, 1)], ids=len
)
@pytest.mark.parametrize("name", ["mrtd", "rtmrs"])
def test_enclaves_have_no_registers(quote: bytes, name: str) -> None:
    """Asking an SGX quote for a TD's registers is a mistake of the caller, and says so."""
    with pytest.raises(UsageError, match="SGX enclave"):
        getattr(Quote.parse(quote), name)


@pytest.mark.parametrize(
    ("quote", "reason", "offset"),
    [
        (made_quote(2), "version", 0),
        (made_quote(3), "tee_type", 4),
        (made_quote(5, 0x81, 1), "body_tee_mismatch", 48),
        (made_quote(5, 0, 2), "body_tee_mismatch", 48),
        (made_quote(certification=(6, b"")), "inner_cert_type", 1252),
        (made_quote(certification=(0, b"")), "inner_cert_type", 1252),
        (made_quote() + bytes(70) + b"\n", "trailing_bytes", 1258 + 70),
        (made_quote().ljust(131073, b"\0"), "too_long", 131072),
        (bytes(1 << 20), "too_long", 131072),
    ],
)
def test_rules_by_name(quote: bytes, reason: str, offset: int) -> None:
    """Rules that no listed mutation breaks are refused by their names, at the value at fault."""
    with pytest.raises(FormatError) as caught:
        Quote.parse(quote)
    assert (caught.value.reason, caught.value.offset) == (reason, offset)


def test_extended_body_is_refused() -> None:
    """Body type 4 has never been seen signed, so it is not taken for anything."""
    data = bytearray(made_quote(5, 0x81, 3))
    data[48] = 4
    with pytest.raises(FormatError, match="body type") as caught:
        Quote.parse(bytes(data))
    assert caught.value.reason == "body_type"


def test_binding_covers_all_64_bytes() -> None:
    """The second half of the QE's report data is zero, not somebody's to choose."""
    data = bytearray(made_quote())
    data[770 + 320 + 63] = 1
    with pytest.raises(FormatError) as caught:
        Quote.parse(bytes(data))
    assert (caught.value.reason, caught.value.offset) == ("qe_binding", 770 + 320)


def test_padding_is_not_part_of_a_quote() -> None:
    """Zero bytes behind a quote are counted and cut off; it stays the same quote."""
    bare, padded = Quote.parse(made_quote()), Quote.parse(made_quote() + bytes(70))
    assert (bare.padding, padded.padding) == (0, 70)
    assert bare == padded
    assert hash(bare) == hash(padded)
    assert padded.raw == made_quote()
    assert bare != Quote.parse(made_quote(5, 0x81, 2))
    assert bare != made_quote()
    assert Quote.parse(made_quote().ljust(131072, b"\0")) == bare


@pytest.mark.parametrize("data", [made_quote(), made_quote(3, 0) + bytes(3)], ids=len)
def test_pickle_and_copy(data: bytes) -> None:
    """A quote survives pickling and copying, with its padding."""
    quote = Quote.parse(data)
    for twin in (pickle.loads(pickle.dumps(quote)), copy.copy(quote), copy.deepcopy(quote)):
        assert twin == quote
        assert type(twin) is type(quote)
        assert twin.padding == quote.padding
        assert twin.body == quote.body


def test_immutable() -> None:
    """Nothing of a quote can be set, deleted or added."""
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


def test_short_repr() -> None:
    """The text of a quote is one short line."""
    text = repr(Quote.parse(made_quote()))
    assert text == f"<Quote v4 TDX, 1258 bytes, report_data {made_quote()[568:576].hex()}...>"
    assert repr(Quote.parse(made_quote(3, 0))).startswith("<Quote v3 SGX, ")


@pytest.mark.parametrize("data", made_quotes(), ids=len)
def test_dictionary(data: bytes) -> None:
    """to_dict has every field once, as JSON takes it."""
    quote = Quote.parse(data)
    fields = json.loads(json.dumps(quote.to_dict()))
    assert fields["version"] == quote.version
    assert fields["header"]["user_data"] == PATTERN[:20].hex()
    assert fields["body"]["report_data"] == quote.report_data.hex()
    assert fields["qe_report"]["isv_svn"] == quote.qe_report.isv_svn
    assert fields["certification"]["data"] == quote.certification.data.hex()
    assert "raw" not in fields["qe_report"]


@pytest.mark.parametrize("data", ["00", bytearray(made_quote()), memoryview(made_quote()), None])
def test_only_bytes(data: object) -> None:
    """A quote is bytes; anything else is a mistake of the caller."""
    with pytest.raises(UsageError, match="a quote is bytes, not"):
        Quote.parse(untyped(data))


def test_lying_subclass_of_bytes() -> None:
    """A subclass of bytes that lies about its length is read for what it holds."""

    class Lying(bytes):
        def __len__(self) -> int:
            return 1 << 40

    assert Quote.parse(Lying(made_quote())) == Quote.parse(made_quote())
    some = [made_quote(), Lying(made_quote()), made_quote()]
    assert Quote.parse_many(some) == [Quote.parse(made_quote())] * 3
    with pytest.raises(FormatError, match="quote 3: the quote ends inside"):
        Quote.parse_many([*some, b"\4"])
    with pytest.raises(FormatError):
        Quote.parse(Lying(b"\4"))


def test_parse_many() -> None:
    """Many quotes come back in their order; a bad one is told by its number."""
    quotes = made_quotes()
    assert Quote.parse_many(quotes) == [Quote.parse(data) for data in quotes]
    assert Quote.parse_many(iter(())) == []
    with pytest.raises(FormatError, match="quote 2: the quote ends inside") as caught:
        Quote.parse_many([*quotes[:2], b"\4"])
    assert (caught.value.reason, caught.value.offset) == ("short_header", 1)
    with pytest.raises(UsageError):
        Quote.parse_many([quotes[0], untyped("00")])


@pytest.mark.parametrize("size", [0, 47, 49, 383, 385, 583, 585, 647, 649])
def test_parts_want_their_sizes(size: int) -> None:
    """A header, a body or a report of another size is refused."""
    for part in (QuoteHeader, TdQuoteBody, EnclaveReport):
        with pytest.raises(FormatError) as caught:
            part.parse(bytes(size))
        assert caught.value.reason == "size"
        with pytest.raises(UsageError):
            part.parse(untyped(bytearray(size)))


@thorough(
    st.one_of(st.binary(max_size=64), st.binary(max_size=400).map(lambda b: made_quote()[:48] + b)),
    few=300,
    many=2000,
)
def test_any_bytes(data: bytes) -> None:
    """Whatever bytes come, only our own errors come out."""
    with pytest.raises(AttestKitError):
        Quote.parse(data)


@pytest.mark.parametrize("kind", [1, 2, 3, 4])
def test_no_chain(kind: int) -> None:
    """Certification data of other types hold no chain, whatever is in them."""
    assert Quote.parse(made_quote(certification=(kind, b"\x30\0"))).pck_chain == ()


def test_chain_when_asked_for() -> None:
    """Certification data may hold anything; asking for a chain that is none tells the byte."""
    quote = Quote.parse(made_quote(certification=(5, b"\x30\0")))
    assert quote.pck_chain == (b"\x30\0",)
    assert quote.pck_chain is quote.pck_chain
    quote = Quote.parse(made_quote(certification=(5, b"\x30\0\x30\1")))
    assert quote.certification == Certification(5, b"\x30\0\x30\1")
    with pytest.raises(FormatError) as caught:
        _ = quote.pck_chain
    assert (caught.value.reason, caught.value.offset) == ("pck_chain", 1258 + 2)


def test_what_parsing_loads() -> None:
    """The first quote costs neither dataclasses nor X.509 nor asyncio nor the package metadata."""
    code = (
        "import sys; from attestkit.quote import Quote; quote = bytes.fromhex(sys.argv[1]);"
        "q = Quote.parse(quote); q.body, q.qe_report, q.certification; print(*sys.modules)"
    )
    root = attestkit.quote.__file__.removesuffix("attestkit/quote.py")
    loaded = subprocess.run(
        [sys.executable, "-c", code, made_quote().hex()],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    heavy = {"dataclasses", "asyncio", "importlib.metadata", "cryptography", "ssl", "inspect"}
    assert not heavy & set(loaded)
