"""Signatures of answers: found by the answer's identifier, and of exactly its bytes."""

from hashlib import sha256
from typing import Any

import pytest

from attestkit.client.proofs.signed_answers import (
    MAX_ANSWERS,
    MAX_SIGNATURE,
    TRIES,
    SignatureReply,
    SignedAnswers,
)
from attestkit.client.services.own_document import OwnDocument
from attestkit.client.services.service import AnswerRecord, Question
from attestkit.client.wire.exchange import WireRecord
from attestkit.errors import FormatError, ServiceError, UsageError
from tests.processes import in_child


class Signing:
    """A service whose signature of an answer is the hash of both bodies."""

    name = "signing"

    def signature_question(self, answer: AnswerRecord, model: str | None) -> Question:
        """Ask for it by the identifier."""
        return Question(f"/signature/{answer.identifier}?model={model}")

    def check_signature(
        self, document: bytes, answer: AnswerRecord, claims: object, model: str | None
    ) -> None:
        """Compare the hashes."""
        del claims, model
        if document != answer.request_sha256 + answer.response_sha256:
            raise ServiceError("other bytes", reason="signature")


def record(request: bytes, body: bytes, *headers: tuple[str, str]) -> WireRecord:
    """Return the record of an answer that was read to its end."""
    found = WireRecord()
    found.headers = headers
    found.sent(request)
    found.received(body)
    found.ended()
    return found


@pytest.fixture
def answers() -> SignedAnswers:
    """The answers of a service that signs them."""
    service: Any = Signing()
    return SignedAnswers(service, "m")


class Proof:
    """A proof of which only the claims are used."""

    claims = None


def verify(answers: SignedAnswers, answer: object, *found: SignatureReply) -> list[Question]:
    """Verify an answer with these answers to the requests for its signature; return these."""
    asked: list[Question] = []

    def get(question: Question) -> SignatureReply:
        asked.append(question)
        return found[min(len(asked), len(found)) - 1]

    proof: Any = Proof()
    answers.verify(answer, proof, get, sleep=lambda _: None)
    return asked


GOOD = SignatureReply(200, sha256(b"question").digest() + sha256(b'{"id": "a-1"}').digest())


def test_signature_is_found_by_id(answers: SignedAnswers) -> None:
    """The identifier is the member `id` of the body, of an object or a text."""
    answers.note(record(b"question", b'{"id": "a-1"}'))
    assert verify(answers, "a-1", GOOD) == [Question("/signature/a-1?model=m")]


def test_receipt_is_found_by_header(answers: SignedAnswers) -> None:
    """The header X-Receipt-Id precedes the body's member."""
    answers.note(record(b"question", b'{"id": "a-1"}', ("X-Receipt-Id", "r-7")))
    assert verify(answers, "r-7", GOOD) == [Question("/signature/r-7?model=m")]


def test_signature_of_other_bytes_is_refused(answers: SignedAnswers) -> None:
    """One changed byte of request or answer is refused."""
    for request, body in ((b"Question", b'{"id": "a-1"}'), (b"question", b'{"id": "a-1"} ')):
        answers.note(record(request, body))
        with pytest.raises(ServiceError) as refused:
            verify(answers, "a-1", GOOD)
        assert refused.value.reason == "signature"


def test_signature_that_comes_late_is_waited_for(answers: SignedAnswers) -> None:
    """A status of 404 is tried again, with a limit."""
    answers.note(record(b"question", b'{"id": "a-1"}'))
    missing = SignatureReply(404, b"")
    assert len(verify(answers, "a-1", missing, missing, GOOD)) == 3
    with pytest.raises(ServiceError) as refused:
        verify(answers, "a-1", *[missing] * (TRIES + 1))
    assert refused.value.reason == "no_signatures"


def test_signature_that_is_too_large_is_refused(answers: SignedAnswers) -> None:
    """The size is bounded."""
    answers.note(record(b"question", b'{"id": "a-1"}'))
    with pytest.raises(FormatError) as refused:
        verify(answers, "a-1", SignatureReply(200, bytes(MAX_SIGNATURE + 1)))
    assert refused.value.reason == "too_large"


def test_unknown_answers_are_refused(answers: SignedAnswers) -> None:
    """An answer of another endpoint, without an end, or of another type is the caller's mistake."""
    unread = WireRecord()
    unread.received(b'{"id": "a-1"}')
    answers.note(unread)
    answers.note(record(b"question", b"no identifier"))
    for answer, reason in (("a-1", "unknown_name"), (7, "wrong_type")):
        with pytest.raises(UsageError) as refused:
            answers.find(answer)
        assert refused.value.reason == reason


def test_number_of_kept_answers_is_bounded(answers: SignedAnswers) -> None:
    """The oldest answers are forgotten."""
    for number in range(MAX_ANSWERS + 1):
        answers.note(record(b"", b'{"id": "%d"}' % number))
    with pytest.raises(UsageError):
        answers.find("0")
    assert answers.find("1").identifier == "1"


def test_service_without_signatures_is_refused() -> None:
    """A service that does not sign is refused before a request."""
    with pytest.raises(ServiceError) as refused:
        SignedAnswers(OwnDocument(), None)
    assert refused.value.reason == "no_signatures"


def test_lock_that_is_held_at_a_fork_does_not_block_the_child(answers: SignedAnswers) -> None:
    """Answers before and after the fork are found."""
    answers.note(record(b"question", b'{"id": "a-1"}'))

    def child() -> None:
        answers.note(record(b"question", b'{"id": "a-2"}'))
        assert [answers.find(name).identifier for name in ("a-1", "a-2")] == ["a-1", "a-2"]

    with answers._lock:
        assert in_child(child)
