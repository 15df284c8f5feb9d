"""Messages of the KMS in JSON and protobuf, byte for byte as in the vectors."""

import json
from typing import Any, NamedTuple

import pytest

from attestkit.errors import FormatError
from attestkit.serve.kms_service import admin, onboarding, release_engine
from attestkit.serve.rpc import json_codec, messages_kms, protobuf_codec, query_codec
from attestkit.serve.rpc.message_fields import Field, fields_of
from attestkit.serve.rpc.service import Service
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import load, needs_shared

ROWS: list[dict[str, Any]] = load("kms.json").get("groups", {}).get("wire", {}).get("rows", [])
SERVICES = {"admin listener": admin.SERVICE, "onboarding mode": onboarding.SERVICE}
RESPONSES: dict[str, type[NamedTuple] | None] = {
    "GetAppKey": messages_kms.AppKeyResponse,
    "GetKmsKey": messages_kms.KmsKeyResponse,
    "GetAppEnvEncryptPubKey": messages_kms.PublicKeyResponse,
    "GetMeta": messages_kms.GetMetaResponse,
    "GetTempCaCert": messages_kms.GetTempCaCertResponse,
    "SignCert": messages_kms.SignCertResponse,
    "ClearImageCache": None,
    "Bootstrap": messages_kms.BootstrapResponse,
    "Onboard": messages_kms.OnboardResponse,
    "GetAttestationInfo": messages_kms.AttestationInfoResponse,
    "Finish": None,
}


def service_of(row: dict[str, Any]) -> Service:
    """Return the service of a row's method."""
    found = SERVICES.get(row.get("what", ""), release_engine.SERVICE)
    return found if row["method"] in found.methods else release_engine.SERVICE


def message_of(kind: type[NamedTuple], fields: dict[str, Any]) -> NamedTuple:
    """Return a message of the members of JSON."""
    assert list(fields) == [field.name for field in fields_of(kind)]
    return kind._make([value_of(field, fields[field.name]) for field in fields_of(kind)])


def value_of(field: Field, value: Any) -> Any:
    """Return the value of a field."""
    if value is None:
        return None
    if field.repeated:
        return tuple(value_of(field._replace(repeated=False), one) for one in value)
    if field.nested:
        return message_of(field.kind, value)
    return bytes.fromhex(value) if field.kind is bytes else value


def row_id(row: dict[str, Any]) -> str:
    """Return the name of a row."""
    return f"{row['id']}-{row['method']}"


@needs_shared
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_request_is_decoded(row: dict[str, Any]) -> None:
    """Both encodings of a request give the same message; the path is that of the method."""
    service = service_of(row)
    name = row["path"].removeprefix(service.mount).removeprefix(service.prefix)
    request = service.methods[name].request
    if request is None:
        assert row["protobuf_request"] == ""
        return
    found = json_codec.decode(request, json.dumps(row["json_request"]).encode())
    assert found == protobuf_codec.decode(request, bytes.fromhex(row["protobuf_request"]))


@needs_shared
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_response_is_encoded(row: dict[str, Any]) -> None:
    """Both encodings of a response are the vector's bytes."""
    kind, fields = RESPONSES[row["method"]], json.loads(row["json_response"])
    message = None if kind is None else message_of(kind, fields)
    assert b"".join(json_codec.encode(message)).decode() == row["json_response"]
    assert b"".join(protobuf_codec.encode(message)).hex() == row["protobuf_response"]
    if kind is not None:
        assert protobuf_codec.decode(kind, bytes.fromhex(row["protobuf_response"])) == message


def test_every_method_has_a_response() -> None:
    """The vectors and the services have the same methods."""
    services = (release_engine.SERVICE, admin.SERVICE, onboarding.SERVICE)
    assert {name for service in services for name in service.methods} == set(RESPONSES)


@every_case(
    "message",
    [
        messages_kms.AppKeyResponse(k256_key=b"\xab" * 32),
        messages_kms.KmsKeys("secret pem", b"\xab" * 32),
        messages_kms.KmsKeyResponse("secret pem", (messages_kms.KmsKeys("secret pem"),)),
        messages_kms.GetTempCaCertResponse("", "secret pem"),
    ],
)
def test_repr_has_no_key(message: NamedTuple) -> None:
    """A message in a traceback or log shows no key."""
    text = repr(message)
    assert "secret pem" not in text
    assert "xab" not in text
    assert "ab" * 32 not in text


@pytest.mark.parametrize("kind", [messages_kms.GetAppKeyRequest, messages_kms.SignCertRequest])
def test_api_version_has_32_bits(kind: type[NamedTuple]) -> None:
    """JSON and queries refuse a number over 2^32 - 1; protobuf cuts it, as prost does."""
    largest, text = 2**32 - 1, "api_version: must be an integer from 0 to 2^32 - 1"
    assert json_codec.decode(kind, b'{"api_version":%d}' % largest)[0] == largest
    assert query_codec.decode(kind, b"api_version=%d" % largest)[0] == largest
    for wrong in (-1, 2**32, 2**64 - 1, 2**64):
        with raises(FormatError, "wrong_value", text=text):
            json_codec.decode(kind, b'{"api_version":%d}' % wrong)
        with raises(FormatError, "wrong_value", text=text):
            query_codec.decode(kind, b"api_version=%d" % wrong)
    assert protobuf_codec.decode(kind, b"\x08\x81\x80\x80\x80\x10")[0] == 1  # 2^32 + 1
