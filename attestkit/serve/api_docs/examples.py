"""Example of each message for the API documents; long values are abbreviated with dots.

A field has the same example in all messages, unless `_OTHERS` has one for a message. Fields
without an example have their default.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, Final, NamedTuple

from attestkit.serve.rpc import messages as m
from attestkit.serve.rpc import messages_v1 as m1
from attestkit.serve.rpc.message_fields import defaults_of

_CERTIFICATE: Final = "-----BEGIN CERTIFICATE-----\n...\n-----END CERTIFICATE-----\n"
_PRIVATE_KEY: Final = "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----\n"
_KEY: Final = bytes.fromhex("866d0884686e5afdbdaace8bd77c0b4f69a30dbe9506d69270a07bf247c8f4f0")
_HASH: Final = bytes.fromhex("ea549f02e1a25fabd1cb788380e033ec5461b2ffe4328d753642cf035452e48b")
_APP_ID: Final = _HASH[:20]
_DATA: Final = bytes.fromhex("deadbeef")
_SIGNATURE: Final = bytes.fromhex(
    "6fb88fa2d00510bad307acc1dc4ef0f30df0acd0ad188a19b05064f17652d635"
    "623b5b6f31f1494e35aca3a3efd0234e99db3ef44f2030265db39258158ac201"
)
_CHAIN: Final = (
    bytes.fromhex(
        "bdcf39cde546877d89884b708d82470d866b8f1abc6e6e67e1cb37c243eb45aa"
        "20984c8943eae83091655125c339b94108e9c4ae800e463b7fbae44cea261673"
        "00"
    ),
    b"",
)

_EXAMPLES: Final[Mapping[str, Any]] = {
    "alt_names": ("www.example.com", "api.example.com"),
    "algorithm": "ed25519",
    "app_cert": _CERTIFICATE,
    "app_compose": '{"manifest_version":2,"name":"my-app"}',
    "app_id": _APP_ID,
    "app_name": "my-app",
    "attestation": bytes.fromhex("0001"),
    "bundles": (m1.GpuEvidenceBundle("nvidia", "nvidia-nvattest-collect-evidence-json-v1", b"{}"),),
    "certificate_chain": (_CERTIFICATE, _CERTIFICATE),
    "compose_hash": _HASH,
    "data": _DATA,
    "device_id": _HASH[::-1],
    "domain": "wallet",
    "event": "custom-event",
    "event_log": (
        '[{"imr":3,"event_type":134217729,"digest":"...","event":"system-ready",'
        '"event_payload":""}]'
    ),
    "evidence": b"{}",
    "format": "nvidia-nvattest-boottime-json-v1",
    "hash_algorithm": "sha256",
    "healthy": True,
    "instance_id": _APP_ID[::-1],
    "k256_key": _KEY,
    "k256_signature_chain": _CHAIN,
    "key": _KEY,
    "key_provider_info": '{"name":"none","id":""}',
    "message": "Service not found: Nope",
    "mr_aggregated": _HASH[::-1],
    "name": "app-web-1",
    "nonce": bytes(range(32)),
    "os_image_hash": _HASH[::-1],
    "path": "my/key/path",
    "payload": _DATA,
    "prefix": "my-app",
    "public_key": bytes.fromhex("698f56bd587d8ce3ca8db0e1c361ba9d190089f98dc4d9df800ff92ed073a65d"),
    "purpose": "signing",
    "quote": bytes.fromhex("040002008100000000000000939a7233"),  # start of TDX quotes of version 4
    "report_data": bytes(range(64)),
    "rev": "git:0123456789abcdef0123",
    "signature": _SIGNATURE,
    "signature_chain": _CHAIN,
    "status": "starting",
    "subject": "example.com",
    "tcb_info": '{"mrtd": "...", "rtmr0": "...", "event_log": [], "app_compose": "..."}',
    "usage_ra_tls": True,
    "usage_server_auth": True,
    "valid": True,
    "vendor": "nvidia",
    "version": "0.5.11",
    "vm_config": "{}",
}
_OTHERS: Final[Mapping[type, Mapping[str, Any]]] = {
    m.DeriveKeyArgs: {"alt_names": (), "usage_ra_tls": False, "usage_server_auth": False},
    m.GetTlsKeyResponse: {"key": _PRIVATE_KEY},
    m.SignResponse: {"signature_chain": (_SIGNATURE, *_CHAIN)},
    m.TdxQuoteArgs: {"report_data": _DATA},
    m1.AttestResponse: {"attestation": bytes.fromhex("83a776657273696f6e01")},
    m1.IssueCertResponse: {"key": _PRIVATE_KEY},
    m1.VersionResponse: {"version": "0.6.0"},
}


@cache
def example_of(message: type[NamedTuple]) -> NamedTuple:
    """Return the example of a message class, an object of that class."""
    values = {**defaults_of(message)._asdict(), **_EXAMPLES, **_OTHERS.get(message, {})}
    return message._make([values[name] for name in message._fields])
