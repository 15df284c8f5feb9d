"""Requests sealed with ML-KEM-768: a server in the test opens and answers them."""

import gzip
import json
import secrets
import sys
from base64 import b64decode, b64encode
from collections.abc import Iterable
from typing import Any, Final

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import asymmetric
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.aead import chacha20_decrypt, chacha20_encrypt
from attestkit._crypto.hashes import hkdf_sha256
from attestkit._crypto.mlkem import MlKemKey, mlkem_encapsulate
from attestkit.client.sealing import kem
from attestkit.client.sealing.kem import KemOpener, KemSealing
from attestkit.client.sealing.protocol import SealedRequest
from attestkit.errors import ServiceError, UnsupportedError, UsageError, VerificationError
from tests.raising import raises
from tests.runner.cases import every_case

SERVER: Final = MlKemKey()
BODY: Final = b'{"model":"m","messages":[{"role":"user","content":"\xc3\xa9"}]}'
STREAMED: Final = b'{"model": "m", "stream": true} \n'
ANSWER: Final = b'{"id":"chatcmpl-1","choices":[]}'
EVENTS: Final = (
    b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n',
    b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DO',
    b"NE]\n\n",
)


def seal(body: bytes = BODY, headers: Iterable[tuple[str, str]] = ()) -> SealedRequest:
    """Seal a request to the server's key."""
    sealing = KemSealing(SERVER.public_key, "chute", "instance", lambda: "nonce")
    return sealing.seal("POST", "/v1/chat/completions", list(headers), body)


def opened(sealed: SealedRequest) -> dict[str, Any]:
    """Open a request, as the server does."""
    encapsulated, rest = sealed.body[:1088], sealed.body[1088:]
    key = hkdf_sha256(SERVER.decapsulate(encapsulated), b"e2e-req-v1", 32, encapsulated[:16])
    found: dict[str, Any] = json.loads(gzip.decompress(chacha20_decrypt(key, rest[:12], rest[12:])))
    return found


def encapsulated_to(sealed: SealedRequest, info: bytes) -> tuple[bytes, bytes]:
    """Return an encapsulation for the client that sent a request, and the key."""
    public = b64decode(opened(sealed)["e2e_response_pk"])
    secret, encapsulated = mlkem_encapsulate(public)
    return encapsulated, hkdf_sha256(secret, info, 32, encapsulated[:16])


def sealed_piece(key: bytes, data: bytes) -> bytes:
    """Return nonce and ciphertext."""
    nonce = secrets.token_bytes(12)
    return nonce + chacha20_encrypt(key, nonce, data)


def answer(sealed: SealedRequest, data: bytes = ANSWER) -> bytes:
    """Answer a request as a whole."""
    encapsulated, key = encapsulated_to(sealed, b"e2e-resp-v1")
    return encapsulated + sealed_piece(key, gzip.compress(data))


def event(name: str, data: bytes) -> bytes:
    """Return an event of a stream."""
    return f"data: {json.dumps({name: b64encode(data).decode()})}\n\n".encode()


def stream(sealed: SealedRequest, pieces: Iterable[bytes] = EVENTS) -> list[bytes]:
    """Answer a request in pieces: the events, without the end."""
    encapsulated, key = encapsulated_to(sealed, b"e2e-stream-v1")
    return [event("e2e_init", encapsulated), *(event("e2e", sealed_piece(key, x)) for x in pieces)]


def read(sealed: SealedRequest, data: bytes, step: int = 1 << 20) -> bytes:
    """Open an answer that comes in steps."""
    sealed.opener.start(200, [])
    parts = [sealed.opener.feed(data[at : at + step]) for at in range(0, len(data), step)]
    return b"".join(parts) + sealed.opener.finish()


def renewed(sealed: SealedRequest, *, streamed: bool) -> SealedRequest:
    """Return a request with an opener that has read nothing."""
    assert isinstance(sealed.opener, KemOpener)
    return sealed._replace(opener=KemOpener(sealed.opener._key, streamed=streamed))


def test_server_opens_the_request() -> None:
    """The server finds the body as it was, and the key for its answer."""
    found = opened(seal())
    assert len(b64decode(found.pop("e2e_response_pk"))) == 1184
    assert found == json.loads(BODY)
    assert list(opened(seal(b"{}"))) == ["e2e_response_pk"]
    assert b"content" not in seal().body


