"""Simulated Google CA for attestation keys of vTPMs (vtpm.md, sections 7.1 and 7.2).

The names, the extended key usage and the extension with the instance are those of Google's
certificates, because verifiers read them; the root is that of the simulated machine. Links of
authority information access are left out: the certificates are enclosed in the evidence or handed
to the verifier.
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
    CloudAuthority,
    Extension,
    encode_name,
    issue_cloud_authority,
    issue_cloud_leaf,
)
from attestkit.backends.simulator.pki.cloud_root import (
    VALIDITY,
    CloudRoot,
    Derive,
    p256_key,
    serial_number,
)

EK_CERTIFICATE: Final = bytes.fromhex("6781050801")
"""OID 2.23.133.8.1, the extended key usage of Google's CAs: content of the OBJECT IDENTIFIER."""

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


class GoogleCa:
    """Intermediate CA under the root of a simulated machine."""

    def __init__(self, root: CloudRoot, derive: Derive) -> None:
        """Derive the key of the intermediate CA, and issue its certificate."""
        name = encode_name(
            CN="EK/AK CA Intermediate",
            OU="Google Cloud",
            O="Google LLC",
            L="Mountain View",
            ST="California",
            C="US",
        )
        self._derive = derive
        self._authority = CloudAuthority(name, p256_key(derive, "google/intermediate"))
        self.intermediate_der: bytes = issue_cloud_authority(
            self._authority,
            root.authority,
            serial=serial_number(derive, "google/intermediate"),
            validity=VALIDITY,
            path_length=0,
            usages=(EK_CERTIFICATE,),
        )

    def issue_ak_certificate(self, spki: bytes, instance: GceInstance = INSTANCE) -> bytes:
        """Return the certificate (DER) of an attestation key, a SubjectPublicKeyInfo in DER."""
        subject = encode_name(
            CN=str(instance.instance_id),
            OU=instance.project_id,
            O="Google Compute Engine",
            L=instance.zone,
        )
        return issue_cloud_leaf(
            (subject, spki),
            self._authority,
            serial=serial_number(self._derive, f"google/ak/{spki.hex()}"),
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
