"""Strict parsing of the request object of POST /verify."""

import pytest

from attestkit.errors import FormatError
from attestkit.serve.verifier_service.response import VerificationRequest, WrongTypeError


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{}", VerificationRequest()),
        (b'{"attestation":null,"quote":null,"debug":null}', VerificationRequest()),
        (b'{"attestation":""}', VerificationRequest(b"")),
        (
            b'{"quote":"00fF","vm_config":"{}"}',
            VerificationRequest(quote=b"\0\xff", vm_config="{}"),
        ),
        (b'{"debug":true,"unknown":{"a":[1]}}', VerificationRequest(debug=True)),
    ],
)
def test_from_json_null_and_unknown_keys(body: bytes, expected: VerificationRequest) -> None:
    """Null means absent, an empty text does not; unknown keys are ignored."""
    assert VerificationRequest.from_json(body) == expected


@pytest.mark.parametrize(
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
        b'{"debug":1}',
        b'{"debug":"true"}',
    ],
)
def test_from_json_wrong_type_is_refused(body: bytes) -> None:
    """A wrong type is distinguished from malformed JSON."""
    with pytest.raises(WrongTypeError):
        VerificationRequest.from_json(body)


@pytest.mark.parametrize(
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
