"""The service DstackGuest on dstack.sock: one short function per call."""

from attestkit.errors import UsageError
from attestkit.keys import verify_signature
from attestkit.serve.guest import Guest
from attestkit.serve.json_codec import Prepared
from attestkit.serve.messages import (
    AppInfo,
    AttestResponse,
    EmitEventArgs,
    GetKeyArgs,
    GetKeyResponse,
    GetQuoteResponse,
    GetTlsKeyArgs,
    GetTlsKeyResponse,
    GpuInfoResponse,
    RawQuoteArgs,
    SignRequest,
    SignResponse,
    VerifyRequest,
    VerifyResponse,
    WorkerVersion,
)
from attestkit.serve.rpc import Method, Service

__all__ = ["SERVICE"]


def _get_tls_key(guest: Guest, args: GetTlsKeyArgs) -> GetTlsKeyResponse:
    # Zero means unset, for each of the two by itself: clients write it for "no limit".
    first, last = args.not_before or None, args.not_after or None
    if first is not None and last is not None and first >= last:
        raise UsageError("not_before must be earlier than not_after")
    return guest.certificate(args._replace(not_before=first, not_after=last), None)


def _get_key(guest: Guest, args: GetKeyArgs) -> GetKeyResponse:
    derived = guest.keys.derive(args.path, args.purpose, args.algorithm)
    return GetKeyResponse(derived.key, derived.signature_chain)


def _get_quote(guest: Guest, args: RawQuoteArgs) -> GetQuoteResponse:
    return guest.quote_response(args.report_data)


def _attest(guest: Guest, args: RawQuoteArgs) -> AttestResponse:
    return AttestResponse(guest.attest(args.report_data).to_bytes())


def _info(guest: Guest, _: None) -> Prepared[AppInfo]:
    return guest.info()


def _emit_event(guest: Guest, args: EmitEventArgs) -> None:
    guest.attester.emit_event(args.event, args.payload)


def _sign(guest: Guest, args: SignRequest) -> SignResponse:
    return SignResponse(*guest.keys.sign(args.data, args.algorithm))


def _verify(_: Guest, args: VerifyRequest) -> VerifyResponse:
    return VerifyResponse(
        verify_signature(args.algorithm, args.data, args.signature, args.public_key)
    )


def _version(guest: Guest, _: None) -> WorkerVersion:
    return WorkerVersion(guest.release.version, guest.release.rev)


def _gpu_info(guest: Guest, _: None) -> GpuInfoResponse:
    return GpuInfoResponse(guest.machine.gpu_text())


SERVICE = Service(
    {
        "GetTlsKey": Method(_get_tls_key, GetTlsKeyArgs, device=True),
        "GetKey": Method(_get_key, GetKeyArgs),
        "GetQuote": Method(_get_quote, RawQuoteArgs, device=True),
        "Attest": Method(_attest, RawQuoteArgs, device=True),
        "Info": Method(_info, device=True),
        "EmitEvent": Method(_emit_event, EmitEventArgs, device=True),
        "Sign": Method(_sign, SignRequest),
        "Verify": Method(_verify, VerifyRequest),
        "Version": Method(_version),
        "GpuInfo": Method(_gpu_info),
    }
)
"""DstackGuest: `/<Method>`."""
