"""Certificates that contain evidence about their own key: issue, read and verify them.

Arguments of `issue`:

* `subject`: common name, at most 64 characters; may be empty. `alt_names`: DNS names and IP
  addresses.
* `key`: key pair of the certificate; None generates one from 32 `random` bytes.
* `attest`: `Attester.attest`, or a function that returns evidence over 64 bytes of `report_data`.
  It is always called, so that the platform attests the key of every certificate.
* `ca_cert`, `ca_key`: the issuer's certificate in PEM, which becomes part of the chain, and its
  key.
* `usage_ra_tls`: include the evidence, shortened by `Attestation.stripped`.
* `with_app_info`: include the app info, which is read from the evidence.
* `server_auth`, `client_auth`: extended key usages.
* `not_before`, `not_after`: seconds since 1970; None and 0 mean 1975-01-01, and 3650 days from now.
* `now`: returns the time in seconds since 1970. `random`: returns a number of random bytes.
"""

import hmac
import os
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.x509.app_certificates import (
    Certificate,
    certificate_pem,
    issue_leaf,
    read_certificate,
)
from attestkit._formats.strict_json import string
from attestkit._reasons import VerificationStep
from attestkit.attestation import Attestation
from attestkit.errors import ConfigError, FormatError, UsageError, VerificationError
from attestkit.keys.hkdf import derive_p256
from attestkit.report_data import ReportData

if TYPE_CHECKING:
    from attestkit._reasons import FormatReason
    from attestkit.verifier import AttestationResult, Verifier

_ARC: Final = "1.3.6.1.4.1.62397.1"
OID_TDX_QUOTE: Final = f"{_ARC}.1"
"""TDX quote, in certificates of older agents."""
OID_EVENT_LOG: Final = f"{_ARC}.2"
"""Event log for `OID_TDX_QUOTE`: JSON, optionally compressed."""
OID_APP_ID: Final = f"{_ARC}.3"
"""App ID, 20 bytes."""
OID_CERT_USAGE: Final = f"{_ARC}.4"
"""Usage in ASCII: `app:custom`, `app:ca` or `kms:rpc`."""
OID_ATTESTATION: Final = f"{_ARC}.8"
"""Evidence, shortened by `Attestation.stripped`."""
OID_APP_INFO: Final = f"{_ARC}.9"
"""`AppInfo` in MessagePack."""

_KEY_PEM: Final = re.compile(r"-----BEGIN ([A-Z]+ )?PRIVATE KEY-----")
_MAX_CHAIN: Final = 16  # certificates in an agent's response, which has two or three
_USAGE: Final = b"app:custom"
_NOT_BEFORE: Final = 157_766_400  # 1975-01-01T00:00:00Z
_LIFETIME: Final = 3650 * 86_400
_COMPRESSED: Final = b"ELGZv1"
_MAX_EVENT_LOG: Final = 16_384  # bytes of a decompressed event log
_GZIP: Final = 16 + zlib.MAX_WBITS
_KEY_USAGE: Final = "2.5.29.15"  # RFC 5280, 4.2.1.3: a BIT STRING
_BASIC_CONSTRAINTS: Final = "2.5.29.19"  # RFC 5280, 4.2.1.9: a SEQUENCE, cA its first BOOLEAN


class Issued(NamedTuple):
    """A private key and its certificate chain."""

    key_pem: str  # PKCS#8
    certificate_chain: tuple[str, ...]  # PEM, the end-entity certificate first

    def __repr__(self) -> str:
        return f"Issued(key_pem=<secret>, certificate_chain=<{len(self.certificate_chain)}>)"

    @classmethod
    def from_agent_response(cls, fields: Mapping[str, object]) -> "Issued":
        """Create an object from the response of a dstack guest agent to GetTlsKey.

        Args:
            fields: JSON object with `key` and `certificate_chain`; other members are ignored.

        Raises:
            FormatError: If one of the two is missing or malformed. `server_context` and
                `client_context` check that the key belongs to the certificate.
        """
        if not isinstance(fields, Mapping):
            raise FormatError("GetTlsKey response: must be a JSON object", reason="wrong_type")
        key, chain = string(fields, "key"), fields.get("certificate_chain")
        if not _KEY_PEM.search(key):
            raise FormatError("key: must be a private key in PEM", reason="syntax")
        if not isinstance(chain, list | tuple):
            reason: FormatReason = "missing" if chain is None else "wrong_type"
            raise FormatError("certificate_chain: must be a list", reason=reason)
        if not 1 <= len(chain) <= _MAX_CHAIN:
            message = f"certificate_chain: must have 1 to {_MAX_CHAIN} certificates"
            raise FormatError(message, reason="wrong_size")
        for index, pem in enumerate(chain):
            where = f"certificate_chain[{index}]"
            if not isinstance(pem, str):
                raise FormatError(f"{where}: must be a string", reason="wrong_type")
            try:
                read_certificate(pem)
            except FormatError as error:
                raise FormatError(f"{where}: {error}", reason=error.reason) from error
        return cls(key, tuple(chain))


