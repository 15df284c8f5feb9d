"""Strict JSON: nesting is limited before parsing, and ambiguous documents are rejected."""

import binascii
import contextlib
import itertools
import json
import sys
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._formats import strict_json
from attestkit._formats.strict_json import MAX_DEPTH, check_depth, decode_at, decode_strictly
from attestkit.errors import FormatError
from tests.processes import run_program
from tests.raising import raises
from tests.runner.cases import every_case


@pytest.mark.parametrize("kind", [str, str.encode])
def test_check_depth_over_limit_names_the_bracket(kind: type) -> None:
    """The maximum depth passes; one level more is rejected at the offset of its bracket."""
    check_depth(kind("[" * MAX_DEPTH + "]" * MAX_DEPTH))
    with raises(FormatError, "too_deep", offset=6 * (MAX_DEPTH // 2)):
        check_depth(kind('[{"a":' * (MAX_DEPTH // 2) + "[" + "]" * 9))


@every_case("wide", ["é", "\u2200", "\ud800", "\U0001f511"])
def test_check_depth_offset_counts_utf8_bytes(wide: str) -> None:
    """Offsets count bytes of UTF-8; a lone surrogate counts as three."""
    text = f'["{wide}",' + "[" * MAX_DEPTH
    offset = len(text.encode(errors="surrogatepass")) - 1
    with raises(FormatError, "too_deep", offset=offset):
        check_depth(text)


def test_check_depth_ignores_width_and_brackets_in_strings() -> None:
    """A wide document and brackets inside strings add no depth."""
    check_depth(json.dumps([[1]] * 10_000))
    check_depth(json.dumps(["[{" * 5_000, 'a"\\' + "[" * 5_000]))


@every_case(
    "tail",
    [
        '\\"' * 2_000_000,
        "\\\\" * 2_000_000,
        '"' * 2_000_001,
        '"a\\' * 1_000_000,
        "\\" * 2_000_001,
    ],
    ids=["quotes", "backslashes", "borders", "mixed", "odd"],
)
def test_check_depth_takes_linear_time(tail: str) -> None:
    """Unterminated strings and escapes are scanned once."""
    check_depth("[]" * (MAX_DEPTH + 1) + '"' + tail)


@every_case(
    ("string", "deep"),
    [
        (r'"\\"', True),
        (r'"\""', True),
        (r'"\\\""', True),
        (r'"\u0022"', True),
        (r'"\"', False),
        (r'"\\\"', False),
    ],
)
def test_check_depth_honours_escaped_quotes(string: str, deep: bool) -> None:
    """A quote after an odd number of backslashes does not end its string."""
    text = f"[{string}," + "[" * MAX_DEPTH
    if not deep:
        check_depth(text)
        return
    with raises(FormatError, "too_deep", offset=len(text) - 1):
        check_depth(text)


@given(st.text() | st.binary())
def test_check_depth_below_limit_accepts_any_text(text: str | bytes) -> None:
    """Text below the limit of depth is accepted, whether it is JSON or not."""
    check_depth(text[:MAX_DEPTH])


DEEP = """
import sys
from attestkit.attestation import Attestation
from attestkit.cli.input.detect_format import identify
from attestkit.collateral import Collateral
from attestkit.dstack.app_compose import AppCompose
from attestkit.errors import AttestKitError
from attestkit.event_log import EventLog
from attestkit.keys import AppKeys
from attestkit.serve.rpc import json_codec, messages

sys.setrecursionlimit(10**6)
for bracket in ("[", '{"a":'):
    deep = bracket * 200_000
    raw = deep.encode()
    # In UTF-16 one byte of this character equals a quote, which could hide the brackets.
    wide = ('["\\u2200",' + deep).encode("utf-16-le")
    for parse, data in (
        (EventLog.parse, deep),
        (Attestation.from_agent_response, deep),
        (Collateral.from_json, deep),
        (Collateral.from_json, wide),
        (AppCompose.parse, raw),
        (AppKeys.from_json, deep),
        (identify, raw),
        (identify, wide),
        (lambda raw: json_codec.decode(messages.SignRequest, raw), raw),
    ):
        try:
            parse(data)
        except AttestKitError:
            continue
        sys.exit(f"accepted by {parse}")
print("refused")
"""


def test_parse_of_deep_text_with_raised_recursion_limit_fails() -> None:
    """Deep text raises an error of attestkit even if a library raised the recursion limit."""
    done = run_program(sys.executable, "-c", DEEP)
    assert (done.returncode, done.stdout, done.stderr) == (0, "refused\n", "")


@every_case(
    ("text", "reason", "named"),
    [
        ("", "syntax", "(line 1, column 1)"),
        ("{", "syntax", ""),
        ("{} x", "syntax", ""),
        ('{"a": 1, "a": 1}', "duplicate", "a: "),
        ('[{"b": {"c": 1, "d": 2, "c": 3}}]', "duplicate", "c: "),
        ('{"\\u001b": 1, "\\u001b": 1}', "duplicate", "\\x1b: "),
        ("NaN", "syntax", "NaN"),
        ("[-Infinity]", "syntax", "-Infinity"),
        ('"\\ud800"', "encoding", ""),
        ('"\ud800"', "encoding", ""),
        ('{"\\udc00":1}', "encoding", ""),
        ("[" * 201, "too_deep", "(byte 200)"),
        ("9" * 5000, "too_large", ""),
        (b"\xff", "encoding", "(byte 0)"),
        ('"x"'.encode("utf-16"), "encoding", ""),
        (b'\xef\xbb\xbf"x"', "syntax", ""),
    ],
)
def test_read_of_ambiguous_json_fails(text: str | bytes, reason: str, named: str) -> None:
    """The error names the reason and the place."""
    with raises(FormatError, reason, start="config: ", part=named):
        strict_json.read(text, "config")


@every_case("text", [b"\xff", "[NaN]", '{"a": 1, "a": 1}', "[1,"])
def test_decode_strictly_error_keeps_no_reference_to_text(text: str | bytes) -> None:
    """Neither cause nor context of the error contains the text, which may be secret."""
    with pytest.raises(FormatError) as caught:
        decode_strictly(text)
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


def test_decode_strictly_near_recursion_limit_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the caller's stack is nearly full, the error of Python's parser becomes a FormatError."""

    def raise_recursion_error(*_: object, **__: object) -> None:
        raise RecursionError

    monkeypatch.setattr(json.JSONDecoder, "decode", raise_recursion_error)
    with raises(FormatError, "too_deep"):
        decode_strictly("[[]]")


@given(st.text() | st.binary())
def test_decode_strictly_returns_what_json_loads_returns(text: str | bytes) -> None:
    """A document accepted by the strict reader has the value that json.loads returns."""
    try:
        found = decode_strictly(text)
    except FormatError:
        return
    assert found == json.loads(text)


@every_case(
    ("text", "reason"),
    [
        ('{"a":1,"a":2}', "duplicate"),
        ("[NaN]", "syntax"),
        ("1" * 5000, "too_large"),
        ("", "syntax"),
        ("[1,", "syntax"),
        ("}", "syntax"),
        (" 1", "syntax"),
    ],
)
def test_decode_value_within_text_is_strict(text: str, reason: str) -> None:
    """A value at an offset is read strictly; its end and error offsets count bytes."""
    assert decode_at('é[1]{"a":[]}x', 4) == ({"a": []}, 12)
    with raises(FormatError, reason) as caught:
        decode_at("é" + text, 1)
    assert caught.value.offset is not None
    assert 2 <= caught.value.offset <= 2 + len(text)


# -- fields ----------------------------------------------------------------------------------------


def test_read_of_text_and_bytes_returns_equal_objects() -> None:
    """Text and its UTF-8 encoding give the same object; surrogate pairs are decoded."""
    assert strict_json.read_object('{"a":["\\ud83d\\ude00"]}', "x") == {"a": ["😀"]}
    assert strict_json.read_object(b'{"a":1}', "x") == {"a": 1}
    with raises(FormatError, "wrong_type"):
        strict_json.read_object("[]", "x")


NOT_TEXT = [(b"00", "wrong_type"), (None, "missing"), (7, "wrong_type")]


@every_case(
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


@every_case(
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


@every_case("size", range(6))
def test_from_base64_accepts_what_encoding_returns_alone(size: int) -> None:
    """Of all texts over a small alphabet, those are accepted that their bytes encode to."""
    for letters in itertools.product("AQw/=\n ", repeat=size):
        text = "".join(letters)
        try:
            found = strict_json.from_base64(text, "field")
        except FormatError:
            with contextlib.suppress(ValueError):
                again = b64encode(binascii.a2b_base64(text)).decode()
                assert again != text, "refused, but canonical"
        else:
            assert b64encode(found).decode() == text


@every_case(
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
