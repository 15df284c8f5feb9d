"""Signed bodies are cut out byte for byte, whatever surrounds them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.collateral.parts import split_signed
from attestkit.errors import FormatError

SIGNATURE = "0123456789abcdefABCDEF" * 5 + "0" * 18
SIGNED = f'"signature":"{SIGNATURE}"'


@pytest.mark.parametrize(
    "body",
    [
        "{}",
        '{"a":1}',
        '{ "a" : [ 1 , 2 ] ,\n\t"signature": "x" }',
        '{"a":"}{\\"","b":{"tcbInfo":{}}}',
        '{"a":1.50,"b":1e5,"c":"\\u00e9\\/é"}',
        '{"a":1,"a":2}',
    ],
)
@pytest.mark.parametrize(
    "frame",
    [
        '{{"tcbInfo":{body},{signed}}}',
        '{{{signed},"tcbInfo":{body}}}',
        ' {{\r\n "tcbInfo" :\t{body} , {signed} , "x":[{{}}] }}\n',
    ],
)
def test_the_body_is_what_was_sent(body: str, frame: str) -> None:
    """Blanks, order, escapes and numbers of the body stay as they are."""
    answer = frame.format(body=body, signed=SIGNED)
    assert split_signed(answer.encode(), "tcbInfo") == (body, bytes.fromhex(SIGNATURE))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"", "not one JSON object"),
        (b"\xff", "not one JSON object"),
        (b"\xef\xbb\xbf{}", "not one JSON object"),
        ('{"tcbInfo":{}}'.encode("utf-16"), "not one JSON object"),
        (b"[]", "not one JSON object"),
        (b"null", "not one JSON object"),
        (b"{", "not one JSON object"),
        (b'{"a":1', "not one JSON object"),
        (b'{"a":1,}', "not one JSON object"),
        (b'{"a" 1}', "not one JSON object"),
        (b"{a:1}", "not one JSON object"),
        (b"{1:1}", "not one JSON object"),
        (b'{"a":1}}', "not one JSON object"),
        (b'{"a":1}{}', "not one JSON object"),
        (b'{"a":' + b"1" * 5000 + b"}", "not one JSON object"),
        (b'{"a":' + b"[" * 5000, "nests deeper"),
        (b'{"a":1,"a":2}', "twice"),
        (json.dumps({str(n): n for n in range(17)}).encode(), "too many"),
        (b'{"x":1}', "tcbInfo is missing"),
        (b"{}", "not one JSON object"),
        (b'{"tcbInfo":{}}', "signature is missing"),
        (f'{{"tcbInfo":[],{SIGNED}}}'.encode(), "tcbInfo is not an object"),
        (f'{{"tcbInfo":"{{}}",{SIGNED}}}'.encode(), "tcbInfo is not an object"),
        (b'{"tcbInfo":{},"signature":"00"}', "signature is not 128 hex digits"),
        (b'{"tcbInfo":{},"signature":null}', "signature is not 128 hex digits"),
        (f'{{"tcbInfo":{{}},{SIGNED[:-2]}g"}}'.encode(), "signature is not 128 hex digits"),
        (f'{{"tcbInfo":{{}},{SIGNED},{SIGNED}}}'.encode(), "twice"),
        (f'{{"tcbInfo":{{}},{SIGNED},"tcbInfo":{{}}}}'.encode(), "twice"),
    ],
)
def test_anything_else_is_refused(answer: bytes, told: str) -> None:
    """Not JSON, something before or behind it, a member missing, twice, or of another kind."""
    with pytest.raises(FormatError, match=told):
        split_signed(answer, "tcbInfo")


def test_an_answer_cut_anywhere_is_refused() -> None:
    """A cut answer is never half read."""
    answer = f'{{"tcbInfo":{{"a":[1,2]}},{SIGNED}}}'.encode()
    for size in range(len(answer)):
        with pytest.raises(FormatError):
            split_signed(answer[:size], "tcbInfo")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@settings(deadline=None, max_examples=50)  # machines are busy
@given(st.dictionaries(st.text(max_size=4), values), st.integers(0, 3) | st.none(), st.booleans())
def test_any_body_is_what_was_sent(
    body: dict[str, object],
    indent: int | None,
    escaped: bool,
) -> None:
    """Any JSON object, however it is written, is cut out as written."""
    text = json.dumps(body, indent=indent, ensure_ascii=escaped)
    answer = f'{{"tcbInfo":{text},{SIGNED}}}'.encode()
    assert split_signed(answer, "tcbInfo")[0] == text


@settings(deadline=None)  # machines are busy
@given(st.binary(max_size=60) | st.text('{}[]":,\\tcbInfo0', max_size=60).map(str.encode))
def test_any_bytes_raise_our_errors_only(answer: bytes) -> None:
    """Any bytes at all give a FormatError."""
    with pytest.raises(FormatError):
        split_signed(answer, "tcbInfo")
