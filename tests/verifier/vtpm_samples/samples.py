"""Files of `data/vtpm`, and what an independent reader finds in them."""

from datetime import datetime, timezone
from typing import Any, Final

from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.ak_certificates.path import AK_RULES
from attestkit._crypto.x509.cert_path import PathCertificate, check_issued, read_path_certificate
from attestkit.attestation.azure import HclReport
from tests.vectors import data
from tests.verifier.platforms.vtpm.tpm_samples import vtpm_json
from tests.verifier.vtpm_samples.facts import holds

EXPECTED: Final[dict[str, Any]] = vtpm_json("expected.json")
NOW: Final = datetime(2026, 6, 1, tzinfo=timezone.utc)
SNP, TDX, KINVOLK = "azure/trustee-snp", "azure/trustee-tdx", "azure/kinvolk"
VAPORTPM: Final = "gcp/vaportpm/test-gcp-tdx-fixture.json"
NITRO_TPM: Final = "aws/vaportpm/nitrotpm-document.bin"


def sample(name: str) -> bytes:
    """Return a file of the samples."""
    return data(f"vtpm/{name}")


def certificate(name: str) -> PathCertificate:
    """Return the first certificate of a file, in DER or PEM."""
    content = sample(name)
    pem = content.startswith(b"-----")
    return read_path_certificate(split_pem(content.decode())[0] if pem else content)


def signed_by(issued: PathCertificate, issuer: PathCertificate) -> bool:
    """Return whether a certificate is signed by an issuer."""
    return holds(lambda: check_issued(("a", issued), ("b", issuer), "cert_bad_signature", AK_RULES))


def ak_of(report: bytes) -> bytes:
    """Return the attestation key in an HCL report, as SubjectPublicKeyInfo."""
    return HclReport.parse(report).content.attestation_key.spki
