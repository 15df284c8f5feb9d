"""The messages match the guest agent API: names, order, numbers, types and defaults."""

import pytest

from attestkit.serve.rpc import messages
from attestkit.serve.rpc.messages import Field, fields_of

# Messages of the API document; "?" is optional, "*" is repeated.
SCHEMA = {
    "GetTlsKeyArgs": (
        "1 subject str, 2 alt_names str*, 3 usage_ra_tls bool, 4 usage_server_auth bool, "
        "5 usage_client_auth bool, 6 not_before int?, 7 not_after int?, 8 with_app_info bool"
    ),
    "GetTlsKeyResponse": "1 key str, 2 certificate_chain str*",
    "DeriveKeyArgs": (
        "1 path str, 2 subject str, 3 alt_names str*, 4 usage_ra_tls bool, "
        "5 usage_server_auth bool, 6 usage_client_auth bool, 7 random_seed bool"
    ),
    "GetKeyArgs": "1 path str, 2 purpose str, 3 algorithm str",
    "GetKeyResponse": "1 key bytes, 2 signature_chain bytes*",
    "DeriveK256KeyResponse": "1 k256_key bytes, 2 k256_signature_chain bytes*",
    "RawQuoteArgs": "1 report_data bytes",
    "GetQuoteResponse": (
        "1 quote bytes, 2 event_log str, 3 report_data bytes, 4 vm_config str, 5 attestation bytes"
    ),
    "AttestResponse": "1 attestation bytes",
    "TdxQuoteArgs": "1 report_data bytes, 2 hash_algorithm str, 3 prefix str",
    "TdxQuoteResponse": "1 quote bytes, 2 event_log str, 3 hash_algorithm str, 4 prefix str",
    "EmitEventArgs": "1 event str, 2 payload bytes",
    "AppInfo": (
        "1 app_id bytes, 2 instance_id bytes, 3 app_cert str, 4 tcb_info str, 5 app_name str, "
        "8 device_id bytes, 9 mr_aggregated bytes, 10 os_image_hash bytes, "
        "12 key_provider_info str, 13 compose_hash bytes, 14 vm_config str, "
        "15 cloud_vendor str, 16 cloud_product str"
    ),
    "GpuInfoResponse": "1 attestation str",
    "SignRequest": "1 algorithm str, 2 data bytes",
    "SignResponse": "1 signature bytes, 2 signature_chain bytes*, 3 public_key bytes",
    "VerifyRequest": "1 algorithm str, 2 data bytes, 3 signature bytes, 4 public_key bytes",
    "VerifyResponse": "1 valid bool",
    "WorkerVersion": "1 version str, 2 rev str",
    "GetAttestationForAppKeyRequest": "1 algorithm str",
}


def _notation(field: Field) -> str:
    mark = "*" * field.repeated + "?" * field.optional
    return f"{field.number} {field.name} {field.kind.__name__}{mark}"


@pytest.mark.parametrize("name", SCHEMA)
def test_fields_match_api(name: str) -> None:
    """Number, name, type and order of every field match the API."""
    message = getattr(messages, name)
    assert ", ".join(_notation(field) for field in fields_of(message)) == SCHEMA[name]


def test_every_message_is_in_api() -> None:
    """No message is missing in the table."""
    known = {name for name in vars(messages) if name.endswith(("Args", "Request", "Response"))}
    assert known | {"AppInfo", "WorkerVersion"} == set(SCHEMA)


@pytest.mark.parametrize("name", SCHEMA)
def test_defaults_match_protobuf(name: str) -> None:
    """An absent field has its type's zero, an absent optional one None."""
    for field in fields_of(getattr(messages, name)):
        want = () if field.repeated else None if field.optional else field.kind()
        assert field.default == want
        assert type(field.default) is type(want)


def test_only_empty_attestation_is_omitted() -> None:
    """All other fields are in the JSON even if empty."""
    omitted = [
        (name, field.name)
        for name in SCHEMA
        for field in fields_of(getattr(messages, name))
        if field.omit_empty
    ]
    assert omitted == [("GetQuoteResponse", "attestation")]


def test_repr_hides_keys() -> None:
    """The repr of a message contains no key."""
    for message in (
        messages.GetKeyResponse(b"secret"),
        messages.DeriveK256KeyResponse(b"secret"),
        messages.GetTlsKeyResponse("secret", ("a",)),
    ):
        assert "secret" not in repr(message)
        assert "secret" not in str(message)
