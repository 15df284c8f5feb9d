"""JSON inside evidence is unambiguous or a FormatError."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit._formats import strict_json
from attestkit.errors import FormatError
from tests.raising import raises


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "syntax"),
        ("{", "syntax"),
        ("{} x", "syntax"),
        ('{"a":1,"a":2}', "duplicate"),
        ('{"x":{"a":1,"a":1}}', "duplicate"),
        ("NaN", "syntax"),
        ("-Infinity", "syntax"),
        ('"\\ud800"', "encoding"),
        ('"\ud800"', "encoding"),
        ('{"\\udc00":1}', "encoding"),
        ("[" * 100_000, "too_deep"),
        ("1" * 5000, "too_large"),
        (b"\xff", "encoding"),
        ('"x"'.encode("utf-16"), "encoding"),
        (b'\xef\xbb\xbf"x"', "syntax"),
    ],
)
def test_read_of_ambiguous_json_fails(text: str | bytes, reason: str) -> None:
    """Duplicate keys, unpaired surrogates, deep nesting and other encodings are rejected."""
    with raises(FormatError, reason, start="config: "):
        strict_json.read(text, "config")


def test_read_of_text_and_bytes_returns_equal_objects() -> None:
    """Text and its UTF-8 encoding give the same object; surrogate pairs are decoded."""
    assert strict_json.read_object('{"a":["\\ud83d\\ude00"]}', "x") == {"a": ["😀"]}
    assert strict_json.read_object(b'{"a":1}', "x") == {"a": 1}
    with raises(FormatError, "wrong_type"):
        strict_json.read_object("[]", "x")


NOT_TEXT = [(b"00", "wrong_type"), (None, "missing"), (7, "wrong_type")]


@pytest.mark.parametrize(
    ("value", "reason"),
    [*((text, "encoding") for text in ("0", "0x00", " 00", "00 ", "zz", "é0")), *NOT_TEXT],
)
def test_from_hex_of_invalid_hex_fails(value: object, reason: str) -> None:
    """Hex has neither prefix nor whitespace and is a string."""
    with raises(FormatError, reason, start="field: "):
        strict_json.from_hex(value, "field")


def test_from_hex_with_size_checks_length() -> None:
    """A required size is enforced; upper and lower case are accepted."""
    assert strict_json.from_hex("aB01", "field") == b"\xab\x01"
    assert strict_json.from_hex("", "field") == b""
    with raises(FormatError, "wrong_size"):
        strict_json.from_hex("0000", "field", 3)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        *((text, "encoding") for text in ("YQ", "YQ=", "YR==", "Y Q==", "YQ==\n", "-_8=", "é")),
        *NOT_TEXT,
    ],
)
def test_from_base64_of_invalid_base64_fails(value: object, reason: str) -> None:
    """Padding, alphabet and unused bits follow RFC 4648; line ends are not allowed."""
    with raises(FormatError, reason, start="field: "):
        strict_json.from_base64(value, "field")
    assert strict_json.from_base64("YQ==", "field") == b"a"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "missing"),
        (True, "wrong_type"),
        (-1, "wrong_value"),
        (256, "wrong_value"),
        (1.0, "wrong_type"),
        ("1", "wrong_type"),
    ],
)
def test_number_field_out_of_range_fails(value: object, reason: str) -> None:
    """A number is an integer within its width; a boolean is not a number."""
    with raises(FormatError, reason):
        strict_json.number_field({"n": value}, "n", 8)


def test_fields_missing_or_null_return_defaults() -> None:
    """A missing or null field has its default."""
    fields: dict[str, Any] = {"null": None}
    assert strict_json.string(fields, "null", "d") == strict_json.string(fields, "no", "d") == "d"
    assert strict_json.hex_field(fields, "null") == b""
    assert strict_json.number_field(fields, "no", 8, 255) == 255
    with raises(FormatError, "missing"):
        strict_json.string(fields, "no")


@settings(deadline=None)  # shared machines are slow
@given(st.recursive(st.none() | st.integers() | st.text(), st.lists))
def test_read_of_json_module_output_returns_equal_value(value: object) -> None:
    """Output of the json module is read as the same value."""
    if "\\ud" not in json.dumps(value):
        assert strict_json.read(json.dumps(value), "x") == value
