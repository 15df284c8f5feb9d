"""Requests to a gateway of ACI demand a verified machine behind it (attested-client.md, 2.5)."""

import json
from collections.abc import Callable
from typing import Any, Final

from attestkit._formats import strict_json
from attestkit.client.sealing.protocol import Headers, OpenAnswer, SealedRequest
from attestkit.errors import FormatError

_HEADER: Final = "x-aci-keyset-digest"
_PROVIDER: Final = "provider"
_MEMBER: Final = "aci_verified"
_TEXT: Final = b'"provider":{"aci_verified":true}'
_ENDPOINTS: Final = (
    "/chat/completions",
    "/completions",
    "/embeddings",
    "/messages",
    "/responses",
)


class AciConstraint(OpenAnswer):
    """Adds the demand to the JSON of prompts, unless the caller has decided about it; no sealing.

    The gateway then refuses, with status 503, rather than have an unverified machine serve.

    Args:
        keyset_digest: Digest of the proven keyset, as the protocol writes it; None if unknown.
        changed: Called once an answer names another keyset; the service has to be proven again.
    """

    def __init__(
        self, keyset_digest: str | None = None, changed: Callable[[], object] = lambda: None
    ) -> None:
        self._digest, self._changed = keyset_digest, changed

    def seal(self, method: str, target: str, headers: Headers, body: bytes) -> SealedRequest:
        """Return the request with the demand."""
        path = target.partition("?")[0]
        if method.upper() == "POST" and path.endswith(_ENDPOINTS):
            body = require_verified(body)
        return SealedRequest(method, target, headers, body, self, is_sealed=False)

    def start(self, status: int, headers: Headers) -> Headers:
        """Return the headers of the answer, after a look at the keyset that they name."""
        del status
        named = [value.strip() for name, value in headers if name.lower() == _HEADER]
        if self._digest is not None and any(one != self._digest for one in named):
            self._changed()
        return headers


def require_verified(body: bytes) -> bytes:
    """Return a JSON object with `provider.aci_verified`; another body, or one with it, as it is."""
    try:
        members = strict_json.read_object(body, "request")
    except FormatError:
        return body  # the gateway refuses it
    provider: Any = members.get(_PROVIDER, {})
    if not isinstance(provider, dict) or _MEMBER in provider:
        return body
    if _PROVIDER in members:
        members[_PROVIDER] = {**provider, _MEMBER: True}
        return json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode()
    text = body.rstrip(b" \t\r\n")[:-1]
    return text + (b"," if members else b"") + _TEXT + b"}"
