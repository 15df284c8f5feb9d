"""A query string is a form: escapes, plus signs, brackets; known keys strictly, others ignored."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import FormatError
from attestkit.serve.rpc import messages
from attestkit.serve.rpc.messages import (
    EmitEventArgs,
    GetKeyArgs,
    GetTlsKeyArgs,
    RawQuoteArgs,
    VerifyResponse,
)
from attestkit.serve.rpc.query_codec import asks_for_json, decode
from tests.vectors import load, needs_shared

REQUESTS = [
    getattr(messages, name) for name in messages.__all__ if name.endswith(("Args", "Request"))
]
_BY_METHOD: dict[str, Any] = {
    "GetTlsKey": GetTlsKeyArgs,
    "GetQuote": RawQuoteArgs,
    "EmitEvent": EmitEventArgs,
}


def test_empty_query_is_a_message_of_defaults() -> None:
    """No query, and one with unknown keys only, mean the same."""
    assert (
        decode(GetTlsKeyArgs, b"") == decode(GetTlsKeyArgs, b"json&x=1&x=2&&=") == (GetTlsKeyArgs())
    )


def test_form_decoding() -> None:
    """Percent escapes in keys and values, `+` for a space, `%2B` for a plus, `=` in a value."""
    query = b"pat%68=a%2Fb+c%2Bd=e&purpose=%D1%86%D0%B5%D0%BB%D1%8C&algorithm"
    assert decode(GetKeyArgs, query) == GetKeyArgs("a/b c+d=e", "цель", "")


@pytest.mark.parametrize(
    "query",
    [
        b"alt_names[0]=a&alt_names[1]=b",
        b"alt_names[1]=b&alt_names[0]=a",
        b"alt_names%5B0%5D=a&alt_names%5b1%5d=b",
        b"alt_names[]=a&alt_names[]=b",
        b"alt_names%5B%5D=a&alt_names[]=b",
        b"alt_names[3]=a&alt_names[]=b",
        b"alt_names[02]=a&alt_names[10]=b",
    ],
)
def test_arrays_in_every_spelling(query: bytes) -> None:
    """Brackets are literal or escaped, with an index (whose order counts) or without."""
    assert decode(GetTlsKeyArgs, query).alt_names == ("a", "b")


@pytest.mark.parametrize(
    ("query", "error"),
    [
        (b"subject=a&subject=a", "subject is given twice"),
        (b"subject=a&subj%65ct=b", "subject is given twice"),
        (b"alt_names[0]=a&alt_names[00]=b", "alt_names is given twice"),
        (b"alt_names=a", "alt_names is an array"),
        (b"alt_names[x]=a", "alt_names is an array"),
        (b"alt_names[-1]=a", "alt_names is an array"),
        (b"alt_names[0][0]=a", "alt_names is an array"),
        (b"alt_names[0=a", "alt_names is an array"),
        (b"alt_names[1234567890]=a", "alt_names is an array"),
        (b"subject[0]=a", "subject is not an array"),
        (b"subject[]=a", "subject is not an array"),
        (b"subject=%FF", "subject is not valid UTF-8"),
        (b"usage_ra_tls=", "usage_ra_tls must be true or false"),
        (b"usage_ra_tls", "usage_ra_tls must be true or false"),
        (b"usage_ra_tls=True", "usage_ra_tls must be true or false"),
        (b"usage_ra_tls=1", "usage_ra_tls must be true or false"),
        (b"not_before=-1", "not_before must be a number"),
        (b"not_before=1.0", "not_before must be a number"),
        (b"not_before=18446744073709551616", "not_before must be a number"),
        (b"not_before=1_0", "not_before must be a number"),
        (b"not_before=%D9%A3", "not_before must be a number"),
        (b"not_before=1%0A", "not_before must be a number"),
    ],
)
def test_mistakes_are_named(query: bytes, error: str) -> None:
    """A wrong value, a key given twice and an array without brackets are errors."""
    with pytest.raises(FormatError, match="^" + error):
        decode(GetTlsKeyArgs, query)


def test_scalars() -> None:
    """Numbers and booleans are their text; an empty optional number is absent."""
    query = b"usage_ra_tls=true&usage_server_auth=false&not_before=&not_after=18446744073709551615"
    assert decode(GetTlsKeyArgs, query) == GetTlsKeyArgs(
        usage_ra_tls=True, not_before=None, not_after=2**64 - 1
    )


@pytest.mark.parametrize("text", ["", "0x", "DEad", "0xdead"])
def test_bytes_are_hex(text: str) -> None:
    """Hex in any case, after `0x` or not, also none."""
    want = bytes.fromhex(text.removeprefix("0x"))
    assert decode(RawQuoteArgs, b"report_data=" + text.encode()) == RawQuoteArgs(want)


@pytest.mark.parametrize("text", ["0", "zz", "d e", "de+ad"])
def test_other_text_is_no_hex(text: str) -> None:
    """Anything else is refused, naming the field."""
    with pytest.raises(FormatError, match=r"^report_data is not valid hex$"):
        decode(RawQuoteArgs, b"report_data=" + text.encode())


@pytest.mark.parametrize(
    ("query", "want"),
    [
        (b"", False),
        (b"json", True),
        (b"json=", True),
        (b"json=1", True),
        (b"json=true", True),
        (b"a=b&json", True),
        (b"json=0", False),
        (b"json=false", False),
        (b"a=json", False),
        (b"xjson", False),
    ],
)
def test_json_flag(query: bytes, want: bool) -> None:
    """Four spellings demand JSON."""
    assert asks_for_json(query) is want


@given(
    st.sampled_from([*REQUESTS, VerifyResponse]),
    st.binary() | st.lists(st.sampled_from([*b"path=&[]%01+", *b"alt_names"])).map(bytes),
)
def test_any_query_raises_only_our_error(message: Any, query: bytes) -> None:
    """Whatever comes in, the decoder gives a message or a FormatError."""
    with suppress(FormatError):
        assert type(decode(message, query)) is message


@needs_shared
@pytest.mark.parametrize(
    "case",
    [case for case in load("prpc_wire.json").get("cases", []) if case.get("query")],
    ids=lambda case: str(case["method"]),
)
def test_query_says_the_same_as_json(case: dict[str, Any]) -> None:
    """The vectors' query strings give the message that their JSON gives."""
    found = decode(_BY_METHOD.get(case["method"], GetKeyArgs), case["query"].encode())
    for name, value in case["json_request"].items():
        got = getattr(found, name)
        assert (got.hex() if isinstance(got, bytes) else got) == (
            tuple(value) if isinstance(value, list) else value
        )
