"""The client's certificate for GetAppKey, by the KMS's temporary CA (kms.md, section 1.4.1, 3)."""

import os
from collections.abc import Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.x509.agent_validity import TEN_YEARS, YEAR_1975
from attestkit._crypto.x509.app_certificates import Certificate, certificate_pem, issue_leaf
from attestkit.errors import KmsError, UsageError
from attestkit.keys.hkdf import derive_p256
from attestkit.kms.answers import read_temporary_ca
from attestkit.kms.https_call import read_only_certificate
from attestkit.ra_tls.certificate import OID_ATTESTATION
from attestkit.ra_tls.issued import AttestFunction, Issued
from attestkit.report_data import ReportData

if TYPE_CHECKING:
    from attestkit.attestation import Attestation

SUBJECT: Final = "RA-TLS TEMP Cert"


class ClientCa(NamedTuple):
    """The temporary CA of a KMS, and its root CA; the certificates are not verified."""

    certificate: Certificate
    key: P256Key  # every client gets it
    root: Certificate

    @classmethod
    def from_json(cls, data: bytes) -> "ClientCa":
        """Decode the answer to GetTempCaCert, which a server that is not verified has sent.

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
        """Generate a key and attest it; raises the errors of `attest`."""
        self._key = derive_p256(random(32))
        bound = ReportData.bind(ReportData.RATLS_CERT, self._key.spki_der)
        self.evidence: Attestation = attest(report_data=bound)
        self._encoded = self.evidence.stripped().to_bytes()

    def certify(self, temp_ca: ClientCa, now: float) -> Issued:
        """Issue a certificate with the evidence; only the certificate itself is presented.

        The temporary CA proves nothing, because every client has its key; the KMS verifies the
        evidence.

        Args:
            temp_ca: Temporary CA of the KMS.
            now: Seconds since 1970.

        Raises:
            KmsError: If the CA's certificate is not valid now (`expired`), is not that of its key
                (`wrong_certificate`), or cannot be used (`malformed`).
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
        message = f"temporary CA: its certificate is valid from {period} only"
        raise KmsError(message, reason="expired")
