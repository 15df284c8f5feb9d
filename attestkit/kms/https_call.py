"""Calls of a KMS over HTTPS, and the attested certificate of its client.

The KMS and the network are untrusted: each call has a connection of its own, size and time are
limited, redirects are not followed, and neither the proxies nor the keylog file of the environment
are used.
"""

import json
import os
import ssl
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.x509.agent_validity import TEN_YEARS, YEAR_1975
from attestkit._crypto.x509.app_certificates import Certificate, certificate_pem, issue_leaf
from attestkit._system.bounded_http import (
    JSON_POST,
    ExchangeError,
    Request,
    Response,
    ResponseLimits,
    TimeLeft,
    connect_tcp,
    exchange,
    host_header,
    start_tls,
)
from attestkit.errors import FormatError, KmsError, UsageError
from attestkit.keys.hkdf import derive_p256
from attestkit.kms.answers import MAX_ANSWER, read_only_certificate, read_refusal, read_temporary_ca
from attestkit.kms.url import KmsUrl
from attestkit.ra_tls.certificate import OID_ATTESTATION
from attestkit.ra_tls.issuance import AttestFunction, Issued, load_issued
from attestkit.report_data import ReportData

if TYPE_CHECKING:
    from attestkit._outcomes.reasons import KmsReason
    from attestkit.attestation import Attestation

HEAD_LIMIT: Final = 64 * 1024
"""Maximum size of status line, header section and chunk framing of an answer in bytes."""
_OPTIONS: Final = ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
_EXPIRED: Final = {9, 10}  # X509_V_ERR_CERT_NOT_YET_VALID and _HAS_EXPIRED of OpenSSL
CheckServer = Callable[[bytes], None]
"""Function that checks the server's certificate (DER) after the handshake, before the request."""
SUBJECT: Final = "RA-TLS TEMP Cert"


class TimeLimits(NamedTuple):
    """Time limits of calls to a KMS, in seconds: to connect, and of a whole call."""

    connect: float = 5.0  # of each address of the host
    call: float = 60.0  # of the whole call, name resolution included


@cache  # a context takes half a millisecond
def anonymous_context() -> ssl.SSLContext:
    """Return the TLS context that does not verify the server, for GetTempCaCert only."""
    context = _context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def rooted_context(root: Certificate, issued: "Issued | None" = None) -> ssl.SSLContext:
    """Return a TLS context that trusts one root CA alone, and verifies the name of the host.

    Args:
        root: Certificate of the root CA.
        issued: Key and certificate of the client; None for an anonymous client.

    Raises:
        FormatError: If OpenSSL does not accept the certificate of the root CA.
        UnsupportedError: If memfd_create or /proc is not available.
    """
    context = _context()
    try:
        context.load_verify_locations(cadata=root.der)
    except ssl.SSLError as error:
        raise FormatError("root CA: must be one that OpenSSL accepts", reason="syntax") from error
    if issued is not None:
        load_issued(context, issued)
    return context


def call_kms(
    url: KmsUrl,
    method: str,
    arguments: Mapping[str, object],
    context: ssl.SSLContext,
    *,
    limits: TimeLimits,
    check_server: CheckServer | None = None,
) -> bytes:
    """Call a method of a KMS, and return the body of a successful answer.

    Args:
        url: Base URL of the KMS.
        method: Name of the method, such as `GetMeta`.
        arguments: JSON object that is sent.
        context: `anonymous_context` or `rooted_context`.
        limits: Time limits of this call.
        check_server: Gets the server's certificate (DER) before the request is sent, and raises an
            error to reject it; None accepts it.

    Raises:
        KmsError: If the call fails or is refused (reason `connection`, `timeout`, `refused`,
            `malformed`, `expired`, `wrong_certificate`), and what `check_server` raises.
        UsageError: If an argument has an unpaired surrogate.
    """

    def connect(time_left: TimeLeft) -> ssl.SSLSocket:
        plain = connect_tcp(url.host, url.port, limits.connect, time_left)
        sock = start_tls(plain, url.host, context, time_left)
        if check_server is not None:
            try:
                check_server(sock.getpeercert(binary_form=True) or b"")
            except BaseException:
                sock.close()
                raise
        return sock

    bounds = ResponseLimits(HEAD_LIMIT, MAX_ANSWER, limits.call)
    try:
        answer = exchange(connect, _request(url, method, arguments), bounds)
    except ExchangeError as error:
        problem = f"{error}"
        if error.kind == "timed_out":
            problem += f", or no connection within {limits.connect:g} s"
        elif isinstance(error.__cause__, ConnectionRefusedError):
            problem += "; check the URL, and that the KMS runs"
        raise _failed(url, method, problem, _reason(error)) from error
    return _successful(url, method, answer)


