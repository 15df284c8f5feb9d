"""Strict parsing of the request object of POST /verify."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from attestkit._formats import strict_json
from attestkit.errors import FormatError
from attestkit.serve.verifier_service import request as requests
from attestkit.serve.verifier_service.request import VerificationRequest, WrongTypeError
from tests.runner.cases import every_case


@every_case(
    ("body", "expected"),
    [
        (b"{}", VerificationRequest()),
        (b'{"attestation":null,"quote":null,"debug":null}', VerificationRequest()),
        (b'{"attestation":""}', VerificationRequest(b"")),
        (
            b'{"quote":"00fF","vm_config":"{}"}',
            VerificationRequest(quote=b"\0\xff", vm_config="{}"),
        ),
        (b'{"debug":1,"unknown":{"a":[1]}}', VerificationRequest()),
    ],
)
def test_from_json_null_and_unknown_keys(body: bytes, expected: VerificationRequest) -> None:
    """Null means absent, an empty text does not; unknown keys are ignored."""
    assert VerificationRequest.from_json(body) == expected


@every_case(
    "body",
    [
        b"[]",
        b'"text"',
        b"null",
        b'{"attestation":1}',
        b'{"attestation":"0x00"}',
        b'{"attestation":"0"}',
        b'{"attestation":" 00"}',
        b'{"quote":["00"]}',
        b'{"quote":"zz"}',
        b'{"event_log":[]}',
        b'{"vm_config":{}}',
    ],
)
def test_from_json_wrong_type_is_refused(body: bytes) -> None:
    """A wrong type is distinguished from malformed JSON."""
    with pytest.raises(WrongTypeError):
        VerificationRequest.from_json(body)


@every_case(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"{}{}",
        b'{"debug":NaN}',
        b'{"quote":"00","quote":"01"}',
        b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"a":' + b"1" * 5000 + b"}",
    ],
)
def test_from_json_malformed_json_is_refused(body: bytes) -> None:
    """Malformed JSON and duplicate keys are refused."""
    with pytest.raises(FormatError) as caught:
        VerificationRequest.from_json(body)
    assert not isinstance(caught.value, WrongTypeError)


VALUES = st.sampled_from(
    [
        *(b'""', b'"00"', b'"0F"', b'"\\""', b'"\\\\"', b'"\\\\\\""', b'"\\n\\/"', b'"\\u0041"'),
        *(b'"\\ud800"', b'"\\ud83d\\ude00"', b'"\xc3\xa9"', b'"\xff"', b'"\x01"', b'"\x7f"'),
        *(b'"\\x"', b'"', b"true", b"null", b"1", b"1.5", b"NaN", b"[]", b'{"a":"b"}', b""),
        *(b'"00","attestation":"11"', b'"00","quote": "11"'),
    ]
)
KEYS = st.sampled_from(
    [*(b"attestation", b"quote", b"event_log", b"debug", b"a"), b"\\u0061", b"\\\\", b'"', b"\xff"]
)
STYLES = st.sampled_from([(b":", b","), (b": ", b", "), (b" :", b","), (b":", b",\x0b")])


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Return a body, mostly of members in one style, possibly malformed."""
    colon, comma = draw(STYLES)
    members = draw(st.lists(st.tuples(KEYS, VALUES), max_size=4))
    texts = [b'"%b"%b%b' % (key, colon, value) for key, value in members]
    start, end = (
        draw(st.sampled_from([b"{", b"{", b" {", b"["])),
        draw(st.sampled_from([b"}"] * 3 + [b",}", b"}}"])),
    )
    return start + comma.join(texts) + end


def parse(body: bytes) -> object:
    """Return the request in a body, or the type, reason and text of the error."""
    try:
        return VerificationRequest.from_json(body)
    except FormatError as error:
        return type(error), error.reason, str(error)


@given(body=bodies())
@example(body=b'{"attestation":"}')
@example(body=b'{"attestation": "}')
def test_from_json_fast_paths_agree_with_strict_parser(body: bytes) -> None:
    """The fast paths accept no more than the strict parser, and give the same request or error."""
    fast = parse(body)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_read_sole_attestation", "_read_canonical"):
            patch.setattr(requests, name, lambda _: None)
        assert parse(body) == fast


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_from_json_usual_requests_take_fast_path(
    monkeypatch: pytest.MonkeyPatch, separators: tuple[str, str]
) -> None:
    """An agent's response and a sole attestation are not read by the strict parser."""
    monkeypatch.setattr(strict_json, "read", None)
    log = json.dumps([{"event": "a\\b", "imr": 3}])
    fields = {"quote": "00", "event_log": log, "vm_config": json.dumps({"a": log}), "debug": True}
    whole = json.dumps(fields, separators=separators).encode()
    assert VerificationRequest.from_json(whole).event_log == log
    sole = json.dumps({"attestation": "00fF"}, separators=separators).encode()
    assert VerificationRequest.from_json(sole).attestation == b"\0\xff"
