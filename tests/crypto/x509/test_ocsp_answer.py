"""Answers are read strictly, and every value is that of `cryptography` and of the vectors."""

import contextlib
import json
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.der import (
    OCTET_STRING,
    SEQUENCE,
    DerReader,
    context,
    encode_element,
    encode_sequence,
)
from attestkit._crypto.x509.ocsp.answer import MAX_ANSWER, read_ocsp_answer
from attestkit._crypto.x509.ocsp.answer_writer import write_ocsp_error
from attestkit.errors import CollateralError, FormatError, UsageError
from tests.pki.ocsp_pki import (
    DAY,
    NOW,
    answer_about,
    builder_about,
    der,
    issuer_certificate,
    key_of,
    responder_certificate,
    subject_certificate,
)
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import HAVE_SHARED, data, needs_shared

VECTORS: dict[str, dict[str, Any]] = (
    json.loads(data("gpu/expected.json"))["ocsp"] if HAVE_SHARED else {}
)


@needs_shared
@pytest.mark.parametrize("path", VECTORS)
def test_read_ocsp_answer_real_answers_have_expected_values(path: str) -> None:
    """Every value of NVIDIA's answers is that of the vectors, which another parser computed."""
    expected, answer = VECTORS[path], read_ocsp_answer(data(f"gpu/{path}"))
    times = (answer.produced_at, answer.this_update, answer.next_update)
    assert expected["response_status"] == "SUCCESSFUL"
    assert f"{answer.cert_id.serial:x}" == expected["serial_hex"]
    assert answer.status.upper() == expected["status"]
    assert answer.revocation_reason == expected["revocation_reason"]
    assert answer.cert_id.hash_name == expected["hash_algorithm"]
    assert answer.cert_id.name_hash.hex() == expected["issuer_name_hash"]
    assert answer.cert_id.key_hash.hex() == expected["issuer_key_hash"]
    assert [f"{time:%Y-%m-%dT%H:%M:%SZ}" for time in times] == [
        expected[name] for name in ("produced_at", "this_update", "next_update")
    ]
    assert expected["responder"].encode() in answer.responder.subject
    assert expected["responder_issuer"].encode() in answer.responder.issuer
    validity = (answer.responder.valid_from, answer.responder.valid_until)
    assert [f"{time:%Y-%m-%dT%H:%M:%SZ}" for time in validity] == expected["responder_valid"]
    assert answer.nonce is None
    assert expected["response_extensions"] == []


@every_case("nonce", [None, b"n" * 32])
@every_case("status", ["good", "revoked", "unknown"])
def test_write_ocsp_answer_is_read_alike_by_cryptography(status: str, nonce: bytes | None) -> None:
    """`cryptography` reads the values that were written, and so does this reader."""
    values: dict[str, Any] = {}
    if status == "revoked":
        values = {"reason": "superseded", "revoked_at": NOW - DAY}
    written = answer_about(status=status, nonce=nonce, **values)
    theirs, ours = ocsp.load_der_ocsp_response(written), read_ocsp_answer(written)
    assert theirs.response_status is ocsp.OCSPResponseStatus.SUCCESSFUL
    assert theirs.serial_number == ours.cert_id.serial == subject_certificate().serial_number
    assert theirs.issuer_name_hash == ours.cert_id.name_hash
    assert theirs.issuer_key_hash == ours.cert_id.key_hash
    assert isinstance(theirs.hash_algorithm, SHA384)
    assert theirs.certificate_status.name.lower() == ours.status == status
    assert theirs.produced_at_utc == ours.produced_at == NOW
    assert (theirs.this_update_utc, theirs.next_update_utc) == (NOW, NOW + DAY)
    assert (ours.this_update, ours.next_update) == (NOW, NOW + DAY)
    assert theirs.revocation_time_utc == ours.revoked_at == values.get("revoked_at")
    reason = theirs.revocation_reason
    assert (reason and reason.name) == ours.revocation_reason == values.get("reason")
    assert theirs.responder_key_hash == ours.key_hash
    assert theirs.certificates == [responder_certificate()]
    assert theirs.tbs_response_bytes == ours.signed
    assert theirs.signature == ours.signature
    found = [extension.value.public_bytes() for extension in theirs.extensions]
    assert found == ([] if nonce is None else [encode_element(4, nonce)])
    assert ours.nonce == nonce


