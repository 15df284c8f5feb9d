"""Strict JSON: nesting is limited before parsing, and ambiguous documents are rejected."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._formats.strict_json import MAX_DEPTH, check_depth, decode_at, decode_strictly
from attestkit.errors import FormatError
from tests.raising import raises


@pytest.mark.parametrize("kind", [str, str.encode])
def test_check_depth_over_limit_names_the_bracket(kind: type) -> None:
    """The maximum depth passes; one level more is rejected at the offset of its bracket."""
    check_depth(kind("[" * MAX_DEPTH + "]" * MAX_DEPTH))
    with raises(FormatError, "too_deep", offset=6 * (MAX_DEPTH // 2)):
        check_depth(kind('[{"a":' * (MAX_DEPTH // 2) + "[" + "]" * 9))


@pytest.mark.parametrize("wide", ["é", "\u2200", "\ud800", "\U0001f511"])
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


@pytest.mark.parametrize(
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


@pytest.mark.parametrize(
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


PARSERS = [
    "from attestkit.event_log import EventLog as x; x.parse(deep)",
    "from attestkit.attestation import Attestation as x; x.from_agent_response(deep)",
    "from attestkit.collateral import Collateral as x; x.from_json(deep)",
    "from attestkit.collateral import Collateral as x; x.from_json(wide)",
    "from attestkit.dstack.app_compose import AppCompose as x; x.parse(raw)",
    "from attestkit.keys import AppKeys as x; x.from_json(deep)",
    "from attestkit.cli.input.detect_format import identify as x; x(raw)",
    "from attestkit.cli.input.detect_format import identify as x; x(wide)",
    "from attestkit.serve.rpc import json_codec as x, messages as m; x.decode(m.SignRequest, raw)",
]


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("bracket", ["[", '{"a":'])
def test_parse_of_deep_text_with_raised_recursion_limit_fails(parser: str, bracket: str) -> None:
    """Deep text raises FormatError even if a library raised the recursion limit."""
    head, _, call = parser.rpartition("; ")
    program = (
        f"import sys\nfrom attestkit.errors import AttestKitError\n{head}\n"
        "sys.setrecursionlimit(10**6)\n"
        f"deep = {bracket!r} * 200_000; raw = deep.encode()\n"
        # In UTF-16 one byte of this character equals a quote, which could hide the brackets.
        "wide = ('[\"\\u2200\",' + deep).encode('utf-16-le')\n"
        f"try:\n    {call}\nexcept AttestKitError as error:\n    print(type(error).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip().endswith("Error")


@pytest.mark.parametrize(
    ("text", "reason", "named"),
    [
        ('{"a": 1, "a": 1}', "duplicate", "a: "),
        ('[{"b": {"c": 1, "d": 2, "c": 3}}]', "duplicate", "c: "),
        ('{"\\u001b": 1, "\\u001b": 1}', "duplicate", "\\x1b: "),
        ("NaN", "syntax", "NaN"),
        ("[-Infinity]", "syntax", "-Infinity"),
        ("", "syntax", "(line 1, column 1)"),
        ("9" * 5000, "too_large", ""),
        (b"\xff", "encoding", "(byte 0)"),
        ("[" * 201, "too_deep", "(byte 200)"),
    ],
)
def test_decode_strictly_of_loose_json_fails(text: str | bytes, reason: str, named: str) -> None:
    """The error names the reason and the place, and keeps no reference to the text."""
    with raises(FormatError, reason, part=named) as caught:
        decode_strictly(text)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_decode_strictly_near_recursion_limit_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the caller's stack is nearly full, the error of Python's parser becomes a FormatError."""

    def raise_recursion_error(*_: object, **__: object) -> None:
        raise RecursionError

    monkeypatch.setattr(json, "loads", raise_recursion_error)
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


@pytest.mark.parametrize(
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
