"""Answers of services are read strictly: bounded, with exact members and canonical encodings."""

from collections.abc import Callable
from typing import Final

import pytest

from attestkit.client.strict_answer import (
    MAX_ANSWER,
    MAX_LEVELS,
    AnswerObject,
    read_answer_object,
)
from attestkit.errors import FormatError
from tests.runner.cases import every_case


def nested(levels: int) -> bytes:
    """Return an object with this number of levels in all."""
    return b'{"a":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


def reason_of(call: Callable[[], object]) -> str:
    """Return the reason of the FormatError that a call raises."""
    with pytest.raises(FormatError) as caught:
        call()
    return caught.value.reason


def test_limits_of_size_and_depth() -> None:
    """An answer at the limit is read; one level or byte more is refused."""
    assert read_answer_object(nested(MAX_LEVELS), "answer")
    deep = nested(MAX_LEVELS + 1)
    assert reason_of(lambda: read_answer_object(deep, "answer")) == "too_deep"
    large = b"{}".ljust(MAX_ANSWER + 1)
    assert reason_of(lambda: read_answer_object(large, "answer")) == "too_large"


@every_case(
    ("answer", "reason"),
    [
        (b"", "syntax"),
        (b"[]", "wrong_type"),
        (b'{"a":1,"a":1}', "duplicate"),
        (b'{"a":NaN}', "syntax"),
        (b"{}{}", "syntax"),
        (b'{"a":"\xff"}', "encoding"),
        (b'{"a":"\\ud800"}', "encoding"),
    ],
)
def test_malformed_json_is_refused(answer: bytes, reason: str) -> None:
    """JSON is one object in UTF-8, with each name once."""
    assert reason_of(lambda: read_answer_object(answer, "answer")) == reason


MEMBERS: Final = read_answer_object(
    b'{"hex":"0aff","upper":"0AFF","odd":"0","none":"","base64":"AAE=","bits":"AAF=",'
    b'"object":{},"objects":[{"a":1}],"list":[1,2],"null":null}',
    "x",
)


def test_members_of_the_right_form_are_read() -> None:
    """Each helper returns the decoded value."""
    assert MEMBERS.hex("hex", 2) == b"\x0a\xff"
    assert MEMBERS.base64("base64") == b"\0\1"
    assert MEMBERS.object("object") == {}
    assert MEMBERS.array("list", 2) == [1, 2]
    assert [one.what for one in MEMBERS.objects("objects", 1)] == ["x: objects[0]"]
    assert MEMBERS.prefixed_hex("upper", 1, 2) == MEMBERS.prefixed_hex("hex")
    assert (MEMBERS.optional_text("null"), MEMBERS.optional_text("odd")) == (None, "0")
    assert MEMBERS.constant("hex", "y", "0aff") == MEMBERS.text("hex")
    AnswerObject({"a": 1}, "x").check(("a",), ("b",))


@every_case(
    ("call", "reason"),
    [
        (lambda: MEMBERS.hex("upper"), "encoding"),
        (lambda: MEMBERS.hex("odd"), "encoding"),
        (lambda: MEMBERS.hex("none"), "encoding"),
        (lambda: MEMBERS.hex("hex", 3), "wrong_size"),
        (lambda: MEMBERS.hex("other"), "missing"),
        (lambda: MEMBERS.base64("bits"), "encoding"),
        (lambda: MEMBERS.base64("none"), "wrong_size"),
        (lambda: MEMBERS.object("null"), "wrong_type"),
        (lambda: MEMBERS.array("list", 1), "too_many"),
        (lambda: MEMBERS.array("object", 1), "wrong_type"),
        (lambda: MEMBERS.text("list"), "wrong_type"),
        (lambda: MEMBERS.objects("list", 2), "wrong_type"),
        (lambda: MEMBERS.optional_text("list"), "wrong_type"),
        (lambda: MEMBERS.prefixed_hex("hex", 1, 3), "wrong_size"),
        (lambda: MEMBERS.constant("hex", "y"), "unsupported"),
        (lambda: AnswerObject({}, "x").check(("a",)), "missing"),
        (lambda: AnswerObject({"a": 1, "c": 1}, "x").check(("a",), ("b",)), "unknown_field"),
    ],
)
def test_members_of_another_form_are_refused(call: Callable[[], object], reason: str) -> None:
    """Each helper refuses other forms by a reason of its own."""
    assert reason_of(call) == reason
