"""Certificates of attestation keys of simulated Google vTPMs (vtpm.md, section 7.2).

Name and extension are those of Google's certificates, because verifiers read them; the root is that
of the simulated machine. Authority information access is left out.
"""

from typing import Final

from attestkit._crypto.der import BOOLEAN, context, encode_element
from attestkit._crypto.x509.ak_certificates.gce_extension import GceInstance
from attestkit._crypto.x509.certificate_encoder import (
    UTF8_STRING,
    encode_integer,
    encode_sequence,
)
from attestkit._crypto.x509.cloud_certificates import (
    Extension,
    encode_name,
    issue_cloud_leaf,
)
from attestkit.backends.simulator.pki.cloud_root import (
    VALIDITY,
    CloudRoot,
    Derive,
    serial_number,
)

_INSTANCE: Final = bytes.fromhex("2b06010401d679020115")  # 1.3.6.1.4.1.11129.2.1.21


INSTANCE: Final = GceInstance(
    zone="us-central1-a",
    project_number=100_000_000_001,
    project_id="attestkit-simulated",
    instance_id=1_000_000_000_000_000_001,
    instance_name="simulated-vm",
    security_version=0,
    is_production=True,
)
"""The instance that a simulated certificate names by default."""


def issue_google_certificate(
    root: CloudRoot, spki: bytes, derive: Derive, instance: GceInstance = INSTANCE
) -> bytes:
    """Return the certificate (DER) of an attestation key, issued by the root itself.

    Evidence has this certificate alone: that of an intermediate CA would have to be fetched.

    Args:
        root: Root certificate.
        spki: The key, SubjectPublicKeyInfo in DER.
        derive: Returns secret bytes.
        instance: The VM.
    """
    subject = encode_name(
        CN=str(instance.instance_id),
        OU=instance.project_id,
        O="Google Compute Engine",
        L=instance.zone,
    )
    return issue_cloud_leaf(
        (subject, spki),
        root.authority,
        serial=serial_number(derive, f"google/ak/{spki.hex()}"),
        validity=VALIDITY,
        extensions=(Extension(_INSTANCE, _encode_instance(instance)),),
    )


def _encode_instance(instance: GceInstance) -> bytes:
    """Return the extension of a Google AK certificate in DER."""
    version = encode_element(context(0), encode_integer(instance.security_version or 0))
    flag = encode_element(BOOLEAN, b"\xff" if instance.is_production else b"\0")
    production = encode_element(context(1), flag)
    properties = encode_element(context(0), encode_sequence(version, production))
    return encode_sequence(
        encode_element(UTF8_STRING, instance.zone.encode()),
        encode_integer(instance.project_number),
        encode_element(UTF8_STRING, instance.project_id.encode()),
        encode_integer(instance.instance_id),
        encode_element(UTF8_STRING, instance.instance_name.encode()),
        properties,
    )
