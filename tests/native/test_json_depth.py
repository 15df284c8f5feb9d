"""The compiled and the Python core measure bracket depth equally, for JSON and other text."""

import pytest
from hypothesis import strategies as st

from attestkit import _native
from attestkit._native import _python as python_core
from tests.thorough import thorough
from tests.untyped import with_false_length

compiled = pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)

# Significant characters of the scanner, and a few others.
SOUP = st.text('[]{}"\\x', max_size=80).map(str.encode)


def scan_bytewise(text: bytes, most: int) -> int:
    """Return the result by a scan of one byte at a time."""
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
            if depth > most:
                return at
        elif byte in b"]}" and not quoted:
            depth -= 1
    return -1


@thorough(SOUP, st.integers(0, 5), few=250, many=3000)
def test_cores_agree_with_bytewise_scan(text: bytes, most: int) -> None:
    """Both cores match a scanner that skips nothing, for brackets and quotes in any order."""
    expected = scan_bytewise(text, most)
    assert _native.json_depth(text, most) == expected
    assert python_core.json_depth(text, most) == expected


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
