"""Attacks on signed answers: a forged answer must not be taken for a genuine one by its id.

The attacker is a relay that has a genuine, signed answer to another request.
"""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.client.proofs import signed_answers
from attestkit.client.proofs.signed_answers import MAX_SEEN, SignedAnswers
from attestkit.client.wire.exchange import MAX_IDENTIFIERS, IdentifierScan, WireRecord
from attestkit.errors import ServiceError, UsageError
from tests.client.proofs.test_signed_answers import Signing, record
from tests.raising import raises

GENUINE = b'{"id": "a-1", "choices": []}'
FORGED = [
    b'{"choices": [{"id": "other"}], "id": "a-1"}',
    b'{"id": "other", "id": "a-1"}',
    b'{"id": "a-1"}',
    b'{"x": "' + b" " * (1 << 17) + b'", "id": "a-1"}',
    b'{"\\u0069d": "a-1"}',
    b'{"i\\u0064": "a-1"}',
    b'{"id": "other", "id": "\\u0061-1"}',
    b'{"id"' + b" " * 65 + b': "a-1"}',
    b'{"id":' + b"\t" * 65 + b'"a-1"}',
    b'data: {"id"\ndata: : "a-1"}\n\n',
    b'data: {"id"\r: comment\rdata: : "a-1"}\r\r',
    b'data: {"id" : \ndata: "a-1"}\n\n',
    '{"id": "a-1"}'.encode("utf-16"),
    '{"id": "a-1"}'.encode("utf-16-le"),
    '{"id": "a-1"}'.encode("utf-32-be"),
]


@pytest.fixture
def answers() -> SignedAnswers:
    """The answers of a service that signs them."""
    service: Any = Signing()
    return SignedAnswers(service, "m")


