"""JSON in is taken strictly where a mistake could hide; JSON out is compact, whole and ASCII."""

import json
import sys
import tracemalloc
from contextlib import suppress
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import FormatError
from attestkit.serve.http.errors import encode_error
from attestkit.serve.rpc import json_codec, messages
from attestkit.serve.rpc.json_codec import Prepared, decode, escaped
from attestkit.serve.rpc.messages import (
    EmitEventArgs,
    GetKeyArgs,
    GetQuoteResponse,
    GetTlsKeyArgs,
    RawQuoteArgs,
    SignResponse,
    VerifyResponse,
    fields_of,
)

REQUESTS = [
    getattr(messages, name) for name in messages.__all__ if name.endswith(("Args", "Request"))
]
FIELDS = [(message, field) for message in REQUESTS for field in fields_of(message)]


def encode(message: "NamedTuple | Prepared[Any] | None") -> bytes:
    """Return a response's pieces as one."""
    return b"".join(json_codec.encode(message))


def test_empty_body_is_a_message_of_defaults() -> None:
    """No body at all, and an object without members, mean the same."""
    assert decode(GetTlsKeyArgs, b"") == decode(GetTlsKeyArgs, b"{}") == GetTlsKeyArgs()


def test_whole_request() -> None:
    """Each member lands in its field, and unknown ones are ignored."""
    body = {
        "subject": "a:b",
        "alt_names": ["x", "y"],
        "usage_ra_tls": True,
        "not_before": 2**64 - 1,
        "not_after": None,
        "later": {"subject": 1, "x": [None]},
    }
    assert decode(GetTlsKeyArgs, json.dumps(body).encode()) == GetTlsKeyArgs(
        subject="a:b", alt_names=("x", "y"), usage_ra_tls=True, not_before=2**64 - 1
    )


@pytest.mark.parametrize("text", ["DEADbeef", "0xdeadbeef", "0xDEADBEEF", "deadbeef"])
def test_hex_in_any_case_with_or_without_prefix(text: str) -> None:
    """Bytes are hex in any letter case, after `0x` or not."""
    assert decode(RawQuoteArgs, b'{"report_data":"%s"}' % text.encode()).report_data == bytes(
        [0xDE, 0xAD, 0xBE, 0xEF]
    )


@pytest.mark.parametrize("text", ["0", "abc", "zz", "0x0", "de ad", " dead", "0x0xde", "é0", "٣٣"])
def test_other_text_is_no_hex(text: str) -> None:
    """An odd number of digits, white space and anything else is refused, naming the field."""
    with pytest.raises(FormatError, match=r"^report_data is not valid hex$"):
        decode(RawQuoteArgs, json.dumps({"report_data": text}).encode())


WRONG: dict[type, list[Any]] = {
    str: [1, True, [], {}, 1.5, None],
    bool: [1, 0, "true", [], {}, None],
    int: ["1", True, 1.0, 1e3, -1, 2**64, [], {}],
    bytes: [1, True, [1, 2], {}, None],
}


@pytest.mark.parametrize(
    ("message", "field"), FIELDS, ids=[f"{m.__name__}.{f.name}" for m, f in FIELDS]
)
def test_wrong_types_are_refused_by_name(message: Any, field: messages.Field) -> None:
    """A value of another JSON type, and null where it means nothing, is an error with the name."""
    for value in WRONG[field.kind]:
        wrong = [[value], value, "x", None] if field.repeated else [value]
        for bad in wrong:
            if field.repeated and bad == []:
                continue
            with pytest.raises(FormatError, match=f"^{field.name} "):
                decode(message, json.dumps({field.name: bad}).encode())


@pytest.mark.parametrize(
    ("message", "field"), FIELDS, ids=[f"{m.__name__}.{f.name}" for m, f in FIELDS]
)
def test_each_field_may_be_missing(message: Any, field: messages.Field) -> None:
    """A message without one of its fields has that field's default."""
    full: dict[type, Any] = {str: "a", bool: True, int: 1, bytes: "00"}
    body = {
        f.name: [full[f.kind]] if f.repeated else full[f.kind]
        for f in fields_of(message)
        if f is not field
    }
    assert getattr(decode(message, json.dumps(body).encode()), field.name) == field.default


