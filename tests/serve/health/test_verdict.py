"""Texts of a verdict are safe to log and bounded."""

from hypothesis import given
from hypothesis import strategies as st

from attestkit.serve.health.monitor import (
    HEALTHY,
    NOT_DETERMINED,
    HealthProblem,
    HealthVerdict,
    safe_text,
)
from tests.runner.cases import every_case

UNSAFE = (
    *map(chr, [*range(0x20), *range(0x7F, 0xA0)]),
    *"\u2028\u2029\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff",
)


def test_safe_text_replaces_each_unsafe_character() -> None:
    """The characters of the specification become spaces; others stay."""
    assert {safe_text(f"a{one}b") for one in (*UNSAFE, "\ud800")} == {"a b"}
    assert safe_text("/run/é \u200b日本/健康") == "/run/é \u200b日本/健康"


@every_case(
    ("text", "expected"),
    [
        ("a" * 256, "a" * 256),
        ("a" * 257, "a" * 256 + "... (truncated)"),
        ("a" * 255 + "é", "a" * 255 + "... (truncated)"),
        ("a" * 254 + "éb", "a" * 254 + "é... (truncated)"),
        ("日" * 86, "日" * 85 + "... (truncated)"),
    ],
)
def test_safe_text_is_cut_between_characters(text: str, expected: str) -> None:
    """At most 256 bytes in UTF-8 remain."""
    assert safe_text(text) == expected


@given(st.text())
def test_safe_text_is_bounded(text: str) -> None:
    """Any text becomes a line that can be encoded."""
    safe = safe_text(text)
    assert len(safe.encode()) <= 256 + len("... (truncated)")
    assert not set(safe) & set(UNSAFE)


def test_verdict_as_text_is_short() -> None:
    """The text for the log names at most five entries."""
    many = HealthVerdict(
        healthy=False, unhealthy=tuple(HealthProblem(f"c{n}", "starting") for n in range(7))
    )
    assert str(HEALTHY) == "healthy"
    assert str(NOT_DETERMINED) == "unhealthy: <health>: health has not been determined yet"
    assert str(HealthVerdict(healthy=False, error="no engine")) == "unhealthy: no engine"
    assert str(many).endswith("c4: starting; 2 more")
