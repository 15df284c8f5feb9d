"""The service Worker on the external listener: what strangers may ask, and nothing with a key."""

from attestkit.report_data import ReportData
from attestkit.serve.rpc.dispatcher import Method, Service
from attestkit.serve.rpc.json_codec import Prepared
from attestkit.serve.rpc.messages import (
    AppInfo,
    GetAttestationForAppKeyRequest,
    GetQuoteResponse,
    WorkerVersion,
)
from attestkit.serve.services.context import Guest

__all__ = ["SERVICE", "info"]


def info(guest: Guest, _: None = None) -> Prepared[AppInfo]:
    """Tell who the app is, without its measurements where the app hides them."""
    return guest.info(hidden=not guest.app_compose.public_tcbinfo)


def _version(guest: Guest, _: None) -> WorkerVersion:
    """Tell the release of the API and the revision of the server."""
    return WorkerVersion(guest.release.version, guest.release.rev)


def _attestation_for_app_key(
    guest: Guest, args: GetAttestationForAppKeyRequest
) -> Prepared[GetQuoteResponse]:
    """Get a quote over the public half of the app's signing key."""
    algorithm = "secp256k1" if args.algorithm == "k256" else args.algorithm
    # Kept until a register changes, so that strangers cannot work the device.
    return guest.kept(f"evidence for {algorithm}", lambda: _make_attestation(guest, algorithm))


def _make_attestation(guest: Guest, algorithm: str) -> Prepared[GetQuoteResponse]:
    public_key = guest.keys.derive("vms", "signing", algorithm).public_key
    return guest.quote_response(ReportData.for_app_key(algorithm, public_key))


SERVICE = Service(
    {
        "Info": Method(info, device=True),
        "Version": Method(_version),
        "GetAttestationForAppKey": Method(
            _attestation_for_app_key, GetAttestationForAppKeyRequest, device=True
        ),
    },
    mount="/prpc/",
    prefix="Worker.",
    name="Worker",
)
"""Worker: `/prpc/<Method>` and `/prpc/Worker.<Method>`."""
