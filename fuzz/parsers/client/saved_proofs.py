"""Targets: saved proofs, pins of the first use, and answers to the client's questions over HTTP."""

import json
from base64 import b64encode
from typing import Final

from attestkit.client.proofs.first_use import read_pins
from attestkit.client.proofs.proof import ProofBundle
from attestkit.client.wire.question import EvidenceReply, request_evidence
from attestkit.client.wire.steps import Receive
from attestkit.errors import CollateralError, FormatError, ServiceError
from fuzz.parsers.contract import ParserTarget, check, check_same, obeys

_LIMIT: Final = 1024  # bytes of a body
# The path to a SubjectPublicKeyInfo, here 30 03 02 01 05; all else is empty.
_CERTIFICATE: Final = bytes.fromhex("30173015a003020102020101" + "3000" * 4 + "3003020105")
_BUNDLE: Final = {
    "version": 1,
    "service": "attestkit",
    "host": "a.example",
    "port": 443,
    "model": None,
    "nonce": "00" * 32,
    "answers": ["e30="],
    "certificate": b64encode(_CERTIFICATE).decode(),
    "sealed": False,
    "at": "2026-11-01T00:00:00+00:00",
    "collateral": [None],
}
_ENDORSEMENTS: Final = {"format": "attestkit GPU endorsements", "version": 1, "ocsp": ["MAA="]}
_OK: Final = b"HTTP/1.1 200 OK\r\n"
_ANSWERS: Final = (
    _OK + b"Content-Length: 4\r\n\r\nbody",
    _OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nbo\r\n2;x=y\r\ndy\r\n0\r\nX: y\r\n\r\n",
    _OK + b"Connection: close\r\n\r\nbody",
    b"HTTP/1.1 103 Early Hints\r\n\r\n" + _OK + b"Content-Length: 0\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nContent-Encoding: identity\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n",
)


def _answer(data: bytes) -> EvidenceReply:
    """Read an answer in pieces of the size that the first byte says; then the stream ends."""
    size = (data[:1] or b"\1")[0] + 1
    steps = request_evidence("a.example", "/", limit=_LIMIT, seconds=10, clock=lambda: 0.0)
    next(steps)
    step, at = steps.send(None), 1
    while True:
        check("only reads", isinstance(step, Receive))
        try:
            step = steps.send(data[at : at + size])
        except StopIteration as end:
            reply: EvidenceReply = end.value
            return reply
        at += size


def _check_answer(_: bytes, reply: EvidenceReply) -> None:
    check("its limit", len(reply.body) <= _LIMIT)


def _bundle(data: bytes) -> ProofBundle:
    """Read a bundle, and the key of its certificate."""
    bundle = ProofBundle.from_json(data)
    check("the observed peer", (bundle.seen is None) == (bundle.certificate is None))
    return bundle


def _check_bundle(_: bytes, bundle: ProofBundle) -> None:
    check_same("what was read", ProofBundle.from_json(bundle.to_json()), bundle)


def _check_pins(_: bytes, pins: dict[str, str]) -> None:
    check_same("what was read", read_pins(_pins(pins)), pins)


def _pins(pins: dict[str, str]) -> bytes:
    return json.dumps({"version": 1, "pins": pins}).encode()


def _bundle_samples() -> list[bytes]:
    other = {**_BUNDLE, "model": "m", "certificate": None, "at": "2026-11-01T02:00:00.5+02:00"}
    endorsed = {**_BUNDLE, "gpu_endorsements": [None, _ENDORSEMENTS]}
    return [json.dumps(one).encode() for one in (_BUNDLE, other, endorsed)]


def _pin_samples() -> list[bytes]:
    return [_pins({}), _pins({"https://a.example attestkit server": 'app_id = ["00"]\n'})]


def _answer_samples() -> list[bytes]:
    return [bytes([size]) + one for one in _ANSWERS for size in (0, 40, 255)]


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    bundle = obeys(_bundle, FormatError, CollateralError, accepted=_check_bundle, grows=True)
    answer = obeys(_answer, FormatError, ServiceError, accepted=_check_answer)
    pins = obeys(read_pins, FormatError, accepted=_check_pins)
    return [
        ParserTarget("proof_bundle", bundle, _bundle_samples, "json.dict"),
        ParserTarget("first_use_pins", pins, _pin_samples, "json.dict"),
        ParserTarget("question_answer", answer, _answer_samples, "http.dict"),
    ]
