"""How deep brackets nest: the compiled core and its twin say the same, JSON or not."""

import json

import pytest
from hypothesis import strategies as st

from attestkit import _native
from attestkit._native import _python_json as twin
from tests.thorough import thorough

compiled = pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)

# What the walk looks at, and a little that it passes over.
SOUP = st.text('[]{}"\\x', max_size=80).map(str.encode)


def walked(text: bytes) -> int:
    """Return what a walk that has one byte and one rule at a time finds with two levels."""
    depth, quoted, escaped = 0, False, False
    for at, byte in enumerate(text):
        was_escaped, escaped = escaped, False
        if was_escaped and byte in b'"\\':
            continue
        if byte == ord("\\"):
            escaped = True
        elif byte == ord('"'):
            quoted = not quoted
        elif byte in b"[{" and not quoted:
            depth += 1
            if depth > 2:
                return at
        elif byte in b"]}" and not quoted:
            depth -= 1
    return -1


@compiled
@thorough(SOUP, st.integers(0, 5), few=500, many=3000)
def test_cores_agree_on_soup(text: bytes, most: int) -> None:
    """Brackets, quotes and backslashes in any order, few of which are JSON."""
    assert _native.json_depth(text, most) == twin.json_depth(text, most)


@thorough(SOUP, few=500, many=2000)
def test_one_byte_at_a_time_finds_the_same(text: bytes) -> None:
    """Both are held against a third way, which jumps over nothing."""
    assert _native.json_depth(text, 2) == walked(text)
    assert twin.json_depth(text, 2) == walked(text)


VALUE = st.recursive(
    st.text('[]{}"\\é', max_size=8) | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('"\\[', max_size=3), inner),
    max_leaves=12,
)


def depth_of(value: object) -> int:
    """Return how deep a value nests."""
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


@thorough(VALUE, st.sampled_from(["ascii", "utf-8"]), few=100, many=500)
def test_json_nests_as_deep_as_its_value(value: object, form: str) -> None:
    """One level more than there are is never exceeded, one less always is; of either core."""
    text, depth = json.dumps(value, ensure_ascii=form == "ascii").encode(), depth_of(value)
    for core in (_native, twin):
        assert core.json_depth(text, depth) == -1
        if depth:
            at = core.json_depth(text, depth - 1)
            assert text[at : at + 1] in {b"[", b"{"}


class Lies(bytes):
    """Bytes that say they are many more."""

    def __len__(self) -> int:
        """Return what these bytes have not."""
        return 1 << 20


@compiled
def test_a_length_that_is_a_lie_is_not_believed() -> None:
    """The core goes by how many bytes there are."""
    assert _native.json_depth(Lies(b"[[["), 2) == 2
    assert _native.json_depth(Lies(b"["), 2) == -1


def test_large_texts_are_walked_alike() -> None:
    """From 256 KiB on the compiled core lets other threads run meanwhile."""
    text = b'["[[[",' * 40000 + b"[["
    assert _native.json_depth(text, 2) == twin.json_depth(text, 2) == 14
    assert _native.json_depth(text, 1 << 20) == -1
