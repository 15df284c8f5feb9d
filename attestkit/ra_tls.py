"""Certificates that carry evidence: whoever speaks TLS with their key speaks with the TD.

The evidence's report data is a hash over the certificate's public key (content type `ratls-cert` of
the dstack guest agent). It proves the key and nothing else: names, validity and the other
extensions are words of the issuer, to be trusted through the chain alone.

Arguments of `issue`:

* `subject`: the common name, at most 64 characters, or nothing. `alt_names`: DNS names and IP
  addresses.
* `key`: the key pair to certify; None makes a new one of 32 `random` bytes.
* `attest`: makes evidence over 64 bytes of report data. It is called in any case, so that no
  certificate exists for a key that the platform does not vouch for.
* `ca_cert`, `ca_key`: the issuer's certificate in PEM, which goes into the chain as it is, and key.
* `usage_ra_tls`: put the evidence in, stripped. `with_app_info`: put in who the app is, as read
  from the evidence.
* `server_auth`, `client_auth`: allow the key to serve, or to authenticate a client.
* `not_before`, `not_after`: seconds since 1970; None and 0 are 1975-01-01, and 3650 days from now.
* `now`: tells the time in seconds since 1970. `random`: makes so many random bytes.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from attestkit._crypto.certificates import (
    Certificate,
    certificate_pem,
    issue_leaf,
    read_certificate,
)
from attestkit._crypto.ecdsa import P256Key
from attestkit.attestation import Attestation
from attestkit.errors import FormatError, UsageError, VerificationError
from attestkit.keys.derivation import derive_p256
from attestkit.report_data import ReportData

__all__ = [
    "OID_APP_ID",
    "OID_APP_INFO",
    "OID_ATTESTATION",
    "OID_CERT_USAGE",
    "OID_EVENT_LOG",
    "OID_TDX_QUOTE",
    "Issued",
    "issue",
    "read",
]

_ARC: Final = "1.3.6.1.4.1.62397.1"
OID_TDX_QUOTE: Final = f"{_ARC}.1"
"""A raw TDX quote, in certificates of older agents."""
OID_EVENT_LOG: Final = f"{_ARC}.2"
"""The event log that belongs to `OID_TDX_QUOTE`: JSON, perhaps compressed."""
OID_APP_ID: Final = f"{_ARC}.3"
"""20 bytes."""
OID_CERT_USAGE: Final = f"{_ARC}.4"
"""ASCII: `app:custom`, `app:ca`, `kms:rpc`."""
OID_ATTESTATION: Final = f"{_ARC}.8"
"""Stripped evidence."""
OID_APP_INFO: Final = f"{_ARC}.9"
"""`AppInfo` in msgpack."""

_USAGE: Final = b"app:custom"
_NOT_BEFORE: Final = 157_766_400  # 1975-01-01T00:00:00Z
_LIFETIME: Final = 3650 * 86_400
_COMPRESSED: Final = b"ELGZv1"
_MAX_EVENT_LOG: Final = 16_384  # bytes of a compressed log, once decompressed
_GZIP: Final = 16 + zlib.MAX_WBITS


class Issued(NamedTuple):
    """A private key and its certificate, with those above it."""

    key_pem: str  # PKCS#8
    certificate_chain: tuple[str, ...]  # PEM, the leaf first

    def __repr__(self) -> str:
        return f"Issued(key_pem=<secret>, certificate_chain=<{len(self.certificate_chain)}>)"


def issue(  # noqa: PLR0913 - the fields of a request for a certificate
    *,
    subject: str,
    alt_names: Sequence[str] = (),
    key: P256Key | None = None,
    attest: Callable[[bytes], Attestation],
    ca_cert: str,
    ca_key: P256Key,
    usage_ra_tls: bool = False,
    server_auth: bool = False,
    client_auth: bool = False,
    not_before: int | None = None,
    not_after: int | None = None,
    with_app_info: bool = False,
    now: Callable[[], float],
    random: Callable[[int], bytes],
) -> Issued:
    """Issue a certificate as GetTlsKey of the dstack guest agent does; the module tells how.

    Raises:
        UsageError: A value cannot be written into a certificate.
        FormatError: `ca_cert` is no certificate, or the evidence cannot be read.
    """
    if not_before and not_after and not_before >= not_after:
        raise UsageError("not_before must be earlier than not_after")
    key = key or derive_p256(random(32))
    evidence = attest(ReportData.bind(ReportData.RATLS_CERT, key.spki_der))
    leaf = issue_leaf(
        public_key=key,
        subject=subject,
        alt_names=alt_names,
        server_auth=server_auth,
        client_auth=client_auth,
        not_before=not_before or _NOT_BEFORE,
        not_after=not_after or int(now()) + _LIFETIME,
        extensions=_extensions(evidence, app_info=with_app_info, whole=usage_ra_tls),
        ca_cert=ca_cert,
        ca_key=ca_key,
    )
    return Issued(key.pkcs8_pem, (certificate_pem(leaf), ca_cert))


def _extensions(evidence: Attestation, *, app_info: bool, whole: bool) -> list[tuple[str, bytes]]:
    """Return the private extensions in their order."""
    found = [(OID_CERT_USAGE, _USAGE)]
    if app_info:
        found.insert(0, (OID_APP_INFO, evidence.app_info().to_msgpack()))
    if whole:
        found.append((OID_ATTESTATION, evidence.stripped().to_bytes()))
    return found


def read(certificate: bytes | str) -> Attestation:
    """Return the evidence in a certificate, once it is about the certificate's key.

    Nothing else is verified: neither the evidence, nor the certificate's signature and validity.

    Args:
        certificate: DER as bytes, or PEM as bytes or text, of which the first is read. Evidence of
            older agents, a quote and an event log apart, is understood as well.

    Raises:
        FormatError: It is no certificate, has an extension twice, or its evidence is malformed.
        VerificationError: It has no evidence, or evidence about another key.
    """
    found = read_certificate(certificate)
    evidence = _evidence(found)
    bound = ReportData.bind(ReportData.RATLS_CERT, found.spki_der)
    if any(report_data != bound for report_data in _report_data(evidence)):
        raise VerificationError("report data mismatch")
    return evidence


def _evidence(certificate: Certificate) -> Attestation:
    content = certificate.content(OID_ATTESTATION)
    if content is not None:
        return Attestation.from_bytes(content)
    quote = certificate.content(OID_TDX_QUOTE)
    if quote is None:
        raise VerificationError("RA-TLS attestation extension missing")
    event_log = certificate.content(OID_EVENT_LOG)
    if event_log is None:
        raise VerificationError("TDX event log missing")
    return Attestation.from_quote_and_log(quote, _event_log_text(event_log))


def _report_data(evidence: Attestation) -> list[bytes]:
    """Return every place where the evidence shows its report data: the signed one counts."""
    found = [evidence.report_data]
    if (quote := evidence.quote) is not None:
        found.append(quote.report_data)
    if (report := evidence.snp_report) is not None:
        found.append(report.report_data)
    if (document := evidence.nitro_document) is not None:
        found.append(document.user_data)
    return found


def _event_log_text(content: bytes) -> str:
    if content.startswith(_COMPRESSED):
        content = _decompressed(content[len(_COMPRESSED) :])
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise FormatError("the event log extension is not UTF-8", offset=error.start) from error


def _decompressed(data: bytes) -> bytes:
    stream = zlib.decompressobj(_GZIP)
    try:
        found = stream.decompress(data, _MAX_EVENT_LOG + 1)
    except zlib.error as error:
        raise FormatError("the event log extension is not a gzip stream") from error
    if len(found) > _MAX_EVENT_LOG:
        raise FormatError(f"event log extension too large (>{_MAX_EVENT_LOG} bytes)")
    if not stream.eof or stream.unused_data:
        raise FormatError("the event log extension is not one whole gzip stream")
    return found