@pytest.mark.parametrize(
    "body",
    [
        b'{"path":"a","path":"b"}',
        b'{"path":"a","purpose":"x:y","p\\u0061th":"b"}',
        b'{"path":"a","later":{"path":1},"path":"a"}',
    ],
)
def test_field_given_twice_is_refused(body: bytes) -> None:
    """Two values for one field are an error, however the name is written."""
    with pytest.raises(FormatError, match=r"^path is given twice$"):
        decode(GetKeyArgs, body)


def test_unknown_members_may_come_twice() -> None:
    """What is ignored is ignored, also twice and also inside."""
    body = b'{"x":1,"x":2,"path":"a:b","y":{"path":1,"path":2}}'
    assert decode(GetKeyArgs, body) == GetKeyArgs("a:b")


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"nul",
        b"{'path':1}",
        b'{"path":"\xff"}',
        b'{"path":"\\ud800"}',
        b'{"path":"a"} x',
        b'{"not_before":NaN}',
        b'{"not_before":' + b"9" * 5000 + b"}",
        b'{"x":' * 100,
        b"[" * 100,
        b'\xef\xbb\xbf{"path":"a"}',
        '{"path":"a"}'.encode("utf-16"),
    ],
)
def test_what_is_no_json_is_refused(body: bytes) -> None:
    """Broken, too deep, too long a number or another encoding: one error of ours."""
    with pytest.raises(FormatError, match=r"^the body is not valid JSON$"):
        decode(GetKeyArgs, body)


@pytest.mark.parametrize("body", [b'{"x":' * 300, b"[" * 10_000, b'{"x":' + b"[" * 300])
def test_what_nests_too_deep_is_refused(body: bytes) -> None:
    """Depth is bounded before a parser recurses into it."""
    with pytest.raises(FormatError, match=r"^JSON nests deeper than "):
        decode(GetKeyArgs, body)


