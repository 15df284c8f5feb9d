"""Certificates of attestation keys of simulated TPMs: Azure's, and others (vtpm.md, 6.6)."""

from typing import Final

from attestkit._crypto.x509.simulated.cloud_certificates import (
    SIMULATED_MARK,
    encode_name,
    issue_cloud_leaf,
)
from attestkit.backends.simulator.pki import cloud_root

_AK_CERTIFICATE: Final = bytes.fromhex("6781050803")  # 2.23.133.8.3


def issue_azure_certificate(
    root: cloud_root.CloudRoot, spki: bytes, name: str, derive: cloud_root.Derive
) -> bytes:
    """Return the certificate (DER) of an attestation key, issued by the root itself.

    A VM has this certificate alone: that of an intermediate CA would have to be fetched.

    Args:
        root: Root certificate.
        spki: The key, SubjectPublicKeyInfo in DER.
        name: Common name of the subject.
        derive: Returns secret bytes.
    """
    return issue_cloud_leaf(
        (encode_name(CN=name, O=SIMULATED_MARK), spki),
        root.authority,
        serial=cloud_root.serial_number(derive, f"azure/ak/{spki.hex()}"),
        validity=cloud_root.VALIDITY,
        usages=(_AK_CERTIFICATE,),
    )
