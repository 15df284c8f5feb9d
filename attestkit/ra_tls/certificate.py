"""Certificates that contain evidence about their own key: read and verify them."""

import hmac
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from attestkit._argument_checks import wrong_type
from attestkit._crypto.x509.app_certificates import Certificate, read_certificate
from attestkit._formats.bounded_gzip import gunzip
from attestkit._outcomes.steps import VerificationStep
from attestkit.attestation import AppInfo, Attestation
from attestkit.attestation.wire.evidence_parts import AzureSnp, AzureTdx
from attestkit.errors import FormatError, UsageError, VerificationError
from attestkit.report_data import ReportData

if TYPE_CHECKING:
    from attestkit.verifier import AttestationResult, Verifier

MAX_LIFETIME: Final = timedelta(days=1)
"""Default for the longest lifetime of a certificate that is accepted."""

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
"""`AppInfo` in MessagePack: a map; before dstack 0.6 an array."""

_COMPRESSED: Final = b"ELGZv1"
_MAX_EVENT_LOG: Final = 16_384  # bytes of a decompressed event log
_KEY_USAGE: Final = "2.5.29.15"  # RFC 5280, 4.2.1.3: a BIT STRING
_BASIC_CONSTRAINTS: Final = "2.5.29.19"  # RFC 5280, 4.2.1.9: a SEQUENCE, cA its first BOOLEAN


def read(certificate: bytes | str) -> Attestation:
    """Return the evidence in a certificate; check that it is bound to the certificate's key.

    Nothing else is verified: not the evidence, and not the signature or validity of the
    certificate.

    Args:
        certificate: DER, or PEM with one or more certificates, of which the first is used. Separate
            extensions for quote and event log, as written by older agents, are supported.

    Raises:
        FormatError: If certificate or evidence are malformed, or an extension occurs twice.
        VerificationError: If evidence is missing, or bound to a key other than the certificate's.
    """
    return _bound_evidence(read_certificate(certificate))[0]


def verify(
    certificate: bytes | str,
    verifier: "Verifier",
    *,
    now: datetime | float | None = None,
    max_lifetime: timedelta | None = MAX_LIFETIME,
) -> "AttestationResult":
    """Verify the evidence in a certificate, and that it is bound to the certificate's key.

    The result identifies the holder of the private key, which a TLS handshake proves. It is never
    `fresh`: the evidence is as old as the certificate, and the TCB status of its platform is
    appraised at `now`. App id and app info in the certificate, if present, must be those of the
    evidence, except the hashes of init scripts. The signature of the certificate and its chain are
    not verified, so its dates, names, issuer and other extensions are not authenticated; verify the
    chain with a CA if you need them.

    Args:
        certificate: DER, or PEM whose first certificate is used.
        verifier: Verifies the evidence. Its clock is the default for `now`.
        now: Time of the verification: a datetime with a time zone, or seconds since 1970.
        max_lifetime: Longest accepted time between the certificate's two dates, and so, by these
            dates, the greatest age of the evidence. None accepts any, which certificates of a
            dstack agent, its KMS and Gramine need, because their dates are not related to the
            evidence. The result then has a caution: possession of a key is shown, and no freshness.

    Raises:
        FormatError: If certificate or evidence are malformed, or an extension occurs twice.
        VerificationError: If evidence is missing (reason `no_evidence`) or not bound to the
            certificate's key (`report_data`), the certificate names an app that is not the
            evidence's (`identity`), is not valid at `now` (`cert_expired`), lives longer than
            `max_lifetime` (`cert_lifetime`) or is not for TLS (`cert_usage`), or verification of
            the evidence fails, see `Verifier.verify`.
        CollateralError: If collateral is missing, malformed, or cannot be fetched.
        UnsupportedError: If the platform of the evidence is not supported.
        UsageError: If `now` is neither of these, or `max_lifetime` is not a positive timedelta or
            None.
    """
    check_max_lifetime(max_lifetime)
    found = read_certificate(certificate)
    evidence, bound = _bound_evidence(found)
    _check_usage(found)
    result = verifier.verify(evidence, report_data=bound, now=now)
    return _check_certificate(found, evidence, result, max_lifetime)


def has_evidence(certificate: bytes) -> bool:
    """Return whether a certificate in DER has an extension with evidence; nothing is verified.

    Raises:
        FormatError: If the certificate is malformed.
    """
    extensions = read_certificate(certificate).extensions
    return OID_ATTESTATION in extensions or OID_TDX_QUOTE in extensions


def check_certificate(certificate: bytes, result: "AttestationResult") -> "AttestationResult":
    """Check a certificate (DER) as `verify` does after verifying evidence; accept any lifetime.

    The returned result is `result` with one more step, about the key and the age of the evidence.

    Raises:
        FormatError, VerificationError: As `verify`, for what is wrong with the certificate.
    """
    found = read_certificate(certificate)
    evidence, _ = _bound_evidence(found)
    _check_usage(found)
    return _check_certificate(found, evidence, result, None)


