"""Targets: attestation reports of the vllm-proxy lineage, and of NEAR AI."""

import json
from hashlib import sha256
from typing import Final

from attestkit.client.services.service import Claims
from attestkit.client.services.vllm import near_ai, vllm_proxy
from attestkit.errors import FormatError, ServiceError
from fuzz.parsers.contract import ParserTarget, check, check_same, obeys
from tests.samples.quotes import made_quote

_NONCE: Final = bytes(range(32))
_SERVICES: Final = (*vllm_proxy.SERVICES, *near_ai.SERVICES)
_CLOUD, _DIRECT = len(vllm_proxy.SERVICES), len(vllm_proxy.SERVICES) + 1
_SIZE: Final = 12_288  # bytes of an input; a quote in hex has 2,300
_REPORT_DATA: Final = 568  # where they begin in a quote
_EVENT: Final = {
    "imr": 3,
    "event_type": 134_217_729,
    "digest": "",
    "event": "a",
    "event_payload": "",
}
# The base point of secp256k1, and the key of RFC 8032, 7.1, test 1.
_X: Final = "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"
_Y: Final = "483ada7726a3c4655da4fbfc0e1108a8fd17b448a68554199c47d08ffb10d4b8"
_ED25519: Final = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
_OHTTP: Final = {
    "signing_algo": "ed25519",
    "signing_key": _ED25519,
    "key_config": "010020" + "11" * 32 + "000400010001",
    "signature": "0cf8d720c6bb946bdede5d5eb0e12ba6796f60c08fa131fbd853a6535b935602"
    "e96ac3cfcf716e531ac853fb99f2e9d79af140b703776c328fdb110aa5f4680c",
}


def _read(raw: bytes) -> Claims:
    """Read an answer by the service that the first byte selects."""
    service = _SERVICES[raw[0] % len(_SERVICES)] if raw else _SERVICES[0]
    return service.read((raw[1:],), _NONCE, None, "model")


def _accepted(_: bytes, claims: Claims) -> None:
    check("a machine", 1 <= len(claims.machines) <= 64)
    for machine in claims.machines:
        check_same("the nonce", machine.report_data[32:], _NONCE)
    check("a binding", len(claims.bindings) >= 1)
    check("a key", len(claims.keys) >= 1)


def _ecdsa() -> dict[str, object]:
    return {
        "signing_algo": "ecdsa",
        "signing_address": "0x" + "ab" * 20,
        "request_nonce": _NONCE.hex(),
        "intel_quote": made_quote().hex(),
        "event_log": json.dumps([_EVENT]),
        "info": {"tcb_info": "{}", "vm_config": ""},
    }


def _ed25519() -> dict[str, object]:
    return {
        **_ecdsa(),
        "signing_algo": "ed25519",
        "signing_address": _ED25519,
        "tls_cert_fingerprint": sha256(b"TLS key").hexdigest(),
        "event_log": [_EVENT],
    }


def _compose_manager() -> dict[str, object]:
    quote = made_quote()
    actions = [{"action": "compose_up"}]
    digest = sha256(json.dumps(actions, separators=(",", ":")).encode()).digest()
    quote = quote[:_REPORT_DATA] + digest + _NONCE + quote[_REPORT_DATA + 64 :]
    return {"actions": actions, "actions_hash": digest.hex(), "quote": quote.hex()}


def report_samples() -> list[bytes]:
    """Return reports, each after the byte that selects its service."""
    first, second = _ecdsa(), _ed25519()
    address = "7e5f4552091a69125d5dfcb7b8c2659029395bdf"
    answers: list[tuple[int, dict[str, object]]] = [
        (0, first),
        (1, {**first, "signing_address": address, "signing_public_key": _X + _Y}),
        (2, {**first, "nvidia_payload": '{"evidence_list":[]}'}),
        (3, {**first, "all_attestations": [{"request_nonce": "00"}]}),
        (3, {**first, "compose_manager_attestation": _compose_manager()}),
        (1, {"attestation_type": "chutes", "nonce": "00"}),
        (_DIRECT, second),
        (_DIRECT, {**second, "ohttp_attestation": _OHTTP}),
        (_CLOUD, {"gateway_attestation": second, "model_attestations": [first]}),
        (_CLOUD, {"gateway_attestation": second, "model_attestations": []}),
    ]
    return [bytes([at]) + json.dumps(one, separators=(",", ":")).encode() for at, one in answers]


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    return [
        ParserTarget(
            "vllm_report",
            obeys(_read, FormatError, ServiceError, accepted=_accepted, grows=True),
            report_samples,
            "json.dict",
            max_len=_SIZE,
        )
    ]