@pytest.mark.parametrize("step", [1, 1 << 20])
@pytest.mark.parametrize("forged", FORGED)
@pytest.mark.parametrize("genuine_first", [True, False])
def test_id_of_a_genuine_answer(
    answers: SignedAnswers, forged: bytes, genuine_first: bool, step: int
) -> None:
    """A client reads the genuine answer's id in a forged one: then the id names neither."""
    found, size = WireRecord(), max(step, len(forged) // 100)
    for at in range(0, len(forged), size):
        found.received(forged[at : at + size])
    found.ended()
    records = [record(b"question", GENUINE), found]
    for one in records if genuine_first else reversed(records):
        answers.note(one)
    with raises(ServiceError, "signature"):
        answers.find("a-1")


def test_id_in_a_receipts_header(answers: SignedAnswers) -> None:
    """The header of a forged answer names the receipt of a genuine one."""
    answers.note(record(b"forged", b"{}", ("X-Receipt-Id", "r-1")))
    answers.note(record(b"question", b"{}", ("X-Receipt-Id", "r-1")))
    with raises(ServiceError, "signature"):
        answers.find("r-1")


def test_id_in_an_answer_that_is_not_read_to_its_end(answers: SignedAnswers) -> None:
    """A stream that is left counts, too."""
    answers.note(record(b"question", GENUINE))
    left = WireRecord()
    left.received(b'data: {"id": "a-1"}\n\n')
    answers.note(left)
    with raises(ServiceError, "signature"):
        answers.find("a-1")


def test_id_in_an_encoded_answer(answers: SignedAnswers) -> None:
    """A compressed answer cannot be searched for its id."""
    answers.note(record(b"question", GENUINE))
    answers.note(record(b"forged", b"\x1f\x8b", ("Content-Encoding", "gzip")))
    with raises(ServiceError, "signature"):
        answers.find("a-1")


def test_responses_are_named_by_themselves(answers: SignedAnswers) -> None:
    """The response itself tells which answer is meant."""

    class Response:
        def __init__(self, found: WireRecord) -> None:
            self.extensions = {"attestkit": found}

    records = [record(b"forged", b'{"id":"a-1","x":1}'), record(b"question", GENUINE)]
    for one in records:
        answers.note(one)
    for one in records:
        assert answers.find(Response(one)).response_sha256 == one.response_sha256


def test_many_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of kept ids is bounded; an answer with more ids may have any."""
    scan = IdentifierScan()
    scan.feed(b"".join(b'{"id":"%d"}' % number for number in range(MAX_IDENTIFIERS + 1)))
    assert scan.hides
    scan.feed(b'{"id":"of the next bytes"}')
    assert len(scan.found) == MAX_IDENTIFIERS
    assert MAX_SEEN >= MAX_IDENTIFIERS
    monkeypatch.setattr(signed_answers, "MAX_SEEN", 2)
    service: Any = Signing()
    answers = SignedAnswers(service, "m")
    for number in range(3):
        answers.note(record(b"", b'{"id": "%d"}' % number))
    assert len(answers._seen) == 2
    with raises(UsageError, "unknown_name"):
        answers.find("3")


@pytest.mark.parametrize("others", [1, 2, 3])
def test_repeated_id_beside_new_ones(others: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """New ids of an answer do not remove a repeated one before it is found to be repeated."""
    monkeypatch.setattr(signed_answers, "MAX_SEEN", 4)
    service: Any = Signing()
    answers = SignedAnswers(service, "m")
    for name in ("a-1", *"xyz"[: 4 - others]):
        answers.note(record(b"", b'{"id": "%s"}' % name.encode()))
    ids = ", ".join(f'{{"id": "new-{number}"}}' for number in range(others))
    answers.note(record(b"", f'{{"choices": [{ids}], "id": "a-1"}}'.encode()))
    with raises(ServiceError, "signature"):
        answers.find("a-1")


@pytest.mark.parametrize("genuine_first", [True, False])
@pytest.mark.parametrize("read", [True, False])
def test_ids_between_a_genuine_answer_and_a_forged_one(
    answers: SignedAnswers, read: bool, genuine_first: bool
) -> None:
    """Answers with as many ids as are kept, whole or not, do not hide that two have one id."""
    many = b"".join(b'{"id":"%%d-%d"}' % number for number in range(MAX_IDENTIFIERS))
    between = []
    for number in range(MAX_SEEN // MAX_IDENTIFIERS + 1):
        filler = WireRecord()
        filler.received(many.replace(b"%d", b"%d" % number))
        if read:
            filler.ended()
        assert not filler.identifiers.hides
        between.append(filler)
    ends = [record(b"question", GENUINE), record(b"forged", FORGED[1])]
    first, last = ends if genuine_first else reversed(ends)
    for one in (first, *between, last):
        answers.note(one)
    error, reason = (UsageError, "unknown_name") if genuine_first else (ServiceError, "signature")
    with raises(error, reason):
        answers.find("a-1")


def test_many_answers_with_few_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids are forgotten with their answers, and those of the last answers name them."""
    monkeypatch.setattr(signed_answers, "MAX_SEEN", 40)
    monkeypatch.setattr(signed_answers, "MAX_ANSWERS", 10)
    service: Any = Signing()
    answers = SignedAnswers(service, "m")
    models = b"".join(b'{"id":"model-%d"}' % number for number in range(10))
    for number in range(100):
        answers.note(record(b"", b'{"id": "a-%d", "calls": [{"id": "b-%d"}]}' % (number, number)))
        unread = WireRecord()
        unread.received(models)
        answers.note(unread)
        assert answers.find(f"a-{number}").identifier == f"a-{number}"
        assert len(answers._seen) <= 40
    answers.note(record(b"", b'{"id": "other", "id": "a-95"}'))
    with raises(ServiceError, "signature"):
        answers.find("a-95")
    assert answers.find("a-99").identifier == "a-99"


def test_id_that_was_forgotten_names_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that are not read to their end do not leave an older one alone with its id."""
    monkeypatch.setattr(signed_answers, "MAX_SEEN", 40)
    monkeypatch.setattr(signed_answers, "MAX_ANSWERS", 10)
    service: Any = Signing()
    answers = SignedAnswers(service, "m")
    answers.note(record(b"question", GENUINE))
    for number in range(100):
        unread = WireRecord()
        unread.received(b'{"id": "b-%d"}' % number)
        answers.note(unread)
    answers.note(record(b"forged", FORGED[1]))
    with raises(UsageError, "unknown_name"):
        answers.find("a-1")
    assert answers.find("other").identifier == "other"


@given(st.text(st.characters(codec="ascii"), max_size=30), st.integers(1, 40))
def test_honest_answers_hide_nothing(text: str, step: int) -> None:
    """Output of JSON encoders is not taken for a hidden id, whatever the content."""
    body = json.dumps({"id": "a-1", "content": f'"id": {text}"\\u0069d"'}, indent=1).encode()
    scan = IdentifierScan()
    for at in range(0, len(body), step):
        scan.feed(body[at : at + step])
    assert scan.found == {"a-1"}
    assert not scan.hides