class AttestFunction(Protocol):
    """Function that returns evidence over report data, such as `Attester.attest`."""

    def __call__(self, *, report_data: bytes) -> Attestation:
        """Return evidence over 64 bytes of report data."""
        ...


def _now() -> float:
    return datetime.now(timezone.utc).timestamp()


def issue(
    *,
    subject: str,
    alt_names: Sequence[str] = (),
    key: P256Key | None = None,
    attest: "AttestFunction",
    ca_cert: str,
    ca_key: P256Key,
    usage_ra_tls: bool = False,
    server_auth: bool = False,
    client_auth: bool = False,
    not_before: int | None = None,
    not_after: int | None = None,
    with_app_info: bool = False,
    now: Callable[[], float] = _now,
    random: Callable[[int], bytes] = os.urandom,
) -> Issued:
    """Issue a certificate as GetTlsKey of the dstack guest agent does; see the module docstring.

    Raises:
        UsageError: If a value cannot be encoded in a certificate.
        FormatError: If `ca_cert` or the evidence is malformed.
        ConfigError: If `not_after` is not given, and the clock `now()` is before 1970.
    """
    # Each is unset if it is zero, which clients send for "no limit".
    if not_before and not_after and not_before >= not_after:
        raise UsageError("not_before must be earlier than not_after", reason="conflict")
    key = key or derive_p256(random(32))
    evidence = attest(report_data=ReportData.bind(ReportData.RATLS_CERT, key.spki_der))
    leaf = issue_leaf(
        public_key=key,
        subject=subject,
        alt_names=alt_names,
        server_auth=server_auth,
        client_auth=client_auth,
        not_before=not_before or _NOT_BEFORE,
        not_after=not_after or _expiry(now()),
        extensions=_extensions(evidence, app_info=with_app_info, whole=usage_ra_tls),
        ca_cert=ca_cert,
        ca_key=ca_key,
    )
    return Issued(key.pkcs8_pem, (certificate_pem(leaf), ca_cert))


def _expiry(now: float) -> int:
    """Return the default for `not_after`.

    Raises:
        ConfigError: If the clock is before 1970, so that the certificate would be expired.
    """
    if now < 0:
        message = f"system clock: {int(now)} seconds since 1970; set the clock, or pass not_after"
        raise ConfigError(message, reason="clock")
    return int(now) + _LIFETIME


def _extensions(evidence: Attestation, *, app_info: bool, whole: bool) -> list[tuple[str, bytes]]:
    """Return the private extensions, in order."""
    found = [(OID_CERT_USAGE, _USAGE)]
    if app_info:
        found.insert(0, (OID_APP_INFO, evidence.app_info.to_msgpack()))
    if whole:
        found.append((OID_ATTESTATION, evidence.stripped().to_bytes()))
    return found


def read(certificate: bytes | str) -> Attestation:
    """Return the evidence in a certificate; check that it is bound to the certificate's key.

    Nothing else is verified: not the evidence, and not the signature or validity of the
    certificate.

    Args:
        certificate: DER, or PEM with one or more certificates, of which the first is used. Separate
            extensions for quote and event log, as written by older agents, are supported.

    Raises:
        FormatError: If certificate or evidence are malformed, or an extension occurs twice.
        VerificationError: If evidence is missing, or bound to another key.
    """
    return _bound_evidence(read_certificate(certificate))[0]


