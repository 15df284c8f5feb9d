"""Spans of members in JSON: the text of each value as it was sent."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._formats.bounded_gzip import gunzip
from attestkit._formats.strict_json import member_spans
from attestkit.errors import FormatError
from tests.runner.cases import every_case

SAMPLE = ' {"a" : [1, {"b": "}\\""}] ,\n"é": "€",\t"c":null , "d":-1.5e3}\r\n'
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    st.lists,
    max_leaves=5,
)


def texts(text: str) -> dict[str, str]:
    """Return the text of each member's value."""
    return {name: text[start:end] for name, (start, end) in member_spans(text).items()}


def test_values_are_as_sent() -> None:
    """White space inside of a value belongs to it, that around it does not."""
    found = texts(SAMPLE)
    assert found == {"a": '[1, {"b": "}\\""}]', "é": '"€"', "c": "null", "d": "-1.5e3"}
    assert texts("{}") == texts(" { } ") == {}


@given(
    st.dictionaries(st.text(), VALUES, max_size=5),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_spans_decode_to_the_members(value: dict[str, Any], indent: int, ascii_only: bool) -> None:
    """In any layout, the text of a member decodes to its value."""
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert {name: json.loads(found) for name, found in texts(text).items()} == value


@every_case(
    ("text", "reason"),
    [
        ("", "truncated"),
        ("[]", "syntax"),
        ('"a"', "syntax"),
        ('{"a":1,}', "syntax"),
        ("{,}", "syntax"),
        ('{"a" 1}', "syntax"),
        ('{"a":1 "b":2}', "syntax"),
        ("{1:2}", "wrong_type"),
        ('{"a":1,"a":1}', "duplicate"),
        ('{"a":{"b":1,"b":1}}', "duplicate"),
        ('{"a":NaN}', "syntax"),
        ("{}{}", "trailing_data"),
        ('{"a":' + "[" * 300 + "]" * 300 + "}", "too_deep"),
    ],
)
def test_other_text_is_refused(text: str, reason: str) -> None:
    """Text is one object with unique names."""
    with pytest.raises(FormatError) as caught:
        member_spans(text)
    assert caught.value.reason == reason


def test_every_cut_length_is_refused() -> None:
    """Each prefix of an object is refused, with an offset inside of it."""
    text = SAMPLE.rstrip()
    for size in range(len(text)):
        with pytest.raises(FormatError) as caught:
            member_spans(text[:size])
        offset = caught.value.offset
        assert offset is None or offset <= len(text[:size].encode())


def test_gzip_stream_is_bounded_and_complete() -> None:
    """Every prefix of a stream, and one byte more of content than allowed, are refused."""
    import gzip

    data = gzip.compress(bytes(1000), mtime=0)
    assert gunzip(data, 1000, "body") == bytes(1000)
    for size in range(len(data)):
        with pytest.raises(FormatError) as caught:
            gunzip(data[:size], 1000, "body")
        assert caught.value.reason == "truncated"
    for changed, most, reason in ((data, 999, "too_large"), (data + b"\0", 1000, "trailing_data")):
        with pytest.raises(FormatError) as caught:
            gunzip(changed, most, "body")
        assert caught.value.reason == reason
