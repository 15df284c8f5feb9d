"""Which fields the protocols of the vllm-proxy lineage seal (attested-client.md, 2.4).

Fields that are not listed travel open, so that a request with text in one is refused, and an answer
too.
"""

from collections.abc import Mapping
from typing import Final

from attestkit.client.sealing.field_walk import FieldKind, FieldTable
from attestkit.client.sealing.fields import EndpointTables

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
"""Options, roles and ids; their text must be a word."""

# Options that make servers send tokens, which no protocol seals.
_TOKENS: Final = frozenset({"return_token_ids", "return_tokens_as_token_ids", "prompt_logprobs"})
_LOGPROBS: Final = frozenset({*_TOKENS, "logprobs", "top_logprobs"})


def _answer(
    sealed: Mapping[str, FieldKind], *, words: frozenset[str] = _ANSWER_WORDS
) -> FieldTable:
    return FieldTable(sealed, words, _STRICT)


def _request(sealed: Mapping[str, FieldKind], forbidden: frozenset[str] = _TOKENS) -> FieldTable:
    return FieldTable(sealed, _REQUEST_WORDS, (), forbidden)


def in_answers(*names: str) -> dict[str, FieldKind]:
    """Return these fields of messages and of the pieces of streams, as text."""
    return {f"choices[].{part}.{name}": "text" for part in ("message", "delta") for name in names}


CONTENTS_CHAT: Final = EndpointTables(
    _request({"messages[].content": "text"}, _LOGPROBS),
    _answer(in_answers("content", "reasoning_content", "reasoning")),
)
"""Chat with the contents of messages as text; lists of parts are refused."""

PARTS_CHAT: Final = EndpointTables(
    FieldTable(
        {"messages[].content": "text", "messages[].content[].text": "text"},
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
            "messages[].reasoning_content": "text",
            "messages[].reasoning": "text",
            "messages[].refusal": "text",
            "messages[].name": "text",
            "messages[].audio.data": "text",
            "messages[].tool_calls[].function.name": "text",
            "messages[].tool_calls[].function.arguments": "text",
            "messages[].function_call.name": "text",
            "messages[].function_call.arguments": "text",
            "tools[].function.name": "text",
            "tools[].function.description": "text",
            "tools[].function.parameters": "json",
            "tool_choice.function.name": "text",
            "function_call.name": "text",
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
        _answer({"data[].b64_json": "text", "data[].revised_prompt": "text"}),
    ),
    "rerank": EndpointTables(
        _request({"query": "text", "documents[]": "text", "documents[].text": "text"}),
        _answer({"results[].document.text": "text"}),
    ),
    "score": EndpointTables(
        _request({"text_1": "text", "text_2": "text"}),
        _answer({"score": "json"}, words=frozenset({"data[].score"})),
    ),
}
"""Endpoints of the inference proxy of NEAR AI, without those of multipart bodies."""
