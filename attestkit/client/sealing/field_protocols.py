"""Protocols that encrypt JSON fields, of vllm-proxy and its derivatives.

That of ACI version 2 is in `aci_e2ee`.
"""

from collections.abc import Mapping
from typing import Any, Final

from attestkit.client.sealing.field_cipher import FieldCipher
from attestkit.client.sealing.field_walk import FieldKind, FieldTable, Path
from attestkit.client.sealing.fields import (
    OPEN,
    AssociatedData,
    EndpointTables,
    FieldProtocol,
    MakeHeaders,
    RequestContext,
)
from attestkit.client.sealing.protocol import Headers
from attestkit.errors import ServiceError

_ANSWER_WORDS: Final = frozenset(
    f"choices[].{part}.{name}"
    for part in ("message", "delta")
    for name in (
        *("role", "tool_call_id", "audio.id", "content[].type", "nearai_tool_result.id"),
        *("tool_calls[].id", "tool_calls[].type", "tool_calls[].index"),
    )
) | {"data[].object"}
# A URL is a word, too: an attacker must not replace that of an image.
_STRICT: Final = (
    *("choices[].message", "choices[].delta", "choices[].logprobs", "choices[].text"),
    *("data[]", "results[]"),
)

_REQUEST_WORDS: Final = frozenset(
    {
        *("model", "reasoning_effort", "reasoning.effort", "service_tier", "encoding_format"),
        *("tool_choice", "tool_choice.type", "function_call", "response_format.type", "size"),
        *("messages[].role", "messages[].tool_call_id", "messages[].audio.id", "quality", "style"),
        *("messages[].tool_calls[].id", "messages[].tool_calls[].type", "tools[].type"),
        *("modalities[]", "stream_options.include_usage"),
        *("stream_options.continuous_usage_stats", "chat_template_kwargs.enable_thinking"),
        *("chat_template_kwargs.thinking", "tools[].function.strict"),
    }
)
"""Fields of requests that stay unencrypted: options, roles and ids; their text must be a word."""

# Options that make servers send tokens, which no protocol seals.
_TOKENS: Final = frozenset({"return_token_ids", "return_tokens_as_token_ids", "prompt_logprobs"})
_LOGPROBS: Final = frozenset({*_TOKENS, "logprobs", "top_logprobs"})


def _answer(
    sealed: Mapping[str, FieldKind], *, words: frozenset[str] = _ANSWER_WORDS
) -> FieldTable:
    return FieldTable(sealed, words, _STRICT)


def _request(sealed: Mapping[str, FieldKind], forbidden: frozenset[str] = _TOKENS) -> FieldTable:
    return FieldTable(sealed, _REQUEST_WORDS, (), forbidden)


def _texts(*names: str) -> dict[str, FieldKind]:
    return dict.fromkeys(names, "text")


def in_answers(*names: str) -> dict[str, FieldKind]:
    """Return the kind "text" for members of an answer's messages, by pattern.

    Args:
        names: Names of members of `choices[].message`, or in streams `choices[].delta`, such as
            "content".
    """
    return _texts(*(f"choices[].{part}.{name}" for part in ("message", "delta") for name in names))


CONTENTS_CHAT: Final = EndpointTables(
    _request({"messages[].content": "text"}, _LOGPROBS),
    _answer(in_answers("content", "reasoning_content", "reasoning")),
)
"""Chat with the contents of messages as text; lists of parts are refused."""

PARTS_CHAT: Final = EndpointTables(
    FieldTable(
        _texts("messages[].content", "messages[].content[].text"),
        _REQUEST_WORDS | {"messages[].content[].type"},
        (),
        _LOGPROBS,
    ),
    _answer(in_answers("content", "reasoning_content")),
)
"""Chat of Phala's proxy: contents as text, or the texts of their parts; images are refused."""

_LOGPROB_PLACES: Final = tuple(
    f"choices[].logprobs.{part}[].{place}"
    for part in ("content", "refusal")
    for place in ("", "top_logprobs[].")
)
_LOGPROB_TOKENS: Final[Mapping[str, FieldKind]] = {
    **{f"{place}token": "text" for place in _LOGPROB_PLACES},
    **{f"{place}bytes": "json" for place in _LOGPROB_PLACES},
}

