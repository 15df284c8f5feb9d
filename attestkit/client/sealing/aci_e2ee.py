"""Requests of ACI: the demand for a verified machine, and field encryption, version 2.

ACI (Attested Confidential Inference) is a protocol of gateways to AI models in TEEs. A keyset is
the list of public keys of a service, whose hash is in its evidence. Texts of a request are
encrypted to a key of the keyset. Associated data bind each text to its field, model and request, in
canonical JSON (RFC 8785). Gateways support this version until February 2027.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from attestkit._crypto.hashes import sha256
from attestkit._formats import strict_json
from attestkit._formats.canonical_json import canonical_json
from attestkit.client.sealing.field_cipher import FieldCipher
from attestkit.client.sealing.field_protocols import in_answers, make_headers
from attestkit.client.sealing.field_walk import FieldTable, Path
from attestkit.client.sealing.fields import (
    OPEN,
    EndpointTables,
    FieldProtocol,
    FieldSealing,
    RequestContext,
)
from attestkit.client.sealing.protocol import (
    MAX_PROBLEM,
    Headers,
    OpenAnswer,
    Opener,
    SealedRequest,
    key_problem,
    read_problem,
    sealing_errors,
)
from attestkit.errors import FormatError, ServiceError

_HEADER: Final = "x-aci-keyset-digest"
_PROVIDER: Final = "provider"
_MEMBER: Final = "aci_verified"
_TEXT: Final = b'"provider":{"aci_verified":true}'
_PROMPTS: Final = ("/chat/completions", "/completions", "/embeddings", "/messages", "/responses")


class AciConstraint(OpenAnswer):
    """Adds `"provider": {"aci_verified": true}` to JSON prompts for ACI; encrypts nothing.

    ACI is Attested Confidential Inference. With this member a gateway passes a prompt only to a
    machine whose evidence it verified, and answers 503 if there is none. A prompt that has the
    member already, true or false, is not changed.

    Args:
        keyset_digest: SHA-256 of the service's public keys in the evidence that was accepted:
            "sha256:" and 64 lowercase hex digits, as in the header X-ACI-Keyset-Digest of answers.
            None: that header is not compared, and `changed` is never called.
        changed: Called for each answer with a different digest: the service has other keys now, and
            has to be verified again.
    """

    def __init__(
        self, keyset_digest: str | None = None, changed: Callable[[], object] = lambda: None
    ) -> None:
        self._digest, self._changed = keyset_digest, changed

    def seal(self, method: str, target: str, headers: Headers, body: bytes) -> SealedRequest:
        """Return the request; if it is a POST of a prompt, with `provider.aci_verified` added.

        Args:
            method: Method of the request, such as "POST".
            target: Its path and query.
            headers: Its headers, names and values.
            body: Its whole body; empty if it has none.
        """
        path = target.partition("?")[0]
        if method.upper() == "POST" and path.endswith(_PROMPTS):
            body = require_verified(body)
        return SealedRequest(method, target, headers, body, self, is_sealed=False)

    def start(self, status: int, headers: Headers) -> Headers:
        """Return the headers of an answer unchanged.

        If they have a keyset digest other than `keyset_digest`, `changed` is called. `status` is
        not used.
        """
        del status
        named = [value.strip() for name, value in headers if name.lower() == _HEADER]
        if self._digest is not None and any(one != self._digest for one in named):
            self._changed()
        return headers


def require_verified(body: bytes) -> bytes:
    """Return a request's JSON object with `provider.aci_verified` set to true.

    Args:
        body: Body of the request. If it has that member already, or is not a JSON object, it is
            returned as it is.
    """
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


X25519_SUITE: Final = "x25519-aes-256-gcm-hkdf-sha256"
SECP256K1_SUITE: Final = "secp256k1-aes-256-gcm-hkdf-sha256"

_BAD_REQUEST: Final = 400
_KEY_PROBLEM: Final = "e2ee_model_key_mismatch"
_REQUEST: Final = "aci.e2ee.request.v2"
_ANSWER: Final = "aci.e2ee.response.v2"
_NOT_PROVEN: Final = (
    OPEN,
    "that no part of a streamed answer was left out or moved; receipts show it",
)
_WORDS: Final = frozenset(
    {
        *("model", "reasoning_effort", "service_tier", "encoding_format", "tool_choice"),
        *("messages[].role", "response_format.type", "modalities[]", "provider.aci_verified"),
        *("provider.aci_session_ids[]", "stream_options.include_usage"),
    }
)
# They make the answer carry tokens, which are not sealed.
_OPEN_ANSWER: Final = frozenset({"logprobs", "top_logprobs", "prompt_logprobs", "return_token_ids"})
_ANSWER_WORDS: Final = frozenset({"choices[].message.role", "choices[].delta.role"})
_STRICT: Final = ("choices[].message", "choices[].delta", "choices[].logprobs", "choices[].text")
_INDEXED: Final = ("choices", "data")


class AciAssociatedData:
    """Associated data (AEAD) of ACI: purpose, algorithm, model, field, nonce, time as JSON."""

    def of_request(self, context: RequestContext, path: Path) -> bytes:
        """Return the associated data of a field of a request.

        Args:
            context: Model, nonce, time and algorithm of the request.
            path: Member names and list positions that lead to the field.
        """
        return _encoded(_bound(context, _REQUEST, path))

    def of_answer(self, context: RequestContext, answer: Mapping[str, Any], path: Path) -> bytes:
        """Return the associated data of a field of an answer, or of an event of its stream.

        Args:
            context: Model, nonce, time and algorithm of the request.
            answer: The decoded answer or event.
            path: Member names and list positions that lead to the field.

        Raises:
            ServiceError: If the answer's `id` is not text, or a choice's `index` is not an integer
                (reason `sealing`).
        """
        identifier = answer.get("id")
        if not isinstance(identifier, (str, type(None))):
            raise ServiceError("answer: id: must be text", reason="sealing")
        bound = _bound(context, _ANSWER, _indexed(answer, path))
        return _encoded({**bound, "id": identifier or ""})


def _encoded(bound: Mapping[str, str | int]) -> bytes:
    with sealing_errors():
        return canonical_json(dict(bound), "associated data")


def _bound(context: RequestContext, purpose: str, path: Path) -> dict[str, str | int]:
    return {
        "purpose": purpose,
        "algo": context.algorithm,
        "model": context.model,
        "field": ".".join(map(str, path)),
        "nonce": context.nonce,
        "ts": context.timestamp,
    }


def _indexed(answer: Mapping[str, Any], path: Path) -> Path:
    """Return a path in an answer, with an item's member `index` in place of its list position.

    It applies to items of `choices` and `data`, whose order in OpenAI's answers may differ from
    their `index`: ("choices", 0, "message", "content") becomes ("choices", 2, "message",
    "content") if `choices[0]["index"]` is 2. Without `index`, and elsewhere, positions remain.
    """
    match path:
        case (str(name), int(at), *rest) if name in _INDEXED:
            stated = answer[name][at].get("index", at)
            if not isinstance(stated, int) or isinstance(stated, bool):
                raise ServiceError(f"answer: {name}: index must be an integer", reason="sealing")
            return (name, stated, *rest)
    return path


_ENDPOINTS: Final = {
    "chat/completions": EndpointTables(
        FieldTable({"messages[].content": "text or json"}, _WORDS, (), _OPEN_ANSWER),
        FieldTable(
            in_answers("content", "reasoning", "reasoning_content", "audio.data"),
            _ANSWER_WORDS,
            _STRICT,
        ),
    ),
    "completions": EndpointTables(
        FieldTable({"prompt": "text", "prompt[]": "text"}, _WORDS, (), _OPEN_ANSWER),
        FieldTable({"choices[].text": "text"}, frozenset(), _STRICT),
    ),
    "embeddings": EndpointTables(
        FieldTable({"input": "text", "input[]": "text"}, _WORDS, (), _OPEN_ANSWER),
        FieldTable({"data[].embedding": "json"}),
    ),
}


def _protocol(suite: str, cipher: FieldCipher) -> FieldProtocol:
    return FieldProtocol(
        name="ACI version 2",
        algorithm=suite,
        cipher=cipher,
        endpoints=_ENDPOINTS,
        headers=make_headers(("X-E2EE-Version", "2"), algorithm=False, bound=True),
        associated=AciAssociatedData(),
        seal_empty=True,
        not_proven=_NOT_PROVEN,
    )


ACI_X25519: Final = _protocol(
    X25519_SUITE, FieldCipher("x25519", "aes-256-gcm", b"aci.e2ee.v2.x25519")
)
ACI_SECP256K1: Final = _protocol(
    SECP256K1_SUITE, FieldCipher("secp256k1", "aes-256-gcm", b"aci.e2ee.v2.secp256k1")
)


_ANY_KEYSET: Final = AciConstraint()


class AciSealing:
    """Encrypts the texts of requests to a key of an ACI service, and adds `provider.aci_verified`.

    Args:
        key: Public key: X25519, 32 bytes, or secp256k1 in uncompressed SEC1, 65 bytes.
        model: The only model that requests may name; None for any.
        note: Called with two SHA-256 hashes: of the encrypted body, and of the body as the service
            decrypts it, which is the one in receipts.
        now: Clock of the timestamps, in Unix seconds; None for the system's.
        constraint: Compares the keyset digest of answers.

    Raises:
        ServiceError: If the key is not valid (reason `sealing`).
    """

    def __init__(
        self,
        key: bytes,
        *,
        model: str | None = None,
        note: Callable[[bytes, bytes], object] = lambda _sealed, _restored: None,
        now: Callable[[], float] | None = None,
        constraint: AciConstraint = _ANY_KEYSET,
    ) -> None:
        protocol = ACI_X25519 if len(key) == 32 else ACI_SECP256K1
        self._fields = FieldSealing(protocol, key, model=model, now=now)
        self._note, self._constraint = note, constraint

    def seal(self, method: str, target: str, headers: Headers, body: bytes) -> SealedRequest:
        """Encrypt a request; one without body is sent unencrypted.

        Args:
            method: Method of the request, such as "POST".
            target: Its path and query.
            headers: Its headers, names and values.
            body: Its whole body; empty if it has none.

        Raises:
            ServiceError: As for `Sealing.seal`.
        """
        if body:
            body = _restored(body)
        sealed = self._fields.seal(method, target, headers, body)
        if body:
            self._note(sha256(sealed.body), sha256(body))
        return sealed._replace(opener=AciOpener(sealed.opener, self._constraint))


class AciOpener:
    """Decrypts an answer, or detects the error that the server does not have the key any more.

    Attributes:
        authenticated: Whether the answer is encrypted; an error is not.
        read_at_once: Whether the body may be that error, so that it should be read before the
            caller gets the answer.
    """

    def __init__(self, fields: Opener, constraint: AciConstraint = _ANY_KEYSET) -> None:
        self._fields, self._constraint = fields, constraint
        self._headers: Headers = []
        self._problem = bytearray()
        self.authenticated: bool = True
        self.read_at_once: bool = False

    def start(self, status: int, headers: Headers) -> Headers:
        """Check status and headers of the answer, and return the headers for the caller.

        The constraint compares the keyset digest in them; after the status 400, `finish` does so.
        """
        self.read_at_once = status == _BAD_REQUEST
        if self.read_at_once:
            self._headers = headers
        else:
            self._constraint.start(status, headers)
        found = self._fields.start(status, headers)
        self.authenticated = bool(getattr(self._fields, "authenticated", True))
        return found

    def feed(self, data: bytes) -> bytes:
        """Decrypt the next bytes of the answer's body; the result may be empty.

        Args:
            data: The next bytes of the body, cut anywhere.
        """
        if self.read_at_once and len(self._problem) <= MAX_PROBLEM:
            self._problem += data
        return self._fields.feed(data)

    def finish(self) -> bytes:
        """Return the remaining decrypted bytes at the end of the body.

        Raises:
            SealingKeyError: If the answer is the error that the server does not have the key.
            ServiceError: If the answer is incomplete, or cannot be decrypted (reason `sealing`).
        """
        error = read_problem(bytes(self._problem)).get("error") if self.read_at_once else None
        if isinstance(error, dict) and error.get("type") == _KEY_PROBLEM:
            raise key_problem("ACI")  # for which the server is verified again in any case
        self._constraint.start(_BAD_REQUEST, self._headers)
        return self._fields.finish()


def _restored(body: bytes) -> bytes:
    """Return a request's body as the server restores it: compact JSON with `provider.aci_verified`.

    The server would decode a `content` whose text is a JSON array, so it is sent as a list of one
    text part.

    Args:
        body: JSON object of the request, with a member `model`.

    Raises:
        ServiceError: If `body` is malformed, or lacks the model (reason `sealing`).
    """
    with sealing_errors():
        members = strict_json.read_object(require_verified(body), "request")
    if not isinstance(members.get("model"), str):
        raise ServiceError("request: model: missing, or not text", reason="sealing")
    messages = members.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict) and _is_array(message.get("content")):
            message["content"] = [{"type": "text", "text": message["content"]}]
    return json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode()


def _is_array(content: object) -> bool:
    if not isinstance(content, str) or not content.lstrip(" \t\r\n").startswith("["):
        return False
    try:
        strict_json.check_depth(content)
        json.loads(content)
    except (ValueError, RecursionError):  # a FormatError is a ValueError
        return False
    return True
