"""Service Worker of the external listener: methods for untrusted clients, without keys."""

from attestkit.report_data import ReportData
from attestkit.serve.rpc.json_codec import PreparedResponse
from attestkit.serve.rpc.messages import AppInfo, GetAttestationForAppKeyRequest, GetQuoteResponse
from attestkit.serve.rpc.service import Method, Service
from attestkit.serve.services import dstack_guest
from attestkit.serve.services.context import Guest

_ALGORITHMS = {"k256": "secp256k1", "secp256k1_prehashed": "secp256k1"}  # other names of one key


def info(guest: Guest, _: None = None) -> PreparedResponse[AppInfo]:
    """Return the app's identity, without its measurements if the app hides them."""
    return guest.info(hidden=not guest.app_compose.public_tcbinfo)


def _attestation_for_app_key(
    guest: Guest, args: GetAttestationForAppKeyRequest
) -> PreparedResponse[GetQuoteResponse]:
    """Return a quote over the public key of the app's signing key."""
    algorithm = _ALGORITHMS.get(args.algorithm, args.algorithm)
    # Cached until a register changes, so that untrusted clients cannot keep the device busy.
    return guest.cached(f"evidence for {algorithm}", lambda: _make_attestation(guest, algorithm))


def _make_attestation(guest: Guest, algorithm: str) -> PreparedResponse[GetQuoteResponse]:
    public_key = guest.keys.derive_compat("vms", "signing", algorithm).public_key
    return guest.quote_response(ReportData.for_app_key(algorithm, public_key))


SERVICE = Service(
    {
        "Info": Method(info, device=True),
        "Version": dstack_guest.SERVICE.methods["Version"],
        "GetAttestationForAppKey": Method(
            _attestation_for_app_key, GetAttestationForAppKeyRequest, device=True
        ),
    },
    mount="/prpc/",
    prefix="Worker.",
    name="Worker",
    aliases=("/prpc/v0/",),
)
"""Worker: `/prpc/<Method>` and `/prpc/Worker.<Method>`, and the same below `/prpc/v0/`."""
