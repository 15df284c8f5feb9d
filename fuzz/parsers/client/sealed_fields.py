"""Targets: requests whose fields are sealed, their answers, and signatures of answers."""

import json
from typing import Final

from attestkit._crypto.ed25519 import Ed25519Key, ed25519_public_key, ed25519_seed_to_x25519
from attestkit.client.sealing.field_cipher import ClientKey
from attestkit.client.sealing.field_protocols import NEAR_ED25519, PHALA_ED25519
from attestkit.client.sealing.field_walk import AnswerWalk
from attestkit.client.sealing.fields import FieldOpener, FieldSealing, RequestContext
from attestkit.client.sealing.protocol import SealedRequest
from attestkit.client.services.service import AnswerRecord, Claims
from attestkit.client.services.vllm.answer_signatures import check_answer_signature
from attestkit.errors import FormatError, ServiceError
from fuzz.parsers.contract import ParserTarget, check, check_same, obeys, short

_SEED: Final = bytes(range(32))
_KEY: Final = ed25519_public_key(_SEED)
_CONTEXT: Final = RequestContext("ed25519", "m", "00" * 32, 1_790_000_000)
_PROTOCOLS: Final = (NEAR_ED25519, PHALA_ED25519)
_CHAT: Final = "chat/completions"
_STREAM: Final = 2  # bit of the first byte
_DONE: Final = b"data: [DONE]\n\n"
_ANSWER: Final = AnswerRecord(bytes(32), bytes(32), "id", ())
_CLAIMS: Final = Claims(
    machines=(),
    bindings=(),
    freshness="nonce",
    keys={"signing-ed25519": _KEY, "signing-ecdsa": bytes(20)},
)


def _open(raw: bytes) -> bytes:
    """Open an answer by the protocol, and of the type, that the first byte selects."""
    head = raw[0] if raw else 0
    protocol = _PROTOCOLS[head % len(_PROTOCOLS)]
    key = ClientKey(_KEY, ed25519_seed_to_x25519(_SEED))
    walk = AnswerWalk(protocol.endpoints[_CHAT].answer, frozenset())
    opener = FieldOpener(protocol, walk, _CONTEXT, key)
    kind = "text/event-stream" if head & _STREAM else "application/json"
    opener.start(200, [("Content-Type", kind)])
    middle = len(raw) // 2
    parts = [opener.feed(raw[1:middle]), opener.feed(raw[max(1, middle) :])]
    return b"".join((*parts, opener.finish()))


def _opened(raw: bytes, opened: bytes) -> None:
    check("valid UTF-8", opened.decode() is not None)
    if raw and raw[0] & _STREAM:
        check("the end", opened.endswith(_DONE))
    else:
        check("an object", isinstance(json.loads(opened), dict))


def _seal(raw: bytes) -> SealedRequest:
    """Seal a request by the protocol that the first byte selects."""
    protocol = _PROTOCOLS[(raw[0] if raw else 0) % len(_PROTOCOLS)]
    sealing = FieldSealing(protocol, _KEY, now=lambda: 0.0)
    headers = [("Content-Type", "application/json")]
    return sealing.seal("POST", f"/v1/{_CHAT}", headers, raw[1:] or b"{")


def _sealed(raw: bytes, sealed: SealedRequest) -> None:
    before, after = json.loads(raw[1:]), json.loads(sealed.body)
    check_same("the names", list(after), list(before))
    for message in after.get("messages") or ():
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str) and content:
            check("a sealed content", len(bytes.fromhex(content)) >= 60)


def _sealed_answer(protocol_at: int, part: str) -> dict[str, object]:
    protocol = _PROTOCOLS[protocol_at]
    answer: dict[str, object] = {"id": "i", "model": "m"}
    associated = b""
    if protocol.associated is not None:
        path = ("choices", 0, part, "content")
        associated = protocol.associated.of_answer(_CONTEXT, answer, path)
    content = protocol.cipher.seal(_KEY, b"text", associated).hex()
    return {**answer, "choices": [{"index": 0, part: {"role": "assistant", "content": content}}]}


def answer_samples() -> list[bytes]:
    """Return answers in JSON and as streams, after the byte that selects protocol and type."""
    found = [b"\0{}", b"\2" + _DONE, b'\0{"choices":[{"message":{"content":"open text"}}]}']
    for at in range(len(_PROTOCOLS)):
        whole = json.dumps(_sealed_answer(at, "message")).encode()
        event = b"data: " + json.dumps(_sealed_answer(at, "delta")).encode() + b"\n\n"
        found += [bytes([at]) + whole, bytes([_STREAM + at]) + b": hi\r\n" + event + _DONE]
    return found


def request_samples() -> list[bytes]:
    """Return requests after the byte that selects the protocol."""
    messages = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": None}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "a b"}]}]
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    bodies: list[tuple[int, dict[str, object]]] = [
        (0, {"model": "m", "messages": messages, "stream": True}),
        (1, {"model": "m", "messages": parts, "temperature": 0.5}),
        (0, {"messages": [{"role": "assistant", "tool_calls": [call]}]}),
        (1, {"model": "m", "user": "Ann"}),
    ]
    return [bytes([at]) + json.dumps(body).encode() for at, body in bodies]


def signature_samples() -> list[bytes]:
    """Return documents with signatures, one of them valid."""
    text = f"m:{'00' * 32}:{'00' * 32}"
    ecdsa = {"text": text, "signing_algo": "ecdsa", "signature": "0x" + "11" * 64 + "1b"}
    ed25519 = {"text": text, "signing_algo": "ed25519", "signature": "11" * 64}
    signature = _signature(text)
    documents = [ecdsa, ed25519, {**ed25519, "signature_kind": "gateway"}, signature]
    return [json.dumps(one).encode() for one in documents]


def _signature(text: str) -> dict[str, str]:
    signed = Ed25519Key(_SEED).sign(text.encode()).hex()
    return {"text": text, "signing_algo": "ed25519", "signature": signed}


def _check_signature(raw: bytes) -> str:
    return check_answer_signature(raw, _ANSWER, _CLAIMS, None)


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    return [
        ParserTarget(
            "field_answer",
            obeys(_open, ServiceError, accepted=_opened, grows=True),
            short(answer_samples),
            "json.dict",
        ),
        ParserTarget(
            "field_request",
            obeys(_seal, ServiceError, accepted=_sealed, said=lambda _: None, grows=True),
            short(request_samples),
            "json.dict",
        ),
        ParserTarget(
            "answer_signature",
            obeys(_check_signature, FormatError, ServiceError),
            short(signature_samples),
            "json.dict",
        ),
    ]