ALL_CHAT: Final = EndpointTables(
    _request(
        {
            "messages[].content": "text or json",
            "tools[].function.parameters": "json",
            **_texts(
                *("messages[].reasoning_content", "messages[].reasoning", "messages[].refusal"),
                *("messages[].name", "messages[].audio.data", "messages[].function_call.name"),
                "messages[].function_call.arguments",
                "messages[].tool_calls[].function.name",
                "messages[].tool_calls[].function.arguments",
                *("tools[].function.name", "tools[].function.description"),
                *("tool_choice.function.name", "function_call.name"),
            ),
        }
    ),
    _answer(
        {
            **in_answers(
                *("content", "content[].text", "reasoning_content", "reasoning", "refusal", "name"),
                *("audio.data", "function_call.name", "function_call.arguments"),
                *("tool_calls[].function.name", "tool_calls[].function.arguments"),
                "nearai_tool_result.output",
            ),
            **_LOGPROB_TOKENS,
        }
    ),
)
"""Chat with all fields that the inference proxy of NEAR AI seals."""

_PROMPTS: Final[dict[str, FieldKind]] = {"prompt": "text", "prompt[]": "text"}

ALL_ENDPOINTS: Final[Mapping[str, EndpointTables]] = {
    "chat/completions": ALL_CHAT,
    "completions": EndpointTables(
        _request(_PROMPTS, _LOGPROBS), _answer({"choices[].text": "text"})
    ),
    "embeddings": EndpointTables(
        FieldTable(
            {"input": "text", "input[]": "text"},
            _REQUEST_WORDS,
            (),
            _TOKENS,
            # Servers seal lists of numbers, not base64, for which OpenAI's client asks by default.
            {"encoding_format": "float"},
        ),
        _answer({"data[].embedding": "json"}),
    ),
    "images/generations": EndpointTables(
        _request({"prompt": "text"}),
        _answer(_texts("data[].b64_json", "data[].revised_prompt")),
    ),
    "rerank": EndpointTables(
        _request(_texts("query", "documents[]", "documents[].text")),
        _answer({"results[].document.text": "text"}),
    ),
    "score": EndpointTables(
        _request(_texts("text_1", "text_2")),
        _answer({"score": "json"}, words=frozenset({"data[].score"})),
    ),
}
"""Endpoints of the inference proxy of NEAR AI, without those of multipart bodies."""


_MOVED: Final = "that a relay has not moved sealed texts between fields or requests"
_STREAM: Final = "that no part of a streamed answer was left out or moved"
_SCORES: Final = "that scores and relevance in answers are hidden and unchanged"

_BOX: Final = FieldCipher("ed25519", "box")
_XCHACHA: Final = FieldCipher("ed25519", "xchacha20-poly1305", b"ed25519_encryption")
_ED25519_GCM: Final = FieldCipher("ed25519", "aes-256-gcm", b"ed25519_encryption")
_K256_GCM: Final = FieldCipher("secp256k1", "aes-256-gcm", b"ecdsa_encryption")


class PhalaAssociatedData:
    """Associated data of version 2 of Phala's proxy, for chat: values separated by "|"."""

    def of_request(self, context: RequestContext, path: Path) -> bytes:
        """Return the associated data of the content of a message, or of a part of it.

        Args:
            context: Model, nonce, time and algorithm of the request.
            path: Member names and list positions that lead to the field.

        Raises:
            ServiceError: If `path` is not such a field, or the model's name has a "|" (reason
                `sealing`).
        """
        match path:
            case ("messages", int(message), "content"):
                place = f"m={message}|c=-"
            case ("messages", int(message), "content", int(part), "text"):
                place = f"m={message}|c={part}"
            case _:
                raise _unknown(path)
        return _joined("req", context, context.model, place)

    def of_answer(self, context: RequestContext, answer: Mapping[str, Any], path: Path) -> bytes:
        """Return the associated data of a field of a choice.

        Args:
            context: Model, nonce, time and algorithm of the request.
            answer: The decoded answer, or event of its stream.
            path: Member names and list positions that lead to the field.

        Raises:
            ServiceError: If `path` is not such a field, or model or id of the answer is not text or
                has a "|" (reason `sealing`).
        """
        match path:
            case ("choices", int(choice), "message" | "delta", str(name)):
                pass
            case _:
                raise _unknown(path)
        model, identifier = answer.get("model", ""), answer.get("id", "")
        if not isinstance(model, str) or not isinstance(identifier, str):
            raise ServiceError("answer: model and id must be text", reason="sealing")
        _check(identifier)
        place = f"id={identifier}|choice={choice}|field={name}"
        return _joined("resp", context, model, place)