@pytest.mark.parametrize("body", [b"null", b"[]", b"1", b'"path"', b"true"])
def test_other_json_than_an_object_is_refused(body: bytes) -> None:
    """A message is an object."""
    with pytest.raises(FormatError, match=r"^the body is not a JSON object$"):
        decode(GetKeyArgs, body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(st.sampled_from(REQUESTS), st.binary() | st.binary().map(lambda b: b'{"path":' + b))
def test_any_bytes_raise_only_our_error(message: Any, body: bytes) -> None:
    """Whatever comes in, the decoder gives a message or a FormatError."""
    with suppress(FormatError):
        assert type(decode(message, body)) is message


@given(st.sampled_from(FIELDS), JSON)
def test_any_value_is_taken_whole_or_refused(choice: Any, value: Any) -> None:
    """A field that is accepted has the type that methods count on."""
    message, field = choice
    try:
        found = getattr(decode(message, json.dumps({field.name: value}).encode()), field.name)
    except FormatError:
        return
    if field.repeated:
        assert all(type(item) is field.kind for item in found)
    else:
        assert type(found) is field.kind or (field.optional and found is None)


def test_response_has_all_fields_in_order() -> None:
    """Compact, in the order of the description, empty ones included, bytes in lowercase hex."""
    response = SignResponse(b"\xab", (b"\x01", b""), b"")
    assert encode(response) == b'{"signature":"ab","signature_chain":["01",""],"public_key":""}'
    assert encode(VerifyResponse()) == b'{"valid":false}'
    assert encode(VerifyResponse(valid=True)) == b'{"valid":true}'
    assert encode(GetTlsKeyArgs(not_before=7)).endswith(
        b'"not_before":7,"not_after":null,"with_app_info":false}'
    )


def test_empty_answer_is_null() -> None:
    """A method without a response message answers null, because clients parse every body."""
    assert encode(None) == b"null"


def test_empty_attestation_is_left_out() -> None:
    """An empty attestation would win over the quote in a verifier, so its key is left out."""
    assert encode(GetQuoteResponse()) == (
        b'{"quote":"","event_log":"","report_data":"","vm_config":""}'
    )
    assert encode(GetQuoteResponse(attestation=b"\x01")).endswith(b',"attestation":"01"}')


@given(st.text())
def test_text_comes_back_from_ascii(text: str) -> None:
    """Any text survives, and the JSON is ASCII."""
    plain = encode(EmitEventArgs(text))
    assert plain.isascii()
    assert json.loads(plain)["event"] == text
    assert plain.startswith(b'{"event":"' + escaped(text) + b'",')


def test_prepared_response_is_sent_as_it_is() -> None:
    """Nothing is encoded, and the response itself is not made."""
    prepared: Prepared[SignResponse] = Prepared((b"{", b"}"), lambda: pytest.fail("made"))
    assert json_codec.encode(prepared) is prepared.json


@given(st.text())
def test_error_is_pretty_printed(text: str) -> None:
    """An error has the documented form: two spaces, no newline at the end, ASCII."""
    body = encode_error(text)
    assert body.isascii()
    assert body.startswith(b'{\n  "error": "')
    assert body.endswith(b'"\n}')
    assert json.loads(body) == {"error": text}


@pytest.mark.parametrize("size", [1, 100_000])
def test_large_bodies_are_read_as_small_ones(size: int) -> None:
    """The way that makes no objects of what nobody asked for finds the same."""
    fill = "x" * size
    body = json.dumps({"subject": f"a:b{fill}", "alt_names": ["c:d", fill], "z": {"subject": [1]}})
    assert decode(GetTlsKeyArgs, f" {body}".encode()) == GetTlsKeyArgs(
        subject=f"a:b{fill}", alt_names=("c:d", fill)
    )


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"path":"a","path":"b","x":"%s"}', "given"),
        ('{"path":"a","p\\u0061th":"b","x":"%s"}', "given"),
        ('{"path":["%s"]}', "path must be a string"),
        ('{"path":{"a":"%s"}}', "path must be a string"),
        ('["%s"]', "not a JSON object"),
        ('"%s"', "not a JSON object"),
        ('{"path":"%s"', "not valid JSON"),
        ('{"path":"a","x":[%s,]}', "not valid JSON"),
        ('{"path":"a","x":"%s\xff"}', "not valid JSON"),  # no UTF-8, where nobody looks
    ],
)
@pytest.mark.parametrize("size", [1, 100_000])
def test_large_bodies_are_refused_as_small_ones(text: str, error: str, size: int) -> None:
    """What is wrong with a small body is wrong with a large one."""
    with pytest.raises(FormatError, match=error):
        decode(GetKeyArgs, (text % ("1" * size)).encode("latin-1"))


@pytest.mark.parametrize("member", ['"x":[%s[]]', '"path":[%s[]]', '"alt_names":[%s[]]'])
def test_a_bomb_makes_no_objects(member: str) -> None:
    """A body of many small things takes no more than a few times its own memory."""
    body = ("{" + member % ("[]," * 100_000) + "}").encode()
    tracemalloc.start()
    try:
        with suppress(FormatError):
            decode(GetTlsKeyArgs, body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(body)


@pytest.mark.parametrize("limit", [1000, 100_000])
@pytest.mark.parametrize("depth", [201, 50_000, 1_000_000])
def test_deep_nesting_of_any_size(limit: int, depth: int) -> None:
    """It is refused, also where a library has told Python that its stack has no end."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(limit)
    try:
        with pytest.raises(FormatError):
            decode(GetTlsKeyArgs, b'{"x":' + b"[" * depth + b"]" * depth + b"}")
    finally:
        sys.setrecursionlimit(before)
