"""EHBP: vectors, requests that another implementation opens, and answers changed in any way."""

import json
from functools import partial
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.client.sealing.ehbp import (
    KEY_CONFIG_PROBLEM,
    MAX_CHUNK,
    EhbpOpener,
    EhbpSealing,
    derive_answer_keys,
)
from attestkit.client.sealing.protocol import (
    MAX_PROBLEM,
    Opener,
    SealedRequest,
    Sealing,
    SealingKeyError,
)
from attestkit.client.services.service import Binding
from attestkit.client.services.tinfoil.tinfoil import Tinfoil, TinfoilBundle
from attestkit.errors import ServiceError
from tests.client.sealing.ehbp_server import KEY_PROBLEM, EhbpAnswer, EhbpServer, chunks_of
from tests.untyped import untyped
from tests.vectors import data, needs_shared

BODY: Final = b'{"model": "m", "messages": []}'
HEADERS: Final = [("Content-Type", "application/json"), ("Authorization", "Bearer key")]
PROBLEM: Final = [("Content-Type", "application/problem+json; charset=utf-8")]


@pytest.fixture(scope="module")
def server() -> EhbpServer:
    """Provide an enclave's middleware."""
    return EhbpServer()


def seal(server: EhbpServer, body: bytes = BODY) -> SealedRequest:
    """Return a sealed request to a server."""
    sealing: Sealing = EhbpSealing(server.public_key)
    return sealing.seal("POST", "/v1/chat/completions", list(HEADERS), body)


def answered(server: EhbpServer) -> tuple[Opener, EhbpAnswer]:
    """Return the opener of a request, and what seals the answer to it."""
    request = seal(server)
    body, answer = server.open(dict(request.headers), request.body)
    assert body == BODY
    return request.opener, answer


def is_authenticated(opener: Any) -> bool:
    """Return whether the content of an answer is the enclave's."""
    found: bool = opener.authenticated
    return found


def refusal(call: Any) -> ServiceError:
    """Return the error of a call, which has the reason `sealing`."""
    with pytest.raises(ServiceError) as caught:
        call()
    assert caught.value.reason == "sealing"
    return caught.value


@needs_shared
def test_keys_of_the_vectors() -> None:
    """Keys and first nonces of answers are those of the protocol's vectors."""
    expected = json.loads(data("services/expected.json"))["ehbp"]
    for name in ("derive.json", "response-decryption.json"):
        vector = {k: bytes.fromhex(v) for k, v in json.loads(data(f"services/ehbp/{name}")).items()}
        key, nonce = derive_answer_keys(
            vector["exportedSecret"], vector["requestEnc"], vector["responseNonce"]
        )
        assert (key.hex(), nonce.hex()) == (expected[name]["key"], expected[name]["nonce"])
        assert key == vector.get("derivedKey", key)
        assert nonce == vector.get("derivedNonceBase", nonce)


@needs_shared
def test_answer_of_the_vectors_is_opened() -> None:
    """The encrypted answer of the vectors decrypts to its plaintext, byte by byte."""
    raw = json.loads(data("services/ehbp/response-decryption.json"))
    vector = {name: bytes.fromhex(value) for name, value in raw.items()}

    class Context:
        encapsulated = vector["requestEnc"]

        def export(self, context: bytes, length: int) -> bytes:
            assert (context, length) == (b"ehbp response", 32)
            return vector["exportedSecret"]

    opener = EhbpOpener(untyped(Context()))
    opener.start(200, [("Ehbp-Response-Nonce", vector["responseNonce"].hex())])
    encrypted = vector["encryptedResponse"]
    opened = [opener.feed(encrypted[at : at + 1]) for at in range(len(encrypted))]
    assert b"".join(opened) + opener.finish() == vector["plaintext"]


# -- requests --------------------------------------------------------------------------------------


@given(st.binary(min_size=1, max_size=200))
def test_request_is_opened_by_another_implementation(body: bytes) -> None:
    """The body of a request is one context's chunks; headers stay, framing is chunked."""
    server = EhbpServer()
    request = seal(server, body)
    headers = dict(request.headers)
    assert len(headers) == len(request.headers) == 4
    assert headers["Transfer-Encoding"] == "chunked"
    assert headers["Authorization"] == "Bearer key"
    assert (request.method, request.target) == ("POST", "/v1/chat/completions")
    assert server.open(headers, request.body)[0] == body
    assert body not in request.body or len(body) < 4


def test_large_request_is_several_chunks(server: EhbpServer) -> None:
    """Chunks of a request are bounded, and are one sequence."""
    body = bytes(range(256)) * 10_000
    request = seal(server, body)
    assert [len(chunk) for chunk in chunks_of(request.body)] == [1_048_592, 1_048_592, 462_864]
    assert server.open(dict(request.headers), request.body)[0] == body


