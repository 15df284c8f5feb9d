"""Certificates of a KMS, in dstack's profile (dstack, ra-tls).

Arguments of the functions: `root_pem` is the certificate of the root CA in PEM; `window` is the
validity period. Results are PEM.
"""

import re
from collections.abc import Sequence
from datetime import datetime, timezone
from ipaddress import ip_address
from typing import Final, NamedTuple

from attestkit._crypto.ecdsa import P256_SPKI_HEAD, P256Key, P256PublicKey
from attestkit._crypto.x509.agent_validity import END_OF_2049, TEN_YEARS, YEAR_1975
from attestkit._crypto.x509.app_certificates import (
    certificate_pem,
    issue_ca,
    issue_leaf,
    read_certificate,
)
from attestkit._sanitize import key as shorten
from attestkit.errors import SignatureError, UsageError
from attestkit.kms.release.roots import ROOT_CA, RPC, TEMP_CA, KmsRoots, derive_app_ca
from attestkit.kms.tls_chain import USAGE_APP_CA, USAGE_APP_CUSTOM, USAGE_KMS_RPC
from attestkit.ra_tls.certificate import OID_APP_ID, OID_APP_INFO, OID_ATTESTATION, OID_CERT_USAGE

ROOT_SUBJECT: Final = "Dstack KMS CA"
TEMP_CA_SUBJECT: Final = "Dstack Client Temp CA"
APP_CA_SUBJECT: Final = "Dstack App CA"
ORGANISATION: Final = "Dstack"

_RENEW_BEFORE: Final = 365 * 86_400  # seconds
_MAX_DOMAIN: Final = 253  # characters
_LABEL: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?", re.ASCII)


class ValidityPeriod(NamedTuple):
    """Validity period of a certificate, in seconds since 1970, both inclusive."""

    not_before: int
    not_after: int


class LeafProfile(NamedTuple):
    """Values for an app's certificate: those of its request, and extensions added by the KMS."""

    spki: bytes  # P-256 key of the leaf, SubjectPublicKeyInfo in DER
    subject: str  # common name
    organisation: str = ""
    alt_names: Sequence[str] = ()  # DNS names and IP addresses
    server_auth: bool = False
    client_auth: bool = False
    not_before: int | None = None  # seconds since 1970; None and 0: 1975
    not_after: int | None = None  # None and 0: 3650 days from now
    app_info: bytes | None = None  # content of the extension, MessagePack
    evidence: bytes | None = None  # content of the extension, stripped


def default_window(roots: KmsRoots, now: int) -> ValidityPeriod:
    """Return the validity period of new certificates: from 1975 until 3650 days after `now`.

    With keys from a seed it is from 1975 until the end of 2049, whatever the time, so that the
    certificates are the same at each start.
    """
    return ValidityPeriod(YEAR_1975, END_OF_2049 if roots.is_seeded else now + TEN_YEARS)


def issue_root(roots: KmsRoots, window: ValidityPeriod) -> str:
    """Issue the self-signed certificate of the root CA; return PEM."""
    serial = roots.serial_number(ROOT_CA)
    return _issue_self_signed(roots.ca_key, ROOT_SUBJECT, 1, serial, window)


def issue_temp_ca(roots: KmsRoots, window: ValidityPeriod) -> str:
    """Issue the self-signed certificate (PEM) of the temporary CA, whose key every client gets."""
    serial = roots.serial_number(TEMP_CA)
    return _issue_self_signed(roots.temp_ca_key, TEMP_CA_SUBJECT, 0, serial, window)


def _issue_self_signed(
    key: P256Key, subject: str, path_length: int, serial: int | None, window: ValidityPeriod
) -> str:
    issued = issue_ca(
        key=key,
        subject=subject,
        organisation=ORGANISATION,
        path_length=path_length,
        serial=serial,
        **window._asdict(),
    )
    return certificate_pem(issued)


