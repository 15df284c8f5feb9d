"""TDs that speak TLS: sound ones, and one for each thing that can be wrong with a certificate."""

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
from tests.verifier import parcels

KEYS: Final = AppKeys.from_seed(parcels.SEED)
CA: Final = KEYS.ca_cert
KEY: Final = P256Key.from_scalar(b"\7" * 32)
DAY: Final = 86_400
LONG_AGO: Final = 1_000_000_000  # 2001
_BODY: Final = slice(48, 48 + 584)  # of a version 4 quote


def genuine(report_data: bytes) -> Attestation:
    """Return evidence of a sound TD."""
    return parcels.evidence(report_data=report_data)


def altered_log(report_data: bytes) -> Attestation:
    """Return evidence whose log claims another app than the one that was measured."""
    log = parcels.log_of(parcels.BOOT)
    boot = [(name, bytes(20) if name == "app-id" else data) for name, data in parcels.BOOT]
    quote = parcels.quote_of(log, report_data)
    return Attestation.for_tdx(quote, parcels.log_of(boot), parcels.IMAGE.vm_config)


def of_another_root(report_data: bytes) -> Attestation:
    """Return evidence of a TD on somebody else's simulator."""
    log = parcels.log_of(parcels.BOOT)
    body = parcels.quote_of(log, report_data).raw[_BODY]
    quote = Quote.parse(QuotingEnclave(SimulatedPki(bytes(32))).quote(body))
    return Attestation.for_tdx(quote, log, parcels.IMAGE.vm_config)


def debug(report_data: bytes) -> Attestation:
    """Return evidence of a TD that its host may look into."""
    return parcels.evidence(report_data=report_data, td_attributes=b"\1" + bytes(7))


def issued(
    attest: Callable[[bytes], Attestation] = genuine,
    keys: AppKeys = KEYS,
    **changes: Any,
) -> ra_tls.Issued:
    """Issue a certificate for both sides of TLS, with evidence, by the app's authority."""
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
        "not_after": int(parcels.NOW.timestamp()) + 3650 * DAY,
        "now": parcels.NOW.timestamp,
        "random": bytes,
    }
    return ra_tls.issue(**(fields | changes))


def certified(evidence: Attestation, key: P256Key = KEY, keys: AppKeys = KEYS) -> ra_tls.Issued:
    """Put evidence into a certificate, whatever it is about."""
    assert keys.ca_key is not None
    leaf = issue_leaf(
        public_key=key,
        subject="an app",
        not_before=LONG_AGO,
        not_after=int(parcels.NOW.timestamp()) + 3650 * DAY,
        extensions=[(ra_tls.OID_ATTESTATION, evidence.stripped().to_bytes())],
        ca_cert=keys.ca_cert,
        ca_key=keys.ca_key,
    )
    return ra_tls.Issued(key.pkcs8_pem, (certificate_pem(leaf), keys.ca_cert))


def _copied() -> ra_tls.Issued:
    other = P256Key.from_scalar(b"\x08" * 32)
    return certified(genuine(ReportData.bind("ratls-cert", other.spki_der)))


UNSOUND: Final[dict[str, Callable[[], ra_tls.Issued]]] = {
    "a quote over another key": _copied,
    "an altered log": lambda: issued(altered_log),
    "an expired certificate": lambda: issued(not_after=LONG_AGO),
    "an unknown root": lambda: issued(of_another_root),
    "a debug TD": lambda: issued(debug),
    "no evidence": lambda: issued(usage_ra_tls=False),
}
"""What makes a peer unacceptable, and certificates that show it."""
