"""Example of each message for the API documents; long values are abbreviated with dots."""

from functools import cache
from typing import NamedTuple

from attestkit.serve.rpc import messages as m
from attestkit.serve.rpc import messages_v1 as m1

_PRIVATE_KEY = "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----\n"
_CERTIFICATE = "-----BEGIN CERTIFICATE-----\n...\n-----END CERTIFICATE-----\n"
_EVENT_LOG = (
    '[{"imr":3,"event_type":134217729,"digest":"...","event":"system-ready","event_payload":""}]'
)
_QUOTE = bytes.fromhex("040002008100000000000000939a7233")  # start of every TDX quote of version 4
_APP_ID = bytes.fromhex("ea549f02e1a25fabd1cb788380e033ec5461b2ff")
_COMPOSE_HASH = bytes.fromhex("ea549f02e1a25fabd1cb788380e033ec5461b2ffe4328d753642cf035452e48b")
_KEY = bytes.fromhex("866d0884686e5afdbdaace8bd77c0b4f69a30dbe9506d69270a07bf247c8f4f0")
_CHAIN = (
    bytes.fromhex(
        "bdcf39cde546877d89884b708d82470d866b8f1abc6e6e67e1cb37c243eb45aa"
        "20984c8943eae83091655125c339b94108e9c4ae800e463b7fbae44cea261673"
        "00"
    ),
    b"",
)
_DATA = bytes.fromhex("deadbeef")
_SIGNATURE = bytes.fromhex(
    "6fb88fa2d00510bad307acc1dc4ef0f30df0acd0ad188a19b05064f17652d635"
    "623b5b6f31f1494e35aca3a3efd0234e99db3ef44f2030265db39258158ac201"
)
_PUBLIC_KEY = bytes.fromhex("698f56bd587d8ce3ca8db0e1c361ba9d190089f98dc4d9df800ff92ed073a65d")

_GET_TLS_KEY = m.GetTlsKeyArgs(
    "example.com",
    ("www.example.com", "api.example.com"),
    usage_ra_tls=True,
    usage_server_auth=True,
)

_EXAMPLES: tuple[NamedTuple, ...] = (
    _GET_TLS_KEY,
    m.GetTlsKeyResponse(_PRIVATE_KEY, (_CERTIFICATE, _CERTIFICATE)),
    m.DeriveKeyArgs("my/key/path", "example.com"),
    m.GetKeyArgs("my/key/path", "signing", "ed25519"),
    m.GetKeyResponse(_KEY, _CHAIN),
    m.DeriveK256KeyResponse(_KEY, _CHAIN),
    m.RawQuoteArgs(bytes(range(64))),
    m.GetQuoteResponse(_QUOTE, _EVENT_LOG, bytes(range(64)), "{}"),
    m.AttestResponse(bytes.fromhex("0001")),
    m.TdxQuoteArgs(_DATA, "sha256", "my-app"),
    m.TdxQuoteResponse(_QUOTE, _EVENT_LOG, "sha256", "my-app"),
    m.EmitEventArgs("custom-event", _DATA),
    m.AppInfo(
        app_id=_APP_ID,
        instance_id=_APP_ID[::-1],
        app_cert=_CERTIFICATE,
        tcb_info='{"mrtd": "...", "rtmr0": "...", "event_log": [], "app_compose": "..."}',
        app_name="my-app",
        device_id=_COMPOSE_HASH[::-1],
        mr_aggregated=_COMPOSE_HASH[::-1],
        os_image_hash=_COMPOSE_HASH[::-1],
        key_provider_info='{"name":"none","id":""}',
        compose_hash=_COMPOSE_HASH,
        vm_config="{}",
    ),
    m.SignRequest("ed25519", _DATA),
    m.SignResponse(_SIGNATURE, (_SIGNATURE, *_CHAIN), _PUBLIC_KEY),
    m.VerifyRequest("ed25519", _DATA, _SIGNATURE, _PUBLIC_KEY),
    m.VerifyResponse(valid=True),
    m.WorkerVersion("0.5.11", "git:0123456789abcdef0123"),
    m.GetAttestationForAppKeyRequest("ed25519"),
    m.Error("Service not found: Nope"),
    m1.IssueCertRequest(*_GET_TLS_KEY),
    m1.IssueCertResponse(_PRIVATE_KEY, (_CERTIFICATE, _CERTIFICATE)),
    m1.GetKeyRequest("wallet", "ed25519"),
    m1.GetKeyResponse(_KEY, _PUBLIC_KEY, _CHAIN),
    m1.AttestRequest(bytes(range(64))),
    m1.AttestResponse(bytes.fromhex("83a776657273696f6e01")),
    m1.GpuEvidenceBundle("nvidia", "nvidia-nvattest-boottime-json-v1", b"{}"),
    m1.AttestGpuRequest(bytes(range(32))),
    m1.AttestGpuResponse(
        (m1.GpuEvidenceBundle("nvidia", "nvidia-nvattest-collect-evidence-json-v1", b"{}"),)
    ),
    m1.InfoRequest(),
    m1.InfoResponse(
        app_id=_APP_ID,
        app_name="my-app",
        compose_hash=_COMPOSE_HASH,
        app_compose='{"manifest_version":2,"name":"my-app"}',
        instance_id=_APP_ID[::-1],
        device_id=_COMPOSE_HASH[::-1],
        os_image_hash=_COMPOSE_HASH[::-1],
        mr_aggregated=_COMPOSE_HASH[::-1],
        vm_config="{}",
        key_provider_info='{"name":"none","id":""}',
    ),
    m1.VersionRequest(),
    m1.VersionResponse("0.6.0", "git:0123456789abcdef0123"),
    m1.HealthRequest(),
    m1.HealthResponse(healthy=True),
    m1.ContainerHealth("app-web-1", "starting"),
)


@cache
def _by_class() -> dict[type, NamedTuple]:
    return {type(example): example for example in _EXAMPLES}


def example_of(message: type[NamedTuple]) -> NamedTuple:
    """Return an example of a message: a valid request, or a typical response."""
    return _by_class()[message]
