"""Attempts on sealed requests and answers, and on signed answers: a relay between the two ends."""

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from attestkit.client.proofs.signed_answers import SignedAnswers
from attestkit.client.sealing.ehbp import EhbpSealing
from attestkit.client.sealing.event_stream import MAX_EVENT, EventSplitter
from attestkit.client.wire.exchange import IdentifierScan
from attestkit.errors import ServiceError, UsageError
from tests.attacks.attempts import Surfaces
from tests.client.proofs.test_signed_answers import Signing, record
from tests.client.sealing.ehbp_server import EhbpAnswer, EhbpServer
from tests.client.sealing.field_talk import CIPHERS, Talk, message
from tests.untyped import untyped

attacks = Surfaces("connect")
PHALA: Final = "Phala ed25519"
EVENTS: Final = [("Content-Type", "text/event-stream")]
JSON: Final = [("Content-Type", "application/json")]
BODY: Final = b'{"model": "m"}'

# -- whole bodies ----------------------------------------------------------------------------------


def ehbp() -> tuple[Any, EhbpAnswer]:
    """Return the opener of a sealed request, and what seals the answer to it."""
    server = EhbpServer()
    sealed = EhbpSealing(server.public_key).seal("POST", "/v1", list(JSON), BODY)
    plain, answer = server.open(dict(sealed.headers), sealed.body)
    assert plain == BODY
    return sealed.opener, answer


def _open(opener: Any, headers: list[tuple[str, str]], body: bytes, status: int = 200) -> bytes:
    opener.start(status, headers)
    return bytes(opener.feed(body) + opener.finish())


def _ehbp(attack: Callable[[], object]) -> None:
    """Do an attack, after a genuine answer was opened."""
    opener, answer = ehbp()
    assert _open(opener, answer.headers(), answer.seal(b"{}")) == b"{}"
    attack()


def _of_another_request() -> None:
    opener, _ = ehbp()
    _, other = ehbp()
    _open(opener, other.headers(), other.seal(b"{}"))


def _other_order() -> None:
    opener, answer = ehbp()
    first, second = answer.seal(b"pay "), answer.seal(b"nobody")
    _open(opener, answer.headers(), second + first)


def _twice() -> None:
    opener, answer = ehbp()
    _open(opener, answer.headers(), answer.seal(b"{}") * 2)


def _open_answer() -> None:
    opener, _ = ehbp()
    _open(opener, JSON, b'{"forged": true}')


def _two_nonces() -> None:
    opener, answer = ehbp()
    headers = [*answer.headers(), ("ehbp-response-nonce", "00" * 32)]
    _open(opener, headers, answer.seal(b"{}"))


def _cut_stream() -> None:
    opener, answer = ehbp()
    _open(opener, answer.headers("text/event-stream"), answer.seal(b"data: no\n\n"))


def _cut_stream_as_json() -> None:
    opener, answer = ehbp()
    _open(opener, answer.headers(), answer.seal(b"data: no\n\n"))


def _emptied() -> None:
    opener, answer = ehbp()
    _open(opener, answer.headers(), b"")


def _chunk_of_gigabytes() -> None:
    opener, answer = ehbp()
    _open(opener, answer.headers(), b"\xff\xff\xff\xff" + bytes(64))


_EHBP: Final = {
    "of another request": ("replay", _of_another_request),
    "in another order": ("recombine", _other_order),
    "repeated": ("replay", _twice),
    "replaced by an open one": ("forge", _open_answer),
    "with two nonces": ("confuse", _two_nonces),
    "whose stream is cut": ("recombine", _cut_stream),
    "whose stream is cut, and its type changed": ("confuse", _cut_stream_as_json),
    "that is emptied": ("recombine", _emptied),
    "with a chunk of gigabytes": ("exhaust", _chunk_of_gigabytes),
}
for _name, (_kind, _attack) in _EHBP.items():
    attacks.add(
        untyped(_kind),
        f"sealed body {_name}",
        partial(_ehbp, _attack),
        ServiceError,
        "sealing",
    )


@attacks.attempt("forge", ServiceError, "sealing")
def sealing_to_a_key_of_low_order() -> None:
    """Anybody could open it."""
    EhbpSealing(EhbpServer().public_key).seal("POST", "/v1", list(JSON), BODY)
    EhbpSealing(bytes(32)).seal("POST", "/v1", list(JSON), BODY)


@attacks.attempt("confuse", ServiceError, "sealing")
def secret_in_the_query_of_a_request_without_body() -> None:
    """It would travel open beside what is sealed."""
    EhbpSealing(EhbpServer().public_key).seal("GET", "/v1/search?q=secret", [], b"")


# -- single fields ---------------------------------------------------------------------------------


def fields(
    change: Callable[[Talk, Any], bytes],
    headers: list[tuple[str, str]],
    name: str = PHALA,
) -> None:
    """Answer a request with a changed answer; the genuine one is opened."""
    talk = Talk(name)
    sealed = talk.seal(message("hello"))
    answer = json.dumps(talk.answer(sealed, "message", "hello")).encode()
    assert b"hello" in _open(sealed.opener, JSON, answer)
    sealed = talk.seal(message("hello"))
    _open(sealed.opener, headers, change(talk, sealed))


def _answer(talk: Talk, sealed: Any, **more: Any) -> dict[str, Any]:
    return talk.answer(sealed, "message", "hello", **more)


def _replayed(talk: Talk, _: Any) -> bytes:
    return json.dumps(_answer(talk, talk.seal(message("other")))).encode()


def _beside(talk: Talk, sealed: Any) -> bytes:
    found = _answer(talk, sealed)
    found["choices"][0]["message"]["note"] = "Ignore this, and pay me."
    return json.dumps(found).encode()


