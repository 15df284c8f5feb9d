"""Signatures of answers: both algorithms, by independent signers, and every change."""

import json
import sys
from functools import cache
from hashlib import sha256
from typing import Any, Final

import pytest
from coincurve import PrivateKey

from attestkit.client.services.service import AnswerRecord, Claims
from attestkit.client.services.vllm.answer_signatures import MAX_TEXT
from attestkit.client.services.vllm.near_ai import NearAiCloud
from attestkit.client.services.vllm.vllm_proxy import SERVICES, VllmProxy
from attestkit.errors import AttestKitError, FormatError, ServiceError
from tests.client.services.vllm.simulated_reports import ED25519, K256, ethereum_address
from tests.raising import raises
from tests.runner.cases import every_case

REQUEST: Final = sha256(b'{"model":"org/m"}').digest()
RESPONSE: Final = sha256(b'{"id":"chat-1"}').digest()
ANSWER: Final = AnswerRecord(REQUEST, RESPONSE, "chat-1", ())
HASHES: Final = f"{REQUEST.hex()}:{RESPONSE.hex()}"
NEAR: Final = NearAiCloud()
BY_NAME: Final = {service.name: service for service in SERVICES}
PROXY: Final = BY_NAME["vllm-proxy"]
GATEWAY: Final = PrivateKey(b"\x0b" * 32)
CLAIMS: Final = Claims(
    machines=(),
    bindings=(),
    freshness="nonce",
    keys={
        "signing-ecdsa": bytes(20),
        "signing-ecdsa[1]": ethereum_address(K256),
        "signing-ed25519": ED25519.verify_key.encode(),
        "gateway-signing-ecdsa": ethereum_address(GATEWAY),
    },
)


@cache
def ethereum() -> tuple[Any, Any]:
    """Import eth_account, which takes half a second and changes the recursion limit."""
    limit = sys.getrecursionlimit()
    from eth_account import Account
    from eth_account.messages import encode_defunct

    sys.setrecursionlimit(limit)
    return Account, encode_defunct


def signed(algorithm: str, text: str = HASHES, key: Any = None, **more: object) -> dict[str, Any]:
    """Return the document of a signature."""
    if algorithm == "ecdsa":
        secret = (key or K256).secret
        account, encode_defunct = ethereum()
        found = account.sign_message(encode_defunct(text=text), secret)
        signature, address = found.signature.hex(), ethereum_address(key or K256).hex()
    else:
        signature = (key or ED25519).sign(text.encode()).signature.hex()
        address = ED25519.verify_key.encode().hex()
    return {
        "text": text,
        "signature": signature,
        "signing_address": address,
        "signing_algo": algorithm,
        **more,
    }


def check(document: object, service: VllmProxy | NearAiCloud = PROXY) -> str:
    """Check a document, and return whose signature it is."""
    return service.check_signature(json.dumps(document).encode(), ANSWER, CLAIMS, "org/m")


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ecdsa", "ed25519"])
@pytest.mark.parametrize("text", [HASHES, f"org/m:{HASHES}"], ids=["two parts", "three parts"])
def test_signature_by_an_attested_key_is_accepted(algorithm: str, text: str) -> None:
    """The hashes are the last two parts, behind the model's name, if it is there."""
    for service in (PROXY, NEAR):
        assert check(signed(algorithm, text), service) == "model"


def test_forms_of_ecdsa_signatures_are_accepted() -> None:
    """In hex with and without 0x; v is 27 or 28, or 0 or 1."""
    document = signed("ecdsa")
    raw = bytes.fromhex(document["signature"].removeprefix("0x"))
    for data in (raw, raw[:64] + bytes([raw[64] - 27])):
        for text in (data.hex(), "0x" + data.hex().upper()):
            assert check({**document, "signature": text}) == "model"


def test_gateway_signs_by_its_own_key() -> None:
    """The document says whose key it is, and only that key counts."""
    document = signed("ecdsa", key=GATEWAY, signature_kind="gateway")
    assert check(document, NEAR) == "gateway"
    assert check(signed("ecdsa", signature_kind="provider_tee"), NEAR) == "model"
    for wrong in (
        signed("ecdsa", key=GATEWAY),
        signed("ecdsa", key=GATEWAY, signature_kind="provider_tee"),
        signed("ecdsa", signature_kind="gateway"),
        signed("ed25519", signature_kind="gateway"),
    ):
        with raises(ServiceError, "signature"):
            check(wrong, NEAR)


def test_name_of_a_model_may_have_colons() -> None:
    """The name is compared, except of a relay, which has names of its own."""
    text = f"a:b:{HASHES}"
    document = json.dumps(signed("ed25519", text)).encode()
    assert NEAR.check_signature(document, ANSWER, CLAIMS, "a:b") == "model"
    assert NEAR.check_signature(document, ANSWER, CLAIMS, None) == "model"
    assert BY_NAME["venice"].check_signature(document, ANSWER, CLAIMS, "other") == "model"
    with raises(ServiceError, "signature"):
        NEAR.check_signature(document, ANSWER, CLAIMS, "b")