def test_head_of_the_request() -> None:
    """It goes to the service's entry; whatever describes the plaintext is replaced."""
    own = [
        ("Authorization", "Bearer x"),
        ("content-type", "application/json"),
        ("Content-Length", "3"),
    ]
    sealed = seal(STREAMED, [*own, ("x-e2e-nonce", "theirs"), ("Accept-Encoding", "gzip")])
    assert (sealed.method, sealed.target) == ("POST", "/e2e/invoke")
    assert sealed.headers == [
        ("Authorization", "Bearer x"),
        ("Content-Type", "application/octet-stream"),
        ("Accept-Encoding", "identity"),
        ("X-Chute-Id", "chute"),
        ("X-Instance-Id", "instance"),
        ("X-E2E-Nonce", "nonce"),
        ("X-E2E-Stream", "true"),
        ("X-E2E-Path", "/v1/chat/completions"),
    ]
    assert dict(seal().headers)["X-E2E-Stream"] == "false"


@every_case(
    ("method", "target", "headers", "body"),
    [
        ("GET", "/v1/models", [], b""),
        ("POST", "/v1/x?secret=1", [], BODY),
        ("POST", "/v1/x", [("Content-Encoding", "gzip")], BODY),
        ("POST", "/v1/x", [], b"not JSON"),
        ("POST", "/v1/x", [], b"[]"),
        ("POST", "/v1/x", [], b'{"a":1,"a":2}'),
        ("POST", "/v1/x", [], b'{"e2e_response_pk":""}'),
    ],
)
def test_request_that_cannot_be_sealed(
    method: str, target: str, headers: list[tuple[str, str]], body: bytes
) -> None:
    """Requests that would travel open, or are not JSON objects, are refused; no nonce is used."""
    sealing = KemSealing(SERVER.public_key, "chute", "instance", lambda: pytest.fail("spent"))
    with raises(ServiceError, "sealing"):
        sealing.seal(method, target, headers, body)


def test_keys_are_new_for_each_request() -> None:
    """Two requests have nothing in common."""
    first, second = seal(), seal()
    assert first.body[:1100] != second.body[:1100]
    assert opened(first)["e2e_response_pk"] != opened(second)["e2e_response_pk"]


def test_invalid_key_or_old_library_cannot_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what is missing."""
    with raises(ServiceError, "sealing"):
        KemSealing(b"short", "c", "i", lambda: "n").seal("POST", "/", [], b"{}")
    with raises(UsageError, "invalid_key"):
        mlkem_encapsulate(b"\xff" * 1184)
    monkeypatch.delattr(asymmetric, "mlkem")
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.mlkem", None)
    with raises(UnsupportedError, "feature"):
        MlKemKey()
    with raises(ServiceError, "sealing", part="install cryptography"):
        seal()


def test_openssl_without_mlkem(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that has the classes, and an OpenSSL that has not, is the same."""

    def generate() -> MLKEM768PrivateKey:
        raise UnsupportedAlgorithm("ML-KEM")

    monkeypatch.setattr(MLKEM768PrivateKey, "generate", generate)
    with raises(ServiceError, "sealing", part="install cryptography"):
        seal()


# -- answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_whole_answer(step: int) -> None:
    """An answer opens at its end, however it comes."""
    sealed = seal()
    assert read(sealed, answer(sealed), step) == ANSWER


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_streamed_answer(step: int) -> None:
    """The pieces of a stream come as they are; the end outside is left out if it is inside."""
    sealed = seal(STREAMED)
    data = b"".join(stream(sealed)) + b": comment\n\ndata: [DONE]\n\n"
    assert read(sealed, data, step) == b"".join(EVENTS)


def test_end_inside_is_what_counts() -> None:
    """With a reason of the end inside, the mark outside is handed on; alone it is nothing."""
    sealed = seal(STREAMED)
    pieces = [b'data: {"choices":[{"finish_reason": "stop"}]}\n\n']
    assert read(sealed, b"".join(stream(sealed, pieces)) + b"data: [DONE]\n\n").endswith(
        b"data: [DONE]\n\n"
    )
    for inside in (b"", b'data: {"finish_reason":null}\n\n', b'data: {"a":"data: [DONE]"}\n\n'):
        sealed = seal(STREAMED)
        with raises(ServiceError, "sealing"):
            read(sealed, b"".join(stream(sealed, [inside])) + b"data: [DONE]\n\n")


def test_forged_end_is_not_handed_on() -> None:
    """Clients stop reading at the mark, which anybody can insert, and never get to the refusal."""
    sealed = seal(STREAMED)
    opener = sealed.opener
    opener.start(200, [])
    [start, first, *_] = stream(sealed, [b'data: {"choices":[{"finish_reason":null}]}\n\n', b""])
    opener.feed(start + first)
    with raises(ServiceError, "sealing"):
        opener.feed(b"data: [DONE]\n\n")


