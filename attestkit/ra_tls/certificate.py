"""Issuing, reading and judging certificates that carry evidence about their own key.

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

import hmac
import os
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.x509.app_certificates import (
    Certificate,
    certificate_pem,
    issue_leaf,
    read_certificate,
)
from attestkit.attestation import Attestation
from attestkit.errors import ConfigError, FormatError, UsageError, VerificationError
from attestkit.keys.hkdf import derive_p256
from attestkit.report_data import ReportData

if TYPE_CHECKING:
    from attestkit.verifier import AttestationResult, Verifier

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
    "verify",
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

_KEY_PEM: Final = re.compile(r"-----BEGIN ([A-Z]+ )?PRIVATE KEY-----")
_MAX_CHAIN: Final = 16  # certificates from an agent; there are two or three
_USAGE: Final = b"app:custom"
_NOT_BEFORE: Final = 157_766_400  # 1975-01-01T00:00:00Z
_LIFETIME: Final = 3650 * 86_400
_COMPRESSED: Final = b"ELGZv1"
_MAX_EVENT_LOG: Final = 16_384  # bytes of a compressed log, once decompressed
_GZIP: Final = 16 + zlib.MAX_WBITS
_KEY_USAGE: Final = "2.5.29.15"  # RFC 5280, 4.2.1.3: a BIT STRING
_BASIC_CONSTRAINTS: Final = "2.5.29.19"  # RFC 5280, 4.2.1.9: a SEQUENCE, cA its first BOOLEAN


class Issued(NamedTuple):
    """A private key and its certificate, with those above it."""

    key_pem: str  # PKCS#8
    certificate_chain: tuple[str, ...]  # PEM, the leaf first

    def __repr__(self) -> str:
        return f"Issued(key_pem=<secret>, certificate_chain=<{len(self.certificate_chain)}>)"

    @classmethod
    def from_agent_response(cls, fields: Mapping[str, object]) -> "Issued":
        """Return what a dstack guest agent answers to GetTlsKey.

        Args:
            fields: The answer's JSON object: `key` and `certificate_chain`; others are ignored.

        Raises:
            FormatError: One of the two is missing or malformed. Whether they belong together is
                seen when a context is made of them.
        """
        if not isinstance(fields, Mapping):
            raise FormatError("the answer to GetTlsKey is no JSON object")
        key, chain = fields.get("key"), fields.get("certificate_chain")
        if not isinstance(key, str) or not _KEY_PEM.search(key):
            raise FormatError("key: not a private key in PEM")
        if not isinstance(chain, list | tuple) or not 1 <= len(chain) <= _MAX_CHAIN:
            raise FormatError(f"certificate_chain: not a list of 1 to {_MAX_CHAIN} certificates")
        for at, one in enumerate(chain):
            if not isinstance(one, str):
                raise FormatError(f"certificate_chain[{at}]: not text")
            try:
                read_certificate(one)
            except FormatError as error:
                raise FormatError(f"certificate_chain[{at}]: {error}") from error
        return cls(key, tuple(chain))


def _now() -> float:
    return datetime.now(timezone.utc).timestamp()


def issue(
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
    now: Callable[[], float] = _now,
    random: Callable[[int], bytes] = os.urandom,
) -> Issued:
    """Issue a certificate as GetTlsKey of the dstack guest agent does; the module tells how.

    Raises:
        UsageError: A value cannot be written into a certificate.
        FormatError: `ca_cert` is no certificate, or the evidence cannot be read.
        ConfigError: `now` is before 1970, and there is no `not_after`.
    """
    # Zero means unset, for each of the two by itself: clients write it for "no limit".
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
        not_after=not_after or _expiry(now()),
        extensions=_extensions(evidence, app_info=with_app_info, whole=usage_ra_tls),
        ca_cert=ca_cert,
        ca_key=ca_key,
    )
    return Issued(key.pkcs8_pem, (certificate_pem(leaf), ca_cert))


def _expiry(now: float) -> int:
    """Return the end of a certificate for which nobody has asked for one.

    Raises:
        ConfigError: By this clock it would be over before it begins.
    """
    if now < 0:
        raise ConfigError(
            f"the clock says {int(now)} seconds since 1970, so that a certificate would end in the "
            "past: set the clock of this machine, or ask for a not_after"
        )
    return int(now) + _LIFETIME


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
    return _bound_evidence(read_certificate(certificate))[0]


def verify(
    certificate: bytes | str, verifier: "Verifier", *, now: datetime | float | None = None
) -> "AttestationResult":
    """Return the result for the evidence in a certificate whose key it is about.

    The result says with whom one speaks: whoever holds the certificate's key, which a TLS handshake
    proves, is the attested TD. Names, issuer and every other extension are the issuer's words, and
    neither the certificate's signature nor a chain is looked at: where they matter, check them by a
    certificate authority besides. The evidence was made when the certificate was, so that it is as
    old; how current its platform is, is judged at `now`.

    Args:
        certificate: As for `read`.
        verifier: Judges the evidence, and tells the time where `now` is None.
        now: The instant of the verification, aware, or in seconds since 1970.

    Raises:
        FormatError: It is no certificate, has an extension twice, or its evidence is malformed.
        VerificationError: It has no evidence (reason `no_evidence`) or evidence about another key
            (`report_data`), is not valid at `now` (`cert_expired`), or is no leaf that may speak
            TLS (`cert_usage`); or the evidence must not be believed, see `Verifier.verify`.
        CollateralError: Collateral is missing, malformed, or cannot be fetched.
        UnsupportedError: The platform of the evidence is not verified here.
        UsageError: `now` is of the wrong kind.
    """
    found = read_certificate(certificate)
    evidence, bound = _bound_evidence(found)
    _check_usage(found)
    result = verifier.verify(evidence, report_data=bound, now=now)
    # Last, because this is the one instant that both judgements are about.
    _check_validity(found, result.verified_at, result.steps)
    return result


def _check_usage(certificate: Certificate) -> None:
    """Refuse a certificate that is not for TLS by its own account; silence is no refusal."""
    # 30 size, then 01 01 FF is cA TRUE: in DER the default FALSE is left out.
    if certificate.extensions.get(_BASIC_CONSTRAINTS, b"")[2:5] == b"\x01\x01\xff":
        raise VerificationError(
            "the certificate is an authority's, which does not speak TLS itself",
            reason="cert_usage",
        )
    # 03 size, how many bits are unused, then digitalSignature is the highest bit.
    usage = certificate.extensions.get(_KEY_USAGE)
    if usage is not None and usage[3:4] < b"\x80":
        raise VerificationError(
            "the certificate's key usage does not allow signatures, which TLS 1.3 needs",
            reason="cert_usage",
        )


def _check_validity(certificate: Certificate, at: datetime, steps: tuple[str, ...]) -> None:
    first, last = certificate.valid_from, certificate.valid_until
    if first <= at <= last:
        return
    when = f"not valid before {first:%Y-%m-%dT%H:%M:%SZ}"
    if at > last:
        when = f"expired since {last:%Y-%m-%dT%H:%M:%SZ}; have a new one issued"
    raise VerificationError(f"the certificate is {when}", steps=steps, reason="cert_expired")


def _bound_evidence(certificate: Certificate) -> tuple[Attestation, bytes]:
    """Return the evidence in a certificate, and the report data that binds it to the key."""
    evidence = _evidence(certificate)
    bound = ReportData.bind(ReportData.RATLS_CERT, certificate.spki_der)
    if not all(hmac.compare_digest(shown, bound) for shown in _report_data(evidence)):
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