def issue_rpc(
    roots: KmsRoots,
    root_pem: str,
    domain: str,
    window: ValidityPeriod,
    *,
    usage: bytes | None = USAGE_KMS_RPC,
    evidence: bytes | None = None,
) -> str:
    """Issue the certificate of the server's TLS key, `roots.rpc_key`; return PEM.

    Args:
        roots: Keys of the KMS.
        root_pem: Certificate of the root CA in PEM.
        domain: DNS name or IP address of the server: common name and alternative name.
        window: Validity period.
        usage: Content of the usage extension. Values other than `kms:rpc`, and None for no such
            extension, are to simulate faults.
        evidence: Stripped evidence over the TLS key, encoded; None for no such extension.

    Raises:
        UsageError: If the domain is not a DNS name or an IP address.
    """
    check_domain(domain)
    extensions = [(OID_CERT_USAGE, usage), (OID_ATTESTATION, evidence)]
    return certificate_pem(
        issue_leaf(
            public_key=roots.rpc_key,
            subject=domain,
            alt_names=(domain,),
            serial=roots.serial_number(RPC),
            extensions=[(oid, content) for oid, content in extensions if content is not None],
            ca_cert=root_pem,
            ca_key=roots.ca_key,
            **window._asdict(),
        )
    )


def issue_app_ca(roots: KmsRoots, root_pem: str, app_id: bytes, window: ValidityPeriod) -> str:
    """Issue the certificate of an app's CA by the root CA, `root_pem` in PEM; return PEM.

    Raises:
        UsageError: If the app id does not have 20 bytes.
    """
    return certificate_pem(
        issue_ca(
            key=derive_app_ca(roots, app_id),
            subject=APP_CA_SUBJECT,
            organisation=ORGANISATION,
            path_length=0,
            extensions=[(OID_APP_ID, app_id), (OID_CERT_USAGE, USAGE_APP_CA)],
            issuer=(root_pem, roots.ca_key),
            **window._asdict(),
        )
    )


def sign_app_certificate(
    roots: KmsRoots, root_pem: str, app_id: bytes, leaf: LeafProfile, *, now: int
) -> tuple[str, str, str]:
    """Sign the certificate of an app; return the chain in PEM: leaf, app CA, root.

    The caller has verified the request's signature and the evidence that names `app_id`.

    Args:
        roots: Keys of the KMS.
        root_pem: Certificate of the root CA in PEM.
        app_id: Verified app id, 20 bytes.
        leaf: Names and usages as requested.
        now: Seconds since 1970.

    Raises:
        UsageError: If the app id does not have 20 bytes, or a name or time cannot be encoded.
        SignatureError: If the requested key is not a P-256 key.
    """
    window = default_window(roots, now)
    app_ca = issue_app_ca(roots, root_pem, app_id, window)
    extensions = [
        (OID_APP_ID, app_id),
        (OID_APP_INFO, leaf.app_info),
        (OID_CERT_USAGE, USAGE_APP_CUSTOM),
        (OID_ATTESTATION, leaf.evidence),
    ]
    if not leaf.spki.startswith(P256_SPKI_HEAD):
        raise SignatureError("certificate request: key must be of P-256", reason="invalid_key")
    issued = issue_leaf(
        public_key=P256PublicKey(leaf.spki[len(P256_SPKI_HEAD) :]),
        subject=leaf.subject,
        organisation=leaf.organisation,
        alt_names=leaf.alt_names,
        server_auth=leaf.server_auth,
        client_auth=leaf.client_auth,
        not_before=leaf.not_before or window.not_before,
        not_after=leaf.not_after or window.not_after,
        extensions=[(oid, content) for oid, content in extensions if content is not None],
        ca_cert=app_ca,
        ca_key=derive_app_ca(roots, app_id),
    )
    return certificate_pem(issued), app_ca, root_pem


def needs_renewal(pem: str, now: int) -> bool:
    """Return whether a CA certificate ends within 365 days, so that it is to be issued again.

    Args:
        pem: The certificate in PEM.
        now: Seconds since 1970.

    Raises:
        FormatError: If the certificate is malformed.
    """
    moment = datetime.fromtimestamp(now, timezone.utc)
    left = read_certificate(pem).valid_until - moment
    return left.total_seconds() <= _RENEW_BEFORE


def check_domain(domain: str) -> None:
    """Raise UsageError unless a domain is an IP address, or a DNS name in ASCII."""
    try:
        if "%" not in domain:  # an IPv6 zone, which X.509 does not have
            ip_address(domain)
            return
    except ValueError:
        pass
    if len(domain) > _MAX_DOMAIN or not all(map(_LABEL.fullmatch, domain.split("."))):
        message = f"domain contains an invalid DNS label: {shorten(domain)}"
        raise UsageError(message, reason="wrong_value")