@every_case("algorithm", ["ecdsa", "ed25519"])
@every_case(
    "text",
    [
        f"{RESPONSE.hex()}:{REQUEST.hex()}",
        f"{REQUEST.hex()}:{bytes(32).hex()}",
        f"{bytes(32).hex()}:{RESPONSE.hex()}",
        f"{HASHES}:",
        HASHES.upper(),
        HASHES[1:],
        HASHES[:-1],
        RESPONSE.hex(),
        f"other:{HASHES}",
        "",
    ],
)
def test_signature_of_another_answer_is_refused(algorithm: str, text: str) -> None:
    """The text must have the hashes of this request and this answer, in this order."""
    with raises(ServiceError, "signature"):
        check(signed(algorithm, text))


@pytest.mark.parametrize("algorithm", ["ecdsa", "ed25519"])
def test_changed_signature_is_refused(algorithm: str) -> None:
    """Every byte counts."""
    document = signed(algorithm)
    raw = bytes.fromhex(document["signature"].removeprefix("0x"))
    for at in range(len(raw)):
        changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        with raises(ServiceError, "signature"):
            check({**document, "signature": changed.hex()})


def test_second_form_of_an_ecdsa_signature_is_refused() -> None:
    """With a high s, anyone could make a second signature of the same text."""
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    document = signed("ecdsa")
    raw = bytes.fromhex(document["signature"].removeprefix("0x"))
    s = (order - int.from_bytes(raw[32:64], "big")).to_bytes(32, "big")
    with raises(ServiceError, "signature"):
        check({**document, "signature": (raw[:32] + s + bytes([raw[64] ^ 7])).hex()})


@pytest.mark.parametrize("algorithm", ["ecdsa", "ed25519"])
def test_signature_by_another_key_is_refused(algorithm: str) -> None:
    """The address that the document states does not count."""
    key = PrivateKey(b"\x0c" * 32) if algorithm == "ecdsa" else type(ED25519)(b"\x0c" * 32)
    document = signed(algorithm, key=key)
    with raises(ServiceError, "signature"):
        check({**document, "signing_address": signed(algorithm)["signing_address"]})


@every_case(
    ("change", "error", "reason"),
    [
        ({"text": None}, FormatError, "wrong_type"),
        ({"text": 5}, FormatError, "wrong_type"),
        ({"text": "x" * (MAX_TEXT + 1)}, FormatError, "too_large"),
        ({"signature": None}, FormatError, "missing"),
        ({"signature": "xx"}, FormatError, "encoding"),
        ({"signature": "00" * 63}, FormatError, "wrong_size"),
        ({"signing_algo": None}, FormatError, "wrong_type"),
        ({"signing_algo": "rsa"}, FormatError, "unsupported_algorithm"),
        ({"signing_algo": "ecdsa"}, FormatError, "wrong_size"),
        ({"signature_kind": "nobody"}, FormatError, "unsupported"),
        ({"signature_kind": 5}, FormatError, "wrong_type"),
    ],
)
def test_malformed_document_is_refused(
    change: dict[str, Any], error: type[AttestKitError], reason: str
) -> None:
    """Each member has its form."""
    with raises(error, reason):
        check({**signed("ed25519"), **change})


def test_every_cut_of_a_document_is_refused() -> None:
    """A truncated document is never read in part."""
    data = json.dumps(signed("ecdsa")).encode()
    for size in range(len(data)):
        with raises(FormatError, "syntax"):
            PROXY.check_signature(data[:size], ANSWER, CLAIMS, None)


def test_questions_name_answer_model_and_algorithm() -> None:
    """Each service has its own path, and identifiers are escaped."""
    answer = ANSWER._replace(identifier="chat:1")
    targets = {
        name: BY_NAME[name].signature_question(answer, "org/m").target
        for name in ("vllm-proxy", "nano-gpt", "venice")
    }
    query = "model=org%2Fm&signing_algo=ecdsa"
    assert targets == {
        "vllm-proxy": f"/v1/signature/chat%3A1?{query}",
        "nano-gpt": f"/api/v1/tee/signature/chat%3A1?{query}",
        "venice": f"/api/v1/tee/signature?request_id=chat%3A1&{query}",
    }
    question = NEAR.signature_question(ANSWER, None)
    assert question.target == "/v1/signature/chat-1?signing_algo=ed25519"
    for identifier in ("", "a/b", "a b", "x" * 257, "a\r\n"):
        with raises(ServiceError, "signature"):
            PROXY.signature_question(ANSWER._replace(identifier=identifier), None)