def _context() -> ssl.SSLContext:
    # Not create_default_context: it may set VERIFY_X509_STRICT, which refuses upstream's
    # certificates, and writes keys to SSLKEYLOGFILE.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= _OPTIONS
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    context.hostname_checks_common_name = False
    context.set_alpn_protocols(["http/1.1"])  # HTTP/2 loses answers of early refusals
    return context


def _request(url: KmsUrl, method: str, arguments: Mapping[str, object]) -> Request:
    try:
        body = json.dumps(arguments, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        message = f"{method}: unpaired surrogate in an argument"
        raise UsageError(message, reason="encoding") from error
    host = host_header(url.host, url.port)
    return Request("POST", host, f"{url.path}/{method}?json", JSON_POST, body)


def _successful(url: KmsUrl, method: str, answer: Response) -> bytes:
    status = answer.status
    if status == 200:
        return answer.body
    text = read_refusal(answer.body)
    if status >= 500:
        problem = f"HTTP status {status}{f': {text}' if text else ''}"
        raise _failed(url, method, problem, "connection")
    if status >= 400:
        message = f"KMS {url.base}: refused {method}: {text or f'HTTP status {status}'}"
        raise KmsError(message, reason="refused", url=url.base)
    raise _failed(url, method, f"unexpected HTTP status {status}", "malformed")


def _failed(url: KmsUrl, method: str, problem: str, reason: "KmsReason") -> KmsError:
    message = f"KMS {url.base}: {method} failed: {problem}"
    return KmsError(message, reason=reason, url=url.base)


def _reason(error: ExchangeError) -> "KmsReason":
    cause = error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return "expired" if cause.verify_code in _EXPIRED else "wrong_certificate"
    if error.kind == "timed_out":
        return "timeout"
    return "malformed" if error.kind in {"too_large", "malformed"} else "connection"


class ClientCa(NamedTuple):
    """The temporary CA of a KMS with its key, and its root CA; certificates are not verified."""

    certificate: Certificate
    key: P256Key  # every client gets it
    root: Certificate

    @classmethod
    def from_json(cls, data: bytes) -> "ClientCa":
        """Decode `data`, the answer to GetTempCaCert in JSON, which an unverified server has sent.

        Text around certificates and key is dropped, because they are written to the key file.

        Raises:
            FormatError: If it is malformed, or a member is not one certificate, or not a P-256 key.
        """
        certificate, key, root = read_temporary_ca(data)
        return cls(
            read_only_certificate(certificate), P256Key.from_pem(key), read_only_certificate(root)
        )


class AttestedKey:
    """A new TLS key and evidence over it, for the certificates of one release of keys."""

    def __init__(self, attest: AttestFunction, random: Callable[[int], bytes] = os.urandom) -> None:
        """Generate a key and attest it; raises the errors of `attest`.

        Args:
            attest: Called with the keyword argument `report_data`; returns the evidence.
            random: Called with a number of bytes; returns as many random bytes.
        """
        self._key = derive_p256(random(32))
        bound = ReportData.bind(ReportData.RATLS_CERT, self._key.spki_der)
        self.evidence: Attestation = attest(report_data=bound)
        self._encoded = self.evidence.stripped().to_bytes()

    def certify(self, temp_ca: ClientCa, now: float) -> Issued:
        """Issue a certificate with the evidence by the temporary CA; the chain is this one only.

        The temporary CA authenticates nothing, because every client has its key; the KMS verifies
        the evidence.

        Args:
            temp_ca: Temporary CA of the KMS.
            now: Seconds since 1970.

        Raises:
            KmsError: If the CA's certificate is not valid now (reason `expired`), is not that of
                its key (`wrong_certificate`), or cannot be used (`malformed`).
        """
        _check_time(temp_ca.certificate, now)
        try:
            leaf = issue_leaf(
                public_key=self._key,
                subject=SUBJECT,
                not_before=YEAR_1975,
                not_after=int(now) + TEN_YEARS,
                extensions=[(OID_ATTESTATION, self._encoded)],
                ca_cert=temp_ca.certificate,
                ca_key=temp_ca.key,
            )
        except UsageError as error:
            is_other_key = error.reason == "conflict"
            raise KmsError(
                f"temporary CA: {error}",
                reason="wrong_certificate" if is_other_key else "malformed",
            ) from error
        return Issued(self._key.pkcs8_pem, (certificate_pem(leaf),))

    def __repr__(self) -> str:
        return f"AttestedKey({self.evidence!r})"


def _check_time(certificate: Certificate, now: float) -> None:
    moment = datetime.fromtimestamp(now, timezone.utc)
    if not certificate.valid_from <= moment <= certificate.valid_until:
        period = f"{certificate.valid_from:%Y-%m-%d} to {certificate.valid_until:%Y-%m-%d}"
        message = f"temporary CA: its certificate is valid from {period} only; check the clocks"
        raise KmsError(message, reason="expired")
