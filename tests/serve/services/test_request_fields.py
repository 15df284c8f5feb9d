"""Every field of every request: its default, and its bound."""

from typing import Any

from attestkit.serve.rpc.message_fields import fields_of
from attestkit.serve.services import dstack_guest, tappd
from tests.runner.cases import every_case
from tests.serve.asgi import Client

VALID: dict[str, dict[str, Any]] = {
    "GetTlsKey": {
        "subject": "a",
        "alt_names": ["b", "::1"],
        "usage_ra_tls": True,
        "usage_server_auth": True,
        "usage_client_auth": True,
        "not_before": 1_700_000_000,
        "not_after": 1_900_000_000,
        "with_app_info": True,
    },
    "GetKey": {"path": "a", "purpose": "b", "algorithm": "ed25519"},
    "GetQuote": {"report_data": "00"},
    "Attest": {"report_data": "00"},
    "EmitEvent": {"event": "a", "payload": "00"},
    "Sign": {"algorithm": "ed25519", "data": "00"},
    "Verify": {
        "algorithm": "ed25519",
        "data": "00",
        "signature": "00" * 64,
        "public_key": "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
    },
    "DeriveKey": {
        "path": "a",
        "subject": "b",
        "alt_names": ["c"],
        "usage_ra_tls": True,
        "usage_server_auth": True,
        "usage_client_auth": True,
        "random_seed": False,
    },
    "DeriveK256Key": {"path": "a", "purpose": "b", "algorithm": "ed25519"},
    "TdxQuote": {"report_data": "00", "hash_algorithm": "sha256", "prefix": "a"},
    "RawQuote": {"report_data": "00" * 64},
}
FIELDS = [
    (name, field)
    for service in (dstack_guest.SERVICE, tappd.SERVICE)
    for name, method in service.methods.items()
    if method.request is not None
    for field in fields_of(method.request)
]
every_field = every_case(
    ("name", "field"), FIELDS, ids=[f"{name}.{field.name}" for name, field in FIELDS]
)
# Fields without a valid default.
REQUIRED = {
    "Sign.algorithm": "Unsupported algorithm",
    "Verify.algorithm": "Unsupported algorithm",
    "Verify.signature": "",
    "Verify.public_key": "invalid public key",
    "EmitEvent.event": "event name: must not be empty",
    "RawQuote.report_data": "invalid content length",
}
BOUNDED = {
    *("GetTlsKey.subject", "GetTlsKey.not_before", "GetTlsKey.not_after", "GetKey.algorithm"),
    *("GetQuote.report_data", "Attest.report_data", "Sign.algorithm", "Verify.algorithm"),
    *("Verify.signature", "Verify.public_key", "DeriveKey.subject", "DeriveK256Key.algorithm"),
    *("TdxQuote.hash_algorithm", "RawQuote.report_data"),
    *("GetKey.root_epoch", "GetKey.app_epoch", "DeriveK256Key.root_epoch"),
    "DeriveK256Key.app_epoch",
}


@every_field
def test_missing_field_uses_default(tappd: Client, name: str, field: Any) -> None:
    """A missing field has its default; if that is invalid, the error states the problem."""
    message = {key: value for key, value in VALID[name].items() if key != field.name}
    response = tappd.post(f"/prpc/{name}", message)
    expected = REQUIRED.get(f"{name}.{field.name}")
    assert response.status == (200 if expected is None else 400)
    if expected is not None:
        assert response.error().startswith(expected)


@every_field
def test_long_field_is_bounded(tappd: Client, name: str, field: Any) -> None:
    """A field with a limit is refused beyond it; others are accepted."""
    long: Any = {str: "x" * 300_000, bytes: "00" * 300_000, int: 2**64 - 1, bool: True}[field.kind]
    if field.repeated:
        long = ["x" * 100] * 1000
    response = tappd.post(f"/prpc/{name}", VALID[name] | {field.name: long})
    assert response.status == (400 if f"{name}.{field.name}" in BOUNDED else 200)
