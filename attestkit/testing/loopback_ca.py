"""A certificate authority for test servers on this machine's loopback addresses."""

import os
from typing import TYPE_CHECKING, Final

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.x509.app_certificates import certificate_pem, issue_ca, issue_leaf
from attestkit._system.clock import current_time
from attestkit.keys.hkdf import derive_p256
from attestkit.ra_tls.issued import Issued, issue
from attestkit.report_data import ReportData

if TYPE_CHECKING:
    from attestkit.attestation import Attestation
    from attestkit.testing.tee import SimulatedTee

_NAMES: Final = ("localhost", "127.0.0.1", "::1")
_LIFETIME: Final = 82_800  # seconds: with _BACKDATED under ra_tls.MAX_LIFETIME
_BACKDATED: Final = 300  # seconds, for clients whose clock is slow


def new_key() -> P256Key:
    """Return a new key pair."""
    return derive_p256(os.urandom(32))


class LoopbackCa:
    """A new CA, whose certificates are for localhost and valid for 23 hours."""

    def __init__(self) -> None:
        now = int(current_time())
        self._begin, self._end = now - _BACKDATED, now + _LIFETIME
        self._key = new_key()
        der = issue_ca(
            key=self._key,
            subject="attestkit tests",
            path_length=0,
            not_before=self._begin,
            not_after=self._end,
        )
        self.pem: str = certificate_pem(der)

    def issue(self) -> Issued:
        """Issue a certificate for a new key."""
        key = new_key()
        leaf = issue_leaf(
            public_key=key,
            subject=_NAMES[0],
            alt_names=_NAMES,
            server_auth=True,
            not_before=self._begin,
            not_after=self._end,
            authority_key_id=True,
            ca_cert=self.pem,
            ca_key=self._key,
        )
        return Issued(key.pkcs8_pem, (certificate_pem(leaf), self.pem))

    def issue_ra_tls(self, tee: "SimulatedTee", about: P256Key | None = None) -> Issued:
        """Issue an RA-TLS certificate for a new key.

        Args:
            tee: The TEE that makes the evidence.
            about: Key that the evidence is about instead, as in a certificate of an attacker.
        """

        def attest(*, report_data: bytes) -> "Attestation":
            if about is not None:
                report_data = ReportData.bind(ReportData.RATLS_CERT, about.spki_der)
            return tee.attest(report_data=report_data)

        return issue(
            subject=_NAMES[0],
            alt_names=_NAMES,
            attest=attest,
            usage_ra_tls=True,
            server_auth=True,
            not_before=self._begin,
            not_after=self._end,
            ca_cert=self.pem,
            ca_key=self._key,
        )