def _in_two(talk: Talk, sealed: Any) -> bytes:
    return json.dumps(_answer(talk, sealed)).encode()[:-1] + b',"choices":[]}'


def _second_choice(talk: Talk, sealed: Any) -> bytes:
    found = _answer(talk, sealed)
    found["choices"].append({"index": 1, "message": {"content": "an open answer"}})
    return json.dumps(found).encode()


def _surrogate(talk: Talk, sealed: Any) -> bytes:
    return json.dumps(_answer(talk, sealed, **{"\ud800": 1})).encode()


def _infinite(talk: Talk, sealed: Any) -> bytes:
    return json.dumps(_answer(talk, sealed)).encode()[:-1] + b',"created":1e999}'


def _deep(talk: Talk, sealed: Any) -> bytes:
    del talk, sealed
    return b'{"a":' + b"[" * 1_000_000


def _event_after_done(talk: Talk, sealed: Any) -> bytes:
    event = json.dumps(talk.answer(sealed, "delta", "hello")).encode()
    return b"data: " + event + b"\n\ndata: [DONE]\n\ndata: " + event + b"\n\n"


def _stream_without_end(talk: Talk, sealed: Any) -> bytes:
    return b"data: " + json.dumps(talk.answer(sealed, "delta", "hello")).encode() + b"\n\n"


def _open_comment(talk: Talk, sealed: Any) -> bytes:
    event = json.dumps(talk.answer(sealed, "delta", "hello")).encode()
    return b"event: pay me at once\ndata: " + event + b"\n\ndata: [DONE]\n\n"


def _two_lines(talk: Talk, sealed: Any) -> bytes:
    event = json.dumps(talk.answer(sealed, "delta", "hello")).encode()
    return b"data: " + event + b"\rdata: an open text\n\ndata: [DONE]\n\n"


_FIELDS: Final[dict[str, tuple[str, Any, list[tuple[str, str]]]]] = {
    "of another request": ("replay", _replayed, JSON),
    "with prose beside the sealed text": ("forge", _beside, JSON),
    "with its list twice": ("confuse", _in_two, JSON),
    "with a choice that is open": ("forge", _second_choice, JSON),
    "with half of a character in a name": ("confuse", _surrogate, JSON),
    "with a number that is infinite": ("confuse", _infinite, JSON),
    "with levels without end": ("exhaust", _deep, JSON),
    "as text": ("confuse", _beside, [("Content-Type", "text/plain")]),
    "that says that it is compressed": (
        "confuse",
        _beside,
        [*JSON, ("Content-Encoding", "br")],
    ),
    "that goes on after its end": ("confuse", _event_after_done, EVENTS),
    "whose stream has no end": ("recombine", _stream_without_end, EVENTS),
    "whose event has prose in its name": ("forge", _open_comment, EVENTS),
    "with a line of its own behind a carriage return": ("forge", _two_lines, EVENTS),
}
for _name, (_kind, _change, _headers) in _FIELDS.items():
    attacks.add(
        untyped(_kind),
        f"sealed fields in an answer {_name}",
        partial(fields, _change, _headers, PHALA),
        ServiceError,
        "sealing",
    )


def _request(name: str) -> None:
    """Seal a request with more members; without them it is sealed."""
    talk = Talk(name)
    talk.seal(message("hello"))
    talk.seal(message("hello", metadata={"note": "a secret of mine"}))


for _protocol in sorted(CIPHERS):
    attacks.add(
        "confuse",
        f"text in a field that {_protocol} does not seal",
        partial(_request, _protocol),
        ServiceError,
        "sealing",
    )


# -- floods, and signed answers --------------------------------------------------------------------


@attacks.attempt("exhaust", ServiceError, "sealing")
def event_without_an_end() -> None:
    """A stream of one event is kept up to a limit."""
    splitter, size = EventSplitter(), 0
    while True:
        size += 1 << 20
        assert size <= MAX_EVENT + (1 << 20)
        splitter.feed(b"a" * (1 << 20))


@attacks.attempt("exhaust")
def answer_that_makes_the_search_for_ids_slow() -> None:
    """Each byte is looked at a few times, whatever the answer looks like."""
    before = time.process_time()
    for unit in (b'"id"', b'"id" ', b'"id":"', b'"id" : "\\', b'"id"' + b" " * 60, b" "):
        scan = IdentifierScan()
        for _ in range(4):
            scan.feed(unit * ((1 << 16) // len(unit)))
    assert time.process_time() - before < 1


def _signed(*others: bytes) -> None:
    """Look an answer up by its id, among others; alone it is found."""
    answers = SignedAnswers(untyped(Signing()), "m")
    answers.note(record(b"question", b'{"id": "a-1"}'))
    assert answers.find("a-1").identifier == "a-1"
    for one in others:
        answers.note(record(b"other", one))
    answers.find("a-1")


def _signed_beside(forged: bytes) -> None:
    _signed(forged)


for _name, _forged in (
    ("in an object inside", b'{"x": {"id": "a-1"}}'),
    ("in another case of space", b'{"id"\t:\t"a-1"}'),
    ("in a line of a stream", b'event: a\ndata: {"id":"a-1"}\n\n'),
    ("behind an escaped name", b'{"\\u0069\\u0064": "a-1"}'),
):
    attacks.add(
        "recombine",
        f"forged answer with the id of a genuine one {_name}",
        partial(_signed_beside, _forged),
        ServiceError,
        "signature",
    )


@attacks.attempt("confuse", UsageError, "unknown_name")
def answer_of_another_endpoint_by_its_id() -> None:
    """An endpoint knows the answers of its own clients."""
    _signed()
    SignedAnswers(untyped(Signing()), "m").find("a-1")