def test_head_of_the_answer() -> None:
    """Headers that describe the sealed bytes are replaced; compression is refused."""
    head = [("Content-Type", "x"), ("content-length", "5"), ("Date", "today")]
    expected = [("Date", "today"), ("Content-Type", "application/json")]
    assert seal().opener.start(200, head) == expected
    assert seal(STREAMED).opener.start(200, [])[-1][1] == "text/event-stream"
    with raises(ServiceError, "sealing"):
        seal().opener.start(200, [("Content-Encoding", "gzip")])


def test_refusal_by_the_service_is_handed_on() -> None:
    """The API's own errors are not sealed."""
    opener = seal().opener
    assert opener.start(401, [("A", "b")]) == [("A", "b")]
    assert opener.feed(b"no key") + opener.finish() == b"no key"


def test_every_cut_of_an_answer_is_refused() -> None:
    """A whole answer has to be complete."""
    sealed = seal()
    data = answer(sealed)
    for size in [*range(0, 1088, 50), *range(1088, len(data))]:
        sealed = renewed(sealed, streamed=False)
        with raises(ServiceError, "sealing"):
            read(sealed, data[:size])


def test_every_cut_of_a_stream_is_refused() -> None:
    """A stream that ends before the API's end is refused; behind that nothing is missing."""
    sealed = seal(STREAMED)
    [start, *pieces] = stream(sealed)
    data = start + b"".join(pieces)
    least = len(start + pieces[0] + pieces[1]) - 2  # without the empty line
    for size in [*range(0, least - 1, 29), least - 2]:
        sealed = renewed(sealed, streamed=True)
        with raises(ServiceError, "sealing"):
            read(sealed, data[:size])


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_every_altered_byte_of_an_answer_is_refused(place: int, change: int) -> None:
    """The tag covers all of it."""
    sealed = seal()
    data = bytearray(answer(sealed))
    data[place % len(data)] ^= change
    with raises(ServiceError, "sealing"):
        read(sealed, bytes(data))


def test_answer_to_another_request_is_refused() -> None:
    """Each request has its own key for the answer."""
    first, second = seal(), seal()
    with raises(ServiceError, "sealing"):
        read(second, answer(first))
    one, two = seal(STREAMED), seal(STREAMED)
    with raises(ServiceError, "sealing"):
        read(two, b"".join(stream(one)))


@every_case(
    "data",
    [
        b'data: {"e2e":"AAAA"}\n\n',
        b'data: {"e2e_init":"AAAA"}\n\n',
        b'data: {"e2e_init":1}\n\n',
        b"data: not JSON\n\n",
        b"data: []\n\n",
        b'data: {"error":{"message":"no"}}\n\n',
        b'data: {"e2e_error":"no"}\n\n',
        b"x" * (kem.MAX_EVENT + 1),
        b"",
    ],
)
def test_malformed_stream(data: bytes) -> None:
    """A stream has e2e_init, then e2e."""
    with raises(ServiceError, "sealing"):
        read(seal(STREAMED), data)


def test_text_that_is_not_sealed_is_left_out() -> None:
    """Events that an attacker in between adds do not reach the caller."""
    sealed = seal(STREAMED)
    injected = b'data: {"choices":[{"delta":{"content":"injected"}}]}\n\n'
    found = read(sealed, injected.join(stream(sealed)))
    assert found == b"".join(EVENTS)
    sealed = seal(STREAMED)
    [start, *pieces] = stream(sealed)
    with raises(ServiceError, "sealing"):
        read(sealed, start + start + b"".join(pieces))


def test_limits_of_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sealed and opened bytes are limited, and gzip has one member."""
    sealed = seal()
    encapsulated, key = encapsulated_to(sealed, b"e2e-resp-v1")
    for packed in (b"plain", gzip.compress(ANSWER) * 2, gzip.compress(ANSWER)[:-1]):
        sealed = renewed(sealed, streamed=False)
        with raises(ServiceError, "sealing"):
            read(sealed, encapsulated + sealed_piece(key, packed))
    monkeypatch.setattr(kem, "MAX_ANSWER", 2000)
    for data in (bytes(100_000), secrets.token_bytes(3000)):
        sealed = seal()
        with raises(ServiceError, "sealing"):
            read(sealed, answer(sealed, data))


def test_primitives() -> None:
    """Sizes of keys and nonces are checked; a changed tag is refused."""
    for key, nonce in ((b"k", bytes(12)), (bytes(32), b"n")):
        with raises(UsageError, "wrong_size"):
            chacha20_encrypt(key, nonce, b"")
    with raises(VerificationError, "bad_signature"):
        chacha20_decrypt(bytes(32), bytes(12), bytes(16))
    with raises(UsageError, "wrong_size"):
        SERVER.decapsulate(b"")
    assert repr(SERVER) == "MlKemKey()"
