"""The compiled and the Python core measure bracket depth equally, for JSON and other text."""

import json

import pytest
from hypothesis import strategies as st

from attestkit import _native
from attestkit._native import _python_json as python_core
from tests.thorough import thorough
from tests.untyped import with_false_length

compiled = pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)

# Significant characters of the scanner, and a few others.
SOUP = st.text('[]{}"\\x', max_size=80).map(str.encode)


def scan_bytewise(text: bytes) -> int:
    """Return the result for a depth of two by a scan of one byte at a time."""
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
def test_cores_agree_on_arbitrary_brackets(text: bytes, most: int) -> None:
    """Brackets, quotes and backslashes in any order."""
    assert _native.json_depth(text, most) == python_core.json_depth(text, most)


@thorough(SOUP, few=500, many=2000)
def test_cores_agree_with_bytewise_scan(text: bytes) -> None:
    """Both cores match a scanner that skips nothing."""
    assert _native.json_depth(text, 2) == scan_bytewise(text)
    assert python_core.json_depth(text, 2) == scan_bytewise(text)


VALUE = st.recursive(
    st.text('[]{}"\\é', max_size=8) | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('"\\[', max_size=3), inner),
    max_leaves=12,
)


def depth_of(value: object) -> int:
    """Return the nesting depth of a value."""
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


@thorough(VALUE, st.sampled_from(["ascii", "utf-8"]), few=100, many=500)
def test_depth_of_json_equals_depth_of_value(value: object, form: str) -> None:
    """A value's depth is exceeded by a limit one lower, and by no higher limit."""
    text, depth = json.dumps(value, ensure_ascii=form == "ascii").encode(), depth_of(value)
    for core in (_native, python_core):
        assert core.json_depth(text, depth) == -1
        if depth:
            at = core.json_depth(text, depth - 1)
            assert text[at : at + 1] in {b"[", b"{"}


@compiled
def test_json_depth_uses_stored_length() -> None:
    """The core uses the stored length, not an overridden one."""
    assert _native.json_depth(with_false_length(b"[[[", 1 << 20), 2) == 2
    assert _native.json_depth(with_false_length(b"[", 1 << 20), 2) == -1


def test_json_depth_of_large_text_agrees() -> None:
    """From 256 KiB on the compiled core releases the GIL."""
    text = b'["[[[",' * 40000 + b"[["
    assert _native.json_depth(text, 2) == python_core.json_depth(text, 2) == 14
    assert _native.json_depth(text, 1 << 20) == -1
