"""What POST /verify reads: the documented object, strictly where a mistake could hide."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import FormatError
from attestkit.serve.verifier_service.response import VerifyRequest, WrongTypeError


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{}", VerifyRequest()),
        (b'{"attestation":null,"quote":null,"debug":null}', VerifyRequest()),
        (b'{"attestation":""}', VerifyRequest(b"")),
        (b'{"quote":"00fF","vm_config":"{}"}', VerifyRequest(quote=b"\0\xff", vm_config="{}")),
        (b'{"debug":true,"unknown":{"a":[1]}}', VerifyRequest(debug=True)),
    ],
)
def test_requests(body: bytes, expected: VerifyRequest) -> None:
    """Null is not there, empty is; unknown keys are ignored."""
    assert VerifyRequest.from_json(body) == expected


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
def test_wrong_types(body: bytes) -> None:
    """A field of another type is told from text that is no JSON."""
    with pytest.raises(WrongTypeError):
        VerifyRequest.from_json(body)


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
def test_broken_json(body: bytes) -> None:
    """So is a key that comes twice: readers disagree about which one counts."""
    with pytest.raises(FormatError) as caught:
        VerifyRequest.from_json(body)
    assert not isinstance(caught.value, WrongTypeError)


@given(st.binary(max_size=200))
def test_any_bytes(body: bytes) -> None:
    """Bytes that are no request are a FormatError, and nothing else."""
    try:
        VerifyRequest.from_json(body)
    except FormatError:
        return