@every_case(
    ("problem", "number"),
    [
        ("malformed request", 1),
        ("internal error", 2),
        ("try later", 3),
        ("signature required", 5),
        ("unauthorized", 6),
    ],
)
def test_read_ocsp_answer_error_raises_collateral_error(problem: str, number: int) -> None:
    """An answer that is an error has no status; the error names it."""
    written = write_ocsp_error(problem)
    assert written == bytes([0x30, 3, 10, 1, number])
    with raises(CollateralError, "fetch_failed", part=problem):
        read_ocsp_answer(written)


def test_write_ocsp_error_of_unknown_text_raises_usage_error() -> None:
    """Only the errors of RFC 6960 can be written."""
    with raises(UsageError, "wrong_value"):
        write_ocsp_error("good")


@pytest.mark.parametrize("number", [4, 7, 255])
def test_read_ocsp_answer_with_unused_status_raises_format_error(number: int) -> None:
    """A status that RFC 6960 does not define is malformed."""
    with raises(FormatError, "wrong_value"):
        read_ocsp_answer(bytes([0x30, 3, 10, 1, number]))


def test_read_ocsp_answer_cut_at_any_length_raises_format_error() -> None:
    """Each prefix of an answer is malformed, and so is an answer with a byte more."""
    whole = answer_about(nonce=b"n" * 32)
    for size in range(len(whole)):
        with raises(FormatError, "truncated", "syntax"):
            read_ocsp_answer(whole[:size])
    with raises(FormatError, "trailing_data"):
        read_ocsp_answer(whole + b"\0")


def test_read_ocsp_answer_with_data_inside_an_element_raises_format_error() -> None:
    """Nothing may follow the response inside its OCTET STRING, nor an answer in the list."""
    whole = answer_about()
    outer = DerReader(whole).enter(SEQUENCE)
    outer.content(0x0A)
    fields = outer.enter(context(0)).enter(SEQUENCE)
    kind, basic = fields.whole(), fields.content(OCTET_STRING)
    for content in (basic + b"\0", basic + basic):
        wrapped = encode_sequence(kind, encode_element(OCTET_STRING, content))
        changed = encode_sequence(b"\x0a\1\0", encode_element(context(0), wrapped))
        with raises(FormatError, "trailing_data"):
            read_ocsp_answer(changed)
    wrapped = encode_sequence(kind, encode_element(OCTET_STRING, basic))
    assert encode_sequence(b"\x0a\1\0", encode_element(context(0), wrapped)) == whole


def test_read_ocsp_answer_about_two_certificates_raises_format_error() -> None:
    """An answer is about one certificate."""
    signed = read_ocsp_answer(whole := answer_about()).signed
    fields = DerReader(signed).enter(SEQUENCE)
    head = fields.whole() + fields.whole()
    single = fields.content(SEQUENCE)
    twice = encode_sequence(head, encode_sequence(single, single))
    basic = DerReader(whole).enter(SEQUENCE)
    basic.content(0x0A)
    wrapper = basic.enter(context(0)).enter(SEQUENCE)
    kind = wrapper.whole()
    parts = DerReader(wrapper.content(OCTET_STRING)).enter(SEQUENCE)
    parts.whole()
    rest = parts.whole() + parts.whole() + parts.whole()
    changed = encode_element(OCTET_STRING, encode_sequence(twice, rest))
    with raises(FormatError, "trailing_data"):
        read_ocsp_answer(
            encode_sequence(b"\x0a\1\0", encode_element(context(0), encode_sequence(kind, changed)))
        )


def test_read_ocsp_answer_over_limit_raises_format_error() -> None:
    """The size is limited."""
    with raises(FormatError, "too_large"):
        read_ocsp_answer(bytes(MAX_ANSWER + 1))


@given(st.binary(max_size=200))
def test_read_ocsp_answer_any_bytes_raise_attestkit_errors(junk: bytes) -> None:
    """Random bytes raise errors of attestkit alone."""
    with pytest.raises((FormatError, CollateralError)):
        read_ocsp_answer(junk)


