"""JSON files have the shape that they should, or the key and the reason are told."""

import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._formats.typed_json import decode_typed
from attestkit.errors import ConfigError


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A shape with something inside."""

    one: int
    inner: dict[str, int] = {}


def test_a_good_file() -> None:
    """Text and bytes are read alike."""
    assert decode_typed('{"one": 1}', Shape) == decode_typed(b'{"one": 1}', Shape) == Shape(1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{}", "one: missing"),
        ('{"one": "1"}', "one: Expected `int`, got `str`"),
        ('{"one": 1, "two": 2}', "two: unknown"),
        ('{"one": 1, "inner": {"a": null}}', "inner[...]: Expected `int`, got `null`"),
        ('{"one": 1, "one": 2}', "one: occurs twice"),
        ('{"one": 1, "inner": {"a": 1, "a": 1}}', "a: occurs twice"),
        ("[]", "Expected `object`, got `array`"),
        ("", "not JSON: Input data was truncated"),
        ("[" * 201, "not JSON: JSON nests deeper than 200 levels (byte 200)"),
        (b'{"one": "\xff"}', "not UTF-8 text (byte 9)"),
        ('{"one": 1} x', "not JSON: "),
    ],
)
def test_what_is_wrong(text: str | bytes, told: str) -> None:
    """Key and reason are told; where the text stands inside a file, its key comes first."""
    with pytest.raises(ConfigError) as caught:
        decode_typed(text, Shape)
    assert str(caught.value).startswith(told)
    with pytest.raises(ConfigError) as caught:
        decode_typed(text, Shape, "outer")
    assert str(caught.value).startswith("outer")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@given(st.binary() | st.dictionaries(st.sampled_from(["one", "inner", "x"]), JSON))
def test_anything(content: Any) -> None:
    """Whatever it is, it is read or refused."""
    data = content if isinstance(content, bytes) else json.dumps(content)
    with suppress(ConfigError):
        assert isinstance(decode_typed(data, Shape), Shape)
