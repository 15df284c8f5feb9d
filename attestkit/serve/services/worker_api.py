"""Service Worker of the guest API v0 and v1, on the external listener: for untrusted clients.

It gives no access to keys.
"""

from typing import Final

from attestkit.report_data import ReportData
from attestkit.serve.rpc import messages as m
from attestkit.serve.rpc import messages_v1 as m1
from attestkit.serve.rpc.json_codec import PreparedResponse
from attestkit.serve.rpc.service import Method, Service
from attestkit.serve.services import dstack_guest, guest_v1
from attestkit.serve.services.context import Guest

_ALGORITHMS = {"k256": "secp256k1", "secp256k1_prehashed": "secp256k1"}  # other names of one key


def info(guest: Guest, _: None = None) -> PreparedResponse[m.AppInfo]:
    """Return the app's identity, without its measurements if the app hides them."""
    return guest.info(hidden=not guest.app_compose.public_tcbinfo)


def _attestation_for_app_key(
    guest: Guest, args: m.GetAttestationForAppKeyRequest
) -> PreparedResponse[m.GetQuoteResponse]:
    """Return a quote over the public key of the app's signing key."""
    algorithm = _ALGORITHMS.get(args.algorithm, args.algorithm)
    # Cached until a register changes, so that untrusted clients cannot keep the device busy.
    return guest.cached(f"evidence for {algorithm}", lambda: _make_attestation(guest, algorithm))


def _make_attestation(guest: Guest, algorithm: str) -> PreparedResponse[m.GetQuoteResponse]:
    public_key = guest.keys.derive_compat("vms", "signing", algorithm).public_key
    return guest.quote_response(ReportData.for_app_key(algorithm, public_key))


SERVICE = Service(
    {
        "Info": Method(info, device=True),
        "Version": dstack_guest.SERVICE.methods["Version"],
        "GetAttestationForAppKey": Method(
            _attestation_for_app_key, m.GetAttestationForAppKeyRequest, device=True
        ),
    },
    mount="/prpc/",
    prefix="Worker.",
    name="Worker",
    aliases=("/prpc/v0/",),
)
"""Worker: `/prpc/<Method>` and `/prpc/Worker.<Method>`, and the same below `/prpc/v0/`."""


def _info(guest: Guest, _: m1.InfoRequest) -> PreparedResponse[m1.InfoResponse]:
    """Return the app's identity, without its compose file and configuration if it hides them."""
    return guest_v1.get_info(guest, hidden=not guest.app_compose.public_tcbinfo)


def _health(guest: Guest, _: m1.HealthRequest) -> m1.HealthResponse:
    """Return the result of the last health check of the app, passed or failed."""
    healthy, unhealthy, error = guest.health
    return m1.HealthResponse(healthy, tuple([m1.ContainerHealth(*one) for one in unhealthy]), error)


SERVICE_V1: Final = Service(
    {
        "Info": Method(_info, m1.InfoRequest, device=True),
        "Version": Method(guest_v1.version, m1.VersionRequest),
        "Health": Method(_health, m1.HealthRequest),
    },
    mount="/prpc/v1/",
    name="Worker",
    package=m1.PACKAGE,
)
"""Worker of the guest API v1: `/prpc/v1/<Method>`."""
