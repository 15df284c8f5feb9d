"""Response templates produce the same bytes as encoding the whole response."""

import json
from typing import Any, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from attestkit.serve.rpc import json_codec, protobuf_codec
from attestkit.serve.rpc.json_codec import escape
from attestkit.serve.rpc.messages import AppInfo, GetQuoteResponse, TdxQuoteResponse
from attestkit.serve.rpc.response_template import SMALL, EscapedText, ResponseTemplate
from tests.runner.cases import every_case

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def create_text(*pieces: str) -> EscapedText:
    """Return a text of these pieces."""
    return EscapedText(pieces, tuple(map(escape, pieces)))


def check_rendered(
    template: ResponseTemplate[Any], expected: NamedTuple, *beginnings: bytes
) -> None:
    """Assert that a template renders to the expected response in each encoding."""
    filled = template.render(*beginnings)
    assert filled.message == expected
    assert type(filled.message) is type(expected)
    assert b"".join(filled.json) == b"".join(json_codec.encode(expected))
    assert protobuf_codec.encode(filled) == protobuf_codec.encode(expected)


@given(
    heads=st.lists(st.binary(), min_size=2, max_size=2),
    tail=st.binary(),
    pieces=st.lists(TEXT),
    config=TEXT,
)
def test_get_quote_template(
    heads: list[bytes], tail: bytes, pieces: list[str], config: str
) -> None:
    """One template renders many responses independently."""
    log = create_text(*pieces)
    common = GetQuoteResponse(tail, "", b"", config)
    template = ResponseTemplate(common, ("quote", "report_data"), event_log=log)
    for head in heads:
        expected = GetQuoteResponse(head + tail, "".join(pieces), head, config)
        check_rendered(template, expected, head, head)


@every_case("size", [0, 1, SMALL, 3 * SMALL])
@every_case("tail", [0, 4000, 5000, SMALL])
def test_template_any_size(size: int, tail: int) -> None:
    """The result does not depend on which pieces are joined."""
    template = ResponseTemplate(
        TdxQuoteResponse(bytes(tail), "", "raw"), ("quote",), event_log=create_text("x" * size)
    )
    check_rendered(template, TdxQuoteResponse(b"\1" + bytes(tail), "x" * size, "raw"), b"\1")
    nothing = ResponseTemplate(AppInfo(app_name="a"), tcb_info=create_text("y" * size, "é"))
    check_rendered(nothing, AppInfo(app_name="a", tcb_info="y" * size + "é"))


def test_template_shares_long_text() -> None:
    """Long texts are shared; short pieces are joined."""
    log = create_text("short", "x" * SMALL, "short", "short")
    template = ResponseTemplate(
        GetQuoteResponse(bytes(4000)), ("quote", "report_data"), event_log=log
    )
    pieces = template.render(b"head", b"data").json
    assert sum(piece is log.json[1] for piece in pieces) == 1
    assert len(pieces) == 5
    short = ResponseTemplate(
        GetQuoteResponse(bytes(4000)), ("quote", "report_data"), event_log=create_text("a")
    )
    assert len(short.render(b"head", b"data").json) == 3


@given(st.lists(TEXT), TEXT, TEXT, st.integers(0, 40))
def test_escaped_text_pieces_equal_whole(
    pieces: list[str], before: str, after: str, size: int
) -> None:
    """Start, length and JSON equal those of the joined text."""
    text, whole = create_text(*pieces).between(before, after), f"{before}{''.join(pieces)}{after}"
    assert str(text) == whole
    assert (text.start(size), text.length) == (whole[:size], len(whole))
    assert json.loads(b'"%b"' % b"".join(text.json)) == whole
