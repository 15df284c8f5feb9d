"""Legacy service Tappd of tappd.sock: one function per method."""

from attestkit.keys import derive_p256
from attestkit.keys.hkdf import utf8
from attestkit.report_data import ReportData
from attestkit.serve.rpc import messages as m
from attestkit.serve.rpc.json_codec import PreparedResponse
from attestkit.serve.rpc.service import Method, Service
from attestkit.serve.services import dstack_guest
from attestkit.serve.services.context import Guest, check_epochs

_DEFAULT_ALGORITHM = "sha512"
_DEFAULT_TAG = "app-data"


def _derive_key(guest: Guest, args: m.DeriveKeyArgs) -> m.GetTlsKeyResponse:
    """Derive a P-256 key from a path, and issue a certificate for it."""
    request = m.GetTlsKeyArgs(*args[1:6])  # subject to usage_client_auth
    if args.random_seed:
        key = derive_p256(guest.random(32), utf8("path", args.path))
    else:
        key = guest.keys.derive_p256(args.path)
    return guest.issuer.issue(request, key)


def _derive_k256_key(guest: Guest, args: m.GetKeyArgs) -> m.DeriveK256KeyResponse:
    """Derive the key of a path, with its signature chain."""
    check_epochs(args)
    derived = guest.keys.derive_compat(args.path, args.purpose, args.algorithm)
    return m.DeriveK256KeyResponse(derived.key, derived.signature_chain)


def _tdx_quote(guest: Guest, args: m.TdxQuoteArgs) -> PreparedResponse[m.TdxQuoteResponse]:
    """Return a TDX quote over the hash of some content."""
    algorithm = args.hash_algorithm or _DEFAULT_ALGORITHM
    tag = args.prefix or _DEFAULT_TAG
    report_data = ReportData.bind(tag, args.report_data, algorithm)
    answer = m.TdxQuoteResponse(hash_algorithm=algorithm, prefix="" if algorithm == "raw" else tag)
    return guest.quote(report_data, answer)


def _raw_quote(guest: Guest, args: m.RawQuoteArgs) -> PreparedResponse[m.TdxQuoteResponse]:
    """Return a TDX quote over 64 bytes of report data."""
    return _tdx_quote(guest, m.TdxQuoteArgs(args.report_data, "raw"))


SERVICE = Service(
    {
        "DeriveKey": Method(_derive_key, m.DeriveKeyArgs, device=True, signs=True),
        "DeriveK256Key": Method(_derive_k256_key, m.GetKeyArgs),
        "TdxQuote": Method(_tdx_quote, m.TdxQuoteArgs, device=True),
        "RawQuote": Method(_raw_quote, m.RawQuoteArgs, device=True),
        **{name: dstack_guest.SERVICE.methods[name] for name in ("Info", "Version")},
    },
    mount="/prpc/",
    prefix="Tappd.",
    name="Tappd",
)
"""Tappd: `/prpc/<Method>` and `/prpc/Tappd.<Method>`."""