def _joined(kind: str, context: RequestContext, model: str, place: str) -> bytes:
    _check(model)
    start = f"v2|{kind}|algo={context.algorithm}|model={model}|{place}"
    return f"{start}|n={context.nonce}|ts={context.timestamp}".encode()


def _check(name: str) -> None:
    """Raise ServiceError if a name has a "|", which separates parts of the associated data."""
    if not name.isprintable() or "|" in name:
        message = "model or id: must be printable and without '|', which separates bound values"
        raise ServiceError(message, reason="sealing")


def _unknown(path: Path) -> ServiceError:
    message = f"field {'.'.join(map(str, path))}: cannot be encrypted; leave it out of requests"
    return ServiceError(message, reason="sealing")


def make_headers(
    *fixed: tuple[str, str], prefix: str = "X-", algorithm: bool = True, bound: bool = False
) -> MakeHeaders:
    """Return a function that returns the headers which describe an encrypted request.

    Args:
        fixed: Headers with the same value in each request: names and values.
        prefix: Prefix of the names of the headers about algorithm and keys.
        algorithm: Whether the header `Signing-Algo` names the algorithm.
        bound: Whether headers state nonce and time of the request, which associated data contain.
    """

    def make(context: RequestContext, client: bytes, server: bytes) -> Headers:
        made = [(f"{prefix}Signing-Algo", context.algorithm)] if algorithm else []
        made += [
            (f"{prefix}Client-Pub-Key", client.hex()),
            (f"{prefix}Model-Pub-Key", server.hex()),
        ]
        if bound:
            made += [("X-E2EE-Nonce", context.nonce)]
            made += [("X-E2EE-Timestamp", str(context.timestamp))]
        return [*made, *fixed]

    return make


_PHALA: Final = make_headers(("X-E2EE-Version", "2"), bound=True)
_NEAR: Final = (("X-Encrypt-All-Fields", "true"), ("X-No-Aliasing", "true"))
_CHAT: Final[Mapping[str, EndpointTables]] = {"chat/completions": CONTENTS_CHAT}
_PARTS: Final[Mapping[str, EndpointTables]] = {"chat/completions": PARTS_CHAT}


def _protocol(
    name: str,
    algorithm: str,
    cipher: FieldCipher,
    headers: MakeHeaders,
    *,
    endpoints: Mapping[str, EndpointTables] = _CHAT,
    associated: AssociatedData | None = None,
) -> FieldProtocol:
    limits = [OPEN, *([_MOVED] if associated is None else []), _STREAM]
    return FieldProtocol(
        name,
        algorithm,
        cipher,
        endpoints,
        headers,
        associated,
        # Only Phala's version 2 decrypts empty text; the others have it unsealed.
        seal_empty=associated is not None,
        not_proven=tuple(limits if endpoints is not ALL_ENDPOINTS else [*limits, _SCORES]),
    )


ED25519_V1: Final = _protocol("ed25519 version 1", "ed25519", _BOX, make_headers())
"""Boxes of NaCl; only the contents of messages are sealed."""

ECDSA_V1: Final = _protocol("ecdsa", "ecdsa", _K256_GCM, make_headers())
"""ECDH on secp256k1 with AES-256-GCM; only the contents of messages are sealed."""

VENICE: Final = _protocol("Venice", "ecdsa", _K256_GCM, make_headers(prefix="X-Venice-TEE-"))
"""As `ECDSA_V1`, with headers of Venice's own."""

NEAR_ED25519: Final = _protocol(
    "NEAR ed25519 version 2",
    "ed25519",
    _XCHACHA,
    make_headers(("X-Encryption-Version", "2"), *_NEAR),
    endpoints=ALL_ENDPOINTS,
)
"""XChaCha20-Poly1305; all fields are sealed."""

NEAR_ECDSA: Final = _protocol(
    "NEAR ecdsa", "ecdsa", _K256_GCM, make_headers(*_NEAR), endpoints=ALL_ENDPOINTS
)
"""As `ECDSA_V1`, with all fields."""

PHALA_ED25519: Final = _protocol(
    "Phala version 2",
    "ed25519",
    _ED25519_GCM,
    _PHALA,
    endpoints=_PARTS,
    associated=PhalaAssociatedData(),
)
"""AES-256-GCM with X25519, bound to request and position."""

PHALA_ECDSA: Final = _protocol(
    "Phala version 2",
    "ecdsa",
    _K256_GCM,
    _PHALA,
    endpoints=_PARTS,
    associated=PhalaAssociatedData(),
)
"""AES-256-GCM with secp256k1, bound to request and position."""