def _check_certificate(
    found: Certificate,
    evidence: Attestation,
    result: "AttestationResult",
    max_lifetime: timedelta | None,
) -> "AttestationResult":
    _check_identity(found, evidence, result.steps)
    # After the verification, because it determines the time for both checks.
    _check_validity(found, result.verified_at, result.steps)
    from attestkit.verifier.result import add_step  # lazy: not needed to issue a certificate

    return add_step(result, _lifetime_step(found, max_lifetime, result.steps))


def check_max_lifetime(value: object) -> None:
    """Check `value`, an argument `max_lifetime`.

    Raises:
        UsageError: If it is not a positive timedelta or None.
    """
    if value is None:
        return
    if not isinstance(value, timedelta):
        raise wrong_type("max_lifetime", "a timedelta or None", value)
    if value <= timedelta(0):
        message = "max_lifetime: must be positive; None accepts certificates of any lifetime"
        raise UsageError(message, reason="out_of_range")


def _check_usage(certificate: Certificate) -> None:
    """Raise VerificationError if basic constraints or key usage exclude TLS.

    A certificate without these extensions is accepted.
    """
    # 30 size, then 01 01 FF for cA TRUE: DER omits the default FALSE.
    if certificate.extensions.get(_BASIC_CONSTRAINTS, b"")[2:5] == b"\x01\x01\xff":
        message = "certificate: must not be a CA certificate; present an end-entity certificate"
        raise VerificationError(message, reason="cert_usage")
    # 03 size, number of unused bits, then the bits; digitalSignature is the highest.
    usage = certificate.extensions.get(_KEY_USAGE)
    if usage is not None and usage[3:4] < b"\x80":
        message = "certificate: key usage must include digitalSignature, which TLS 1.3 requires"
        raise VerificationError(message, reason="cert_usage")


def _check_identity(
    certificate: Certificate, evidence: Attestation, steps: tuple[VerificationStep, ...]
) -> None:
    """Check app id and app info in the certificate's extensions against verified evidence.

    `steps` are those of the verification, for the error. App id and app info are compared with the
    values that an issuer reads from evidence without verifying it: `device_id` of a TD is the hash
    of an empty identity, and `os_image_hash` is that of the VM configuration.

    Raises:
        FormatError: If the app info is malformed.
        VerificationError: If an extension differs from the evidence.
    """
    app_id, content = certificate.content(OID_APP_ID), certificate.content(OID_APP_INFO)
    if app_id is None and content is None:
        return
    attested = evidence.app_info
    if app_id is not None and app_id != attested.app_id:
        message = "certificate app-id extension does not match attested app id"
        raise VerificationError(message, steps=steps, reason="identity")
    if content is None:
        return
    # The hashes of scripts are missing in the app info of older agents.
    hashes = attested.init_script_hashes
    if AppInfo.from_msgpack(content)._replace(init_script_hashes=hashes) != attested:
        message = "certificate app-info extension does not match attested app info"
        raise VerificationError(message, steps=steps, reason="identity")


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


def _lifetime_step(
    certificate: Certificate, most: timedelta | None, steps: tuple[VerificationStep, ...]
) -> VerificationStep:
    """Return the step about key and age of the evidence.

    Args:
        certificate: The certificate; its lifetime is from notBefore to notAfter.
        most: Maximum lifetime. None: any; the step is a caution.
        steps: The steps so far, for the error.

    Raises:
        VerificationError: If the lifetime exceeds `most`.
    """
    bound = "the evidence is bound to the certificate's key, whose possession a handshake shows"
    if most is None:
        text = (
            "nothing shows the age of the evidence: its issuer chose the certificate's dates, and "
            "any lifetime is accepted"
        )
        return VerificationStep("certificate_key", "caution", text)
    lifetime = certificate.valid_until - certificate.valid_from
    if lifetime > most:
        raise VerificationError(
            f"certificate: its lifetime is {lifetime}, must be at most {most}; issue a shorter one "
            "and renew it, or accept any with max_lifetime=None",
            steps=steps,
            reason="cert_lifetime",
        )
    text = f"{bound}; by the certificate's dates it is at most {lifetime} old"
    return VerificationStep("certificate_key", "passed", text)


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
    if isinstance(platform := evidence.evidence.platform, (AzureSnp, AzureTdx)):
        # The paravisor's report is over the TPM's key; the TPM's quote is over the report data.
        from attestkit.attestation.coco.platforms import report_data_of  # lazy: only for Azure

        return [*found, report_data_of(platform.vtpm_quote)]
    if (quote := evidence.quote) is not None:
        found.append(quote.report_data)
    if (report := evidence.snp_report) is not None:
        found.append(report.report_data)
    if (document := evidence.nitro_document) is not None:
        found.append(document.user_data)
    return found


def _event_log_text(content: bytes) -> str:
    if content.startswith(_COMPRESSED):
        compressed = content[len(_COMPRESSED) :]
        content = gunzip(compressed, _MAX_EVENT_LOG, "event log extension")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        message = "event log extension: not UTF-8"
        raise FormatError(message, offset=error.start, reason="encoding") from error
