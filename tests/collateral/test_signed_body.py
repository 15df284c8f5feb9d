"""Tests of split_signed: signed bodies are extracted byte for byte."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.collateral.parts import split_signed
from attestkit.errors import FormatError
from tests.raising import raises

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
def test_split_signed_keeps_body_verbatim(body: str, frame: str) -> None:
    """White space, order, escapes and numbers of the body are unchanged."""
    response = frame.format(body=body, signed=SIGNED)
    assert split_signed(response.encode(), "tcbInfo") == (body, bytes.fromhex(SIGNATURE))


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (b"", "syntax"),
        (b"\xff", "encoding"),
        (b"\xef\xbb\xbf{}", "syntax"),
        ('{"tcbInfo":{}}'.encode("utf-16"), "encoding"),
        (b"[]", "wrong_type"),
        (b"null", "wrong_type"),
        (b"{", "syntax"),
        (b'{"a":1', "syntax"),
        (b'{"a":1,}', "syntax"),
        (b'{"a" 1}', "syntax"),
        (b"{a:1}", "syntax"),
        (b"{1:1}", "syntax"),
        (b'{"a":1}}', "syntax"),
        (b'{"a":1}{}', "syntax"),
        (b'{"a":' + b"1" * 5000 + b"}", "too_large"),
        (b'{"a":' + b"[" * 5000, "too_deep"),
        (b'{"a":1,"a":2}', "duplicate"),
        (b'{"a":{"b":1,"b":2}}', "duplicate"),
        (b'{"x":1}', "missing"),
        (b"{}", "missing"),
        (b'{"tcbInfo":{}}', "missing"),
        (f'{{"tcbInfo":[],{SIGNED}}}'.encode(), "wrong_type"),
        (f'{{"tcbInfo":"{{}}",{SIGNED}}}'.encode(), "wrong_type"),
        (b'{"tcbInfo":{},"signature":"00"}', "wrong_size"),
        (b'{"tcbInfo":{},"signature":null}', "missing"),
        (f'{{"tcbInfo":{{}},{SIGNED[:-2]}g"}}'.encode(), "encoding"),
        (f'{{"tcbInfo":{{}},{SIGNED},{SIGNED}}}'.encode(), "duplicate"),
        (f'{{"tcbInfo":{{}},{SIGNED},"tcbInfo":{{}}}}'.encode(), "duplicate"),
    ],
)
def test_split_signed_malformed_response_raises_format_error(response: bytes, reason: str) -> None:
    """Malformed JSON, and missing, duplicate or mistyped members raise FormatError."""
    with raises(FormatError, reason):
        split_signed(response, "tcbInfo")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@settings(deadline=None, max_examples=50)  # shared machines are slow
@given(st.dictionaries(st.text(max_size=4), values), st.integers(0, 3) | st.none(), st.booleans())
def test_split_signed_any_body_is_verbatim(
    body: dict[str, object],
    indent: int | None,
    escaped: bool,
) -> None:
    """Any JSON object is extracted as it was written."""
    text = json.dumps(body, indent=indent, ensure_ascii=escaped)
    response = f'{{"tcbInfo":{text},{SIGNED}}}'.encode()
    assert split_signed(response, "tcbInfo")[0] == text


@settings(deadline=None)  # shared machines are slow
@given(st.binary(max_size=60) | st.text('{}[]":,\\tcbInfo0', max_size=60).map(str.encode))
def test_split_signed_any_bytes_raise_format_error(response: bytes) -> None:
    """Any other bytes raise FormatError."""
    with pytest.raises(FormatError):
        split_signed(response, "tcbInfo")