def test_requests_have_contexts_of_their_own(server: EhbpServer) -> None:
    """Two requests have different encapsulated keys, and an answer belongs to one of them."""
    first, second = seal(server), seal(server)
    keys = [dict(r.headers)["Ehbp-Encapsulated-Key"] for r in (first, second)]
    assert keys[0] != keys[1]
    _, answer = server.open(dict(first.headers), first.body)
    second.opener.start(200, answer.headers())
    assert "changed" in str(refusal(lambda: second.opener.feed(answer.seal(b"{}"))))


def test_framing_and_own_headers_are_replaced(server: EhbpServer) -> None:
    """A caller's length, and headers of EHBP, are not sent."""
    given = [
        *HEADERS,
        ("content-length", "5"),
        ("TRANSFER-ENCODING", "gzip"),
        ("ehbp-encapsulated-key", "00"),
        ("EHBP-Response-Nonce", "00"),
    ]
    request = EhbpSealing(server.public_key).seal("POST", "/", given, BODY)
    assert sorted(name for name, _ in request.headers) == [
        "Authorization",
        "Content-Type",
        "Ehbp-Encapsulated-Key",
        "Transfer-Encoding",
    ]


def test_request_without_body_travels_open(server: EhbpServer) -> None:
    """It is sent as it is, and its answer is not authenticated; with a query it is refused."""
    sealing = EhbpSealing(server.public_key)
    request = sealing.seal("GET", "/v1/models", list(HEADERS), b"")
    assert request[:4] == ("GET", "/v1/models", HEADERS, b"")
    assert not request.is_sealed
    assert not request.is_sealed
    assert is_authenticated(request.opener) is False
    assert request.opener.start(200, HEADERS) == HEADERS
    assert request.opener.feed(b"{}") + request.opener.finish() == b"{}"
    refusal(lambda: sealing.seal("GET", "/v1/models?key=secret", list(HEADERS), b""))
    refusal(lambda: request.opener.start(200, [("Ehbp-Response-Nonce", "00" * 32)]))


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(32)])
def test_invalid_key_cannot_be_sealed_to(key: bytes) -> None:
    """A key of another size or of low order is refused, before anything is sent."""
    refusal(lambda: EhbpSealing(key).seal("POST", "/", [], BODY))


def test_services_seal_to_their_binding(server: EhbpServer) -> None:
    """Tinfoil's services seal to a key of HPKE, and to no other kind of key."""
    for service in (Tinfoil(), TinfoilBundle()):
        sealing = service.sealing(untyped(None), Binding("hpke", server.public_key, "router"), None)
        request = sealing.seal("POST", "/", [], BODY)
        assert server.open(dict(request.headers), request.body)[0] == BODY
        with pytest.raises(ServiceError) as caught:
            service.sealing(untyped(None), Binding("tls-spki", bytes(32), "router"), None)
        assert caught.value.reason == "no_channel"


# -- answers ---------------------------------------------------------------------------------------


@pytest.mark.slow
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=5), st.data())
def test_answer_is_opened_however_it_is_cut(pieces: list[bytes], choice: st.DataObject) -> None:
    """Chunks are opened as they come, cut anywhere; empty ones are allowed."""
    pieces = [b"{", *pieces]
    opener, answer = answered(EhbpServer())
    opener.start(200, answer.headers())
    wire = bytes(4) + answer.seal(*pieces) + bytes(4)
    opened = b""
    while wire:
        size = choice.draw(st.integers(1, len(wire)))
        opened += opener.feed(wire[:size])
        wire = wire[size:]
    assert opened + opener.finish() == b"".join(pieces)


def test_head_of_a_sealed_answer(server: EhbpServer) -> None:
    """The caller gets the headers without those of EHBP and framing."""
    opener, answer = answered(server)
    assert opener.start(200, answer.headers()) == [("Content-Type", "application/json")]
    assert is_authenticated(opener) is True
    refusal(lambda: opener.start(200, answer.headers()))


def test_chunk_is_opened_before_the_next_comes(server: EhbpServer) -> None:
    """A stream is opened chunk by chunk."""
    opener, answer = answered(server)
    opener.start(200, answer.headers("text/event-stream"))
    for event in (b"data: {}\n\n", b"data: [DONE]\n\n"):
        assert opener.feed(answer.seal(event)) == event
    assert opener.finish() == b""


def test_every_changed_byte_of_an_answer_is_refused(server: EhbpServer) -> None:
    """No byte of the body can be changed."""
    opener, answer = answered(server)
    wire = answer.seal(b"{}", b"  ")
    for at in range(len(wire)):
        changed = bytearray(wire)
        changed[at] ^= 1
        refusal(partial(read, copy_of(opener, answer), bytes(changed)))


def read(opener: Opener, wire: bytes) -> bytes:
    """Return the content of the whole body of an answer."""
    return opener.feed(wire) + opener.finish()


def copy_of(opener: Opener, answer: EhbpAnswer) -> Opener:
    """Return another opener for the same answer, which was started."""
    fresh = EhbpOpener(vars(opener)["_sender"])
    fresh.start(200, answer.headers())
    return fresh


