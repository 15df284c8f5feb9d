"""Services that seal fields to the key of their claims."""

import json
from typing import Any, Final

from attestkit.client.services.service import Binding, Claims
from attestkit.client.services.vllm.near_ai import SERVICES as NEAR_SERVICES
from attestkit.client.services.vllm.vllm_proxy import SERVICES as PROXIES
from attestkit.errors import ServiceError
from tests.client.sealing.field_server import FieldServer
from tests.raising import raises
from tests.runner.cases import every_case

SERVICES: Final[dict[str, Any]] = {one.name: one for one in (*PROXIES, *NEAR_SERVICES)}
CLAIMS: Final = Claims(machines=(), bindings=(), freshness="nonce")
JSON: Final = [("Content-Type", "application/json")]
BODY: Final = b'{"model":"org/m","messages":[{"role":"user","content":"a b"}]}'


@every_case(
    ("name", "algorithm", "header", "value"),
    [
        ("near-ai", "ed25519", "X-Encryption-Version", "2"),
        ("near-ai", "ecdsa", "X-Encrypt-All-Fields", "true"),
        ("near-ai-direct", "ed25519", "X-No-Aliasing", "true"),
        ("vllm-proxy", "ecdsa", "X-E2EE-Version", "2"),
        ("redpill", "ed25519", "X-E2EE-Version", "2"),
        ("nano-gpt", "ecdsa", "X-Signing-Algo", "ecdsa"),
        ("venice", "ecdsa", "X-Venice-TEE-Signing-Algo", "ecdsa"),
    ],
)
def test_service_seals_to_the_key_of_its_binding(
    name: str, algorithm: str, header: str, value: str
) -> None:
    """The protocol is that of the service and of the key."""
    server = FieldServer(algorithm, "xchacha" if name.startswith("near") else "gcm")
    binding = Binding("fields", server.public, "model")
    sealing = SERVICES[name].sealing(CLAIMS, binding, "org/m")
    sealed = sealing.seal("POST", "/v1/chat/completions", JSON, BODY)
    assert (header, value) in sealed.headers
    content = json.loads(sealed.body)["messages"][0]["content"]
    headers = dict(sealed.headers)
    bound = b""
    if "X-E2EE-Nonce" in headers:
        end = f"n={headers['X-E2EE-Nonce']}|ts={headers['X-E2EE-Timestamp']}"
        bound = f"v2|req|algo={algorithm}|model=org/m|m=0|c=-|{end}".encode()
    assert server.open(content, bound) == "a b"
    assert sealing.not_proven
    with raises(ServiceError, "sealing"):
        sealing.seal("POST", "/v1/chat/completions", JSON, BODY.replace(b"org/m", b"org/n"))


@every_case("name", SERVICES)
def test_service_seals_to_no_other_key(name: str) -> None:
    """TLS keys, and keys of a size that the service has no protocol for, are refused."""
    key = FieldServer("ecdsa", "gcm").public
    for binding in (
        Binding("tls-spki", bytes(32), "model"),
        Binding("signature", key, "model"),
        Binding("fields", key[1:], "model"),
        Binding("fields", bytes(65), "model"),
    ):
        with raises(ServiceError, "sealing"):
            SERVICES[name].sealing(CLAIMS, binding, None)
