"""The root of a simulated cloud's own certificates: that of the hardware it simulates.

A verifier has one trust anchor, so the certificates of Google's, AWS's and Azure's TPMs are issued
under the simulated root of Intel or AMD; without such hardware there is a root of its own.
"""

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any, Final, NamedTuple

from attestkit._crypto.ecdsa import P256_ORDER, P256Key
from attestkit._crypto.p384 import P384_ORDER, P384Key
from attestkit._crypto.x509.names import certificate_subject
from attestkit._crypto.x509.simulated.certificate_encoder import Issuer, SigningKey, Window
from attestkit._crypto.x509.simulated.cloud_certificates import (
    SIMULATED_MARK,
    encode_name,
    issue_cloud_authority,
)

Derive = Callable[[str, int], bytes]
"""Returns secret bytes for a label and a number of bytes."""

VALIDITY: Final = Window(
    datetime(2020, 1, 1, tzinfo=timezone.utc),
    datetime(2049, 12, 31, 23, 59, 59, tzinfo=timezone.utc),
)
"""Validity of the certificates of simulated CAs."""


def p256_key(derive: Derive, label: str) -> P256Key:
    """Return the P-256 key of `label`."""
    # 48 bytes: the bias is negligible, so rejection sampling is not needed.
    wide = int.from_bytes(derive(f"p256/{label}", 48), "big")
    return P256Key.from_scalar((wide % (P256_ORDER - 1) + 1).to_bytes(32, "big"))


def p384_key(derive: Derive, label: str) -> P384Key:
    """Return the P-384 key of `label`."""
    wide = int.from_bytes(derive(f"p384/{label}", 72), "big")
    return P384Key(wide % (P384_ORDER - 1) + 1)


def serial_number(derive: Derive, label: str) -> int:
    """Return the serial number of the certificate of `label`: 20 octets, the first 40 to 7F."""
    octets = derive(f"serial/{label}", 20)
    return int.from_bytes(bytes([octets[0] & 0x3F | 0x40]) + octets[1:], "big")


def window_until(now: float, duration: timedelta) -> Window:
    """Return the validity of a certificate that was issued a minute before a Unix time."""
    start = datetime.fromtimestamp(int(now), timezone.utc) - timedelta(minutes=1)
    return Window(start, start + duration)


class CloudRoot(NamedTuple):
    """A root certificate with its key, which issues the CAs of a simulated cloud."""

    authority: Issuer
    der: bytes

    @classmethod
    def of(cls, certificate: bytes, key: SigningKey) -> "CloudRoot":
        """Return the root of a simulated processor.

        Args:
            certificate: DER.
            key: Its private key.
        """
        return cls(Issuer(certificate_subject(certificate), key), certificate)


def issue_ca(
    subject: Issuer, issuer: Issuer, derive: Derive, label: str, **fields: Any
) -> CloudRoot:
    """Return the CA of a label, with the fields of its certificate that are not the usual ones."""
    fields = {"validity": VALIDITY, "path_length": None, **fields}
    serial = serial_number(derive, label)
    return CloudRoot(subject, issue_cloud_authority(subject, issuer, serial=serial, **fields))


def make_root(derive: Derive, label: str, common_name: str, key: SigningKey) -> CloudRoot:
    """Return the root of a label, with a name that says that it is simulated."""
    subject = Issuer(encode_name(CN=common_name, O=SIMULATED_MARK), key)
    return issue_ca(subject, subject, derive, label)


def make_own_root(derive: Derive) -> CloudRoot:
    """Return a root for a machine without a simulated processor."""
    return make_root(derive, "own/root", "TPM root", p256_key(derive, "own/root"))
