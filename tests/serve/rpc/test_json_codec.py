"""JSON codec: strict decoding, compact ASCII encoding."""

import json
import sys
import tracemalloc
from contextlib import suppress
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import FormatError
from attestkit.serve.rpc import json_codec, messages, messages_v1
from attestkit.serve.rpc.json_codec import PreparedResponse, decode, escape
from attestkit.serve.rpc.message_fields import Field, fields_of
from attestkit.serve.rpc.messages import (
    EmitEventArgs,
    GetKeyArgs,
    GetKeyResponse,
    GetTlsKeyArgs,
    RawQuoteArgs,
    SignResponse,
    VerifyResponse,
)
from tests.raising import raises
from tests.runner.cases import every_case

REQUESTS = [
    getattr(module, name)
    for module in (messages, messages_v1)
    for name in vars(module)
    if name.endswith(("Args", "Request"))
]
FIELDS = [(message, field) for message in REQUESTS for field in fields_of(message)]


def encode(message: "NamedTuple | PreparedResponse[Any] | None") -> bytes:
    """Return a response's pieces, joined."""
    return b"".join(json_codec.encode(message))


def test_decode_empty_body_gives_defaults() -> None:
    """An empty body equals an empty object."""
    assert decode(GetTlsKeyArgs, b"") == decode(GetTlsKeyArgs, b"{}") == GetTlsKeyArgs()


def test_decode_complete_request() -> None:
    """Each member sets its field; unknown members are ignored."""
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


@every_case("text", ["DEADbeef", "0xdeadbeef", "0xDEADBEEF", "deadbeef"])
def test_decode_hex_case_and_prefix(text: str) -> None:
    """Bytes are hex in any case, with or without `0x`."""
    assert decode(RawQuoteArgs, b'{"report_data":"%s"}' % text.encode()).report_data == bytes(
        [0xDE, 0xAD, 0xBE, 0xEF]
    )


@every_case("text", ["0", "abc", "zz", "0x0", "de ad", " dead", "0x0xde", "é0", "٣٣"])
def test_decode_malformed_hex_is_refused(text: str) -> None:
    """Odd lengths, whitespace and other characters are refused."""
    with raises(FormatError, "encoding"):
        decode(RawQuoteArgs, json.dumps({"report_data": text}).encode())


WRONG: dict[type, list[Any]] = {
    str: [1, True, [], {}, 1.5, None],
    bool: [1, 0, "true", [], {}, None],
    int: ["1", True, 1.0, 1e3, -1, 2**64, [], {}],
    bytes: [1, True, [1, 2], {}, None],
}


@every_case(("message", "field"), FIELDS, ids=[f"{m.__name__}.{f.name}" for m, f in FIELDS])
def test_decode_wrong_type_names_field(message: Any, field: Field) -> None:
    """A wrong type or null is refused; the error names the field."""
    for value in WRONG[field.kind]:
        wrong = [[value], value, "x", None] if field.repeated else [value]
        for bad in wrong:
            if field.repeated and bad == []:
                continue
            with raises(FormatError, "wrong_type", "wrong_value", start=f"{field.name}: "):
                decode(message, json.dumps({field.name: bad}).encode())


@every_case(
    "body",
    [
        b'{"path":"a","path":"b"}',
        b'{"path":"a","purpose":"x:y","p\\u0061th":"b"}',
        b'{"path":"a","later":{"path":1},"path":"a"}',
        b'{"path":"a","later":1,"later":1}',
    ],
)
def test_decode_duplicate_field_is_refused(body: bytes) -> None:
    """A repeated field is refused, however its name is escaped."""
    with raises(FormatError, "duplicate"):
        decode(GetKeyArgs, body)


def test_decode_colons_elsewhere_are_no_duplicates() -> None:
    """Colons in values and names of an unknown member do not count as members."""
    body = b'{"x:y":"1:2","path":"a:b","y":{"path":1,"path":2}}'
    assert decode(GetKeyArgs, body) == GetKeyArgs("a:b")


@every_case(
    "body",
    [
        b"{",
        b"nul",
        b"{'path':1}",
        b'{"path":"\xff"}',
        b'{"path":"\\ud800"}',
        b'{"path":"a"} x',
        b'{"not_before":NaN}',
        b'{"x":' * 100,
        b'\xef\xbb\xbf{"path":"a"}',
        '{"path":"a"}'.encode("utf-16"),
    ],
)
def test_decode_malformed_json_is_refused(body: bytes) -> None:
    """Malformed JSON and other encodings are refused."""
    with raises(FormatError, "syntax"):
        decode(GetKeyArgs, body)


@pytest.mark.parametrize("body", [b'{"x":' * 300, b"[" * 10_000, b'{"x":' + b"[" * 300])
def test_decode_deep_nesting_is_refused(body: bytes) -> None:
    """Nesting is limited before the parser recurses."""
    with raises(FormatError, "too_deep"):
        decode(GetKeyArgs, body)


