"""The document of attested TLS: one encoding of each value, and whatever differs is refused."""

import json
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.client.document import (
    MAX_CERTIFICATE,
    MAX_CERTIFICATES,
    MAX_KEYS,
    MAX_NAME,
    MAX_SIGNING_KEY,
    MAX_SIZE,
    MAX_STATEMENT,
    SigningKey,
    encode_document,
    encode_statement,
    read_document,
    statement_report_data,
)
from attestkit.errors import FormatError, ServiceError, UsageError
from attestkit.report_data import ReportData
from tests.client.middleware.documents import (
    HPKE,
    NAME,
    NONCE,
    OTHER_KEY,
    PEER,
    SIGNING,
    full_statement,
    statement_fields,
    unverified,
    with_members,
    with_statement,
)
from tests.raising import raises
from tests.runner.cases import every_case

Change = Callable[[dict[str, Any]], object]


def test_document_is_read_as_it_was_written() -> None:
    """All members are returned, and the report data are over the exact bytes of the statement."""
    document = read_document(unverified(), NONCE)
    statement = document.statement
    assert statement.encoded == full_statement()
    assert statement.nonce == NONCE
    assert statement.tls == (OTHER_KEY, PEER.spki_sha256)
    assert (statement.hpke, statement.signing, statement.name) == (HPKE, (SIGNING,), NAME)
    assert (document.evidence, document.certificates) == (b"evidence", (b"\x30\x00",))
    assert statement.report_data == ReportData.bind("attested-tls", statement.encoded)
    assert statement.report_data == statement_report_data(statement.encoded)


def test_statement_is_as_specified() -> None:
    """The bytes are those of the specification: canonical JSON with these names."""
    found = encode_statement([b"\1" * 32], b"\2" * 32)
    keys, nonce = f'{{"tls":["{"01" * 32}"]}}', "02" * 32
    text = f'{{"keys":{keys},"nonce":"{nonce}","purpose":"attestkit.attested-tls.v1"}}'
    assert found == text.encode()


def test_optional_members_may_be_missing() -> None:
    """Missing members are None or empty."""
    document = read_document(encode_document(encode_statement([OTHER_KEY], NONCE), b"e"), NONCE)
    assert document.statement[3:] == (None, (), None)
    assert document.certificates == ()


KEYS = st.binary(min_size=32, max_size=32)
SIGNING_KEYS = st.builds(
    SigningKey,
    st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True),
    st.binary(min_size=1, max_size=100),
)
NAMES = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=MAX_NAME)


@pytest.mark.slow
@given(
    tls=st.lists(KEYS, min_size=1, max_size=MAX_KEYS, unique=True),
    nonce=KEYS,
    hpke=st.none() | KEYS,
    signing=st.lists(SIGNING_KEYS, max_size=MAX_KEYS),
    name=st.none() | NAMES,
    evidence=st.binary(min_size=1, max_size=100),
    certificates=st.lists(st.binary(max_size=50).map(b"\x30".__add__), max_size=MAX_CERTIFICATES),
)
def test_round_trip(
    *,
    tls: list[bytes],
    nonce: bytes,
    hpke: bytes | None,
    signing: list[SigningKey],
    name: str | None,
    evidence: bytes,
    certificates: list[bytes],
) -> None:
    """A written statement is read again, and written again as the same bytes."""
    encoded = encode_statement(tls, nonce, hpke=hpke, signing=signing, name=name)
    body = encode_document(encoded, evidence, certificates)
    document = read_document(body, nonce)
    statement = document.statement
    assert statement == (encoded, nonce, tuple(tls), hpke, tuple(signing), name)
    assert (document.evidence, document.certificates) == (evidence, tuple(certificates))
    again = encode_statement(
        statement.tls, nonce, hpke=statement.hpke, signing=statement.signing, name=statement.name
    )
    assert encode_document(again, document.evidence, document.certificates) == body


def test_every_cut_length_is_refused() -> None:
    """A truncated document is refused."""
    body = unverified()
    for size in range(len(body)):
        with pytest.raises(FormatError):
            read_document(body[:size], NONCE)


def test_every_cut_length_of_the_statement_is_refused() -> None:
    """A truncated statement is refused."""
    statement = full_statement()
    for size in range(len(statement)):
        with pytest.raises(FormatError):
            read_document(with_statement(unverified(), statement[:size]), NONCE)


