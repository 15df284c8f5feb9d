"""Targets: attestation reports of the vllm-proxy lineage."""

import json
from hashlib import sha256

from attestkit.client.services.service import Claims
from attestkit.client.services.vllm_proxy import SERVICES
from attestkit.errors import FormatError, ServiceError
from fuzz.parser_contract import ParserTarget, check, check_same, obeys
from tests.quotes import made_quote

_NONCE = bytes(range(32))
_SIZE = 8192  # bytes of an input; a quote in hex is 2,300
_EVENT = {"imr": 3, "event_type": 134217729, "digest": "", "event": "a", "event_payload": ""}


def _read(raw: bytes) -> Claims:
    """Read an answer by the service that the first byte selects."""
    service = SERVICES[raw[0] % len(SERVICES)] if raw else SERVICES[0]
    return service.read((raw[1:],), _NONCE, None, "model")


def _accepted(_: bytes, claims: Claims) -> None:
    check("a machine", 1 <= len(claims.machines) <= 64)
    for machine in claims.machines:
        check_same("the nonce", machine.report_data[32:], _NONCE)
    check("a binding", len(claims.bindings) >= 1)
    check("a key", len(claims.keys) >= 1)


def report_members() -> dict[str, object]:
    """Return the members of a short report of version 1."""
    return {
        "signing_algo": "ecdsa",
        "signing_address": "0x" + "ab" * 20,
        "request_nonce": _NONCE.hex(),
        "intel_quote": made_quote().hex(),
        "event_log": json.dumps([_EVENT]),
        "info": {"tcb_info": "{}", "vm_config": ""},
    }


def report_samples() -> list[bytes]:
    """Return reports, each after the byte that selects its service."""
    first = report_members()
    # The base point of secp256k1.
    x = "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"
    y = "483ada7726a3c4655da4fbfc0e1108a8fd17b448a68554199c47d08ffb10d4b8"
    members: list[dict[str, object]] = [
        first,
        {
            **first,
            "signing_address": "7e5f4552091a69125d5dfcb7b8c2659029395bdf",
            "signing_public_key": x + y,
        },
        {
            **first,
            "signing_algo": "ed25519",
            "signing_address": "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "tls_cert_fingerprint": sha256(b"TLS key").hexdigest(),
            "event_log": [_EVENT],
        },
        {**first, "nvidia_payload": '{"evidence_list":[]}'},
        {**first, "all_attestations": [{"request_nonce": "00"}]},
        {"attestation_type": "chutes", "nonce": "00"},
    ]
    return [bytes([at % 4]) + json.dumps(one).encode() for at, one in enumerate(members)]


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