@every_case("body", [b"null", b"[]", b"[" * 100, b"1", b'"path"', b"true"])
def test_decode_non_object_is_refused(body: bytes) -> None:
    """A message must be an object."""
    with raises(FormatError, "wrong_type"):
        decode(GetKeyArgs, body)


def test_encode_has_all_fields_in_order() -> None:
    """All fields in order, compact, bytes in lower-case hex."""
    response = SignResponse(b"\xab", (b"\x01", b""), b"")
    assert encode(response) == b'{"signature":"ab","signature_chain":["01",""],"public_key":""}'
    assert encode(VerifyResponse()) == b'{"valid":false}'
    assert encode(VerifyResponse(valid=True)) == b'{"valid":true}'
    assert encode(GetTlsKeyArgs(not_before=7)).endswith(
        b'"not_before":7,"not_after":null,"with_app_info":false}'
    )


def test_encode_unset_json_only_field_is_omitted() -> None:
    """A field without a protobuf number is in a response only when it is set, also to zero."""
    assert encode(GetKeyResponse()) == b'{"key":"","signature_chain":[]}'
    assert encode(GetKeyResponse(root_epoch=0, app_epoch=0)).endswith(
        b',"root_epoch":0,"app_epoch":0}'
    )


def test_encode_nested_messages() -> None:
    """A list of messages is an array of objects; a message without fields is an empty object."""
    bundle = messages_v1.GpuEvidenceBundle("a", "b", b"\xab")
    assert encode(messages_v1.AttestGpuResponse((bundle, bundle))) == (
        b'{"bundles":[{"vendor":"a","format":"b","evidence":"ab"},'
        b'{"vendor":"a","format":"b","evidence":"ab"}]}'
    )
    assert encode(messages_v1.AttestGpuResponse()) == b'{"bundles":[]}'
    assert encode(messages_v1.InfoRequest()) == b"{}"


@pytest.mark.parametrize("body", [b"", b"{}", b' {"x": [1]} '])
def test_decode_message_without_fields(body: bytes) -> None:
    """Nothing and any object are the message."""
    assert decode(messages_v1.InfoRequest, body) == messages_v1.InfoRequest()


@every_case("body", [b"null", b"[]", b"1", b'"x"', b"{", b"{}x", b'{"x":1,"x":2}'])
def test_decode_message_without_fields_refuses_other_json(body: bytes) -> None:
    """JSON other than one well-formed object is refused."""
    with raises(FormatError, "wrong_type", "syntax", "duplicate"):
        decode(messages_v1.InfoRequest, body)


@given(st.text())
def test_encode_any_text_is_ascii(text: str) -> None:
    """Any text survives a round trip in ASCII."""
    plain = encode(EmitEventArgs(text))
    assert plain.isascii()
    assert json.loads(plain)["event"] == text
    assert plain.startswith(b'{"event":"' + escape(text) + b'",')


def test_encode_prepared_response_is_sent_unchanged() -> None:
    """A prepared response is not encoded again."""
    prepared: PreparedResponse[SignResponse] = PreparedResponse(
        (b"{", b"}"), lambda: pytest.fail("made")
    )
    assert json_codec.encode(prepared) is prepared.json


@every_case(
    ("text", "reason", "subject"),
    [
        ('{"path":"a","path":"b","x":"%s"}', "duplicate", ""),
        ('{"path":"a","p\\u0061th":"b","x":"%s"}', "duplicate", ""),
        ('{"path":["%s"]}', "wrong_type", "path: "),
        ('{"path":{"a":"%s"}}', "wrong_type", "path: "),
        ('["%s"]', "wrong_type", "request body: "),
        ('"%s"', "wrong_type", "request body: "),
        ('{"path":"%s"', "syntax", "request body: "),
        ('{"path":"a","x":[%s,]}', "syntax", "request body: "),
        ('{"path":"a","x":"%s\xff"}', "syntax", "request body: "),  # not UTF-8, in a skipped value
    ],
)
@every_case("size", [1, 100_000])
def test_decode_errors_do_not_depend_on_size(
    text: str, reason: str, subject: str, size: int
) -> None:
    """A large body gives the errors of a small one."""
    with raises(FormatError, reason, start=subject):
        decode(GetKeyArgs, (text % ("1" * size)).encode("latin-1"))


@pytest.mark.parametrize("member", ['"x":[%s[]]', '"path":[%s[]]', '"alt_names":[%s[]]'])
def test_decode_many_small_values_is_bounded(member: str) -> None:
    """The memory for many small values is a small multiple of the body."""
    body = ("{" + member % ("[]," * 100_000) + "}").encode()
    tracemalloc.start()
    try:
        with suppress(FormatError):
            decode(GetTlsKeyArgs, body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(body)


@every_case("limit", [1000, 100_000])
@every_case("depth", [201, 50_000, 1_000_000])
def test_decode_deep_nesting_with_any_recursion_limit(limit: int, depth: int) -> None:
    """Nesting is refused, even with a raised recursion limit."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(limit)
    try:
        with pytest.raises(FormatError):
            decode(GetTlsKeyArgs, b'{"x":' + b"[" * depth + b"]" * depth + b"}")
    finally:
        sys.setrecursionlimit(before)