def test_every_changed_byte_of_the_statement_is_refused_or_changes_report_data() -> None:
    """No byte of the statement can change without effect."""
    statement, wanted, read = full_statement(), statement_report_data(full_statement()), 0
    for at in range(len(statement)):
        for mask in (0x01, 0x20, 0x80):
            changed = bytearray(statement)
            changed[at] ^= mask
            try:
                found = read_document(with_statement(unverified(), bytes(changed)), NONCE)
            except (FormatError, ServiceError):
                continue
            read += 1
            assert found.statement.report_data != wanted
    assert read  # such as another digit of a key


def test_other_nonce_is_refused() -> None:
    """A document for another nonce, such as an old one, is refused."""
    for nonce in (bytes(32), NONCE[::-1], NONCE[:-1]):
        with raises(ServiceError, "nonce_echo"):
            read_document(unverified(), nonce)


@every_case(
    ("members", "reason"),
    [
        ({"version": 2}, "unsupported_version"),
        ({"version": "1"}, "wrong_type"),
        ({"version": True}, "wrong_type"),
        ({"version": 1.0}, "wrong_type"),
        ({"version": None}, "missing"),
        ({"statement": None}, "missing"),
        ({"evidence": None}, "missing"),
        ({"extra": 1}, "unknown_field"),
        ({"evidence": ""}, "missing"),
        ({"evidence": 7}, "wrong_type"),
        ({"evidence": "Z"}, "encoding"),
        ({"evidence": "ZZ"}, "encoding"),
        ({"evidence": "ZR=="}, "encoding"),  # unused bits
        ({"evidence": "_-8="}, "encoding"),
        ({"evidence": "Z X="}, "encoding"),
        ({"certificates": []}, "missing"),
        ({"certificates": "MAA="}, "wrong_type"),
        ({"certificates": [1]}, "wrong_type"),
        ({"certificates": ["AAA="]}, "syntax"),
        ({"certificates": ["MAA="] * (MAX_CERTIFICATES + 1)}, "too_many"),
        ({"certificates": [b64encode(b"\x30" * (MAX_CERTIFICATE + 1)).decode()]}, "too_large"),
        ({"statement": b64encode(bytes(MAX_STATEMENT + 1)).decode()}, "too_large"),
    ],
)
def test_other_members_are_refused(members: dict[str, Any], reason: str) -> None:
    """A member that is missing, unknown, of another type or too large is refused."""
    with raises(FormatError, reason):
        read_document(with_members(unverified(), **members), NONCE)


@every_case("member", ["certificates", "version", "statement", "evidence"])
def test_null_is_no_value(member: str) -> None:
    """JSON's null is not the same as a missing member."""
    fields = {**json.loads(unverified()), member: None}
    with raises(FormatError, "wrong_type", "missing"):
        read_document(json.dumps(fields).encode(), NONCE)


def test_duplicate_member_is_refused() -> None:
    """Other parsers might read the other one."""
    body = unverified()
    for twice in (b'{"version":1,', b'{"statement":"",', b'{"evidence":"",'):
        with raises(FormatError, "duplicate"):
            read_document(twice + body[1:], NONCE)


@every_case("body", [b"", b"[]", b"null", b'"text"', b"\xff", b"[" * 10_000])
def test_what_is_no_document_is_refused(body: bytes) -> None:
    """Other bytes, JSON or not, are refused."""
    with pytest.raises(FormatError):
        read_document(body, NONCE)


def test_too_large_document_is_refused() -> None:
    """The limit is checked before the text is parsed."""
    with raises(FormatError, "too_large"):
        read_document(b" " * (MAX_SIZE + 1), NONCE)