@given(st.lists(st.tuples(st.integers(0, 800), st.integers(0, 255)), min_size=1, max_size=3))
def test_read_ocsp_answer_altered_reads_or_raises_attestkit_errors(
    changes: list[tuple[int, int]],
) -> None:
    """An altered answer is read, or raises errors of attestkit alone."""
    whole = bytearray(answer_about(nonce=b"n" * 32, status="revoked", reason="superseded"))
    for at, value in changes:
        whole[at % len(whole)] = value
    with contextlib.suppress(FormatError, CollateralError):
        read_ocsp_answer(bytes(whole))


def _built(builder: ocsp.OCSPResponseBuilder) -> bytes:
    response = builder.sign(key_of("responder"), SHA384())
    return response.public_bytes(Encoding.DER)


def test_read_ocsp_answer_with_name_of_responder() -> None:
    """A responder may be identified by its name."""
    builder = builder_about().certificates([responder_certificate()])
    named = builder.responder_id(ocsp.OCSPResponderEncoding.NAME, responder_certificate())
    answer = read_ocsp_answer(_built(named))
    assert answer.name == responder_certificate().subject.public_bytes()
    assert answer.key_hash is None


def test_read_ocsp_answer_without_next_update_raises_format_error() -> None:
    """An answer without end of its validity is refused."""
    builder = builder_about(until=None).certificates([responder_certificate()])
    with raises(FormatError, "missing"):
        read_ocsp_answer(
            _built(builder.responder_id(ocsp.OCSPResponderEncoding.HASH, responder_certificate()))
        )


@pytest.mark.parametrize("count", [0, 2])
def test_read_ocsp_answer_with_other_number_of_certificates_raises_format_error(count: int) -> None:
    """The responder's certificate alone must be in the answer."""
    builder = builder_about()
    if count:
        builder = builder.certificates([responder_certificate(), issuer_certificate()])
    with raises(FormatError, "truncated", "trailing_data"):
        read_ocsp_answer(
            _built(builder.responder_id(ocsp.OCSPResponderEncoding.HASH, responder_certificate()))
        )


def test_read_ocsp_answer_with_unknown_hash_raises_format_error() -> None:
    """A certificate must be identified by one of three hashes."""
    sha384, other = bytes.fromhex("0609608648016503040202"), bytes.fromhex("0609608648016503040203")
    with raises(FormatError, "unsupported_algorithm"):
        read_ocsp_answer(answer_about().replace(sha384, other, 1))


def test_read_ocsp_answer_with_other_response_type_raises_format_error() -> None:
    """The response must be the basic one."""
    basic = bytes.fromhex("06092b0601050507300101")
    with raises(FormatError, "unsupported"):
        read_ocsp_answer(answer_about().replace(basic, basic[:-1] + b"\x09", 1))


def test_read_ocsp_answer_with_critical_extension_raises_format_error() -> None:
    """An extension that is unknown and critical is refused; a critical nonce is read."""
    nonce = bytes.fromhex("06092b0601050507300102")
    written = answer_about(nonce=b"n" * 32)
    assert read_ocsp_answer(written.replace(nonce, nonce[:-1] + b"\x08", 1)).nonce is None
    builder = builder_about().certificates([responder_certificate()])
    builder = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, responder_certificate())
    critical = builder.add_extension(x509.OCSPNonce(b"n" * 32), critical=True)
    assert read_ocsp_answer(_built(critical)).nonce == b"n" * 32
    oid = x509.ObjectIdentifier("1.3.6.1.5.5.7.48.1.9")
    unknown = builder.add_extension(x509.UnrecognizedExtension(oid, b"\x05\0"), critical=True)
    with raises(FormatError, "unsupported"):
        read_ocsp_answer(_built(unknown))


def test_subject_certificate_is_of_the_issuer() -> None:
    """The PKI of these tests is consistent."""
    subject_certificate().verify_directly_issued_by(issuer_certificate())
    responder_certificate().verify_directly_issued_by(issuer_certificate())
    assert der(subject_certificate()) != der(responder_certificate())