def verify(
    certificate: bytes | str, verifier: "Verifier", *, now: datetime | float | None = None
) -> "AttestationResult":
    """Verify the evidence in a certificate, and that it is bound to the certificate's key.

    The result identifies the holder of the private key, which a TLS handshake proves. The signature
    of the certificate and its chain are not verified, so its names, issuer and other extensions are
    not authenticated; verify the chain with a CA if you need them. The evidence is as old as the
    certificate; the TCB status of its platform is appraised at `now`.

    Args:
        certificate: As for `read`.
        verifier: Verifies the evidence. Its clock is the default for `now`.
        now: Time of the verification: an aware datetime, or seconds since 1970.

    Raises:
        FormatError: If certificate or evidence are malformed, or an extension occurs twice.
        VerificationError: If evidence is missing (reason `no_evidence`) or bound to another key
            (`report_data`), the certificate is not valid at `now` (`cert_expired`) or not for TLS
            (`cert_usage`), or verification of the evidence fails, see `Verifier.verify`.
        CollateralError: If collateral is missing, malformed, or cannot be fetched.
        UnsupportedError: If the platform of the evidence is not supported.
        UsageError: If `now` has another type, or no time zone.
    """
    found = read_certificate(certificate)
    evidence, bound = _bound_evidence(found)
    _check_usage(found)
    result = verifier.verify(evidence, report_data=bound, now=now)
    # After the verification, because it determines the time for both checks.
    _check_validity(found, result.verified_at, result.steps)
    return result


def _check_usage(certificate: Certificate) -> None:
    """Raise VerificationError if basic constraints or key usage exclude TLS.

    A certificate without these extensions is accepted.
    """
    # 30 size, then 01 01 FF for cA TRUE: DER omits the default FALSE.
    if certificate.extensions.get(_BASIC_CONSTRAINTS, b"")[2:5] == b"\x01\x01\xff":
        message = "certificate: is a CA certificate; present an end-entity certificate"
        raise VerificationError(message, reason="cert_usage")
    # 03 size, number of unused bits, then the bits; digitalSignature is the highest.
    usage = certificate.extensions.get(_KEY_USAGE)
    if usage is not None and usage[3:4] < b"\x80":
        message = "certificate: key usage lacks digitalSignature, which TLS 1.3 requires"
        raise VerificationError(message, reason="cert_usage")


def _check_validity(
    certificate: Certificate, at: datetime, steps: tuple[VerificationStep, ...]
) -> None:
    first, last = certificate.valid_from, certificate.valid_until
    if first <= at <= last:
        return
    when = f"not valid before {first:%Y-%m-%dT%H:%M:%SZ}"
    if at > last:
        when = f"expired since {last:%Y-%m-%dT%H:%M:%SZ}; issue a new one"
    raise VerificationError(f"certificate: {when}", steps=steps, reason="cert_expired")


def _bound_evidence(certificate: Certificate) -> tuple[Attestation, bytes]:
    """Return the evidence in a certificate, and the report data that bind it to the key."""
    evidence = _evidence(certificate)
    bound = ReportData.bind(ReportData.RATLS_CERT, certificate.spki_der)
    if not all(hmac.compare_digest(found, bound) for found in _report_data(evidence)):
        raise VerificationError("report data mismatch", reason="report_data")
    return evidence, bound


def _evidence(certificate: Certificate) -> Attestation:
    content = certificate.content(OID_ATTESTATION)
    if content is not None:
        return Attestation.from_bytes(content)
    quote = certificate.content(OID_TDX_QUOTE)
    if quote is None:
        raise VerificationError("RA-TLS attestation extension missing", reason="no_evidence")
    event_log = certificate.content(OID_EVENT_LOG)
    if event_log is None:
        raise VerificationError("TDX event log missing", reason="no_evidence")
    return Attestation.from_quote_and_log(quote, _event_log_text(event_log))


def _report_data(evidence: Attestation) -> list[bytes]:
    """Return the report data of all parts of the evidence, signed and unsigned."""
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
        message = "event log extension: not UTF-8"
        raise FormatError(message, offset=error.start, reason="encoding") from error


def _decompressed(data: bytes) -> bytes:
    stream = zlib.decompressobj(_GZIP)
    try:
        found = stream.decompress(data, _MAX_EVENT_LOG + 1)
    except zlib.error as error:
        raise FormatError("event log extension: malformed gzip", reason="syntax") from error
    if len(found) > _MAX_EVENT_LOG:  # the text of attestation-format.md, section 6
        message = f"event log extension too large (>{_MAX_EVENT_LOG} bytes)"
        raise FormatError(message, reason="too_large")
    if not stream.eof:
        raise FormatError("event log extension: truncated gzip", reason="truncated")
    if stream.unused_data:
        message = "event log extension: data follow the gzip stream"
        raise FormatError(message, reason="trailing_data")
    return found