@every_case(
    ("change", "reason"),
    [
        (lambda one: one.update(purpose="attestkit.attested-tls.v2"), "wrong_value"),
        (lambda one: one.update(purpose=1), "wrong_value"),
        (lambda one: one.pop("purpose"), "missing"),
        (lambda one: one.pop("nonce"), "missing"),
        (lambda one: one.pop("keys"), "missing"),
        (lambda one: one.update(more=1), "unknown_field"),
        (lambda one: one.update(nonce=NONCE.hex().upper()), "encoding"),
        (lambda one: one.update(nonce=NONCE.hex()[2:]), "wrong_size"),
        (lambda one: one.update(nonce=7), "wrong_type"),
        (lambda one: one.update(name=None), "wrong_type"),
        (lambda one: one.update(name=""), "wrong_value"),
        (lambda one: one.update(name="a\nb"), "wrong_value"),
        (lambda one: one.update(name="a\u2028b"), "wrong_value"),
        (lambda one: one.update(name="a" * (MAX_NAME + 1)), "wrong_value"),
        (lambda one: one.update(keys=[]), "wrong_type"),
        (lambda one: one["keys"].pop("tls"), "missing"),
        (lambda one: one["keys"].update(ssh=[]), "unknown_field"),
        (lambda one: one["keys"].update(tls=[]), "missing"),
        (lambda one: one["keys"].update(tls=OTHER_KEY.hex()), "wrong_type"),
        (lambda one: one["keys"].update(tls=[1]), "wrong_type"),
        (lambda one: one["keys"].update(tls=[OTHER_KEY.hex()] * 2), "duplicate"),
        (lambda one: one["keys"].update(tls=[OTHER_KEY.hex().upper()]), "encoding"),
        (lambda one: one["keys"].update(tls=["0x" + OTHER_KEY.hex()]), "encoding"),
        (lambda one: one["keys"].update(tls=[OTHER_KEY.hex() + "00"]), "wrong_size"),
        (lambda one: one["keys"].update(tls=[f"{n:064x}" for n in range(17)]), "too_many"),
        (lambda one: one["keys"].update(hpke=None), "wrong_type"),
        (lambda one: one["keys"].update(hpke="00"), "wrong_size"),
        (lambda one: one["keys"].update(signing=None), "wrong_type"),
        (lambda one: one["keys"].update(signing=[]), "missing"),
        (lambda one: one["keys"].update(signing=[1]), "wrong_type"),
        (lambda one: one["keys"]["signing"].extend([1] * 17), "too_many"),
        (lambda one: one["keys"]["signing"][0].pop("algorithm"), "missing"),
        (lambda one: one["keys"]["signing"][0].pop("public_key"), "missing"),
        (lambda one: one["keys"]["signing"][0].update(curve="x"), "unknown_field"),
        (lambda one: one["keys"]["signing"][0].update(algorithm=1), "wrong_type"),
        (lambda one: one["keys"]["signing"][0].update(algorithm="Ed25519"), "wrong_value"),
        (lambda one: one["keys"]["signing"][0].update(algorithm="a" * 65), "wrong_value"),
        (lambda one: one["keys"]["signing"][0].update(public_key=""), "encoding"),
        (
            lambda one: one["keys"]["signing"][0].update(public_key="00" * (MAX_SIGNING_KEY + 1)),
            "too_large",
        ),
    ],
)
def test_other_statements_are_refused(change: Change, reason: str) -> None:
    """A statement with members that are missing, unknown or of another form is refused."""
    fields = statement_fields(unverified())
    change(fields)
    with raises(FormatError, reason):
        read_document(with_statement(unverified(), fields), NONCE)


@every_case(
    "text",
    [
        json.dumps,  # spaces, and escapes of letters
        lambda fields: json.dumps(fields, separators=(",", ":"), sort_keys=True),
        lambda fields: json.dumps(
            dict(reversed(fields.items())), separators=(",", ":"), ensure_ascii=False
        ),
        lambda _: full_statement().decode() + "\n",
        lambda _: full_statement().decode().replace("attestkit.", "attestkit\\u002e"),
    ],
)
def test_statement_in_another_form_is_refused(text: Callable[[dict[str, Any]], str]) -> None:
    """Order of members, white space and escapes are fixed."""
    raw = text(statement_fields(unverified())).encode()
    assert json.loads(raw) == statement_fields(unverified())
    with raises(FormatError, "not_canonical"):
        read_document(with_statement(unverified(), raw), NONCE)


@every_case(
    ("arguments", "reason"),
    [
        ({"tls": []}, "wrong_value"),
        ({"tls": [OTHER_KEY] * 2}, "wrong_value"),
        ({"tls": [bytes([n]) * 32 for n in range(MAX_KEYS + 1)]}, "wrong_value"),
        ({"tls": [OTHER_KEY[1:]]}, "wrong_size"),
        ({"tls": [OTHER_KEY.hex()]}, "wrong_type"),
        ({"nonce": b""}, "wrong_size"),
        ({"nonce": "00" * 32}, "wrong_type"),
        ({"hpke": b"short"}, "wrong_size"),
        ({"signing": [("Ed25519", b"key")]}, "wrong_value"),
        ({"signing": [("ed25519", b"")]}, "wrong_value"),
        ({"signing": [("ed25519", "00")]}, "wrong_type"),
        ({"signing": [(b"ed25519", b"key")]}, "wrong_type"),
        ({"name": ""}, "wrong_value"),
        ({"name": "a\0"}, "wrong_value"),
        ({"name": "\ud800"}, "wrong_value"),
        ({"name": b"name"}, "wrong_type"),
    ],
)
def test_arguments_that_are_not_valid_are_refused(arguments: dict[str, Any], reason: str) -> None:
    """The writer accepts what the reader does."""
    with raises(UsageError, reason):
        encode_statement(**{"tls": [OTHER_KEY], "nonce": NONCE, **arguments})
