"""Certificates of attestation keys of simulated Google vTPMs (vtpm.md, section 7.2).

Name and extension are those of Google's certificates, because verifiers read them; the root is that
of the simulated machine. Authority information access is left out.
"""

from typing import Final

from attestkit._crypto.der import (
    BOOLEAN,
    UTF8_STRING,
    context,
    encode_element,
    encode_integer,
    encode_sequence,
)
from attestkit._crypto.x509.ak_certificates.gce_extension import GceInstance
from attestkit._crypto.x509.simulated.certificate_encoder import Issuer
from attestkit._crypto.x509.simulated.cloud_certificates import (
    SIMULATED_MARK,
    Extension,
    encode_name,
    issue_cloud_leaf,
)
from attestkit.backends.simulator.pki import cloud_root

EK_CERTIFICATE: Final = bytes.fromhex("6781050801")  # 2.23.133.8.1
_INSTANCE: Final = bytes.fromhex("2b06010401d679020115")  # 1.3.6.1.4.1.11129.2.1.21


INSTANCE: Final = GceInstance(
    zone="us-central1-a",
    project_number=100_000_000_001,
    project_id=SIMULATED_MARK,
    instance_id=1_000_000_000_000_000_001,
    instance_name="simulated-vm",
    security_version=0,
    is_production=True,
)
"""The instance that simulated certificates name."""


def issue_google_intermediates(
    root: cloud_root.CloudRoot, derive: cloud_root.Derive
) -> tuple[cloud_root.CloudRoot, cloud_root.CloudRoot]:
    """Return two intermediate CAs of one name, as Google has several."""
    name = encode_name(CN="EK/AK CA Intermediate", OU="Google Cloud", O=SIMULATED_MARK)
    first, second = [
        cloud_root.issue_ca(
            Issuer(name, cloud_root.p256_key(derive, label)),
            root.authority,
            *(derive, label),
            path_length=0,
            usages=(EK_CERTIFICATE,),
        )
        for label in ("google/intermediate/0", "google/intermediate/1")
    ]
    return first, second


def issue_google_certificate(
    issuer: cloud_root.CloudRoot,
    spki: bytes,
    derive: cloud_root.Derive,
    usages: tuple[bytes, ...] = (),
) -> bytes:
    """Return the certificate (DER) of a key of a VM's TPM.

    Args:
        issuer: The CA. Evidence has no certificate of an intermediate one.
        spki: The key, SubjectPublicKeyInfo in DER.
        derive: Returns secret bytes.
        usages: Extended key usages, contents of OBJECT IDENTIFIERs; none for attestation keys.
    """
    instance = INSTANCE
    subject = encode_name(
        CN=str(instance.instance_id),
        OU=instance.project_id,
        O="Google Compute Engine",
        L=instance.zone,
    )
    return issue_cloud_leaf(
        (subject, spki),
        issuer.authority,
        serial=cloud_root.serial_number(derive, f"google/ak/{spki.hex()}"),
        validity=cloud_root.VALIDITY,
        usages=usages,
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
