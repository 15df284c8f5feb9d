"""JSON inside evidence: one meaning or a FormatError."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit._formats import strict_json
from attestkit.errors import FormatError
from tests.attestation.samples import refused


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{} x",
        '{"a":1,"a":2}',
        '{"x":{"a":1,"a":1}}',
        "NaN",
        "-Infinity",
        '"\\ud800"',
        '"\ud800"',
        '{"\\udc00":1}',
        "[" * 100_000,
        "1" * 5000,
        b"\xff",
        '"x"'.encode("utf-16"),
        b'\xef\xbb\xbf"x"',
    ],
)
def test_text_with_no_single_meaning_is_refused(text: str | bytes) -> None:
    """Doubled keys, half surrogate pairs, depth and other encodings are FormatErrors."""
    with pytest.raises(FormatError, match=r"^config is not well-formed JSON$"):
        strict_json.read(text, "config")


def test_objects_are_read() -> None:
    """Text and bytes give the same; whole surrogate pairs are text."""
    assert strict_json.read_object('{"a":["\\ud83d\\ude00"]}', "x") == {"a": ["😀"]}
    assert strict_json.read_object(b'{"a":1}', "x") == {"a": 1}
    with pytest.raises(FormatError, match="x is not a JSON object"):
        strict_json.read_object("[]", "x")


@pytest.mark.parametrize("value", ["0", "0x00", " 00", "00 ", "zz", "é0", b"00", None, 7])
def test_hex_is_digits_alone(value: object) -> None:
    """Neither prefix nor space nor another type is hex."""
    with pytest.raises(FormatError, match=r"^field is not hex text$"):
        strict_json.from_hex(value, "field")


def test_hex_has_the_wanted_size() -> None:
    """A size is held, when there is one; either case is read."""
    assert strict_json.from_hex("aB01", "field") == b"\xab\x01"
    assert strict_json.from_hex("", "field") == b""
    with pytest.raises(FormatError, match="field must have 3 bytes, not 2"):
        strict_json.from_hex("0000", "field", 3)


@pytest.mark.parametrize("value", ["YQ", "YQ=", "YR==", "Y Q==", "YQ==\n", "-_8=", "é", b"YQ==", 1])
def test_base64_has_one_form(value: object) -> None:
    """Padding, alphabet and stray bits are as RFC 4648 wants them, without line ends."""
    with pytest.raises(FormatError, match=r"^field is not base64 text$"):
        strict_json.from_base64(value, "field")
    assert strict_json.from_base64("YQ==", "field") == b"a"


@pytest.mark.parametrize("value", [None, True, -1, 256, 1.0, "1"])
def test_numbers_have_a_range(value: object) -> None:
    """A number is an integer within its bits; booleans are none."""
    with pytest.raises(FormatError, match="n is not a number of 8 bits"):
        strict_json.number_field({"n": value}, "n", 8)


def test_missing_fields_have_defaults() -> None:
    """A missing or null text is the default, a missing number too."""
    fields: dict[str, Any] = {"null": None}
    assert strict_json.string(fields, "null", "d") == strict_json.string(fields, "no", "d") == "d"
    assert strict_json.hex_field(fields, "null") == b""
    assert strict_json.number_field(fields, "no", 8, 255) == 255
    with pytest.raises(FormatError, match="no is not a string"):
        strict_json.string(fields, "no")


@settings(deadline=None)  # machines are busy
@given(st.text() | st.binary())
def test_any_text_is_read_or_refused(text: str | bytes) -> None:
    """Whatever comes, only FormatError comes out."""
    refused(lambda _: strict_json.read(text, "x"), b"")


@settings(deadline=None)  # machines are busy
@given(st.recursive(st.none() | st.integers() | st.text(), st.lists))
def test_json_of_others_is_read(value: object) -> None:
    """What json writes is read."""
    if "\\ud" not in json.dumps(value):
        assert strict_json.read(json.dumps(value), "x") == value
