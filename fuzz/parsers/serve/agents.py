"""Targets: what a guest agent answers, from its HTTP body to keys and quotes; and Azure's IMDS."""

import json
from collections.abc import Callable
from typing import Final

from attestkit._crypto.pem import encode_pem
from attestkit._system.bounded_http import Response
from attestkit.backends.azure.imds import ImdsClient, ImdsRequest
from attestkit.backends.dstack_agent import DstackAgent
from attestkit.backends.dstack_agent.client import AgentClient
from attestkit.errors import BackendError, UnsupportedError, UsageError
from attestkit.keys.agent_keys import AgentApi, AgentKeys
from fuzz.parsers.contract import ParserTarget, obeys, short
from fuzz.parsers.evidence.evidence import response_samples

_STATUSES: Final = (200, 400, 404, 408, 500, 502, 503)


class _Answering(AgentClient):
    """A client whose agent answers everything alike, without a socket."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__("/agent.sock")
        self._answer = status, "dstack", body

    def _exchange(self, method: str, target: str, body: bytes) -> tuple[int, str, bytes]:
        del method, target, body
        return self._answer


def _backend(client: AgentClient, api: AgentApi = "v0") -> DstackAgent:
    """Return the backend without its first look at the agent."""
    backend = object.__new__(DstackAgent)
    backend._client = client
    backend.api = api
    return backend


_CALLS: Final[tuple[Callable[[AgentClient], object], ...]] = (
    lambda client: AgentKeys(client).derive_compat("path", "purpose", "ed25519"),
    lambda client: AgentKeys(client).derive("path", "p256"),
    lambda client: AgentKeys(client).sign(b"data", "secp256k1"),
    lambda client: _backend(client).get_quote(bytes(64)),
    lambda client: _backend(client).get_quote_response(bytes(64)),
    lambda client: _backend(client).read_event_log(),
    lambda client: _backend(client).read_app_compose(),
    lambda client: _backend(client).emit_event("name", b""),
    lambda client: AgentKeys(client).derive_v1("domain", "ed25519"),
    lambda client: _backend(client, "v1").read_app_compose(),
    lambda client: _backend(client, "v1").get_quote(bytes(64)),
    lambda client: client.find_api(),
)


def _called(raw: bytes) -> object:
    """Call an agent: the first byte says what, the second with which status it answers."""
    call, status, body = raw[:1], raw[1:2], raw[2:]
    client = _Answering(_STATUSES[ord(status or b"\0") % len(_STATUSES)], body)
    return _CALLS[ord(call or b"\0") % len(_CALLS)](client)


def agent_answers() -> list[bytes]:
    """Return a good answer to each call, and refusals."""
    key = {"key": "01" * 32, "signature_chain": ["00" * 65, "00" * 65]}
    signature = {"signature": "00" * 64, "public_key": "02" * 33}
    signed = {**signature, "signature_chain": ["00" * 64, "00" * 65, ""]}
    info = {"tcb_info": json.dumps({"app_compose": "{}"})}
    found = [json.dumps(one).encode() for one in (key, key, signed)]
    answers = [bytes([at, 0]) + one for at, one in enumerate(found)]
    answers += [bytes([at, 0]) + response_samples()[0] for at in (3, 4, 5)]
    answers += [b"\6\0" + json.dumps(info).encode(), b"\7\0null"]
    v1_key = {**key, "public_key": "00" * 32, "root_epoch": 0}
    answers.append(b"\x08\0" + json.dumps(v1_key).encode())
    answers += [b"\x09\0" + json.dumps({"app_compose": "{}"}).encode(), b"\x0b\0{}"]
    errors = (b'{"error":"Failed to sign"}', b'{"error":{"description":"x"}}', b"\xffno\n")
    return [*answers, *(bytes([at, at + 1]) + error for at, error in enumerate(errors))]


class _AnsweringImds(ImdsClient):
    """A client whose service answers everything alike, without a socket."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(sleep=lambda _seconds: None)
        self._answer = Response(status, {}, body)

    def _send(self, request: ImdsRequest) -> Response:
        del request
        return self._answer


_IMDS_CALLS: Final[tuple[Callable[[ImdsClient], object], ...]] = (
    lambda client: client.get_td_quote(bytes(1024)),
    lambda client: client.get_snp_certificates(),
)


def _called_imds(raw: bytes) -> object:
    """Call the service: the first byte says what, the second with which status it answers."""
    call, status, body = raw[:1], raw[1:2], raw[2:]
    client = _AnsweringImds(_STATUSES[ord(status or b"\0") % len(_STATUSES)], body)
    return _IMDS_CALLS[ord(call or b"\0") % len(_IMDS_CALLS)](client)


def imds_answers() -> list[bytes]:
    """Return a good answer to each call, and a refusal."""
    pem = encode_pem("CERTIFICATE", b"0123")
    certificates = json.dumps({"vcekCert": pem, "certificateChain": pem + pem})
    return [
        b'\0\0{"quote":"AAECAw=="}',
        b'\0\0{"quote":"-_8"}',
        b"\1\0" + certificates.encode(),
        b"\2\0westeurope",
        b"\0\1",
    ]


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    called = obeys(_called, BackendError, UnsupportedError, UsageError)
    imds = obeys(_called_imds, BackendError)
    return [
        ParserTarget("agent", called, short(agent_answers), "evidence.dict"),
        ParserTarget("imds", imds, imds_answers, "evidence.dict"),
    ]
