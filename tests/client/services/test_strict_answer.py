"""Answers of services are read strictly: bounded, with exact members and canonical encodings."""

import json
from collections.abc import Callable
from typing import Any, Final

import pytest

from attestkit.client.services.service import MAX_DOCUMENT
from attestkit.client.services.strict_answer import (
    MAX_LEVELS,
    base64_member,
    check_members,
    constant_member,
    list_member,
    lower_hex,
    object_member,
    read_answer_object,
    text_of,
)
from attestkit.errors import FormatError


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
    large = b"{}".ljust(MAX_DOCUMENT + 1)
    assert reason_of(lambda: read_answer_object(large, "answer")) == "too_large"


@pytest.mark.parametrize(
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


MEMBERS: Final[dict[str, Any]] = json.loads(
    '{"hex":"0aff","upper":"0AFF","odd":"0","none":"","base64":"AAE=","bits":"AAF=",'
    '"object":{},"list":[1,2],"null":null}'
)


def test_members_of_the_right_form_are_read() -> None:
    """Each helper returns the decoded value."""
    assert lower_hex(MEMBERS, "hex", "x", 2) == b"\x0a\xff"
    assert base64_member(MEMBERS, "base64", "x") == b"\0\1"
    assert object_member(MEMBERS, "object", "x") == {}
    assert list_member(MEMBERS, "list", "x", 2) == [1, 2]
    assert constant_member(MEMBERS, "hex", "x", "y", "0aff") == text_of(MEMBERS, "hex", "x")
    check_members({"a": 1}, "x", ("a",), ("b",))


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: lower_hex(MEMBERS, "upper", "x"), "encoding"),
        (lambda: lower_hex(MEMBERS, "odd", "x"), "encoding"),
        (lambda: lower_hex(MEMBERS, "none", "x"), "encoding"),
        (lambda: lower_hex(MEMBERS, "hex", "x", 3), "wrong_size"),
        (lambda: lower_hex(MEMBERS, "other", "x"), "missing"),
        (lambda: base64_member(MEMBERS, "bits", "x"), "encoding"),
        (lambda: base64_member(MEMBERS, "none", "x"), "wrong_size"),
        (lambda: object_member(MEMBERS, "null", "x"), "wrong_type"),
        (lambda: list_member(MEMBERS, "list", "x", 1), "too_many"),
        (lambda: list_member(MEMBERS, "object", "x", 1), "wrong_type"),
        (lambda: text_of(MEMBERS, "list", "x"), "wrong_type"),
        (lambda: constant_member(MEMBERS, "hex", "x", "y"), "unsupported"),
        (lambda: check_members({}, "x", ("a",)), "missing"),
        (lambda: check_members({"a": 1, "c": 1}, "x", ("a",), ("b",)), "unknown_field"),
    ],
)
def test_members_of_another_form_are_refused(call: Callable[[], object], reason: str) -> None:
    """Each helper refuses other forms by a reason of its own."""
    assert reason_of(call) == reason
