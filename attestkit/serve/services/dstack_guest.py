"""Service DstackGuest of dstack.sock: one function per method."""

from typing import Final

from attestkit.errors import SignatureError, UsageError
from attestkit.keys import verify_signature
from attestkit.serve.rpc import messages as m
from attestkit.serve.rpc.json_codec import PreparedResponse
from attestkit.serve.rpc.service import Method, Service
from attestkit.serve.services.context import Guest, check_epochs

_REMOVED: Final = (
    "EmitEvent was removed in dstack 0.6.0; runtime RTMR3 events are system-owned and cannot be "
    "extended by apps"
)


def _get_tls_key(guest: Guest, args: m.GetTlsKeyArgs) -> m.GetTlsKeyResponse:
    """Return a new TLS key and a certificate for it, issued by the app's CA.

    Each call makes a new key. With `usage_ra_tls` the certificate carries evidence.
    """
    return guest.issuer.issue(args)


def _get_key(guest: Guest, args: m.GetKeyArgs) -> m.GetKeyResponse:
    """Derive the key of a path, with its signature chain.

    The same app gets the same key for the same path on every machine that has the app's keys.
    """
    epoch = check_epochs(args)
    derived = guest.keys.derive_compat(args.path, args.purpose, args.algorithm)
    return m.GetKeyResponse(derived.key, derived.signature_chain, epoch, epoch)


def _get_quote(guest: Guest, args: m.RawQuoteArgs) -> PreparedResponse[m.GetQuoteResponse]:
    """Return a TDX quote over the report data, and the event log that replays to its registers."""
    return guest.quote_response(args.report_data)


def _attest(guest: Guest, args: m.RawQuoteArgs) -> m.AttestResponse:
    """Return encoded evidence over the report data, as `Verifier.verify` reads it."""
    return m.AttestResponse(guest.attest(args.report_data).to_bytes())


def _info(guest: Guest, _: None) -> PreparedResponse[m.AppInfo]:
    """Return the app's identity and its measurements."""
    return guest.info()


def _emit_event(guest: Guest, args: m.EmitEventArgs) -> None:
    """Extend RTMR3 by an event and add it to the event log.

    A server can be configured to refuse this, as agents since dstack 0.6.0 do.
    """
    if not guest.has_emit_event:
        raise UsageError(_REMOVED, reason="not_applicable")
    guest.attester.emit_event(args.event, args.payload)


def _sign(guest: Guest, args: m.SignRequest) -> m.SignResponse:
    """Sign data with the app's signing key."""
    return m.SignResponse(*guest.keys.sign(args.data, args.algorithm))


def _verify(_: Guest, args: m.VerifyRequest) -> m.VerifyResponse:
    """Verify a signature; the app's keys are not involved."""
    try:
        verify_signature(args.public_key, args.signature, args.data, algorithm=args.algorithm)
    except SignatureError:
        return m.VerifyResponse(valid=False)
    return m.VerifyResponse(valid=True)


def _version(guest: Guest, _: None) -> m.WorkerVersion:
    """Return the release of the API and the revision of the server."""
    return m.WorkerVersion(guest.release.version, guest.release.rev)


SERVICE = Service(
    {
        "GetTlsKey": Method(_get_tls_key, m.GetTlsKeyArgs, device=True, signs=True),
        "GetKey": Method(_get_key, m.GetKeyArgs),
        "GetQuote": Method(_get_quote, m.RawQuoteArgs, device=True),
        "Attest": Method(_attest, m.RawQuoteArgs, device=True),
        "Info": Method(_info, device=True),
        "EmitEvent": Method(_emit_event, m.EmitEventArgs, device=True, writes=True),
        "Sign": Method(_sign, m.SignRequest),
        "Verify": Method(_verify, m.VerifyRequest),
        "Version": Method(_version),
    },
    name="DstackGuest",
    aliases=("/v0/",),
)
"""DstackGuest: `/<Method>` and `/v0/<Method>`."""
