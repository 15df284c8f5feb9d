"""The messages match the guest agent API: names, order, numbers, types and defaults."""

from typing import Any

from attestkit.serve.rpc import messages, messages_v1
from attestkit.serve.rpc.message_fields import Field, fields_of, package_of
from tests.runner.cases import every_case

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
    "GetKeyArgs": (
        "1 path str, 2 purpose str, 3 algorithm str, 0 root_epoch int?, 0 app_epoch int?"
    ),
    "GetKeyResponse": (
        "1 key bytes, 2 signature_chain bytes*, 0 root_epoch int?, 0 app_epoch int?"
    ),
    "DeriveK256KeyResponse": "1 k256_key bytes, 2 k256_signature_chain bytes*",
    "RawQuoteArgs": "1 report_data bytes",
    "GetQuoteResponse": "1 quote bytes, 2 event_log str, 3 report_data bytes, 4 vm_config str",
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
    "SignRequest": "1 algorithm str, 2 data bytes",
    "SignResponse": "1 signature bytes, 2 signature_chain bytes*, 3 public_key bytes",
    "VerifyRequest": "1 algorithm str, 2 data bytes, 3 signature bytes, 4 public_key bytes",
    "VerifyResponse": "1 valid bool",
    "WorkerVersion": "1 version str, 2 rev str",
    "GetAttestationForAppKeyRequest": "1 algorithm str",
}


# Messages of dstack.guest.v1; "M*" is a list of messages.
SCHEMA_V1 = {
    "IssueCertRequest": (
        "1 subject str, 2 alt_names str*, 3 usage_ra_tls bool, 4 usage_server_auth bool, "
        "5 usage_client_auth bool, 6 not_before int?, 7 not_after int?, 8 with_app_info bool"
    ),
    "IssueCertResponse": "1 key str, 2 certificate_chain str*",
    "GetKeyRequest": "1 domain str, 2 algorithm str, 0 root_epoch int?, 0 app_epoch int?",
    "GetKeyResponse": "1 key bytes, 2 public_key bytes, 3 signature_chain bytes*",
    "AttestRequest": "1 report_data bytes, 2 include_boottime_gpu_evidence bool",
    "AttestResponse": "1 attestation bytes, 2 boottime_gpu_evidence GpuEvidenceBundle*",
    "AttestGpuRequest": "1 nonce bytes",
    "AttestGpuResponse": "1 bundles GpuEvidenceBundle*",
    "GpuEvidenceBundle": "1 vendor str, 2 format str, 3 evidence bytes",
    "InfoRequest": "",
    "VersionRequest": "",
    "HealthRequest": "",
    "InfoResponse": (
        "1 app_id bytes, 2 app_name str, 3 compose_hash bytes, 4 app_compose str, "
        "5 instance_id bytes, 6 device_id bytes, 7 os_image_hash bytes, 8 mr_aggregated bytes, "
        "9 vm_config str, 10 key_provider_info str, 11 cloud_vendor str, 12 cloud_product str"
    ),
    "VersionResponse": "1 version str, 2 rev str",
    "ContainerHealth": "1 name str, 2 status str",
    "HealthResponse": "1 healthy bool, 2 unhealthy ContainerHealth*, 3 error str",
}
MESSAGES = [(messages, name, text) for name, text in SCHEMA.items()] + [
    (messages_v1, name, text) for name, text in SCHEMA_V1.items()
]
every_message = every_case(
    ("module", "name", "schema"), MESSAGES, ids=[f"{m.PACKAGE}.{n}" for m, n, _ in MESSAGES]
)


def _notation(field: Field) -> str:
    mark = "*" * field.repeated + "?" * field.optional
    return f"{field.number} {field.name} {field.kind.__name__}{mark}"


@every_message
def test_fields_match_api(module: Any, name: str, schema: str) -> None:
    """Number, name, type and order of every field match the API."""
    message = getattr(module, name)
    assert ", ".join(_notation(field) for field in fields_of(message)) == schema
    assert package_of(message) == module.PACKAGE


def test_every_message_is_in_api() -> None:
    """No message is missing in the tables."""
    known = {name for name in vars(messages) if name.endswith(("Args", "Request", "Response"))}
    assert known | {"AppInfo", "WorkerVersion"} == set(SCHEMA)
    known = {name for name, kind in vars(messages_v1).items() if hasattr(kind, "_fields")}
    assert known - {"Bounds", "_ALGORITHMS"} == set(SCHEMA_V1)


@every_message
def test_defaults_match_protobuf(module: Any, name: str, schema: str) -> None:
    """An absent field has its type's zero, an absent optional one None."""
    for field in fields_of(getattr(module, name)):
        want = () if field.repeated else None if field.optional else field.kind()
        assert field.default == want, schema
        assert type(field.default) is type(want)


def test_repr_hides_keys() -> None:
    """The repr of a message contains no key."""
    for message in (
        messages.GetKeyResponse(b"secret"),
        messages.DeriveK256KeyResponse(b"secret"),
        messages.GetTlsKeyResponse("secret", ("a",)),
        messages_v1.GetKeyResponse(b"secret"),
        messages_v1.IssueCertResponse("secret", ("a",)),
    ):
        assert "secret" not in repr(message)
        assert "secret" not in str(message)
