"""Nesting is bounded before any parser sees the text; strictly, JSON says everything once."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._formats.strict_json import MAX_DEPTH, check_depth, decode_at, decode_strictly
from attestkit.errors import FormatError


@pytest.mark.parametrize("kind", [str, str.encode])
def test_the_bound_is_exact(kind: type) -> None:
    """As many levels as allowed pass, one more is refused, and the bracket is named."""
    check_depth(kind("[" * MAX_DEPTH + "]" * MAX_DEPTH))
    with pytest.raises(FormatError) as caught:
        check_depth(kind('[{"a":' * (MAX_DEPTH // 2) + "[" + "]" * 9))
    assert caught.value.offset == 6 * (MAX_DEPTH // 2)


@pytest.mark.parametrize("wide", ["é", "\u2200", "\ud800", "\U0001f511"])
def test_the_offset_is_one_in_bytes(wide: str) -> None:
    """Of text as of its UTF-8 form; a lone surrogate, which is no text, counts as its three."""
    text = f'["{wide}",' + "[" * MAX_DEPTH
    with pytest.raises(FormatError) as caught:
        check_depth(text)
    assert caught.value.offset == len(text.encode(errors="surrogatepass")) - 1


def test_width_and_brackets_in_strings_do_not_count() -> None:
    """A wide document, and brackets inside strings, are no depth."""
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
def test_the_time_grows_with_the_text_alone(tail: str) -> None:
    """Strings that do not end, and escapes, are walked once; by square, this would take days."""
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
def test_escapes_end_no_string(string: str, deep: bool) -> None:
    """A quote behind an odd number of backslashes is part of its string, and so is what follows."""
    text = f"[{string}," + "[" * MAX_DEPTH
    if not deep:
        check_depth(text)
        return
    with pytest.raises(FormatError) as caught:
        check_depth(text)
    assert caught.value.offset == len(text) - 1


@given(st.text() | st.binary())
def test_any_text_is_taken(text: str | bytes) -> None:
    """What is short of the bound is never refused, JSON or not."""
    check_depth(text[:MAX_DEPTH])


PARSERS = [
    "from attestkit.event_log import EventLog as x; x.parse(deep)",
    "from attestkit.attestation import Attestation as x; x.from_agent_response(deep)",
    "from attestkit.collateral import Collateral as x; x.from_json(deep)",
    "from attestkit.collateral import Collateral as x; x.from_json(wide)",
    "from attestkit.dstack.app_compose import AppCompose as x; x.parse(raw)",
    "from attestkit.keys import AppKeys as x; x.from_json(deep)",
    "from attestkit.cli.input.detect_format import recognise as x; x(raw)",
    "from attestkit.cli.input.detect_format import recognise as x; x(wide)",
    "from attestkit.serve.rpc import json_codec as x, messages as m; x.decode(m.SignRequest, raw)",
]


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("bracket", ["[", '{"a":'])
def test_deep_text_does_not_end_the_process(parser: str, bracket: str) -> None:
    """With a recursion limit that some library raised, deep text is still only an error of ours."""
    head, _, call = parser.rpartition("; ")
    program = (
        f"import sys\nfrom attestkit.errors import AttestKitError\n{head}\n"
        "sys.setrecursionlimit(10**6)\n"
        f"deep = {bracket!r} * 200_000; raw = deep.encode()\n"
        # In UTF-16 one byte of this character looks like a quote, and seems to hide what follows.
        "wide = ('[\"\\u2200\",' + deep).encode('utf-16-le')\n"
        f"try:\n    {call}\nexcept AttestKitError as error:\n    print(type(error).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip().endswith("Error")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"a": 1, "a": 1}', "a: occurs twice"),
        ('[{"b": {"c": 1, "d": 2, "c": 3}}]', "c: occurs twice"),
        ('{"\\u001b": 1, "\\u001b": 1}', "\\\\x1b: occurs twice"),
        ("NaN", "not JSON: NaN is no number"),
        ("[-Infinity]", "not JSON: -Infinity is no number"),
        ("", "not JSON: Expecting value .line 1, column 1."),
        ("9" * 5000, "not JSON that can be read"),
        (b"\xff", "not UTF-8 text .byte 0."),
        ("[" * 201, "nests deeper"),
    ],
)
def test_what_is_said_loosely(text: str | bytes, told: str) -> None:
    """It is refused, and the text is nowhere in the error."""
    with pytest.raises(FormatError, match=told) as caught:
        decode_strictly(text)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@given(st.text() | st.binary())
def test_strictly_is_no_other_language(text: str | bytes) -> None:
    """What is read is what Python reads."""
    try:
        found = decode_strictly(text)
    except FormatError:
        return
    assert found == json.loads(text)


@pytest.mark.parametrize("text", ['{"a":1,"a":2}', "[NaN]", "1" * 5000, "", "[1,", "}", " 1"])
def test_a_value_within_a_text_is_read_as_strictly(text: str) -> None:
    """Where one is, and where it ends; the place of an error is one in bytes."""
    assert decode_at('é[1]{"a":[]}x', 4) == ({"a": []}, 12)
    with pytest.raises(FormatError) as caught:
        decode_at("é" + text, 1)
    assert caught.value.offset is not None
    assert 2 <= caught.value.offset <= 2 + len(text)
