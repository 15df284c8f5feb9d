"""Tests of split_signed: signed bodies are extracted byte for byte."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.collateral.intel_collateral import split_signed
from attestkit.errors import FormatError
from tests.raising import raises
from tests.runner.cases import every_case

SIGNATURE = "0123456789abcdefABCDEF" * 5 + "0" * 18
SIGNED = f'"signature":"{SIGNATURE}"'


@every_case(
    ("response", "reason"),
    [
        (b"", "syntax"),
        (b"\xff", "encoding"),
        (b"\xef\xbb\xbf{}", "syntax"),
        ('{"tcbInfo":{}}'.encode("utf-16"), "encoding"),
        (b"null", "wrong_type"),
        (b"{a:1}", "syntax"),
        (b'{"a":1}}', "syntax"),
        (b'{"a":' + b"1" * 5000 + b"}", "too_large"),
        (b'{"a":' + b"[" * 5000, "too_deep"),
        (b'{"a":1,"a":2}', "duplicate"),
        (b'{"a":{"b":1,"b":2}}', "duplicate"),
        (b'{"x":1}', "missing"),
        (b'{"tcbInfo":{}}', "missing"),
        (f'{{"tcbInfo":[],{SIGNED}}}'.encode(), "wrong_type"),
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


# All of Unicode takes seconds to set up.
LETTERS = '{}[]":,\\n\u00e9\u2028\U0001f511a0'
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(LETTERS, max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(LETTERS, max_size=4), inner)
    ),
    max_leaves=8,
)


texts = st.builds(
    json.dumps,
    st.dictionaries(st.text(LETTERS, max_size=4), values),
    indent=st.integers(0, 3) | st.none(),
    ensure_ascii=st.booleans(),
) | st.sampled_from(
    [
        '{ "a" : [ 1 , 2 ] ,\n\t"signature": "x" }',
        '{"a":"}{\\"","b":{"tcbInfo":{}}}',
        '{"a":1.50,"b":1e5,"c":"\\u00e9\\/é"}',
    ]
)
FRAMES = (
    '{{"tcbInfo":{body},{signed}}}',
    '{{{signed},"tcbInfo":{body}}}',
    ' {{\r\n "tcbInfo" :\t{body} , {signed} , "x":[{{}}] }}\n',
)


@pytest.mark.slow
@settings(deadline=None)  # shared machines are slow
@given(texts, st.sampled_from(FRAMES))
def test_split_signed_keeps_body_verbatim(body: str, frame: str) -> None:
    """White space, order, escapes and numbers of any JSON object are unchanged."""
    response = frame.format(body=body, signed=SIGNED)
    assert split_signed(response.encode(), "tcbInfo") == (body, bytes.fromhex(SIGNATURE))
