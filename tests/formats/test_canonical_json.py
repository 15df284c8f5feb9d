"""Canonical JSON: one form for each value, as RFC 8785 defines it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._formats.canonical_json import MAX_NUMBER, canonical_json
from attestkit._formats.strict_json import MAX_DEPTH
from attestkit.errors import FormatError
from tests.raising import raises
from tests.runner.cases import every_case

_NAMES = st.text(st.characters(max_codepoint=127))
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-MAX_NUMBER, MAX_NUMBER)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
_VALUES = st.recursive(_SCALARS, lambda x: st.lists(x) | st.dictionaries(_NAMES, x), max_leaves=20)


def test_text_is_escaped_as_ecmascript_does() -> None:
    """Short escapes where there are some, lower-case hex for other control characters."""
    assert canonical_json('\u20ac$\u000f\nA"\\/') == '"€$\\u000f\\nA\\"\\\\/"'.encode()
    assert canonical_json("\b\t\f\r\x1f\x7f") == b'"\\b\\t\\f\\r\\u001f\x7f"'
    assert canonical_json("\U0001f511\u2028") == '"\U0001f511\u2028"'.encode()


def test_members_are_sorted_by_name_at_each_level() -> None:
    """Order of members does not count; order of items does."""
    value = {"b": [{"z": 1, "Z": 2}, 3], "a": (True, None, 10), "": -0}
    assert canonical_json(value) == b'{"":0,"a":[true,null,10],"b":[{"Z":2,"z":1},3]}'


def test_numbers_are_whole_and_below_2_to_the_53() -> None:
    """All parsers agree on these numbers only."""
    assert canonical_json([MAX_NUMBER, -MAX_NUMBER]) == b"[9007199254740991,-9007199254740991]"


def _nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_depth_is_limited() -> None:
    """200 levels pass; one more is refused."""
    canonical_json(_nested(MAX_DEPTH))
    with raises(FormatError, "too_deep"):
        canonical_json(_nested(MAX_DEPTH + 1))


@every_case(
    ("value", "reason"),
    [
        (1.5, "wrong_type"),
        (1.0, "wrong_type"),
        (b"text", "wrong_type"),
        ({"a": [object()]}, "wrong_type"),
        ({"é": 1}, "encoding"),
        ({1: 1}, "encoding"),
        (["\ud800"], "encoding"),
        (MAX_NUMBER + 1, "wrong_value"),
        (-MAX_NUMBER - 1, "wrong_value"),
    ],
)
def test_value_without_canonical_form(value: object, reason: str) -> None:
    """A value whose form is not certain is refused, and the error names its subject."""
    with raises(FormatError, reason, start="keyset: "):
        canonical_json(value, "keyset")


@pytest.mark.slow
@given(_VALUES)
def test_canonical_form_is_stable(value: Any) -> None:
    """The form decodes to the same value, which has the same form in any order of members."""
    form = canonical_json(value)
    decoded = json.loads(form)
    assert decoded == json.loads(json.dumps(value))
    assert canonical_json(decoded) == form
    if isinstance(value, dict):
        assert canonical_json(dict(reversed(list(value.items())))) == form
