"""The AWS root has the fingerprint that AWS publishes."""

import pytest

from attestkit._crypto.hashes import sha256
from attestkit._crypto.p384 import p384_verify_der
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._crypto.x509.vendor_roots import AWS_ROOT
from attestkit.attestation import Attestation
from tests.vectors import data, needs_shared

PUBLISHED = (
    "64:1A:03:21:A3:E2:44:EF:E4:56:46:31:95:D6:06:31:"
    "7E:D7:CD:CC:3C:17:56:E0:98:93:F3:C6:8F:79:BB:5B"
)


def test_aws_root_has_published_fingerprint() -> None:
    """The root has the published fingerprint and is self-signed."""
    assert sha256(AWS_ROOT).hex(":").upper() == PUBLISHED
    root = read_path_certificate(AWS_ROOT)
    assert root.subject == root.issuer
    assert root.authority
    p384_verify_der(root.spki, root.signature, root.signed)


@needs_shared
@pytest.mark.parametrize("name", ["nitro_attestation", "nitro_attestation_dbg"])
def test_aws_root_is_in_captured_documents(name: str) -> None:
    """Nitro documents contain it as the first certificate of their bundle."""
    attestation = Attestation.from_bytes(data(f"dstack/dstack-attest/{name}.bin"))
    assert attestation.nitro_document is not None
    assert attestation.nitro_document.cabundle[0] == AWS_ROOT
