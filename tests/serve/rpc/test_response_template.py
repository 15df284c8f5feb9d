"""An answer put together from prepared parts is the one that would have been encoded whole."""

import json
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.serve.rpc import json_codec, protobuf_codec
from attestkit.serve.rpc.json_codec import escaped
from attestkit.serve.rpc.messages import AppInfo, GetQuoteResponse, TdxQuoteResponse
from attestkit.serve.rpc.response_template import SMALL, Form, LongText

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def text_of(*pieces: str) -> LongText:
    """Return a long text of these pieces."""
    return LongText(pieces, tuple(map(escaped, pieces)))


def check(form: Form[Any], wanted: NamedTuple, *beginnings: bytes) -> None:
    """Assert that a form fills in to the answer that is wanted, in each encoding."""
    filled = form.fill(*beginnings)
    assert filled.message == wanted
    assert type(filled.message) is type(wanted)
    assert b"".join(filled.json) == b"".join(json_codec.encode(wanted))
    assert protobuf_codec.encode(filled) == protobuf_codec.encode(wanted)


@given(
    heads=st.lists(st.binary(), min_size=2, max_size=2),
    tail=st.binary(),
    pieces=st.lists(TEXT),
    config=TEXT,
    attestation=st.binary(max_size=1),
)
def test_answers_of_get_quote(
    heads: list[bytes], tail: bytes, pieces: list[str], config: str, attestation: bytes
) -> None:
    """One form makes many answers, and none of them changes another."""
    log = text_of(*pieces)
    common = GetQuoteResponse(tail, "", b"", config, attestation)
    form = Form(common, ("quote", "report_data"), event_log=log)
    for head in heads:
        wanted = GetQuoteResponse(head + tail, "".join(pieces), head, config, attestation)
        check(form, wanted, head, head)


@pytest.mark.parametrize("size", [0, 1, SMALL, 3 * SMALL])
@pytest.mark.parametrize("tail", [0, 4000, 5000, SMALL])
def test_answers_of_any_size(size: int, tail: int) -> None:
    """Wherever the pieces are joined, and wherever they are not."""
    form = Form(TdxQuoteResponse(bytes(tail), "", "raw"), ("quote",), event_log=text_of("x" * size))
    check(form, TdxQuoteResponse(b"\1" + bytes(tail), "x" * size, "raw"), b"\1")
    nothing = Form(AppInfo(app_name="a"), tcb_info=text_of("y" * size, "é"))
    check(nothing, AppInfo(app_name="a", tcb_info="y" * size + "é"))


def test_what_is_long_is_shared_and_what_is_short_is_joined() -> None:
    """A megabyte of log is not copied for each answer; few pieces are left to send."""
    log = text_of("short", "x" * SMALL, "short", "short")
    form = Form(GetQuoteResponse(bytes(4000)), ("quote", "report_data"), event_log=log)
    pieces = form.fill(b"head", b"data").json
    assert sum(piece is log.json[1] for piece in pieces) == 1
    assert len(pieces) == 5
    short = Form(GetQuoteResponse(bytes(4000)), ("quote", "report_data"), event_log=text_of("a"))
    assert len(short.fill(b"head", b"data").json) == 3


@given(st.lists(TEXT), TEXT, TEXT, st.integers(0, 40))
def test_a_text_in_pieces_is_one_text(
    pieces: list[str], before: str, after: str, size: int
) -> None:
    """Its start, its length and its JSON are those of the whole."""
    text, whole = text_of(*pieces).between(before, after), f"{before}{''.join(pieces)}{after}"
    assert str(text) == whole
    assert (text.start(size), text.length) == (whole[:size], len(whole))
    assert json.loads(b'"%b"' % b"".join(text.json)) == whole
