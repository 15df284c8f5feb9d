"""Attacks on sealed fields: words beside them, which are open, must not stand in for them."""

from typing import Any, Final

from attestkit.client.sealing.field_protocols import ALL_ENDPOINTS
from attestkit.client.sealing.field_walk import AnswerWalk
from attestkit.errors import ServiceError
from tests.raising import raises
from tests.runner.cases import every_case

EVIL: Final = "https://evil.example/x.png"


def walk(endpoint: str, answer: dict[str, Any], *allowed: str) -> dict[str, Any]:
    """Open an answer whose sealed texts are their own plaintext."""
    table = ALL_ENDPOINTS[endpoint].answer
    return AnswerWalk(table, frozenset(allowed)).open(answer, lambda _, text: f"opened {text}")


@every_case(
    ("endpoint", "answer"),
    [
        ("images/generations", {"data": [{"url": EVIL}]}),
        ("images/generations", {"data": [{"b64_json": "00", "url": EVIL}]}),
        ("images/generations", {"data": [{"more": {"url": EVIL}}]}),
        ("embeddings", {"data": [{"embedding": "00", "file": EVIL}]}),
        ("rerank", {"results": [{"index": 0, "document": {"text": "00", "url": EVIL}}]}),
        ("rerank", {"results": [{"index": 0, "link": EVIL}]}),
        ("chat/completions", {"choices": [{"message": {"url": EVIL}}]}),
    ],
)
def test_injected_url(endpoint: str, answer: dict[str, Any]) -> None:
    """An injected URL is refused: the client would fetch it as the answer."""
    with raises(ServiceError, "sealing"):
        walk(endpoint, answer)


def test_answers_as_they_are() -> None:
    """Fields that services send open, or that the caller allows, are passed on."""
    assert walk("images/generations", {"created": 1, "data": [{"url": None}]})["created"] == 1
    answer = {"object": "list", "data": [{"object": "embedding", "index": 0}], "model": "org/m"}
    assert walk("embeddings", answer) == answer
    answer = {"id": "rerank-1", "results": [{"index": 0, "relevance_score": 0.5}]}
    assert walk("rerank", answer) == answer
    answer = {"data": [{"url": EVIL}]}
    assert walk("images/generations", answer, "data[].url") == answer
