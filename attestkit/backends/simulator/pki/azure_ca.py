"""Simulated Azure CA for attestation keys of vTPMs (vtpm.md, section 6.6)."""

from typing import Final

from attestkit._crypto.x509.cloud_certificates import (
    CloudAuthority,
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

_USAGES: Final = (bytes.fromhex("6781050801"), bytes.fromhex("6781050803"))  # 2.23.133.8.1, .3


class AzureCa:
    """Intermediate CA under the root of a simulated machine."""

    def __init__(self, root: CloudRoot, derive: Derive) -> None:
        """Derive the key of the intermediate CA, and issue its certificate."""
        name = encode_name(
            C="US", O="Microsoft Corporation", CN="Global Virtual TPM CA - simulated"
        )
        self._derive = derive
        self._authority = CloudAuthority(name, p256_key(derive, "azure/intermediate"))
        self.intermediate_der: bytes = issue_cloud_authority(
            self._authority,
            root.authority,
            serial=serial_number(derive, "azure/intermediate"),
            validity=VALIDITY,
            path_length=0,
            usages=_USAGES,
        )

    def issue_ak_certificate(self, spki: bytes, vm_id: str) -> bytes:
        """Return the certificate (DER) of an attestation key, a SubjectPublicKeyInfo in DER."""
        return issue_cloud_leaf(
            (encode_name(CN=f"{vm_id}.TrustedVM.Azure.windows.net"), spki),
            self._authority,
            serial=serial_number(self._derive, f"azure/ak/{spki.hex()}"),
            validity=VALIDITY,
            usages=_USAGES[1:],
        )
