"""TDs with TLS certificates: valid ones, and one for each defect of a certificate."""

import ssl
from collections.abc import Callable
from typing import Any, Final

from attestkit import ra_tls
from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.x509.app_certificates import certificate_pem, issue_leaf
from attestkit.attestation import Attestation
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.quoting_enclave import QuotingEnclave
from attestkit.keys import AppKeys
from attestkit.quote import Quote
from attestkit.report_data import ReportData
from attestkit.verifier import Verifier
from tests.verifier.platforms import intel

KEYS: Final = AppKeys.from_seed(intel.SEED)
CA: Final = KEYS.ca_cert
KEY: Final = P256Key.from_scalar(b"\7" * 32)
DAY: Final = 86_400
LONG_AGO: Final = 1_000_000_000  # 2001
_BODY: Final = slice(48, 48 + 584)  # in a version 4 quote


def attest_valid(*, report_data: bytes) -> Attestation:
    """Return evidence of a valid TD."""
    return intel.evidence(report_data=report_data)


def attest_altered_log(*, report_data: bytes) -> Attestation:
    """Return evidence whose log contains another app than the measured one."""
    log = intel.log_of(intel.BOOT)
    boot = [(name, bytes(20) if name == "app-id" else data) for name, data in intel.BOOT]
    quote = intel.quote_of(log, report_data)
    return Attestation.for_tdx(quote, intel.log_of(boot), intel.IMAGE.vm_config)


def attest_other_root(*, report_data: bytes) -> Attestation:
    """Return evidence of a TD on another simulator."""
    log = intel.log_of(intel.BOOT)
    body = intel.quote_of(log, report_data).raw[_BODY]
    quote = Quote.parse(QuotingEnclave(SimulatedPki(bytes(32))).quote(body))
    return Attestation.for_tdx(quote, log, intel.IMAGE.vm_config)


def attest_debug(*, report_data: bytes) -> Attestation:
    """Return evidence of a debug TD, which its host can inspect."""
    return intel.evidence(report_data=report_data, td_attributes=b"\1" + bytes(7))


def issue(
    attest: Callable[..., Attestation] = attest_valid,
    keys: AppKeys = KEYS,
    **changes: Any,
) -> ra_tls.Issued:
    """Issue a certificate for TLS server and client with evidence, signed by the app's CA."""
    assert keys.ca_key is not None
    fields: dict[str, Any] = {
        "subject": "an app",
        "key": KEY,
        "attest": attest,
        "ca_cert": keys.ca_cert,
        "ca_key": keys.ca_key,
        "usage_ra_tls": True,
        "server_auth": True,
        "client_auth": True,
        "not_before": LONG_AGO - DAY,  # OpenSSL verifies the chain with the system clock
        "not_after": int(intel.NOW.timestamp()) + 3650 * DAY,
        "now": intel.NOW.timestamp,
        "random": bytes,
    }
    return ra_tls.issue(**(fields | changes))


def certify(evidence: Attestation, key: P256Key = KEY, keys: AppKeys = KEYS) -> ra_tls.Issued:
    """Put evidence into a certificate, whatever key it is bound to."""
    assert keys.ca_key is not None
    leaf = issue_leaf(
        public_key=key,
        subject="an app",
        not_before=LONG_AGO,
        not_after=int(intel.NOW.timestamp()) + 3650 * DAY,
        extensions=[(ra_tls.OID_ATTESTATION, evidence.stripped().to_bytes())],
        ca_cert=keys.ca_cert,
        ca_key=keys.ca_key,
    )
    return ra_tls.Issued(key.pkcs8_pem, (certificate_pem(leaf), keys.ca_cert))


def _copy_evidence() -> ra_tls.Issued:
    other = P256Key.from_scalar(b"\x08" * 32)
    return certify(attest_valid(report_data=ReportData.bind("ratls-cert", other.spki_der)))


VALID: Final = issue()
INVALID: Final[dict[str, Callable[[], ra_tls.Issued]]] = {
    "a quote over another key": _copy_evidence,
    "an altered log": lambda: issue(attest_altered_log),
    "an expired certificate": lambda: issue(not_after=LONG_AGO),
    "an unknown root": lambda: issue(attest_other_root),
    "a debug TD": lambda: issue(attest_debug),
    "no evidence": lambda: issue(usage_ra_tls=False),
}
"""Defects of a peer, and certificates with them."""


def server_context(
    issued: ra_tls.Issued = VALID,
    verifier: Verifier | None = None,
    peer_ca: str | bytes = CA,
    **options: Any,
) -> ssl.SSLContext:
    """Return the context of a server that requires client evidence, for any app and of any age."""
    given: dict[str, Any] = {"any_app": True, "max_lifetime": None, **options}
    verifier = verifier or intel.verifier()
    return ra_tls.server_context(verifier, issued=issued, peer_ca=peer_ca, **given)


def client_context(
    issued: ra_tls.Issued | None = VALID, verifier: Verifier | None = None, **options: Any
) -> ssl.SSLContext:
    """Return the context of a client with evidence, for any app and evidence of any age."""
    given: dict[str, Any] = {"any_app": True, "max_lifetime": None, **options}
    return ra_tls.client_context(verifier or intel.verifier(), issued=issued, **given)


def blind_context() -> ssl.SSLContext:
    """Return the context of a client that verifies nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