def test_every_cut_length_of_a_chunk_is_refused(server: EhbpServer) -> None:
    """An answer that ends inside of a chunk is refused; between chunks only the content tells."""
    opener, answer = answered(server)
    wire = answer.seal(b"{}")
    for size in range(1, len(wire)):
        fresh = copy_of(opener, answer)
        assert fresh.feed(wire[:size]) == b""
        refusal(fresh.finish)


def test_chunks_have_an_order(server: EhbpServer) -> None:
    """Chunks cannot be exchanged, repeated or left out."""
    opener, answer = answered(server)
    first, second = answer.seal(b"1"), answer.seal(b"2")
    for wire in (second, second + first, first + first):
        refusal(partial(read, copy_of(opener, answer), wire))
    fresh = copy_of(opener, answer)
    assert fresh.feed(first + second) == b"12"


@pytest.mark.parametrize("size", [1, 15, MAX_CHUNK + 17, (1 << 32) - 1])
def test_length_of_a_chunk_is_bounded(server: EhbpServer, size: int) -> None:
    """A chunk has a tag, and at most 64 MiB; nothing is kept for a longer one."""
    opener, answer = answered(server)
    opener.start(200, answer.headers())
    refusal(lambda: opener.feed(size.to_bytes(4, "big")))


@pytest.mark.parametrize(
    "nonces",
    [[""], ["00" * 31], ["00" * 33], ["AB" * 32], ["00" * 32, "00" * 32], ["0x" + "0" * 62]],
)
@pytest.mark.parametrize("status", [200, 422, 500])
def test_malformed_nonce_is_refused(server: EhbpServer, nonces: list[str], status: int) -> None:
    """The nonce is there once, as 64 lowercase digits, whatever the status."""
    opener = seal(server).opener
    headers = [("Ehbp-Response-Nonce", nonce) for nonce in nonces]
    refusal(lambda: opener.start(status, headers))


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_successful_answer_without_nonce_is_refused(server: EhbpServer, status: int) -> None:
    """An unsealed body never counts as the answer."""
    refusal(lambda: seal(server).opener.start(status, list(HEADERS)))


@pytest.mark.parametrize("status", [301, 400, 401, 422, 429, 500, 503])
def test_error_without_nonce_is_not_authenticated(server: EhbpServer, status: int) -> None:
    """Text of a proxy's error is passed, and marked as not authenticated."""
    opener = seal(server).opener
    assert opener.start(status, list(HEADERS)) == HEADERS
    assert is_authenticated(opener) is False
    assert opener.feed(KEY_PROBLEM) + opener.finish() == KEY_PROBLEM


def test_unknown_key_is_told_by_an_error_of_its_own(server: EhbpServer) -> None:
    """The problem document says that the application did not see the request."""
    opener = seal(server).opener
    opener.start(422, list(PROBLEM))
    assert untyped(opener).read_at_once is True
    assert is_authenticated(opener) is False
    for at in range(len(KEY_PROBLEM)):
        opener.feed(KEY_PROBLEM[at : at + 1])
    assert isinstance(refusal(opener.finish), SealingKeyError)


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (400, PROBLEM, KEY_PROBLEM),
        (422, [("Content-Type", "application/json")], KEY_PROBLEM),
        (422, [*PROBLEM, *PROBLEM], KEY_PROBLEM),
        (422, [], KEY_PROBLEM),
        (422, PROBLEM, b""),
        (422, PROBLEM, b'["type"]'),
        (422, PROBLEM, KEY_PROBLEM.replace(b"key-config", b"other")),
        (422, PROBLEM, KEY_PROBLEM[:-1]),
        (422, PROBLEM, KEY_PROBLEM + b" " * MAX_PROBLEM),
    ],
)
def test_other_problems_are_not_about_the_key(
    server: EhbpServer, status: int, headers: list[tuple[str, str]], body: bytes
) -> None:
    """Only status, type and content together make the request be sent again."""
    assert KEY_CONFIG_PROBLEM.encode() in KEY_PROBLEM
    opener = seal(server).opener
    opener.start(status, headers)
    assert opener.feed(body) + opener.finish() == body


@pytest.mark.parametrize("kind", ["text/event-stream", "Text/Event-Stream; charset=utf-8", "x"])
def test_stream_of_events_that_is_cut_is_refused(server: EhbpServer, kind: str) -> None:
    """A stream without its last event was cut, even if its headers were changed."""
    opener, answer = answered(server)
    opener.start(200, answer.headers(kind))
    opener.feed(answer.seal(b'data: {"choices": []}\n\n'))
    assert "last event" in str(refusal(opener.finish))


def test_empty_answer_is_refused(server: EhbpServer) -> None:
    """An answer of which everything was cut is not an empty one."""
    for wire in (b"", bytes(4)):
        opener, answer = answered(server)
        opener.start(200, answer.headers())
        assert opener.feed(wire) == b""
        assert "empty" in str(refusal(opener.finish))
    opener, answer = answered(server)
    opener.start(204, answer.headers())
    assert opener.finish() == b""
