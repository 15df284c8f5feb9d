"""A client and a server of field encryption, which share no code."""

import json
from collections.abc import Callable
from typing import Any, Final

import pytest

from attestkit.client.sealing.field_protocols import (
    ECDSA_V1,
    ED25519_V1,
    NEAR_ECDSA,
    NEAR_ED25519,
    PHALA_ECDSA,
    PHALA_ED25519,
    VENICE,
)
from attestkit.client.sealing.fields import FieldProtocol, FieldSealing
from attestkit.client.sealing.protocol import Headers, SealedRequest
from attestkit.errors import ServiceError
from tests.client.sealing.field_server import FieldServer
from tests.raising import raises

CHAT: Final = "/v1/chat/completions"
JSON: Final[Headers] = [("Content-Type", "application/json"), ("Authorization", "Bearer key")]
EVENTS: Final[Headers] = [("Content-Type", "text/event-stream; charset=utf-8")]
NOW: Final = 1_790_000_000

CIPHERS: Final[dict[str, tuple[FieldProtocol, str]]] = {
    "ed25519 version 1": (ED25519_V1, "box"),
    "ecdsa": (ECDSA_V1, "gcm"),
    "Venice": (VENICE, "gcm"),
    "NEAR ed25519": (NEAR_ED25519, "xchacha"),
    "NEAR ecdsa": (NEAR_ECDSA, "gcm"),
    "Phala ed25519": (PHALA_ED25519, "gcm"),
    "Phala ecdsa": (PHALA_ECDSA, "gcm"),
}


class Talk:
    """A client and a server of one protocol."""

    def __init__(self, name: str) -> None:
        self.protocol, cipher = CIPHERS[name]
        self.server = FieldServer(self.protocol.algorithm, cipher)
        self.is_phala = name.startswith("Phala")
        self.is_near = name.startswith("NEAR")

    def sealing(self, **options: Any) -> FieldSealing:
        """Return what seals to the server's key."""
        return FieldSealing(self.protocol, self.server.public, now=lambda: NOW, **options)

    def seal(self, body: object, target: str = CHAT, **options: Any) -> SealedRequest:
        """Seal a request."""
        data = json.dumps(body).encode()
        return self.sealing(**options).seal("POST", target, JSON, data)

    def bound(self, sealed: SealedRequest, *parts: object) -> bytes:
        """Return the associated data of Phala's version 2; of the others none."""
        if not self.is_phala:
            return b""
        found = header(sealed, "x-e2ee-nonce"), header(sealed, "x-e2ee-timestamp")
        head, *rest = map(str, parts)
        start = f"v2|{head}|algo={self.protocol.algorithm}|{'|'.join(rest)}"
        return f"{start}|n={found[0]}|ts={found[1]}".encode()

    def client_key(self, sealed: SealedRequest) -> str:
        """Return the key to which answers are sealed."""
        prefix = "x-venice-tee" if self.protocol is VENICE else "x"
        return header(sealed, f"{prefix}-client-pub-key")

    def answer(self, sealed: SealedRequest, part: str, text: str, **more: Any) -> dict[str, Any]:
        """Return an answer, or an event of one, with a sealed text."""
        places = ("resp", "model=served", "id=chat-1", "choice=0", "field=content")
        content = self.server.seal(self.client_key(sealed), text, self.bound(sealed, *places))
        choice = {"index": 0, part: {"role": "assistant", "content": content}}
        return {"id": "chat-1", "model": "served", "choices": [choice], **more}


def header(sealed: SealedRequest, name: str) -> str:
    """Return the only header of this name."""
    (found,) = [value for key, value in sealed.headers if key.lower() == name]
    return found


def refused(call: Callable[[], object], part: str = "") -> None:
    """Check that a call is refused for sealing."""
    with raises(ServiceError, "sealing", part=part):
        call()


every_protocol = pytest.mark.parametrize("name", CIPHERS)


def message(content: object, **more: object) -> dict[str, Any]:
    """Return a request of one message."""
    return {"model": "org/m", "messages": [{"role": "user", "content": content}], **more}
